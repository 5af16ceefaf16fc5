"""The token of every row of logits, by what its request asks for.

Rows are computed together by kind: a top_k of at most 1024 (the checkpoint's default is 40; greedy
is 1), a nucleus without such a top_k, or the whole distribution. The first kind is the native
library's, where there is one for the logits' device.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from hashlib import blake2b

import torch

from m2serve.engine.sequence import Sequence
from m2serve.engine.token_choice import (
    MAX_CANDIDATES,
    Choice,
    choose_among_candidates,
    choose_from_all,
    choose_from_nucleus,
)
from m2serve.kernels.cpu_sample import make_cpu_sampler

# Below this temperature sampling is greedy, as in vLLM.
GREEDY_TEMPERATURE = 1e-5
# In place of a token: the row has a NaN, an infinity, or nothing above -infinity.
NO_TOKEN = -1

# temperature, min_p, top_k, top_p and a random number, as in token_choice.Choice.
RowChoice = tuple[float, float, int, float, float]
_MOST_LIKELY: RowChoice = (1.0, 0.0, 1, 1.0, 0.0)


def uniform(seed: int, counter: int) -> float:
    """The random number in [0, 1) of a sequence's token number `counter`, 53 bits.

    A function of its arguments alone, so a text does not depend on what else runs, nor on
    preemptions.
    """
    digest = blake2b(struct.pack("<qQ", seed, counter), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


class TokenChooser:
    """A row's token depends on its logits and its sequence alone, never on the other rows."""

    def __init__(self) -> None:
        self._native = make_cpu_sampler()

    @property
    def native_s(self) -> float:
        """Seconds spent in the native library so far."""
        return 0.0 if self._native is None else self._native.native_s

    def choose(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
        """A token id or NO_TOKEN for each row of `logits`, float32 [R, used vocab]."""
        vocab_size = logits.shape[1]
        choices = [row_choice(sequence, vocab_size) for sequence in sequences]
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for row, choice in enumerate(choices):
            groups[_kind(choice, vocab_size)].append(row)
        token_ids = [NO_TOKEN] * len(choices)
        for kind, rows in groups.items():
            of_kind = logits if len(rows) == logits.shape[0] else logits[rows]
            found = self._choose(kind, of_kind, [choices[row] for row in rows])
            for row, token_id in zip(rows, found, strict=True):
                token_ids[row] = token_id
        for row, sequence in enumerate(sequences):
            if sequence.sampling.forced_token_ids is not None and token_ids[row] != NO_TOKEN:
                token_ids[row] = sequence.next_forced_token_id
        return token_ids

    def _choose(self, kind: str, logits: torch.Tensor, choices: list[RowChoice]) -> list[int]:
        if kind == "few" and self._native is not None and logits.device.type == "cpu":
            return self._native.choose(logits, choices)
        finite = logits.amax(dim=1).isfinite()
        if bool(finite.all()):
            return _choose_in_torch(kind, logits, choices)
        rows = finite.nonzero()[:, 0].tolist()
        token_ids = [NO_TOKEN] * len(choices)
        if rows:
            found = _choose_in_torch(kind, logits[rows], [choices[row] for row in rows])
            for row, token_id in zip(rows, found, strict=True):
                token_ids[row] = token_id
        return token_ids


def row_choice(sequence: Sequence, vocab_size: int, num_pending: int = 0) -> RowChoice:
    """How the token behind the sequence's own and `num_pending` more is chosen."""
    sampling = sequence.sampling
    if sampling.temperature < GREEDY_TEMPERATURE or sampling.forced_token_ids is not None:
        return _MOST_LIKELY
    return (
        sampling.temperature,
        sampling.min_p,
        min(sampling.top_k, vocab_size) if sampling.top_k > 0 else vocab_size,
        sampling.top_p,
        uniform(sequence.seed, sequence.num_output_tokens + num_pending),
    )


def is_native(sequence: Sequence, vocab_size: int) -> bool:
    """Whether the native library chooses the sequence's tokens, where there is one."""
    sampling = sequence.sampling
    if sampling.forced_token_ids is not None:
        return False
    is_greedy = sampling.temperature < GREEDY_TEMPERATURE
    return is_greedy or (sampling.top_k > 0 and _are_few(sampling.top_k, vocab_size))


def _are_few(top_k: int, vocab_size: int) -> bool:
    return top_k <= min(MAX_CANDIDATES, vocab_size - 1)


def _kind(choice: RowChoice, vocab_size: int) -> str:
    _, _, top_k, top_p, _ = choice
    if _are_few(top_k, vocab_size):
        return "few"
    return "nucleus" if top_p < 1 or top_k < vocab_size else "all"


def _choose_in_torch(kind: str, logits: torch.Tensor, choices: list[RowChoice]) -> list[int]:
    """Of finite rows of one kind."""
    max_top_k = max(top_k for _, _, top_k, _, _ in choices)
    if max_top_k == 1:
        return logits.argmax(dim=1).tolist()
    choice = Choice(*torch.tensor(choices, dtype=torch.float64).T.contiguous().to(logits.device))
    if kind == "few":
        return choose_among_candidates(logits, choice, max_top_k).tolist()
    if kind == "nucleus":
        return choose_from_nucleus(logits, choice).tolist()
    return choose_from_all(logits, choice).tolist()
