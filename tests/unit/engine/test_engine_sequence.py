"""The end of a sequence, and what survives a preemption."""

import pytest

from m2serve.engine.request import EngineRequest, SamplingParams
from m2serve.engine.sequence import Sequence

EOS, STOP = 9, 8


def _sequence(**sampling: object) -> Sequence:
    params = SamplingParams(
        **{"max_tokens": 5, "eos_token_ids": (EOS,), "stop_token_ids": (STOP,), **sampling}
    )
    request = EngineRequest(request_id="a", prompt_token_ids=[1, 2, EOS], sampling=params)
    return Sequence(request, arrival=0, random_seed=77)


@pytest.mark.parametrize(
    ("sampling", "generated", "reason", "stop_token_id"),
    [
        ({}, [3], None, None),
        ({}, [3, EOS], "stop", EOS),
        ({}, [3, STOP], "stop", STOP),
        ({"ignore_eos": True}, [3, EOS], None, None),
        ({"ignore_eos": True}, [3, STOP], "stop", STOP),
        ({}, [3, 3, 3, 3, 3], "length", None),
        ({}, [3, 3, 3, 3, EOS], "stop", EOS),
        ({"max_tokens": 1}, [3], "length", None),
        ({"min_tokens": 3}, [3, EOS], None, None),
        ({"min_tokens": 3}, [3, 3, STOP], "stop", STOP),
        ({"max_tokens": 100}, [3] * 7, "length", None),
        ({"max_tokens": 100}, [3] * 6, None, None),
        ({"forced_token_ids": (4, 5)}, [4], None, None),
        ({"forced_token_ids": (4, 5)}, [4, 5], "stop", None),
        ({"forced_token_ids": (4, EOS)}, [4, EOS], "stop", EOS),
        ({"forced_token_ids": (4, EOS, 5)}, [4, EOS], "stop", EOS),
        ({"forced_token_ids": (4, EOS, 5), "ignore_eos": True}, [4, EOS], None, None),
        ({"forced_token_ids": (4, EOS), "ignore_eos": True}, [4, EOS], "stop", None),
        ({"forced_token_ids": (4, 5, 6), "max_tokens": 2}, [4, 5], "length", None),
        ({"forced_token_ids": (4, 5), "max_tokens": 2}, [4, 5], "stop", None),
    ],
)
def test_finish_reason(sampling, generated, reason, stop_token_id) -> None:
    sequence = _sequence(**sampling)
    for token_id in generated[:-1]:
        sequence.append(token_id)
        assert sequence.finish_reason(max_seq_len=10) is None
    sequence.append(generated[-1])
    assert sequence.finish_reason(max_seq_len=10) == reason
    assert sequence.stop_token_id == stop_token_id


def test_an_end_of_sequence_id_in_the_prompt_ends_nothing() -> None:
    sequence = _sequence()
    assert sequence.stop_token_id is None
    assert sequence.finish_reason(max_seq_len=10) is None


def test_tokens_are_counted_and_kept_through_a_preemption() -> None:
    sequence = _sequence(forced_token_ids=(3, 3, 4))
    for expected in (3, 3):
        assert sequence.next_forced_token_id == expected
        sequence.append(expected)
    sequence.num_computed_tokens = 4
    sequence.block_ids = (5, 6)
    sequence.forget_computed()
    assert (sequence.num_computed_tokens, sequence.block_ids) == (0, ())
    assert sequence.token_ids == [1, 2, EOS, 3, 3]
    assert sequence.output_token_ids == [3, 3]
    assert sequence.num_output_tokens == 2
    assert sequence.output_counts == {3: 2}
    assert sequence.prompt_token_set == {1, 2, EOS}
    assert sequence.next_forced_token_id == 4


def test_the_seed_of_the_request_wins() -> None:
    assert _sequence().seed == 77
    assert _sequence(seed=0).seed == 0
