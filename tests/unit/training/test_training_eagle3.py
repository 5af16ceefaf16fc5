"""The draft's unrolled training is what it does step by step when it drafts."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from m2serve.chat.tokenizer import Tokenizer
from m2serve.spec.shape import ModelShape
from training import eagle3
from training.batches import Batch, make_batch, step_documents
from training.eagle3 import NUM_DRAFT_STEPS, draft_loss
from training.eagle3_acceptance import Acceptance, _last_reply, acceptance, go_over, report
from training.eagle3_export import export_draft, load_draft
from training.eagle3_modeling import DraftShape, EagleDraft
from training.export import export
from training.modeling import MiniatureM2, apply_rotary, rms_norm
from training.rendering import Document

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
    assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [1, 1, 2]
    assert config["draft_vocab_size"] == 64


def test_a_draft_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    draft, vocabulary = small_draft(), torch.arange(64) * 3 + 1
    export_draft(draft, TARGET, vocabulary, tmp_path)
    read, ids = load_draft(tmp_path)
    assert read.shape == SMALL
    assert torch.equal(ids, vocabulary)
    for name, parameter in draft.named_parameters():
        assert torch.equal(dict(read.named_parameters())[name], parameter.bfloat16().float()), name


def test_a_drafted_token_counts_when_all_before_it_were_right() -> None:
    right, wrong = [True] * 7, [False] * 7
    assert go_over([right, right, right]) == Acceptance(2, 6, (2, 2, 1))  # 1 + 4, then 2 left
    assert go_over([right, wrong, right]) == Acceptance(3, 6, (3, 0, 0))
    assert go_over([wrong, right, right]) == Acceptance(6, 6, (0, 0, 0))
    first_wrong = [True, False, True, True, True, True, True]
    assert go_over([first_wrong, right]) == Acceptance(3, 6, (2, 2))
    assert go_over([right, right, right]).mean_length == 3.0


def test_a_reply_of_one_token_has_nothing_to_draft() -> None:
    assert go_over([[True], [True]]) == Acceptance(0, 0, (0, 0))
    assert go_over([[True], [True]]).mean_length == 0.0


def test_acceptance_of_conversations_is_reported_by_kind(tokenizer: Tokenizer) -> None:
    target = MiniatureM2(TARGET, torch.Generator().manual_seed(0)).requires_grad_(False)
    documents = step_documents(0, 0, 0, 600, tokenizer)
    found = acceptance(small_draft(), torch.arange(64) * 3, target, documents)
    said = sum(int(document.is_said[1:].sum()) for document in documents)
    assert found.num_tokens == said - len(documents)
    assert len(found.accepted) == NUM_DRAFT_STEPS
    parts = {"a": Acceptance(10, 22, (8, 4, 0)), "b": Acceptance(10, 18, (4, 2, 2))}
    [*_, last] = report(parts).splitlines()
    assert last.split() == ["all", "20", "2.00", "60.0%", "30.0%", "10.0%"]


def test_the_last_reply_is_found() -> None:
    is_said = np.array([False, True, True, False, False, True, True, False])
    assert _last_reply(Document(np.arange(8), is_said)) == 5


def test_training_goes_on_where_it_was_interrupted(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MiniatureM2(TARGET, torch.Generator().manual_seed(0))
    export(model, tokenizer_folder, tmp_path / "target")
    monkeypatch.setattr(eagle3, "DraftShape", lambda: SMALL)
    monkeypatch.setattr(eagle3, "STEP_TOKENS", 600)
    monkeypatch.setattr(eagle3, "COUNTED_STEPS", 1)
    monkeypatch.setattr(eagle3, "SAVE_EVERY_S", 0.0)

    def run(name: str, stop_at: int | None = None) -> dict[str, torch.Tensor]:
        arguments = [str(tmp_path / "target"), str(tmp_path / name), "--steps", "4"]
        monkeypatch.setattr("sys.argv", ["eagle3", *arguments])
        if stop_at is not None:
            stopped = partial(_stopping, eagle3.draw_batch, stop_at)
            with monkeypatch.context() as patch:
                patch.setattr(eagle3, "draw_batch", stopped)
                with pytest.raises(KeyboardInterrupt):
                    eagle3.main()
        eagle3.main()
        return load_file(tmp_path / name / "model" / "model.safetensors")

    whole, resumed = run("whole"), run("resumed", stop_at=2)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    export(
        MiniatureM2(TARGET, torch.Generator().manual_seed(1)), tokenizer_folder, tmp_path / "target"
    )
    with pytest.raises(SystemExit, match="the target is"):
        run("resumed")
    starts = (tmp_path / "resumed" / "starts.jsonl").read_text().splitlines()
    assert [json.loads(start)["step"] for start in starts] == [0, 2]


def _stopping(draw: Callable[..., Batch], stop_at: int, *drawn: int) -> Batch:
    seed, stage, step, _ = drawn
    if (seed, stage) != (0, eagle3.STAGE) or step < stop_at:
        return draw(*drawn)
    raise KeyboardInterrupt
