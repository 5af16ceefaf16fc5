"""What the routes work with; made once by `create_app` and passed to each of them."""

from __future__ import annotations

from dataclasses import dataclass

from m2serve import __version__
from m2serve.chat.tokenizer import Tokenizer
from m2serve.engine.client import EngineClient
from m2serve.errors import RequestError
from m2serve.server.config import ServerConfig
from m2serve.server.generation import Generator
from m2serve.server.metrics import Metrics
from m2serve.server.running import RunningRequests


@dataclass(frozen=True)
class ServerState:
    """`created` is when the server started, in seconds since 1970."""

    config: ServerConfig
    engine: EngineClient
    tokenizer: Tokenizer
    generator: Generator
    running: RunningRequests
    metrics: Metrics
    created: int

    @property
    def fingerprint(self) -> str:
        """Answers of equal fingerprints come from equal software in equal precision."""
        info = self.engine.info
        words = f"m2serve-{__version__} {info.device} {info.dtype} {info.precision}".split()
        return "-".join(words).replace(",", "")

    def check_model(self, model: str | None) -> None:
        """Raise RequestError with status 404 for a name we do not serve; none is ours."""
        names = self.config.served_model_names
        if model is not None and model not in names:
            raise RequestError(
                f"The model {model[:200]!r} is not served here; {', '.join(names)} is.",
                param="model",
                code="model_not_found",
                status=404,
            )
