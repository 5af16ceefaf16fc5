"""One upstream: what it is, whether it can generate, and the requests that run on it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from m2serve.engine.request import EngineOutput, EngineRequest, SamplingParams
from m2serve.engine.upstream_dialect import (
    Dialect,
    UpstreamBusyError,
    UpstreamError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
)
from m2serve.engine.upstream_http import UpstreamHttp
from m2serve.errors import M2Error, RequestError

logger = logging.getLogger(__name__)

PROBE_TOKEN_ID = 0
MAX_TIMEOUTS = 3


@dataclass(frozen=True)
class UpstreamTimes:
    """Seconds. `poll_s` between two looks at the health, which may take `health_timeout_s`.

    A first token may take `probe_timeout_s`, since some engines compile on their first request.
    """

    poll_s: float = 1.0
    health_timeout_s: float = 10.0
    probe_timeout_s: float = 300.0


@dataclass(frozen=True)
class ModelCard:
    """What /v1/models says; `max_model_len` 0 when it does not say."""

    name: str
    owner: str
    max_model_len: int


class _Model(msgspec.Struct):
    id: str
    owned_by: str = ""
    max_model_len: int | None = None


class _ModelList(msgspec.Struct):
    data: list[_Model]


class Member:
    """`up` is true from its first token until it fails; `changed` is called at either.

    `refusal` is set when waiting does not help. `card` stays after a failure.
    """

    def __init__(
        self,
        http: UpstreamHttp,
        dialects: Mapping[str, Dialect],
        times: UpstreamTimes,
        changed: Callable[[Member], None],
    ) -> None:
        self.http = http
        self.up = False
        self.detail = f"{http.url} has not answered yet"
        self.refusal: M2Error | None = None
        self.card: ModelCard | None = None
        self._dialects = dialects
        self._times = times
        self._changed = changed
        self._num_timeouts = 0
        self._is_suspect = False
        self._queues: set[asyncio.Queue[EngineOutput | M2Error]] = set()
        self._look_now = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._watch(), name=f"watch {self.http.url}")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self.up = False
        self._drop(UpstreamError("the server is closing"))

    def look_now(self) -> None:
        """Look at once whether it can still generate, since something was odd."""
        self._is_suspect = True
        self._look_now.set()

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Outputs up to one with a finish_reason; raises what UpstreamHttp.post raises.

        A task of its own reads the connection, so that a failure seen elsewhere ends the wait.
        """
        queue: asyncio.Queue[EngineOutput | M2Error] = asyncio.Queue()
        self._queues.add(queue)
        task = asyncio.create_task(self._pump(request, queue))
        try:
            while True:
                output = await queue.get()
                if isinstance(output, M2Error):
                    raise output
                yield output
                if output.finish_reason is not None:
                    return
        finally:
            self._queues.discard(queue)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _pump(
        self, request: EngineRequest, queue: asyncio.Queue[EngineOutput | M2Error]
    ) -> None:
        try:
            async for output in self._stream(request):
                queue.put_nowait(output)
        except UpstreamBusyError as error:
            queue.put_nowait(error)
        except UpstreamError as error:
            self.look_now()
            queue.put_nowait(error)
        except M2Error as error:
            queue.put_nowait(error)
        except Exception:
            logger.exception("reading the answer of %s failed", self.http.url)
            queue.put_nowait(UpstreamError("reading the upstream's answer failed"))

    async def _stream(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        assert self.card is not None, "a member is used after it was identified"
        dialect = self._dialect(self.card)
        reader = dialect.reader(request)
        body = dialect.body(request, self.card.name)
        objects = cast(AsyncGenerator[dict[str, Any], None], self.http.post(dialect.path, body))
        finished = False
        async with aclosing(objects):
            async for data in objects:
                output = reader.read(data)
                if output is not None:
                    finished = output.finish_reason is not None
                    yield output
        if (last := reader.finish()) is not None:
            finished = last.finish_reason is not None
            yield last
        if not finished:
            raise UpstreamError(f"{self.http.url} broke off in the middle of an answer")

    def _dialect(self, card: ModelCard) -> Dialect:
        return self._dialects.get(card.owner, self._dialects[""])

    # Health

    async def _watch(self) -> None:
        while True:
            try:
                if await self._is_healthy() and (self._is_suspect or not self.up):
                    await self._try_out()
            except Exception:
                logger.exception("looking at the health of %s failed", self.http.url)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look_now.wait(), self._times.poll_s)
            self._look_now.clear()

    async def _is_healthy(self) -> bool:
        """Ends what runs when there is no answer, or one that says the engine is dead."""
        try:
            status, _ = await self.http.get("/health", self._times.health_timeout_s)
            if status >= 500:
                raise UpstreamError(f"{self.http.url}/health answers {status}")
        except UpstreamTimeoutError as error:
            self._num_timeouts += 1
            if self._num_timeouts >= MAX_TIMEOUTS:
                self._go_down(error)
                self._drop(error)
            return False
        except UpstreamError as error:
            self._go_down(error)
            self._drop(error)
            return False
        self._num_timeouts = 0
        return True

    async def _try_out(self) -> None:
        """Generate a token. What runs goes on in any case: its own connection tells if it can."""
        self._is_suspect = False
        try:
            async with asyncio.timeout(self._times.probe_timeout_s):
                self.card = await self._identify()
                await self._generate_a_token()
        except UpstreamBusyError as error:
            if not self.up:
                self._go_down(error)
            return
        except TimeoutError:
            timeout_s = self._times.probe_timeout_s
            sentence = f"{self.http.url} generated no token within {timeout_s:g} s"
            self._go_down(UpstreamError(sentence))
            return
        except (UpstreamRefusedError, RequestError) as error:
            self.refusal = error
            self._go_down(error)
            return
        except UpstreamError as error:
            self._go_down(error)
            return
        self.refusal = None
        self.detail = ""
        if not self.up:
            self.up = True
            self._changed(self)

    async def _identify(self) -> ModelCard:
        answer = await self.http.get_json("/v1/models", self._times.health_timeout_s)
        try:
            card = msgspec.convert(answer, _ModelList).data[0]
        except (msgspec.ValidationError, IndexError) as error:
            raise UpstreamRefusedError(
                f"{self.http.url}/v1/models names no model; is it vLLM, SGLang or m2serve?"
            ) from error
        return ModelCard(card.id, card.owned_by, card.max_model_len or 0)

    async def _generate_a_token(self) -> None:
        sampling = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
        request = EngineRequest(
            request_id=f"probe-{uuid.uuid4().hex}",
            prompt_token_ids=[PROBE_TOKEN_ID],
            sampling=sampling,
        )
        outputs = cast(AsyncGenerator[EngineOutput, None], self._stream(request))
        async with aclosing(outputs):
            num_tokens = sum([len(output.token_ids) async for output in outputs])
        if num_tokens == 0:
            raise UpstreamError(f"{self.http.url} answered a prompt with no token")

    def _go_down(self, error: M2Error) -> None:
        self.detail = str(error)
        was_up, self.up = self.up, False
        if was_up:
            logger.error("%s", error)
        if was_up or self.refusal is not None:
            self._changed(self)

    def _drop(self, error: M2Error) -> None:
        for queue in self._queues:
            queue.put_nowait(error)
