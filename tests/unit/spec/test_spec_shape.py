"""config.json is read, never assumed, and contradictions are refused by the field's name."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import published_config

from m2serve.errors import ConfigError
from m2serve.spec.shape import ModelShape


def shape(**changes: Any) -> ModelShape:
    config = {**published_config(), **changes}
    return ModelShape.from_config({k: v for k, v in config.items() if v != "absent"})


def test_what_a_resave_dropped_is_what_the_family_has() -> None:
    dropped = shape(rotary_dim="absent", rope_theta="absent", use_qk_norm="absent")
    assert (dropped.rotary_dim, dropped.rope_theta) == (32, 5e6)
    resaved = shape(
        rotary_dim="absent",
        rope_theta="absent",
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
    )
    assert (resaved.rotary_dim, resaved.rope_theta) == (16, 1e6)
    assert shape(num_local_experts="absent", num_experts=6).num_local_experts == 6


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "llama"}, "model_type"),
        ({"scoring_func": "softmax"}, "scoring_func"),
        ({"use_qk_norm": False}, "use_qk_norm"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"attn_type_list": [1, 0, 1, 1]}, "attn_type_list"),
        ({"attn_type_list": [1]}, "attn_type_list"),
        ({"attn_type_list": 5}, "attn_type_list"),
        ({"sliding_window": 128}, "sliding_window"),
        ({"rope_scaling": {"type": "yarn"}}, "rope scaling"),
        ({"rope_parameters": {"rope_theta": 1e6}}, "rope_theta"),
        ({"rope_parameters": {"partial_rotary_factor": 1.0}}, "rotary_dim"),
        ({"rotary_dim": 65}, "rotary_dim"),
        ({"hidden_size": "256"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"vocab_size": 1 << 40}, "vocab_size"),
        ({"head_dim": "absent"}, "head_dim"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"num_key_value_heads": 4}, "num_key_value_heads"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ],
)
def test_contradictions_name_the_field(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        shape(**changes)
