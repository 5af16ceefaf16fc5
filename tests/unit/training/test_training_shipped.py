"""The weights that ship route as the architecture asks: no dead expert, and a bias that matters."""

import torch

from m2serve.chat.tokenizer import Tokenizer
from m2serve.checkpoint.hub import MINIATURE
from training.batches import make_batch
from training.eagle3 import load_target
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
