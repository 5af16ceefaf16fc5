"""Whom an examination is about: what the endpoint says of itself, and what the user adds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from m2serve.client import EndpointError
from m2serve.doctor.log_situation import model_base
from m2serve.doctor.probe import Probe
from m2serve.doctor.prompt_count import PromptCounter
from m2serve.doctor.result import Check
from m2serve.spec.situation import Situation

CARD_SAMPLING: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95, "top_k": 40}
GREEDY: dict[str, Any] = {"temperature": 0.0, "seed": 0}

_ENGINES = {"vllm": "vllm", "sglang": "sglang", "m2serve": "own", "llamacpp": "llama.cpp"}
_VERSION_PATHS = ("/version", "/server_info", "/get_server_info")


@dataclass(frozen=True)
class Target:
    """`max_model_len` 0: the endpoint does not say. `counter` None: no tokenizer was given."""

    model: str
    max_model_len: int
    situation: Situation
    counter: PromptCounter | None = None
    is_quick: bool = False

    def check(self, name: str, sent: str) -> Check:
        """What results of a check have in common."""
        return Check(name, sent, self.situation)

    def body(self, content: str, max_tokens: int, **fields: Any) -> dict[str, Any]:
        """A chat request of one user message; at most half of the context is for the answer."""
        messages = [{"role": "user", "content": content}]
        return self.body_of(messages, max_tokens, **fields)

    def body_of(
        self, messages: list[dict[str, Any]], max_tokens: int, **fields: Any
    ) -> dict[str, Any]:
        """The same for a whole conversation."""
        room = self.max_model_len // 2 or max_tokens
        return {
            "model": self.model,
            "messages": messages,
            "max_tokens": min(max_tokens, room),
            **fields,
        }


async def find_target(probe: Probe, model: str | None = None) -> Target:
    """Ask for models and version. EndpointError when nobody answers or no model is served."""
    reply = await probe.get("/v1/models")
    if reply.status == 0:
        raise EndpointError(f"no answer from {probe.base_url}: {reply.text}")
    if reply.status in (401, 403):
        raise EndpointError(f"{probe.base_url} wants a key ({reply.error}); give --api-key")
    served = reply.data.get("data")
    models = [one for one in served if isinstance(one, dict)] if isinstance(served, list) else []
    chosen = next((one for one in models if model in (None, one.get("id"))), None)
    if chosen is None and model is None:
        raise EndpointError(f"{probe.base_url}/v1/models names no model: {reply.error or 'empty'}")
    chosen = chosen or {"id": model}
    length = chosen.get("max_model_len")
    max_model_len = length if isinstance(length, int) and length > 0 else 0
    situation = await _situation(probe, chosen, max_model_len)
    return Target(str(chosen["id"]), max_model_len, situation)


async def _situation(probe: Probe, model: dict[str, Any], max_model_len: int) -> Situation:
    """What can be known of the deployment from outside."""
    name = str(model.get("root") or model.get("id"))
    situation = Situation(
        engine=_ENGINES.get(str(model.get("owned_by")), ""),
        model=name,
        model_base=model_base(name),
        max_model_len=max_model_len,
    )
    for path in _VERSION_PATHS:
        info = (await probe.get(path)).data
        if isinstance(info.get("version"), str):
            return replace(situation, **_facts(info))
    return situation


def _facts(info: dict[str, Any]) -> dict[str, Any]:
    """The version, and of SGLang's server info the facts it has beside it."""
    facts: dict[str, Any] = {"engine_version": info["version"][:64]}
    tensor, expert = info.get("tp_size"), info.get("ep_size")
    if isinstance(tensor, int) and isinstance(expert, int):
        facts |= {"tensor_parallel": tensor, "expert_parallel": expert > 1}
    return facts
