"""Builds tiny random MiniMax-M2 checkpoints, complete and seeded, at test time.

    python tests/tiny.py FOLDER [--format bf16] [--seed 0]

The default shape is small and awkward on purpose: heads * head_dim differs from hidden_size, half
of a head rotates, and the vocabulary ends in unused rows.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_formats import RECIPES, side_files, store
from tiny_tokenizer import NUM_PADDING_ROWS, write_tokenizer

from m2serve.spec.shape import ModelShape

NUM_SHARDS = 4
FORMATS = tuple(RECIPES)

DEFAULTS: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rotary_dim": 32,
    "intermediate_size": 128,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 1200,
    "max_position_embeddings": 4096,
}


@dataclass(frozen=True)
class TinyCheckpoint:
    """`state`: checkpoint name -> float32 values the stored bytes stand for, all linears [N, K]."""

    folder: Path
    shape: ModelShape
    state: dict[str, torch.Tensor]


def build_tiny(
    folder: Path | str,
    *,
    format: str = "bf16",
    seed: int = 0,
    state: dict[str, torch.Tensor] | None = None,
    **overrides: Any,
) -> TinyCheckpoint:
    """Write a complete checkpoint into `folder` (created; the same seed gives the same bytes).

    `overrides` replace fields of config.json (num_local_experts=6, ...). `state` stores these
    float32 values instead of random ones: `build_tiny(other, format="f32", state=tiny.state)` is
    the dense twin of a quantised checkpoint.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is unknown; one of {', '.join(FORMATS)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = published_config(**overrides)
    shape = ModelShape.from_config(config)
    values = random_state(shape, seed) if state is None else state
    tensors, meaning = store(values, format)
    write_shards(folder, tensors)
    quantization_config = RECIPES[format].config
    if quantization_config is not None:
        config["quantization_config"] = quantization_config(shape.num_hidden_layers)
    write_json(folder / "config.json", config)
    for file, content in side_files(tensors, meaning, format).items():
        write_json(folder / file, content)
    tokenizer = write_tokenizer(folder, shape.vocab_size)
    generation = {
        "bos_token_id": tokenizer.token_to_id("]~b]"),
        "do_sample": True,
        "eos_token_id": tokenizer.token_to_id("[e~["),
        "temperature": 1.0,
        "top_p": 0.95,
        "top_k": 40,
        "transformers_version": "4.46.1",
    }
    write_json(folder / "generation_config.json", generation)
    template = Path(__file__).with_name("tiny_chat_template.jinja")
    shutil.copyfile(template, folder / "chat_template.jinja")
    return TinyCheckpoint(folder, shape, meaning)


def published_config(**overrides: Any) -> dict[str, Any]:
    """config.json with the fields of the released models, at the tiny sizes."""
    sizes = {**DEFAULTS, **overrides}
    remote = "configuration_minimax_m2.MiniMaxM2Config"
    return {
        "architectures": ["MiniMaxM2ForCausalLM"],
        "attn_type_list": [1] * sizes["num_hidden_layers"],
        "auto_map": {
            "AutoConfig": remote,
            "AutoModelForCausalLM": "modeling_minimax_m2.MiniMaxM2ForCausalLM",
        },
        "hidden_act": "silu",
        "model_type": "minimax_m2",
        "mtp_transformer_layers": 1,
        "num_mtp_modules": 3,
        "qk_norm_type": "per_layer",
        "rms_norm_eps": 1e-06,
        "rope_theta": 5000000,
        "scoring_func": "sigmoid",
        "shared_intermediate_size": 0,
        "tie_word_embeddings": False,
        "transformers_version": "4.46.1",
        "use_cache": True,
        "use_mtp": True,
        "use_qk_norm": True,
        "use_routing_bias": True,
        **sizes,
    }


def random_state(shape: ModelShape, seed: int) -> dict[str, torch.Tensor]:
    """Float32 values under the checkpoint's names.

    Linears have standard deviation 1 / sqrt(fan_in) and the head three times that, so that the
    largest logit stands clear of the second; the unused rows of the head are zero.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    def linear(rows: int, columns: int) -> torch.Tensor:
        return normal(rows, columns) * columns**-0.5

    def norm(size: int) -> torch.Tensor:
        return 1 + 0.1 * normal(size)

    hidden, width = shape.hidden_size, shape.intermediate_size
    state = {"model.embed_tokens.weight": normal(shape.vocab_size, hidden)}
    for layer in range(shape.num_hidden_layers):
        at = f"model.layers.{layer}."
        state[f"{at}input_layernorm.weight"] = norm(hidden)
        state[f"{at}post_attention_layernorm.weight"] = norm(hidden)
        state[f"{at}self_attn.q_norm.weight"] = norm(shape.q_size)
        state[f"{at}self_attn.k_norm.weight"] = norm(shape.kv_size)
        state[f"{at}self_attn.q_proj.weight"] = linear(shape.q_size, hidden)
        state[f"{at}self_attn.k_proj.weight"] = linear(shape.kv_size, hidden)
        state[f"{at}self_attn.v_proj.weight"] = linear(shape.kv_size, hidden)
        state[f"{at}self_attn.o_proj.weight"] = linear(hidden, shape.q_size)
        moe = f"{at}block_sparse_moe."
        state[f"{moe}gate.weight"] = linear(shape.num_local_experts, hidden)
        state[f"{moe}e_score_correction_bias"] = 0.1 * normal(shape.num_local_experts)
        for expert in range(shape.num_local_experts):
            state[f"{moe}experts.{expert}.w1.weight"] = linear(width, hidden)
            state[f"{moe}experts.{expert}.w2.weight"] = linear(hidden, width)
            state[f"{moe}experts.{expert}.w3.weight"] = linear(width, hidden)
    state["model.norm.weight"] = norm(hidden)
    head = 3 * linear(shape.vocab_size, hidden)
    head[shape.vocab_size - NUM_PADDING_ROWS :] = 0
    state["lm_head.weight"] = head
    return state


def write_shards(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Zero-based shards of about equal bytes, cut anywhere, and their index."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    shards: list[dict[str, torch.Tensor]] = [{} for _ in range(NUM_SHARDS)]
    offset = 0
    for name, tensor in sorted(tensors.items()):
        shards[offset * NUM_SHARDS // total][name] = tensor.contiguous()
        offset += tensor.nbytes
    weight_map = {}
    for index, shard in enumerate(shards):
        file = f"model-{index:05d}-of-{NUM_SHARDS:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    index_file = folder / "model.safetensors.index.json"
    write_json(index_file, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a tiny random MiniMax-M2 checkpoint.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--format", choices=FORMATS, default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    build_tiny(arguments.folder, format=arguments.format, seed=arguments.seed)


if __name__ == "__main__":
    main()
