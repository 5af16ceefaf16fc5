"""The shape of a MiniMax-M2 decoder, read from config.json and refused field by field.

Sizes come from the file; what makes the family (QK-norm over the whole projection, half rotary,
sigmoid router with a correction bias, no shared expert, untied head) defaults to M2's value when a
re-save dropped the field, and is refused when the file contradicts it. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2serve.errors import ConfigError

MODEL_TYPE = "minimax_m2"
ARCHITECTURE = "MiniMaxM2ForCausalLM"
MAX_CONFIG_BYTES = 16 * 1024 * 1024

# Bounds that keep a hostile config from asking for absurd work; real models are far inside.
_LIMITS = {
    "hidden_size": 1 << 17,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 10,
    "num_key_value_heads": 1 << 10,
    "head_dim": 1 << 10,
    "intermediate_size": 1 << 18,
    "num_local_experts": 1 << 13,
    "num_experts_per_tok": 1 << 10,
    "vocab_size": 1 << 22,
    "max_position_embeddings": 1 << 26,
}

# Family invariants: (field, the only value we run). A missing field means M2's value.
_INVARIANTS: tuple[tuple[str, Any], ...] = (
    ("use_qk_norm", True),
    ("qk_norm_type", "per_layer"),
    ("scoring_func", "sigmoid"),
    ("use_routing_bias", True),
    ("hidden_act", "silu"),
    ("shared_intermediate_size", 0),
    ("tie_word_embeddings", False),
)


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the decoder; `rotary_dim` is the number of leading dims of a head that rotate."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float
    rms_norm_eps: float
    intermediate_size: int
    num_local_experts: int
    num_experts_per_tok: int
    vocab_size: int
    max_position_embeddings: int

    @property
    def q_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_key_value_heads * self.head_dim

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read and check every field; raises ConfigError naming the field and its value."""
        _check_family(config)
        sizes = {name: _positive_int(config, name, limit) for name, limit in _LIMITS.items()}
        shape = cls(
            **sizes,
            rotary_dim=_rotary_dim(config, sizes["head_dim"]),
            rope_theta=_rope_theta(config),
            rms_norm_eps=_positive_float(config, "rms_norm_eps", 1e-6),
        )
        _check_consistency(shape)
        return shape


def load_config(folder: Path) -> dict[str, Any]:
    """Parse FOLDER/config.json; raises ConfigError when it is absent, too large or no object."""
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"{folder} has no config.json, so it is not a checkpoint folder")
    return load_json_object(path)


def load_json_object(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Read a JSON object from a file beside the weights; raises ConfigError."""
    try:
        if path.stat().st_size > max_bytes:
            raise ConfigError(f"{path} is larger than {max_bytes} bytes")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a JSON {type(value).__name__}, an object is needed")
    return value


def _check_family(config: Mapping[str, Any]) -> None:
    model_type = config.get("model_type")
    if model_type != MODEL_TYPE:
        architectures = config.get("architectures")
        raise ConfigError(
            f"model_type is {model_type!r} (architectures {architectures!r}); "
            f"m2serve runs only {MODEL_TYPE!r} ({ARCHITECTURE})"
        )
    for name, wanted in _INVARIANTS:
        value = config.get(name, wanted)
        if value is not None and value != wanted:
            raise ConfigError(f"{name} is {value!r} in config.json; MiniMax-M2 has {wanted!r}")
    layer_types = config.get("attn_type_list")
    if layer_types is None:
        layer_types = []
    elif not isinstance(layer_types, list) or len(layer_types) != config.get("num_hidden_layers"):
        raise ConfigError(
            f"attn_type_list is not a list of num_hidden_layers "
            f"({config.get('num_hidden_layers')!r}) entries in config.json"
        )
    if any(kind != 1 for kind in layer_types):
        raise ConfigError(
            "attn_type_list names a layer that is not softmax attention (1); "
            "lightning attention belongs to MiniMax-Text-01 and M1, not to M2"
        )
    if config.get("sliding_window"):
        raise ConfigError(f"sliding_window is {config['sliding_window']!r}; MiniMax-M2 has none")


def _positive_int(config: Mapping[str, Any], name: str, limit: int) -> int:
    value = config.get(name)
    if value is None and name == "num_local_experts":
        value = config.get("num_experts")
    if value is None:
        raise ConfigError(f"{name} is missing in config.json")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= limit:
        raise ConfigError(f"{name} is {value!r} in config.json; a whole number from 1 to {limit}")
    return value


def _positive_float(config: Mapping[str, Any], name: str, default: float) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
        raise ConfigError(f"{name} is {value!r} in config.json; a positive number is needed")
    return float(value)


def _rope_parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = config.get("rope_parameters") or {}
    if not isinstance(parameters, Mapping):
        raise ConfigError(f"rope_parameters is {parameters!r} in config.json; an object is needed")
    scaling = config.get("rope_scaling")
    rope_type = parameters.get("rope_type", "default")
    if scaling or rope_type != "default":
        raise ConfigError(
            f"rope scaling ({scaling or rope_type!r}) is announced in config.json; "
            "MiniMax-M2 uses plain rotary embeddings"
        )
    return parameters


def _rope_theta(config: Mapping[str, Any]) -> float:
    parameters = _rope_parameters(config)
    source = parameters if "rope_theta" in parameters else config
    theta = _positive_float(source, "rope_theta", 5_000_000.0)
    if _positive_float(config, "rope_theta", theta) != theta:
        raise ConfigError(
            f"rope_theta is {config['rope_theta']!r} but rope_parameters says {theta!r}; "
            "they contradict each other in config.json"
        )
    return theta


def _rotary_dim(config: Mapping[str, Any], head_dim: int) -> int:
    """Half of the head unless the file says otherwise; never the whole head by default."""
    factor = _rope_parameters(config).get("partial_rotary_factor")
    if factor is None:
        factor = config.get("partial_rotary_factor")
    rotary_dim = config.get("rotary_dim")
    if factor is not None:
        value = _positive_float({"partial_rotary_factor": factor}, "partial_rotary_factor", 0.5)
        from_factor = round(head_dim * value)
        if rotary_dim is not None and rotary_dim != from_factor:
            raise ConfigError(
                f"rotary_dim is {rotary_dim!r} but partial_rotary_factor {factor!r} of head_dim "
                f"{head_dim} is {from_factor}; they contradict each other in config.json"
            )
        rotary_dim = from_factor
    if rotary_dim is None:
        rotary_dim = head_dim // 2
    if isinstance(rotary_dim, bool) or not isinstance(rotary_dim, int):
        raise ConfigError(f"rotary_dim is {rotary_dim!r} in config.json; a whole number is needed")
    if not 0 < rotary_dim <= head_dim or rotary_dim % 2:
        raise ConfigError(f"rotary_dim is {rotary_dim}; an even number up to head_dim {head_dim}")
    return rotary_dim


def _check_consistency(shape: ModelShape) -> None:
    if shape.num_attention_heads % shape.num_key_value_heads:
        raise ConfigError(
            f"num_attention_heads {shape.num_attention_heads} is not a multiple of "
            f"num_key_value_heads {shape.num_key_value_heads}"
        )
    if shape.num_experts_per_tok > shape.num_local_experts:
        raise ConfigError(
            f"num_experts_per_tok {shape.num_experts_per_tok} is larger than "
            f"num_local_experts {shape.num_local_experts}"
        )
