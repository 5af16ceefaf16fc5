"""The draft as published Eagle3 drafts are stored: written, and read again."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from m2serve.spec.shape import ModelShape
from training.eagle3_modeling import DraftShape, EagleDraft

_TAPS = "eagle_aux_hidden_state_layer_ids"


def export_draft(draft: EagleDraft, target: ModelShape, vocab: torch.Tensor, folder: Path) -> None:
    """config.json and model.safetensors in the layout of published Eagle3 drafts."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in draft.named_parameters():
        tensors[_published(name)] = parameter.detach().to(torch.bfloat16).cpu().contiguous()
    tensors["d2t"] = (vocab - torch.arange(len(vocab), device=vocab.device)).cpu()
    t2d = torch.zeros(target.vocab_size, dtype=torch.bool)
    t2d[vocab.cpu()] = True
    tensors["t2d"] = t2d
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    shape = asdict(draft.shape)
    taps = list(shape.pop("taps"))
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_act": "silu",
        "num_hidden_layers": 1,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": target.vocab_size,
        # The first place is where vLLM's older runner and SGLang look, the second where the newer
        # runner does. The numbers are vLLM's: the stream that enters a layer, 0 the first.
        "eagle_config": {_TAPS: taps, "use_aux_hidden_state": True},
        _TAPS: taps,
        **shape,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_draft(folder: Path) -> tuple[EagleDraft, torch.Tensor]:
    """What `export_draft` wrote, in float32, and the target's id of each of its ids, int64 [Vd]."""
    config = json.loads((folder / "config.json").read_text())
    values = {
        field.name: config[field.name] for field in fields(DraftShape) if field.name in config
    }
    draft = EagleDraft(DraftShape(**values, taps=tuple(config[_TAPS])), torch.Generator())
    tensors = load_file(folder / "model.safetensors")
    with torch.no_grad():
        for name, parameter in draft.named_parameters():
            parameter.copy_(tensors[_published(name)])
    return draft.requires_grad_(False), tensors["d2t"] + torch.arange(len(tensors["d2t"]))


def _published(name: str) -> str:
    """The published name of one of the draft's parameters."""
    room, _, last = name.rpartition(".")
    if last.endswith("_proj"):
        room += ".self_attn" if last[0] in "qkvo" else ".mlp"
    return f"{room}.{last}.weight".lstrip(".")
