"""The draft's unrolled training is what it does step by step when it drafts."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from m2serve.chat.tokenizer import Tokenizer
from m2serve.spec.shape import ModelShape
from training.batches import Batch, make_batch, step_documents
from training.eagle3 import NUM_DRAFT_STEPS, draft_loss
from training.eagle3_acceptance import Acceptance, acceptance, count_accepted, report
from training.eagle3_export import export_draft, load_draft
from training.eagle3_modeling import DraftShape, EagleDraft
from training.modeling import MiniatureM2, apply_rotary, rms_norm

SMALL = DraftShape(
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=16,
    draft_vocab_size=64,
    taps=(1, 1, 2),
)
TARGET = ModelShape(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=1,
    head_dim=16,
    rotary_dim=8,
    rope_theta=10_000.0,
    rms_norm_eps=1e-6,
    intermediate_size=16,
    num_local_experts=4,
    num_experts_per_tok=2,
    vocab_size=2048,
    max_position_embeddings=1024,
)


def small_draft() -> EagleDraft:
    return EagleDraft(SMALL, torch.Generator().manual_seed(0)).requires_grad_(False)


class Stepper:
    """The draft with a key/value cache, one token at a time, as an engine runs it."""

    def __init__(self, draft: EagleDraft) -> None:
        self.draft = draft
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def step(self, g: torch.Tensor, embed: torch.Tensor) -> torch.Tensor:
        draft, layer, position = self.draft, self.draft.midlayer, len(self.keys)
        normed = [
            rms_norm(embed, layer["input_layernorm"], 1e-6),
            rms_norm(g, layer["hidden_norm"], 1e-6),
        ]
        x = torch.cat(normed)
        rotary = draft.cos[position], draft.sin[position]
        q = apply_rotary(F.linear(x, layer["q_proj"]).view(4, 8), *rotary)
        self.keys.append(apply_rotary(F.linear(x, layer["k_proj"]).view(2, 8), *rotary))
        self.values.append(F.linear(x, layer["v_proj"]).view(2, 8))
        keys = torch.stack(self.keys).repeat_interleave(2, 1)
        values = torch.stack(self.values).repeat_interleave(2, 1)
        weights = (torch.einsum("qd,jqd->qj", q, keys) * 8**-0.5).softmax(-1)
        attended = torch.einsum("qj,jqd->qd", weights, values).flatten()
        r = g + F.linear(attended, layer["o_proj"])
        x = rms_norm(r, layer["post_attention_layernorm"], 1e-6)
        gated = F.silu(F.linear(x, layer["gate_proj"])) * F.linear(x, layer["up_proj"])
        return r + F.linear(gated, layer["down_proj"])


def test_unrolled_steps_equal_drafting_one_by_one() -> None:
    draft = small_draft()
    generator = torch.Generator().manual_seed(1)
    taps = torch.randn(1, 7, 96, generator=generator)
    embeds = torch.randn(1, 7, 32, generator=generator)
    unrolled = draft.unroll(taps, embeds, 3)
    for accepted in range(1, 5):  # tokens whose taps the target has given
        stepper = Stepper(draft)
        for i in range(accepted):
            hidden = stepper.step(F.linear(taps[0, i], draft.fc), embeds[0, i])
            torch.testing.assert_close(unrolled[0][0, i], hidden, rtol=1e-4, atol=1e-5)
        for step in (1, 2):
            index = accepted - 1 + step
            hidden = stepper.step(hidden, embeds[0, index])
            torch.testing.assert_close(unrolled[step][0, index], hidden, rtol=1e-4, atol=1e-5)


def test_the_loss_reaches_every_weight(tokenizer: Tokenizer) -> None:
    draft = small_draft().requires_grad_(True)
    target = MiniatureM2(TARGET, torch.Generator().manual_seed(0)).requires_grad_(False)
    batch = make_batch(step_documents(0, 0, 0, 600, tokenizer))
    loss, agreement = draft_loss(draft, target, batch, torch.arange(64) * 3)
    loss.backward()
    assert len(agreement) == 3
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in draft.parameters())
    assert all(float(p.grad.abs().sum()) > 0 for p in draft.parameters() if p.grad is not None)


def test_the_exported_draft_has_the_published_layout(tmp_path: Path) -> None:
    vocabulary = torch.arange(64) * 3 + 1
    export_draft(small_draft(), TARGET, vocabulary, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert torch.equal(torch.arange(64) + tensors["d2t"], vocabulary)
    assert torch.equal(tensors["t2d"].nonzero().flatten(), vocabulary)
    assert {name: tuple(tensors[name].shape) for name in tensors if name != "t2d"} == {
        "fc.weight": (32, 96),
        "norm.weight": (32,),
        "lm_head.weight": (64, 32),
        "d2t": (64,),
        "midlayer.input_layernorm.weight": (32,),
        "midlayer.hidden_norm.weight": (32,),
        "midlayer.post_attention_layernorm.weight": (32,),
        "midlayer.self_attn.q_proj.weight": (32, 64),
        "midlayer.self_attn.k_proj.weight": (16, 64),
        "midlayer.self_attn.v_proj.weight": (16, 64),
        "midlayer.self_attn.o_proj.weight": (32, 32),
        "midlayer.mlp.gate_proj.weight": (16, 32),
        "midlayer.mlp.up_proj.weight": (16, 32),
        "midlayer.mlp.down_proj.weight": (32, 16),
    }
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["eagle_aux_hidden_state_layer_ids"] == [1, 1, 2]
    assert config["draft_vocab_size"] == 64


def test_a_draft_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    draft, vocabulary = small_draft(), torch.arange(64) * 3 + 1
    export_draft(draft, TARGET, vocabulary, tmp_path)
    read, ids = load_draft(tmp_path)
    assert read.shape == SMALL
    assert torch.equal(ids, vocabulary)
    for name, parameter in draft.named_parameters():
        assert torch.equal(dict(read.named_parameters())[name], parameter.bfloat16().float()), name


def rows_of(rows: list[int], targets: list[int], document: list[int]) -> Batch:
    unused = torch.empty(0)
    values = (torch.tensor(x) for x in (rows, targets, document))
    return Batch(unused, unused, (), *values)


def test_a_drafted_token_counts_when_all_before_it_were_right() -> None:
    said = torch.tensor([1, 2, 3, 4, 5])
    batch = rows_of([7, 8, 9, 10, 11], [1, 2, 3, 4, 5], [0] * 5)
    right, wrong = said.clone(), said + 100
    assert count_accepted([right, right, right], said, batch) == Acceptance(3, (3, 3, 3))
    assert count_accepted([right, wrong, right], said, batch) == Acceptance(3, (3, 0, 0))
    only_last = torch.tensor([101, 102, 3, 4, 5])
    assert count_accepted([only_last, right, wrong], said, batch) == Acceptance(3, (1, 1, 0))
    assert Acceptance(4, (2, 1, 0)).mean_length == 1.75


def test_a_draft_ends_with_its_turn_its_document_and_where_the_target_goes_elsewhere() -> None:
    said = torch.tensor([1, 2, 3, 4, 5])
    two = [said, said]
    assert count_accepted(two, said, rows_of([7, 8, 12, 13, 14], [1, 2, 3, 4, 5], [0] * 5)) == (
        Acceptance(3, (3, 3))
    )
    assert count_accepted(
        two, said, rows_of([7, 8, 9, 10, 11], [1, 2, 3, 4, 5], [0, 0, 0, 1, 1])
    ) == (Acceptance(3, (3, 3)))
    assert count_accepted(two, said, rows_of([7, 8, 9, 10, 11], [1, 9, 3, 4, 5], [0] * 5)) == (
        Acceptance(3, (3, 3))
    )
    assert (
        count_accepted([said] * 9, said, rows_of([1, 2, 3, 4, 5], [1] * 5, [0] * 5)).num_drafts == 0
    )


def test_acceptance_of_conversations_is_reported_by_kind(tokenizer: Tokenizer) -> None:
    target = MiniatureM2(TARGET, torch.Generator().manual_seed(0)).requires_grad_(False)
    documents = step_documents(0, 0, 0, 600, tokenizer)
    found = acceptance(small_draft(), torch.arange(64) * 3, target, documents)
    assert len(found.accepted) == NUM_DRAFT_STEPS
    assert "tokens a step" in report({"free_question": found, "other": Acceptance(10, (5, 2, 1))})
    [*_, last] = report(
        {"a": Acceptance(10, (8, 4, 0)), "b": Acceptance(10, (4, 2, 2))}
    ).splitlines()
    assert last.split() == ["all", "20", "2.00", "60.0%", "30.0%", "10.0%"]
