"""A GGUF file of the released models' widths and a few layers, Q4_0 with a Q8_0 head.

    python scripts/peers/wide_gguf.py TREE OUTPUT LAYERS [--shape m2.5]

Written block by block from random bits, since a float32 original would not fit the memory. No
tokenizer: benchmarks of llama.cpp need none.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from m2serve.bench.shapes import SHAPES, named_shape
from m2serve.spec.shape import ModelShape

_SIGMOID = 2  # GGUF's number of the router's scoring function


def tensor_plan(shape: ModelShape) -> dict[str, tuple[str, tuple[int, ...]]]:
    """GGUF name -> format and size, rows last but one as in the checkpoint."""
    hidden, width, experts = shape.hidden_size, shape.intermediate_size, shape.num_local_experts
    plan: dict[str, tuple[str, tuple[int, ...]]] = {
        "token_embd.weight": ("Q8_0", (shape.vocab_size, hidden)),
        "output_norm.weight": ("F32", (hidden,)),
        "output.weight": ("Q8_0", (shape.vocab_size, hidden)),
    }
    for layer in range(shape.num_hidden_layers):
        at = f"blk.{layer}."
        plan |= {
            f"{at}attn_norm.weight": ("F32", (hidden,)),
            f"{at}attn_q.weight": ("Q4_0", (shape.q_size, hidden)),
            f"{at}attn_k.weight": ("Q4_0", (shape.kv_size, hidden)),
            f"{at}attn_v.weight": ("Q4_0", (shape.kv_size, hidden)),
            f"{at}attn_output.weight": ("Q4_0", (hidden, shape.q_size)),
            f"{at}attn_q_norm.weight": ("F32", (shape.q_size,)),
            f"{at}attn_k_norm.weight": ("F32", (shape.kv_size,)),
            f"{at}ffn_norm.weight": ("F32", (hidden,)),
            f"{at}ffn_gate_inp.weight": ("F32", (experts, hidden)),
            f"{at}exp_probs_b.bias": ("F32", (experts,)),
            f"{at}ffn_gate_exps.weight": ("Q4_0", (experts, width, hidden)),
            f"{at}ffn_up_exps.weight": ("Q4_0", (experts, width, hidden)),
            f"{at}ffn_down_exps.weight": ("Q4_0", (experts, hidden, width)),
        }
    return plan


def random_blocks(
    format: str, size: tuple[int, ...], generator: np.random.Generator
) -> np.ndarray[Any, Any]:
    """float32 values, or the bytes of blocks: a float16 scale and 32 codes of 4 or 8 bits."""
    columns = size[-1]
    if format == "F32":
        if len(size) == 1:
            return np.ones(size, np.float32)
        return generator.standard_normal(size, np.float32) / np.float32(columns**0.5)
    bits = {"Q4_0": 4, "Q8_0": 8}[format]
    code_bytes, largest_rms = 32 * bits // 8, {4: 5, 8: 74}[bits]
    blocks = np.prod(size[:-1], dtype=np.int64) * columns // 32
    data = np.empty((int(blocks), 2 + code_bytes), np.uint8)
    data[:, :2] = np.frombuffer(np.float16(columns**-0.5 / largest_rms).tobytes(), np.uint8)
    data[:, 2:] = np.frombuffer(generator.bytes(int(blocks) * code_bytes), np.uint8).reshape(
        -1, code_bytes
    )
    return data.reshape(*size[:-1], columns // 32 * (2 + code_bytes))


def write_wide(gguf: Any, output: Path, shape: ModelShape) -> None:
    writer = gguf.GGUFWriter(output, "minimax-m2")
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_expert_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.rotary_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_expert_count(shape.num_local_experts)
    writer.add_expert_used_count(shape.num_experts_per_tok)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType(_SIGMOID))
    writer.add_vocab_size(shape.vocab_size)
    writer.add_tokenizer_model("none")
    plan = tensor_plan(shape)
    generator = np.random.default_rng(0)
    types = gguf.GGMLQuantizationType
    for name, (format, size) in plan.items():
        length = size[-1] if format == "F32" else size[-1] // 32 * {"Q4_0": 18, "Q8_0": 34}[format]
        count = int(np.prod(size[:-1], dtype=np.int64)) * length
        dtype = np.dtype(np.float32 if format == "F32" else np.uint8)
        writer.add_tensor_info(
            name, (*size[:-1], length), dtype, count * dtype.itemsize, raw_dtype=types[format]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for format, size in plan.values():
        writer.write_tensor_data(random_blocks(format, size, generator))
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tree", type=Path, help="of llama.cpp")
    parser.add_argument("output", type=Path)
    parser.add_argument("layers", type=int)
    parser.add_argument("--shape", choices=SHAPES, default="m2.5")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.tree / "gguf-py"))
    import gguf

    write_wide(gguf, arguments.output, named_shape(arguments.shape, arguments.layers))


if __name__ == "__main__":
    main()
