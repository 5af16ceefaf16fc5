"""What the server is told at start. Names are the command's options where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from m2serve.chat.identity import DEFAULT_IDENTITY
from m2serve.errors import ConfigError

ReasoningParser = Literal["minimax_m2", "minimax_m2_append_think"]


@dataclass(frozen=True)
class DefaultSampling:
    """What a request gets that says nothing; M2's own generation_config.json has these values."""

    temperature: float = 1.0
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any]) -> DefaultSampling:
        """Read generation_config.json; a field it lacks is off. Raises ConfigError.

        `do_sample: false` means greedy. An empty config means the file is absent: M2's values.
        """
        if not config:
            return cls()
        if config.get("do_sample") is False:
            return cls(temperature=0.0, top_p=1.0, top_k=0)
        return cls(
            temperature=_number(config, "temperature", 1.0, 0.0, 100.0),
            top_p=_number(config, "top_p", 1.0, 1e-9, 1.0),
            top_k=int(_number(config, "top_k", 0, -1, 1 << 22)),
            min_p=_number(config, "min_p", 0.0, 0.0, 1.0),
            repetition_penalty=_number(config, "repetition_penalty", 1.0, 0.01, 100.0),
        )


@dataclass(frozen=True)
class ServerConfig:
    """`served_model_names` are all names of the one model; the first stands in answers and metrics.

    `max_num_queued_reqs` and `max_num_queued_tokens` count sequences without a first token and
    their prompts; 0 is no limit. `max_connections` bounds open sockets, idle ones too.
    `allow_unknown_tools` lets the model call a tool that the request did not offer.
    """

    served_model_names: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    reasoning_parser: ReasoningParser = "minimax_m2"
    allow_unknown_tools: bool = False
    model_identity: str = DEFAULT_IDENTITY
    default_sampling: DefaultSampling = field(default_factory=DefaultSampling)
    max_n: int = 16
    max_prompts: int = 64
    max_num_queued_reqs: int = 1024
    max_num_queued_tokens: int = 16 * 1024 * 1024
    max_body_bytes: int = 32 * 1024 * 1024
    max_header_bytes: int = 64 * 1024
    max_connections: int = 2048
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    keep_alive_timeout_s: float = 75.0
    sse_keep_alive_s: float = 15.0
    shutdown_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if not self.served_model_names:
            raise ConfigError("served_model_names is empty; a model needs at least one name")
        if "" in self.api_keys:
            raise ConfigError("an API key is empty; give it characters or leave the option out")

    @property
    def model_name(self) -> str:
        return self.served_model_names[0]


def _number(config: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = config.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(
            f"{name} is {value!r} in generation_config.json; from {low} to {high} is allowed"
        )
    return value
