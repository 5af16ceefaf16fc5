"""The trained model is the served model."""

import json
from pathlib import Path

import pytest
import torch
from jinja2 import Environment
from parity.paged import PagedSequences
from safetensors.torch import load_file

from m2serve.chat.identity import model_identity
from m2serve.chat.messages import normalize
from m2serve.chat.renderer import render
from m2serve.checkpoint.reader import Checkpoint
from m2serve.model.loader import load_model
from m2serve.spec.shape import ModelShape
from training.export import export
from training.identity import IDENTITY
from training.modeling import (
    Block,
    MiniatureM2,
    checkpoint_tensors,
    load_checkpoint_tensors,
    num_parameters,
)
from training.train import SHAPE

SMALL = ModelShape(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=16,
    rotary_dim=8,
    rope_theta=10_000.0,
    rms_norm_eps=1e-6,
    intermediate_size=32,
    num_local_experts=8,
    num_experts_per_tok=3,
    vocab_size=2048,
    max_position_embeddings=64,
)


def random_model(seed: int = 0) -> MiniatureM2:
    """No weight zero, no gain one, and a bias that changes the choice."""
    generator = torch.Generator().manual_seed(seed)
    model = MiniatureM2(SMALL, generator)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("model")
    export(random_model(), tokenizer_folder, folder)
    return folder


def test_logits_equal_those_of_the_served_model(exported: Path) -> None:
    model = MiniatureM2(SMALL, torch.Generator())
    load_checkpoint_tensors(model, load_file(exported / "model.safetensors"))
    served = load_model(Checkpoint.open(exported), torch.device("cpu"), torch.float32)
    generator = torch.Generator().manual_seed(1)
    documents = [torch.randint(0, 2048, (20,), generator=generator) for _ in range(3)]
    paged = PagedSequences(served, torch.float32)
    expected = torch.cat(paged.run([(str(n), d.tolist()) for n, d in enumerate(documents)]))
    with torch.no_grad():
        ids = torch.cat(documents)
        rows, is_real = torch.arange(60), torch.ones(60, dtype=torch.bool)
        got = model(ids, [Block(2, 20), Block(1, 20)], rows, is_real).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_what_is_loaded_is_the_head_whatever_it_was_made_of(exported: Path) -> None:
    stored = load_file(exported / "model.safetensors")
    model = random_model(seed=9)
    load_checkpoint_tensors(model, stored)
    assert torch.equal(
        checkpoint_tensors(model)["lm_head.weight"], stored["lm_head.weight"].float()
    )


def test_the_embedding_learns_from_reading_alone() -> None:
    model = random_model()
    never_read = 7
    rows, is_real = torch.arange(10), torch.ones(10, dtype=torch.bool)
    logits = model(torch.arange(10) + 100, [Block(1, 10)], rows, is_real).logits
    logits[:, never_read].sum().backward()
    assert model.lm_head.grad is not None
    assert bool(model.lm_head.grad[never_read].any())
    assert model.head_map.grad is not None
    assert bool(model.head_map.grad.any())
    assert model.embed_tokens.grad is not None
    assert not bool(model.embed_tokens.grad[never_read].any())


def test_padding_and_neighbours_do_not_matter() -> None:
    model = random_model()
    ids = torch.arange(30) + 100
    with torch.no_grad():
        alone = model(ids[:10], [Block(1, 10)], torch.arange(10), torch.ones(10, dtype=torch.bool))
        is_real = torch.arange(30) < 10
        together = model(ids, [Block(2, 15)], torch.arange(10), is_real)
    torch.testing.assert_close(alone.logits, together.logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(alone.loads, together.loads)
    assert together.loads.sum(1).tolist() == [30.0, 30.0]  # 10 tokens to 3 experts each


def test_the_correction_bias_chooses_but_does_not_weigh() -> None:
    moe = random_model().layers[0].block_sparse_moe
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    moe.e_score_correction_bias.fill_(0.0)
    moe.e_score_correction_bias[3] = 10.0
    weights, ids = moe.route(x)
    assert bool((ids == 3).any(1).all())
    torch.testing.assert_close(weights.sum(1), torch.ones(5))
    scores = torch.sigmoid(x @ moe.gate.T).gather(1, ids)
    torch.testing.assert_close(weights, scores / scores.sum(1, keepdim=True))


def test_the_miniature_fits_its_size() -> None:
    assert num_parameters(SHAPE) == 11_298_128
    model = random_model()
    tensors = checkpoint_tensors(model)
    assert sum(tensor.numel() for tensor in tensors.values()) == num_parameters(SMALL)
    assert SHAPE.q_size != SHAPE.hidden_size
    for size in (SHAPE.hidden_size, SHAPE.q_size, SHAPE.kv_size, SHAPE.intermediate_size):
        assert size % 128 == 0


def test_the_exported_folder_is_complete(exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((exported / "config.json").read_text())
    assert ModelShape.from_config(config) == SMALL
    tensors = load_file(exported / "model.safetensors")
    float32 = {name for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    assert float32 == {
        f"model.layers.{layer}.block_sparse_moe.{name}"
        for layer in range(2)
        for name in ("gate.weight", "e_score_correction_bias")
    }
    assert model_identity(exported) == IDENTITY


def test_the_template_writes_what_the_product_writes(exported: Path) -> None:
    template = Environment().from_string((exported / "chat_template.jinja").read_text())
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "answer", "reasoning_content": "old"},
        {"role": "user", "content": "second"},
        {"role": "assistant", "content": "again", "reasoning_content": "new"},
    ]
    for part in (messages[:1], messages[:3], messages):
        generates = part[-1]["role"] == "user"
        segments = render(normalize(part), add_generation_prompt=generates, model_identity=IDENTITY)
        expected = "".join(segment.text for segment in segments)
        assert template.render(messages=part, add_generation_prompt=generates) == expected
