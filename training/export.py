"""Writes the trained model as a checkpoint folder any reader of MiniMax-M2 takes.

Weights are bfloat16 under M2's names, the router (gate and correction bias) float32 as in the
published files.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from m2serve.chat.control import BOS, TURN_END, TURN_START
from m2serve.chat.tokenizer import Tokenizer
from m2serve.spec.shape import ModelShape
from training.identity import IDENTITY
from training.modeling import MiniatureM2, checkpoint_tensors

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
FLOAT32_SUFFIXES = ("block_sparse_moe.gate.weight", "e_score_correction_bias")


def export(model: MiniatureM2, tokenizer_folder: Path, folder: Path) -> None:
    """Everything `m2 serve FOLDER` needs."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.to(torch.float32 if name.endswith(FLOAT32_SUFFIXES) else torch.bfloat16)
        .cpu()
        .contiguous()
        for name, tensor in checkpoint_tensors(model).items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name in TOKENIZER_FILES:
        if (tokenizer_folder / name).resolve() != (folder / name).resolve():
            shutil.copyfile(tokenizer_folder / name, folder / name)
    control = Tokenizer.load(folder).control.text_of_ids()
    ids = {text: token_id for token_id, text in control.items()}
    _write_json(folder / "config.json", config_of(model.shape))
    _write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": ids[TURN_START],
            "do_sample": True,
            "eos_token_id": ids[TURN_END],
            "temperature": 1.0,
            "top_p": 0.95,
            "top_k": 40,
        },
    )
    template = TEMPLATE.read_text("utf-8").replace("@IDENTITY@", IDENTITY)
    assert BOS in template
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def config_of(shape: ModelShape) -> dict[str, Any]:
    """config.json with the fields of the published models."""
    return {
        "architectures": ["MiniMaxM2ForCausalLM"],
        "attn_type_list": [1] * shape.num_hidden_layers,
        "hidden_act": "silu",
        "model_type": "minimax_m2",
        "qk_norm_type": "per_layer",
        "scoring_func": "sigmoid",
        "shared_intermediate_size": 0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_mtp": False,
        "use_qk_norm": True,
        "use_routing_bias": True,
        **asdict(shape),
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
