"""More draws than a step has logits for at once: done in parts, and put together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nbsgl.engine.sampler import Drawn


def joined(parts: Sequence[tuple[Tensor, Drawn | None]]) -> tuple[Tensor, Drawn | None]:
    """What was drawn in parts of neighbouring lines, int32 ids `[2, n]` and log-probabilities, as if at once."""
    if len(parts) == 1:
        return parts[0]
    ids = torch.cat([ids for ids, _ in parts], dim=1)
    begins = [0]
    for part, _ in parts:
        begins.append(begins[-1] + part.shape[1])
    asked = [(begin, drawn) for begin, (_, drawn) in zip(begins, parts) if drawn is not None and drawn.logprob_lines]
    if not asked:
        return ids, None
    num_top = max(_tops(drawn)[0].shape[1] for _, drawn in asked)
    top_ids, top_logprobs = (
        torch.cat([torch.nn.functional.pad(tops, (0, num_top - tops.shape[1])) for tops in column])
        for column in zip(*(_tops(drawn) for _, drawn in asked))
    )
    logprobs = torch.cat([drawn.logprobs for _, drawn in asked if drawn.logprobs is not None])
    named = [begin + line for begin, drawn in asked for line in drawn.logprob_lines]
    return ids, Drawn(ids[0].long(), ids[1].bool(), named, logprobs, top_ids, top_logprobs)


def _tops(drawn: Drawn) -> tuple[Tensor, Tensor]:
    assert drawn.top_ids is not None, "they come with the log-probabilities"
    assert drawn.top_logprobs is not None, "they come together"
    return drawn.top_ids, drawn.top_logprobs
