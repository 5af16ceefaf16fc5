"""The operations of the decoder, each by the property that goes wrong most easily."""

from __future__ import annotations

import pytest
import torch

from m2serve.checkpoint.weights import DenseWeight
from m2serve.kernels import reference

EPS = 1e-6


def random(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def test_rms_norm_is_the_formula() -> None:
    x, weight = random(3, 8), random(8, seed=1)
    for row, normed in zip(x, reference.rms_norm(x, weight, EPS), strict=True):
        scale = (sum(float(v) ** 2 for v in row) / 8 + EPS) ** -0.5
        assert torch.allclose(normed, row * scale * weight)


def test_norm_over_the_whole_projection_follows_a_permutation_of_heads() -> None:
    """Normalising each head by itself would not."""
    q, weight = random(5, 4, 16), random(4, 16, seed=1)
    q[:, 2] *= 10
    order = torch.tensor([2, 0, 3, 1])
    normed = reference.rms_norm(q.flatten(1), weight.flatten(), EPS).view(5, 4, 16)
    permuted = reference.rms_norm(q[:, order].flatten(1), weight[order].flatten(), EPS)
    assert torch.allclose(permuted.view(5, 4, 16), normed[:, order], atol=1e-6)
    per_head = reference.rms_norm(q, torch.ones(16), EPS) * weight
    assert not torch.allclose(per_head, normed, atol=0.1)


def test_rotary_frequencies_of_the_released_models() -> None:
    cos, sin = reference.rotary_cos_sin(torch.tensor([1]), 64, 5e6)
    frequency = torch.atan2(sin, cos)[0, 0]
    expected = {0: 1.0, 1: 0.6175287581, 15: 7.241988160e-4, 16: 4.472135955e-4, 31: 3.238715564e-7}
    for index, value in expected.items():
        assert abs(float(frequency[index]) / value - 1) < 1e-5


def test_rotary_turns_half_of_the_head_and_keeps_its_length() -> None:
    x = random(2, 3, 128)
    cos, sin = reference.rotary_cos_sin(torch.tensor([0, 1000]), 64, 5e6)
    turned = reference.apply_rotary(x, cos, sin)
    assert torch.equal(turned[0], x[0])
    assert torch.equal(turned[..., 64:], x[..., 64:])
    pair = (turned[1, 0, 0] ** 2 + turned[1, 0, 32] ** 2, x[1, 0, 0] ** 2 + x[1, 0, 32] ** 2)
    assert torch.allclose(*pair, rtol=1e-5)
    assert not torch.allclose(turned[1, :, :64], x[1, :, :64], atol=0.1)


def test_rotary_depends_on_the_distance_alone() -> None:
    q, k = random(1, 1, 64), random(1, 1, 64, seed=1)

    def score(query_position: int, key_position: int) -> float:
        turned = [
            reference.apply_rotary(x, *reference.rotary_cos_sin(torch.tensor([p]), 32, 5e6))
            for x, p in ((q, query_position), (k, key_position))
        ]
        return float((turned[0] * turned[1]).sum())

    assert abs(score(105, 100) - score(7, 2)) < 1e-3
    assert abs(score(105, 100) - score(104, 100)) > 1e-2


def test_the_routing_bias_changes_the_choice_and_not_the_weights() -> None:
    x, gate = random(6, 8), random(10, 8, seed=1)
    scores = torch.sigmoid(x @ gate.T)
    plain_weights, plain_ids = reference.route(x, gate, torch.zeros(10), 3)
    bias = torch.zeros(10)
    bias[4] = 5.0
    weights, ids = reference.route(x, gate, bias, 3)
    assert (ids == 4).any(-1).all()
    assert not (plain_ids == 4).any(-1).all()
    for chosen_weights, chosen in ((weights, ids), (plain_weights, plain_ids)):
        unbiased = scores.gather(1, chosen)
        assert torch.allclose(chosen_weights, unbiased / unbiased.sum(1, keepdim=True))
        assert torch.allclose(chosen_weights.sum(1), torch.ones(6))


def test_experts_are_the_sum_over_each_tokens_choice() -> None:
    w13, w2 = random(5, 2, 8, 16), random(5, 16, 8, seed=1)
    x, weights = random(7, 16, seed=2), torch.rand(7, 2)
    ids = torch.stack([torch.randperm(5)[:2] for _ in range(7)])
    ids[:, 0] = 3  # one expert has every token, and some have none
    ids[:, 1] = 1
    out = reference.experts(x, DenseWeight(w13), DenseWeight(w2), weights, ids)
    for t in range(7):
        expected = torch.zeros(16)
        for weight, e in zip(weights[t], ids[t], strict=True):
            gate, up = w13[e, 0] @ x[t], w13[e, 1] @ x[t]
            expected += weight * (w2[e] @ (gate * torch.sigmoid(gate) * up))
        assert torch.allclose(out[t], expected, rtol=1e-4, atol=1e-4)


def test_paged_attention_is_softmax_over_the_past() -> None:
    """One decode, one prefill in the middle, one fresh prefill, blocks out of order."""
    num_kv_heads, group, size, block_size = 2, 3, 8, 4
    lens, new = [6, 9, 3], [1, 5, 3]
    table = torch.tensor([[5, 0, 0], [2, 7, 1], [3, 0, 0]])
    keys = torch.full((8, block_size, num_kv_heads, size), torch.nan)
    values = keys.clone()
    past = []
    for s, length in enumerate(lens):
        k, v = random(length, num_kv_heads, size, seed=s), random(length, num_kv_heads, size)
        slots = torch.tensor(
            [int(table[s, p // block_size]) * block_size + p % block_size for p in range(length)]
        )
        reference.write_kv(k, v, keys, values, slots)
        past.append((k, v))
    q = random(sum(new), num_kv_heads * group, size, seed=9)
    starts = torch.tensor([0, 1, 6, 9])
    out = reference.paged_attention(q, keys, values, starts, torch.tensor(lens), table)
    row = 0
    for s, length in enumerate(lens):
        k, v = past[s]
        for position in range(length - new[s], length):
            for head in range(num_kv_heads * group):
                seen_k, seen_v = k[: position + 1, head // group], v[: position + 1, head // group]
                share = torch.softmax(seen_k @ q[row, head] / size**0.5, 0)
                assert torch.allclose(out[row, head], share @ seen_v, atol=1e-5)
            row += 1


def test_decodes_of_unlike_length_are_padded_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = [3, 20, 1, 9, 20]
    keys, values = random(30, 4, 2, 8), random(30, 4, 2, 8, seed=1)
    table = torch.randperm(30, generator=torch.Generator().manual_seed(0))[:25].view(5, 5)
    q = random(5, 4, 8, seed=2)
    arguments = (q, keys, values, torch.arange(6), torch.tensor(lens), table)
    together = reference.paged_attention(*arguments)
    monkeypatch.setattr(reference, "_CONTEXT_AT_ONCE", 25)
    groups = list(reference._of_similar_length([0, 1, 2, 3, 4], lens))
    assert groups == [[1], [4], [3, 0], [2]]
    assert torch.allclose(reference.paged_attention(*arguments), together, atol=1e-6)


def test_a_long_prefill_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = random(20, 4, 8), random(20, 2, 8, seed=1)
    keys = torch.zeros(5, 4, 2, 8)
    values = torch.zeros(5, 4, 2, 8)
    reference.write_kv(k, k, keys, values, torch.arange(20))
    arguments = (q, keys, values, torch.tensor([0, 20]), torch.tensor([20]), torch.arange(5)[None])
    whole = reference.paged_attention(*arguments)
    monkeypatch.setattr(reference, "_SCORES_AT_ONCE", 3 * 20 * 4)
    assert torch.allclose(reference.paged_attention(*arguments), whole, atol=1e-6)
