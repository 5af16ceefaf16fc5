"""The sampler, native and PyTorch's, against a slow reference in plain Python; its statistics.

The reference computes one row at a time in float64, from the documented order of operations.
"""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch

from m2serve.engine import choosing
from m2serve.engine.choosing import uniform
from m2serve.engine.request import EngineRequest, SamplingParams, TokenLogprob
from m2serve.engine.sampler import NOT_FINITE, NOTHING_LEFT, Sampler
from m2serve.engine.sequence import Sequence
from m2serve.kernels.cpu_sample import make_cpu_sampler

VOCAB, USED = 320, 300
EOS, STOP = 7, 8


@pytest.fixture(autouse=True, params=["native", "torch"])
def _implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(choosing, "make_cpu_sampler", lambda: None)
    elif make_cpu_sampler() is None:
        pytest.skip("no native kernels here")


def _sequence(
    prompt: list[int] | None = None,
    output: list[int] | None = None,
    random_seed: int = 1,
    **sampling: object,
) -> Sequence:
    params = SamplingParams(
        **{"max_tokens": 100, "eos_token_ids": (EOS,), "stop_token_ids": (STOP,), **sampling}
    )
    request = EngineRequest(request_id="r", prompt_token_ids=prompt or [1], sampling=params)
    sequence = Sequence(request, arrival=0, random_seed=random_seed)
    for token_id in output or []:
        sequence.append(token_id)
    return sequence


def _logits(num_rows: int, seed: int = 0, vocab: int = VOCAB, scale: float = 2.0) -> torch.Tensor:
    """Rounded to bfloat16, so that equal logits are common, as with the real model."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(num_rows, vocab, generator=generator) * scale).bfloat16().float()


def _sample(
    logits: torch.Tensor, sequences: list[Sequence], used_vocab_size: int = USED
) -> list[int | None]:
    results = Sampler(used_vocab_size).sample(logits.clone(), sequences)
    assert [result.error for result in results] == [None] * len(results)
    return [result.token_id for result in results]


# The reference


def _processed(logits: list[float], sequence: Sequence) -> list[float]:
    sampling = sequence.sampling
    output = sequence.token_ids[sequence.num_prompt_tokens :]
    row = list(logits)
    for token_id in set(sequence.token_ids):
        if token_id < len(row):
            penalty = sampling.repetition_penalty
            row[token_id] = (
                row[token_id] / penalty if row[token_id] > 0 else row[token_id] * penalty
            )
    for token_id, count in Counter(output).items():
        row[token_id] -= sampling.frequency_penalty * count + sampling.presence_penalty
    for token_id, bias in (sampling.logit_bias or {}).items():
        if token_id < len(row):
            row[token_id] += bias
    banned = set()
    if sampling.allowed_token_ids is not None:
        banned = set(range(len(row))) - set(sampling.allowed_token_ids)
    for word in sampling.bad_words_ids:
        before = list(word[:-1])
        if len(before) <= len(output) and output[len(output) - len(before) :] == before:
            banned.add(word[-1])
    if len(output) < sampling.min_tokens:
        banned |= set(sampling.stop_token_ids)
        banned |= set() if sampling.ignore_eos else set(sampling.eos_token_ids)
    return [-math.inf if i in banned else value for i, value in enumerate(row)]


def _distribution(row: list[float], sampling: SamplingParams) -> list[tuple[int, float]]:
    """(id, probability) of the tokens that remain, in the order in which they are drawn."""
    vocab_size = len(row)
    order = sorted(range(vocab_size), key=lambda i: (-row[i], i))
    best = row[order[0]]
    weight = {i: math.exp((row[i] - best) / sampling.temperature) for i in order}
    order = [i for i in order if weight[i] >= sampling.min_p and weight[i] > 0]
    if sampling.top_k > 0:
        order = order[: sampling.top_k]
    total = math.fsum(weight[i] for i in order)
    kept, seen = [], 0.0
    for i in order:
        if seen >= sampling.top_p * total:
            break
        kept.append(i)
        seen += weight[i]
    if sampling.top_p == 1 and not 0 < sampling.top_k < vocab_size:
        kept.sort()
    return [(i, weight[i] / seen) for i in kept]


def _reference_token(logits: list[float], sequence: Sequence) -> int:
    sampling = sequence.sampling
    if sampling.forced_token_ids is not None:
        return sampling.forced_token_ids[sequence.num_output_tokens]
    row = _processed(logits, sequence)
    if sampling.temperature == 0:
        return row.index(max(row))
    distribution = _distribution(row, sampling)
    number = uniform(sequence.seed, sequence.num_output_tokens)
    seen = 0.0
    for token_id, probability in distribution:
        seen += probability
        if number < seen:
            return token_id
    return distribution[-1][0]


def _assert_equals_reference(logits: torch.Tensor, sequences: list[Sequence], used: int) -> None:
    expected = [
        _reference_token(row[:used], sequence)
        for row, sequence in zip(logits.tolist(), sequences, strict=True)
    ]
    assert _sample(logits, sequences, used) == expected


FEATURES: dict[str, list[object]] = {
    "temperature": [0.0, 0.3, 1.0, 1.0, 1.7],
    "top_k": [0, -1, 1, 5, 40, USED - 1, USED, 5000],
    "top_p": [1.0, 1.0, 0.95, 0.5, 0.01],
    "min_p": [0.0, 0.0, 0.05, 0.9],
    "repetition_penalty": [1.0, 1.3, 0.8],
    "presence_penalty": [0.0, 1.5, -1.0],
    "frequency_penalty": [0.0, 0.7, -0.4],
    "seed": [None, 0, 5, -3],
    "min_tokens": [0, 4, 50],
    "ignore_eos": [False, True],
    "logit_bias": [None, {3: 4.0, EOS: 60.0, VOCAB - 1: 100.0}, {5: -100.0}],
    "allowed_token_ids": [None, None, tuple(range(1, 40)), (EOS, 5, 300, 310)],
    "bad_words_ids": [(), ((9,), (20, 21, 22)), ((22, 3),)],
    "forced_token_ids": [None, None, None, tuple(range(60))],
}


@pytest.mark.parametrize("feature", [*FEATURES, "all"])
def test_each_feature_equals_the_reference(feature: str) -> None:
    rng = random.Random(feature)
    names = list(FEATURES) if feature == "all" else ["temperature", "top_k", feature]
    sequences = []
    for _ in range(120):
        sampling = {name: rng.choice(FEATURES[name]) for name in names}
        sequences.append(
            _sequence(
                prompt=[rng.randrange(VOCAB) for _ in range(20)],
                output=rng.choice([[], [20, 21], [3, 9, 22], [4] * 5, [rng.randrange(USED)] * 50]),
                random_seed=rng.getrandbits(63),
                **sampling,
            )
        )
    _assert_equals_reference(_logits(len(sequences), seed=len(feature)), sequences, USED)


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0, 10.0])
def test_a_large_vocabulary_equals_the_reference(scale: float) -> None:
    """Nuclei inside and outside the candidates, top_k above and below their number."""
    rng = random.Random(scale)
    vocab = 4100
    sequences = [
        _sequence(
            random_seed=rng.getrandbits(63),
            temperature=rng.choice([0.5, 1.0]),
            top_k=rng.choice([0, 20, 1000, 1024, 1025, 3000]),
            top_p=rng.choice([1.0, 0.9, 0.3]),
            min_p=rng.choice([0.0, 0.0, 0.1]),
        )
        for _ in range(60)
    ]
    logits = _logits(60, seed=3, vocab=vocab, scale=scale)
    _assert_equals_reference(logits, sequences, vocab - 7)


@pytest.mark.parametrize("used", [1, 2, 3])
def test_a_tiny_vocabulary_equals_the_reference(used: int) -> None:
    sequences = [
        _sequence(random_seed=seed, top_k=seed % 5, top_p=0.5 + 0.5 * (seed % 2), stop_token_ids=())
        for seed in range(40)
    ]
    _assert_equals_reference(_logits(40, vocab=4), sequences, used)


def test_equal_logits_are_taken_by_lowest_id() -> None:
    logits = torch.zeros(4, VOCAB)
    logits[:, [250, 100, 50, 200, 299]] = 3.0
    logits[1, 301] = 9.0
    rows = [
        _sequence(temperature=0.0),
        _sequence(temperature=1.0, top_k=1),
        _sequence(temperature=1.0, top_p=1e-6),
        _sequence(temperature=1e-9),
    ]
    assert _sample(logits, rows) == [50, 50, 50, 50]
    drawn = _sample(
        logits[:1].repeat(400, 1), [_sequence(random_seed=s, top_k=3) for s in range(400)]
    )
    assert set(drawn) == {50, 100, 200}


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"top_k": 40},
        {"top_k": 40, "top_p": 0.95},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"temperature": 2.0, "top_k": 10, "top_p": 0.8, "min_p": 0.05},
        {"repetition_penalty": 1.5, "prompt": list(range(100)), "top_p": 0.9},
    ],
)
def test_draws_follow_the_distribution(sampling) -> None:
    """Chi-square over 8000 draws with fixed seeds; 4.5 standard deviations."""
    logits = _logits(1, seed=11)
    sequence = _sequence(**sampling)
    row = _processed(logits[0, :USED].tolist(), sequence)
    expected = dict(_distribution(row, sequence.sampling))
    sequences = [_sequence(random_seed=seed, **sampling) for seed in range(8_000)]
    drawn = Counter(_sample(logits.repeat(len(sequences), 1), sequences))
    assert set(drawn) <= set(expected)
    # Cells of fewer than 5 expected draws are pooled, as the test requires.
    cells = [(drawn[i], p * len(sequences)) for i, p in expected.items()]
    small = [cell for cell in cells if cell[1] < 5]
    cells = [cell for cell in cells if cell[1] >= 5]
    if small:
        cells.append((sum(c[0] for c in small), sum(c[1] for c in small)))
    chi_square = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    freedom = len(cells) - 1
    assert abs(chi_square - freedom) < 4.5 * math.sqrt(2 * freedom)


def test_a_token_does_not_depend_on_the_batch() -> None:
    rng = random.Random(5)
    sequences = [
        _sequence(
            output=[rng.randrange(USED) for _ in range(rng.randrange(4))],
            random_seed=rng.getrandbits(63),
            logprobs=rng.choice([None, 0, 3]),
            **{
                name: rng.choice(FEATURES[name])
                for name in ("temperature", "top_k", "top_p", "min_p", "frequency_penalty")
            },
        )
        for _ in range(60)
    ]
    logits = _logits(60, seed=2)
    together = Sampler(USED).sample(logits.clone(), sequences)
    for row in range(60):
        alone = Sampler(USED).sample(logits[row : row + 1].clone(), [sequences[row]])
        assert alone[0].token_id == together[row].token_id
    order = rng.sample(range(60), 30)
    some = Sampler(USED).sample(logits[order], [sequences[row] for row in order])
    assert [r.token_id for r in some] == [together[row].token_id for row in order]


def test_the_random_number_depends_on_seed_and_count_alone() -> None:
    numbers = [uniform(seed, counter) for seed in range(-50, 50) for counter in range(100)]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 1 for number in numbers)
    mean = sum(numbers) / len(numbers)
    assert abs(mean - 0.5) < 4 * math.sqrt(1 / 12 / len(numbers))
    for counter in (uniform, lambda a, b: uniform(b, a)):
        pairs = [(counter(i, 0), counter(i, 1)) for i in range(5000)]
        covariance = sum((x - 0.5) * (y - 0.5) for x, y in pairs) / len(pairs)
        assert abs(covariance) < 4 / 12 / math.sqrt(len(pairs))
    assert uniform(5, 3) == uniform(5, 3)
    assert uniform(-(2**63), 0) != uniform(2**63 - 1, 0)
    logits = _logits(1)
    first = [_sample(logits, [_sequence(output=[1] * n, seed=9)]) for n in range(20)]
    again = [_sample(logits, [_sequence(output=[1] * n, seed=9, random_seed=n)]) for n in range(20)]
    assert first == again
    assert len({tokens[0] for tokens in first}) > 5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.0}, {"allowed_token_ids": (1, 2)}])
def test_a_row_that_is_not_finite_fails_alone(bad: float, sampling) -> None:
    logits = _logits(3)
    expected = _sample(logits, [_sequence(random_seed=seed) for seed in range(3)])
    logits[1, 17] = bad
    sequences = [_sequence(random_seed=0), _sequence(logprobs=2, **sampling)]
    sequences.append(_sequence(random_seed=2))
    results = Sampler(USED).sample(logits, sequences)
    assert [r.error for r in results] == [None, NOT_FINITE, None]
    assert [r.token_id for r in results] == [expected[0], None, expected[2]]


def test_a_row_of_minus_infinity_fails_and_padding_ids_do_not_matter() -> None:
    logits = _logits(2)
    logits[0, :] = -math.inf
    logits[1, USED:] = math.nan
    results = Sampler(USED).sample(logits, [_sequence(), _sequence()])
    assert [r.error for r in results] == [NOT_FINITE, None]


def test_a_request_that_excludes_every_token_fails() -> None:
    sequence = _sequence(allowed_token_ids=(EOS, STOP, 9), min_tokens=1, bad_words_ids=((9,),))
    other = _sequence(temperature=0.0)
    logits = _logits(2)
    results = Sampler(USED).sample(logits.clone(), [sequence, other])
    assert [r.error for r in results] == [NOTHING_LEFT, None]
    assert results[1].token_id == int(logits[1, :USED].argmax())


def test_the_beginning_of_a_bad_word_must_be_generated() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 22] = 5.0
    sampling = {"temperature": 0.0, "bad_words_ids": ((20, 21, 22),)}
    assert _sample(logits, [_sequence(prompt=[20, 21], **sampling)]) == [22]
    assert _sample(logits, [_sequence(prompt=[20], output=[21], **sampling)]) == [22]
    assert _sample(logits, [_sequence(prompt=[20], output=[20, 21], **sampling)]) == [0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ids_outside_the_used_vocabulary_are_never_chosen(temperature: float) -> None:
    logits = _logits(50)
    logits[:, USED:] = 50.0
    bias = {VOCAB - 1: 100.0}
    sequences = [
        _sequence(random_seed=seed, temperature=temperature, logprobs=20, logit_bias=bias)
        for seed in range(50)
    ]
    for result in Sampler(USED).sample(logits, sequences):
        assert result.token_id is not None
        assert result.token_id < USED
        assert result.logprobs is not None
        assert all(entry.token_id < USED for entry in result.logprobs)
        assert sum(math.exp(entry.logprob) for entry in result.logprobs[1:]) < 1


def _reference_logprobs(row: list[float], token_id: int, num: int) -> list[TokenLogprob]:
    normaliser = math.log(math.fsum(math.exp(value) for value in row))
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    return [
        TokenLogprob(i, row[i] - normaliser, order.index(i) + 1) for i in [token_id, *order[:num]]
    ]


def _assert_logprobs_close(got: list[TokenLogprob], expected: list[TokenLogprob]) -> None:
    assert [(e.token_id, e.rank) for e in got] == [(e.token_id, e.rank) for e in expected]
    assert [e.logprob for e in got] == pytest.approx([e.logprob for e in expected], abs=1e-5)


def test_logprobs_are_of_the_raw_distribution() -> None:
    logits = _logits(40, seed=8)
    wanted = [None, 0, 1, 5, 20]
    sequences = [
        _sequence(
            output=[3, 3],
            random_seed=row,
            temperature=[0.0, 2.0][row % 2],
            logprobs=wanted[row % 5],
            frequency_penalty=[0.0, 2.0][row // 20],
            min_tokens=5,
            forced_token_ids=(1, 2, 250) if row == 7 else None,
        )
        for row in range(40)
    ]
    results = Sampler(USED).sample(logits.clone(), sequences)
    assert results[7].token_id == 250
    for row, result in enumerate(results):
        num = wanted[row % 5]
        if num is None:
            assert result.logprobs is None
            continue
        assert result.logprobs is not None
        assert result.token_id is not None
        _assert_logprobs_close(
            result.logprobs, _reference_logprobs(logits[row, :USED].tolist(), result.token_id, num)
        )


@pytest.mark.parametrize("num", [0, 3])
def test_prompt_logprobs_equal_the_reference(num: int) -> None:
    logits = _logits(6, seed=9)
    targets = (0, 299, 5, 5, 17, 120)
    got = Sampler(USED).prompt_logprobs(logits, targets, num)
    assert got is not None
    for row, target in enumerate(targets):
        expected = _reference_logprobs(logits[row, :USED].tolist(), target, num)
        _assert_logprobs_close(got[row], expected)
    logits[3, 0] = math.nan
    assert Sampler(USED).prompt_logprobs(logits, targets, num) is None


def test_more_logprobs_than_vocabulary() -> None:
    (result,) = Sampler(3).sample(_logits(1), [_sequence(logprobs=20, stop_token_ids=())])
    assert result.logprobs is not None
    assert [entry.rank for entry in result.logprobs[1:]] == [1, 2, 3]


def test_nothing_to_sample_gives_nothing() -> None:
    assert Sampler(USED).sample(torch.empty(0, VOCAB), []) == []


def test_logits_of_inference_mode_can_be_processed() -> None:
    with torch.inference_mode():
        logits = _logits(1) * 1
    (result,) = Sampler(USED).sample(logits, [_sequence(logit_bias={5: 100.0}, temperature=0.0)])
    assert (result.token_id, result.error) == (5, None)
