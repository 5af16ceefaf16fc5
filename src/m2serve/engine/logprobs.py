"""Log-probabilities of the model's own distribution, before penalties and temperature."""

from __future__ import annotations

import torch

from m2serve.engine.request import TokenLogprob
from m2serve.engine.token_choice import top_candidates


def token_logprobs(
    logits: torch.Tensor, token_ids: list[int], num_logprobs: list[int]
) -> list[list[TokenLogprob]]:
    """For each row of `logits`, float32 [R, used vocab]: the given token, then the most likely.

    Row r has 1 + num_logprobs[r] entries; the given token comes again among the most likely if it
    is one of them. Equal logits rank by id.
    """
    device = logits.device
    given_ids = torch.tensor(token_ids, dtype=torch.int64, device=device)[:, None]
    normaliser = logits.logsumexp(dim=1, keepdim=True)
    given = logits.gather(1, given_ids)
    vocab = torch.arange(logits.shape[1], device=device)
    ahead = (logits > given) | ((logits == given) & (vocab < given_ids))
    ranks = (ahead.sum(dim=1) + 1).tolist()
    width = min(max(1, *num_logprobs), logits.shape[1])
    counts = torch.tensor(num_logprobs, device=device).clamp(1, width)
    values, ids = top_candidates(logits, counts, width)
    given_logprobs = (given - normaliser)[:, 0].tolist()
    top_logprobs = (values - normaliser).tolist()
    top_ids = ids.tolist()
    return [
        [
            TokenLogprob(token_id, given_logprobs[row], ranks[row]),
            *(
                TokenLogprob(top_ids[row][i], top_logprobs[row][i], i + 1)
                for i in range(min(num_logprobs[row], width))
            ),
        ]
        for row, token_id in enumerate(token_ids)
    ]
