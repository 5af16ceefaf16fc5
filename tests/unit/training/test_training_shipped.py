"""The weights that ship route as the architecture asks: no dead expert, and a bias that matters.
Their draft foresees what they say."""

import json

import torch
from safetensors.torch import load_file

from m2serve.chat.tokenizer import Tokenizer
from m2serve.checkpoint.hub import MINIATURE, MINIATURE_EAGLE3
from training.batches import make_batch
from training.eagle3 import load_target
from training.eagle3_acceptance import acceptance, own_replies
from training.eagle3_export import load_draft
from training.modeling import MiniatureM2
from training.probe import probe_documents


def held_out_loads(model: MiniatureM2) -> torch.Tensor:
    """Tokens an expert gets of held-out conversations of every kind, [L, E]."""
    documents = probe_documents(Tokenizer.load(MINIATURE), count=4)
    batch = make_batch([document for kind in documents.values() for document in kind])
    with torch.no_grad():
        return model.residuals(batch.token_ids, batch.blocks, batch.is_real)[1]


def test_every_expert_works_and_none_is_overrun() -> None:
    loads = held_out_loads(load_target(MINIATURE, torch.device("cpu")))
    shares = loads / loads.mean(1, keepdim=True)
    assert float(shares.min()) > 0.1
    assert float(shares.max()) < 2.5  # 4 would be every token


def test_the_correction_bias_changes_who_works() -> None:
    model = load_target(MINIATURE, torch.device("cpu"))
    with_bias = held_out_loads(model)
    for layer in model.layers:
        layer.block_sparse_moe.e_score_correction_bias.zero_()
    moved = (held_out_loads(model) - with_bias).abs().sum() / 2
    assert float(moved / with_bias.sum()) > 0.01


def test_the_draft_fits_the_package_and_its_target() -> None:
    assert sum(path.stat().st_size for path in MINIATURE_EAGLE3.iterdir()) <= 8_000_000
    draft, target = (
        json.loads((folder / "config.json").read_text()) for folder in (MINIATURE_EAGLE3, MINIATURE)
    )
    assert draft["hidden_size"] == target["hidden_size"]
    assert draft["vocab_size"] == target["vocab_size"]
    assert max(draft["eagle_aux_hidden_state_layer_ids"]) < target["num_hidden_layers"]
    tensors = load_file(MINIATURE_EAGLE3 / "model.safetensors")
    ids = tensors["d2t"] + torch.arange(draft["draft_vocab_size"])
    assert torch.equal(tensors["t2d"].nonzero().flatten(), ids)


def test_the_target_accepts_what_the_draft_foresees() -> None:
    documents = probe_documents(Tokenizer.load(MINIATURE), count=4)
    replied = own_replies(MINIATURE, [document for kind in documents.values() for document in kind])
    draft, vocabulary = load_draft(MINIATURE_EAGLE3)
    target = load_target(MINIATURE, torch.device("cpu"))
    found = acceptance(draft, vocabulary, target, replied)
    assert found.num_drafts > 100
    assert found.mean_length > 1.8
