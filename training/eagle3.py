"""Trains the Eagle3 draft of a trained miniature.

    python -m training.eagle3 MODEL_FOLDER RUN_FOLDER [--device cpu|cuda] --steps N

RUN_FOLDER gets a checkpoint from which the same command goes on, `log.jsonl`, and at the end
`model/`, the draft.

The draft learns what the target would say: at every token the target's own distribution is the
lesson, for the first foreseen token and for those the draft foresees from its own states.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from m2serve.spec.shape import ModelShape, load_config
from training.batches import Batch, draw_batch, in_few_sizes, start_worker
from training.checkpointing import drop_rows_from, has_checkpoint, read_state, write_state
from training.eagle3_export import export_draft
from training.eagle3_modeling import DraftShape, EagleDraft, by_block
from training.modeling import MiniatureM2, load_checkpoint_tensors
from training.precision import fastest_dtype
from training.schedule import rate_factor
from training.starts import append_start

NUM_DRAFT_STEPS = 3
STEP_DECAY = 0.8  # a later token counts less
LR = 2e-3
STEP_TOKENS = 6144
STAGE = 2  # short documents, few drills
LONG_STAGE, LONG_EVERY = 4, 8  # now and then documents up to the whole context
COUNTED_STEPS = 20
SAVE_EVERY_S = 120.0
LOG_EVERY = 20


def load_target(folder: Path, device: torch.device) -> MiniatureM2:
    """The trained miniature, frozen."""
    shape = ModelShape.from_config(load_config(folder))
    model = MiniatureM2(shape, torch.Generator(), fastest_dtype(device.type))
    load_checkpoint_tensors(model, load_file(folder / "model.safetensors"))
    return model.to(device).requires_grad_(False)


def draft_vocabulary(seed: int, size: int) -> torch.Tensor:
    """The ids the model says most, in ascending order, int64 [Vd]; every id 0.. fills up."""
    counts: Counter[int] = Counter()
    for step in range(COUNTED_STEPS):
        counts.update(draw_batch(seed + 1, STAGE, step, STEP_TOKENS).targets.tolist())
    chosen = [token_id for token_id, _ in counts.most_common(size)]
    rest = (token_id for token_id in range(1 << 20) if token_id not in counts)
    while len(chosen) < size:
        chosen.append(next(rest))
    return torch.tensor(sorted(chosen))


def draft_loss(
    draft: EagleDraft, target: MiniatureM2, batch: Batch, vocabulary: torch.Tensor
) -> tuple[torch.Tensor, list[float]]:
    """The loss, and of each draft step the share of tokens where both say the same."""
    foreseen, teacher = foresee(draft, target, batch)
    wanted = teacher[:, vocabulary].softmax(-1)
    said = teacher.argmax(-1)
    loss = torch.zeros((), device=teacher.device)
    agreement = []
    for step, logits in enumerate(foreseen):
        loss = loss + STEP_DECAY**step * F.cross_entropy(logits, wanted)
        agreement.append(round(float((vocabulary[logits.argmax(-1)] == said).float().mean()), 4))
    return loss, agreement


def foresee(
    draft: EagleDraft, target: MiniatureM2, batch: Batch
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What each draft step foresees of the rows that predict, [R, Vd], and what the target says
    there, [R, V]; as logits. Step j has the target's taps up to j tokens before.
    """
    with torch.no_grad():
        streams, teacher = _seen(target, batch)
        embeds = F.embedding(batch.token_ids, target.embed_tokens).roll(-1, 0)
    taps = torch.cat([streams[tap] for tap in draft.shape.taps], -1)
    parts = zip(by_block(taps, batch.blocks), by_block(embeds, batch.blocks), strict=True)
    unrolled = [draft.unroll(t, e, NUM_DRAFT_STEPS) for t, e in parts]
    foreseen = []
    for step in range(NUM_DRAFT_STEPS):
        hidden = torch.cat([steps[step].flatten(0, 1) for steps in unrolled])
        # The draft at i - 1 has read the token at i and foresees what the target says there.
        foreseen.append(draft.logits(hidden[batch.rows - 1]))
    return foreseen, teacher


def _seen(target: MiniatureM2, batch: Batch) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The residual streams of all tokens, and the logits of the rows that predict."""
    wide = in_few_sizes(batch) if target.wants_few_sizes else batch
    streams, _ = target.residuals(wide.token_ids, wide.blocks, wide.is_real)
    logits = target.head(streams[-1][wide.rows])
    return [stream[: len(batch.token_ids)] for stream in streams], logits[: len(batch.rows)]


def train(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    start_worker(options.model)
    target = load_target(options.model, device)
    draft = EagleDraft(DraftShape(), torch.Generator().manual_seed(options.seed)).to(device)
    vocabulary = draft_vocabulary(options.seed, draft.shape.draft_vocab_size)
    optimizer = torch.optim.AdamW(draft.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.01)
    options.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = options.folder / "checkpoint"
    of_run = {"seed": options.seed, "target": _digest(options.model / "model.safetensors")}
    begin, spent_s = 0, 0.0
    if has_checkpoint(checkpoint):
        begin, spent_s, vocabulary = _restore(checkpoint, draft, optimizer, of_run)
    vocabulary = vocabulary.to(device)
    drop_rows_from(options.folder / "log.jsonl", begin)
    append_start(options.folder, device, step=begin)
    started_s = saved_s = time.monotonic()
    for step in range(begin, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * rate_factor(step / options.steps)
        stage = LONG_STAGE if step % LONG_EVERY == LONG_EVERY - 1 else STAGE
        batch = draw_batch(options.seed, stage, step, STEP_TOKENS).to(device)
        loss, agreement = draft_loss(draft, target, batch, vocabulary)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(draft.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        now_s = time.monotonic()
        elapsed_s = spent_s + now_s - started_s
        is_last = step == options.steps - 1
        if step % LOG_EVERY == 0 or is_last:
            _log(options.folder / "log.jsonl", step, float(loss.detach()), agreement, elapsed_s)
        if now_s - saved_s > SAVE_EVERY_S or is_last:
            counters = {"step": step + 1, "elapsed_s": elapsed_s, **of_run}
            write_state(checkpoint, _state(draft, optimizer, vocabulary), counters)
            saved_s = now_s
    export_draft(draft, target.shape, vocabulary, options.folder / "model")


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def _state(
    draft: EagleDraft, optimizer: torch.optim.AdamW, vocabulary: torch.Tensor
) -> dict[str, torch.Tensor]:
    tensors = {"vocabulary": vocabulary}
    for name, parameter in draft.named_parameters():
        tensors[f"draft.{name}"] = parameter
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value
    return tensors


def _restore(
    folder: Path, draft: EagleDraft, optimizer: torch.optim.AdamW, of_run: Mapping[str, Any]
) -> tuple[int, float, torch.Tensor]:
    """The next step, the seconds that those before it took, and the draft's vocabulary; ends the
    program where the checkpoint is of another run."""
    stored, counters = read_state(folder)
    for name, value in of_run.items():
        if counters[name] != value:
            raise SystemExit(
                f"the {name} is {value}, and that of the run in {folder.parent} is "
                f"{counters[name]}; give another folder"
            )
    with torch.no_grad():
        for name, parameter in draft.named_parameters():
            parameter.copy_(stored[f"draft.{name}"])
            optimizer.state[parameter] = {
                key: stored[f"{key}.{name}"].to(device="cpu" if key == "step" else parameter.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
    return int(counters["step"]), float(counters["elapsed_s"]), stored["vocabulary"]


def _log(path: Path, step: int, loss: float, agreement: Sequence[float], elapsed_s: float) -> None:
    row = {"step": step, "loss": round(loss, 4), "agreement": agreement}
    line = json.dumps(row | {"elapsed_s": round(elapsed_s, 1)})
    with path.open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the miniature's Eagle3 draft.")
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    train(options)


if __name__ == "__main__":
    main()
