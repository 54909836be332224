"""Draws that the sampler cannot do at once: a draft's, where each changes the counts that the next is penalised by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nbsgl.engine.batch import Row
from nbsgl.engine.penalties import has_penalty
from nbsgl.engine.sampler import Drawn, Sampler
from nbsgl.engine.transfer import index_of


def draw_in_rounds(sampler: Sampler, logits: Tensor, lines: Sequence[Row]) -> Drawn:
    """Draw for each line of logits `[lines, vocab]`, with log-probabilities of the rows' first lines at least."""
    rounds = rounds_of(lines)
    if len(rounds) == 1:
        return sampler.draw(logits, lines)
    drawn: Drawn | None = None
    for idxs in rounds:
        at = index_of(idxs, logits.device)
        part = sampler.draw(logits.index_select(0, at), [lines[i] for i in idxs])
        if drawn is None:
            tokens, is_finite = part.tokens.new_empty(len(lines)), part.is_finite.new_empty(len(lines))
            named = [idxs[line] for line in part.logprob_lines]
            drawn = Drawn(tokens, is_finite, named, part.logprobs, part.top_ids, part.top_logprobs)
        drawn.tokens.index_copy_(0, at, part.tokens)
        drawn.is_finite.index_copy_(0, at, part.is_finite)
    assert drawn is not None, "there is a first round"
    return drawn


def rounds_of(lines: Sequence[Row]) -> list[list[int]]:
    """The lines' indices: in no round two penalised lines of one row, which come in their order."""
    rounds: list[list[int]] = [[]]
    num_before: dict[int, int] = {}
    for i, line in enumerate(lines):
        assert line.params is not None, "only rows with parameters are drawn"
        at = 0
        if has_penalty(line.params):
            at = num_before.get(line.row, 0)
            num_before[line.row] = at + 1
        if at == len(rounds):
            rounds.append([])
        rounds[at].append(i)
    return rounds


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
