import random

import pytest

from m2serve.errors import OverloadedError
from m2serve.server.admission import Admission, Ticket


def test_full_queues_refuse_and_say_why() -> None:
    reasons: list[str] = []
    admission = Admission(2, 100, reasons.append)
    (first,) = admission.admit([90])
    with pytest.raises(OverloadedError) as caught:
        admission.admit([20])
    assert caught.value.status == 503
    assert caught.value.retry_after_s >= 1
    (second,) = admission.admit([1])
    with pytest.raises(OverloadedError):
        admission.check()
    assert reasons == ["queued_tokens", "queued_reqs"]
    first.leave()
    first.leave()
    assert (admission.num_queued_reqs, admission.num_queued_tokens) == (1, 1)
    second.leave()
    admission.admit([100])


def test_whoever_finds_nobody_waiting_gets_in() -> None:
    admission = Admission(2, 10)
    admission.admit([100] * 5)
    with pytest.raises(OverloadedError):
        admission.admit([1])


def test_zero_is_no_limit() -> None:
    admission = Admission(0, 0)
    for _ in range(1000):
        admission.admit([10**6])


def test_counts_are_exact_whatever_the_order() -> None:
    rng = random.Random(0)
    admission = Admission(20, 500)
    waiting: list[Ticket] = []
    sizes: dict[int, int] = {}
    for _ in range(2000):
        if waiting and rng.random() < 0.5:
            ticket = waiting.pop(rng.randrange(len(waiting)))
            ticket.leave()
            del sizes[id(ticket)]
        else:
            prompts = [rng.randrange(1, 100) for _ in range(rng.randrange(1, 5))]
            try:
                tickets = admission.admit(prompts)
            except OverloadedError:
                assert waiting
                continue
            waiting += tickets
            sizes.update(zip(map(id, tickets), prompts, strict=True))
        assert admission.num_queued_reqs == len(waiting)
        assert admission.num_queued_tokens == sum(sizes.values())
