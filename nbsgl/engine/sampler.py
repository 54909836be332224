"""Logits in, token ids out.

Order: penalties and logit bias, clamp, banned ids, grammar mask (the last word on what is possible), temperature,
top-k, top-p and min-p (each judged on the same distribution), then a Gumbel draw keyed by (seed, place in the run,
token id).
A row that asks for none of these costs nothing beyond an argmax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from nbsgl.engine.batch import Row
from nbsgl.engine.penalties import Penalties, has_penalty
from nbsgl.engine.rng import draw_keys, exponentials
from nbsgl.engine.transfer import index_of, to_device
from nbsgl.protocol import SamplingParams

MAX_SCORE = 1e4  # penalised and biased scores are clamped to +-MAX_SCORE: no bias can make an infinity
NEG_INF = float("-inf")
# On a CPU so many of the best tokens are ranked, and all only if they do not hold the mass that top-p asks for.
# 152k tokens, 16 rows, one core, a draw: top-k 20 302 -> 34 ms; top-p 0.95 382 -> 48 ms, and 418 where all are needed
FEW_CANDIDATES = 1_024
MASS_MARGIN = 1e-5  # of float32 sums over FEW_CANDIDATES


@dataclass(slots=True)
class Drawn:
    """Tokens int64 `[rows]`, is_finite bool `[rows]`; log-probabilities of lines `logprob_lines`, on the device.

    `logprobs` float32 `[len(logprob_lines)]`; `top_ids`, `top_logprobs` `[len(logprob_lines), most asked for]`.
    """

    tokens: Tensor
    is_finite: Tensor
    logprob_lines: list[int] = field(default_factory=list)
    logprobs: Tensor | None = None
    top_ids: Tensor | None = None
    top_logprobs: Tensor | None = None


class Sampler:
    """Draws one token per row; holds the penalties' state.

    `last_tokens` (int32 or int64) is the runner's buffer by page-table row: read, never written.  With `invariant` a
    line's draw does not depend on the other lines, to the last bit.
    """

    def __init__(self, vocab_size: int, device: torch.device, last_tokens: Tensor, *, invariant: bool = False) -> None:
        self.vocab_size, self.device, self.last_tokens = vocab_size, device, last_tokens
        self.penalties = Penalties(vocab_size, device)
        self.ids = torch.arange(vocab_size, dtype=torch.int32, device=device)
        self.bits = torch.arange(32, dtype=torch.int32, device=device)
        self.neg_inf = torch.tensor(NEG_INF, device=device)
        self.kernels = None
        if has_kernels(device):
            from nbsgl.engine.cuda.sampling import KernelSampling

            self.kernels = KernelSampling(vocab_size, device, last_tokens, self.penalties, invariant=invariant)

    def draw(self, logits: Tensor, rows: Sequence[Row]) -> Drawn:
        """Draw a token for each row from its line of the logits `[rows, vocab]`, of any float type.

        Kernels leave the logits as they are; without them, float32 logits are changed in place.
        """
        if self.kernels is not None:
            tokens, good = self.kernels.draw(logits, rows, MAX_SCORE)
            result = Drawn(tokens.long(), good.bool())
            lines = [i for i, row in enumerate(rows) if _params(row).return_logprob]
            if lines:
                self._add_logprobs(result, _lines_of(logits, lines), lines, rows)
            return result
        return self._draw_with_tensors(logits.float(), rows)

    def _draw_with_tensors(self, logits: Tensor, rows: Sequence[Row]) -> Drawn:
        # a sum is finite if and only if every term is (float32 logits lie far below overflow)
        is_finite = logits.sum(-1).isfinite()
        lines = [i for i, row in enumerate(rows) if _params(row).return_logprob]
        raw = logits.index_select(0, index_of(lines, self.device)) if lines else None  # before they are changed
        places = self._shape(logits, rows)
        tokens = self._choose(logits, rows)
        if places is not None:
            penalised = [i for i, row in enumerate(rows) if has_penalty(_params(row))]
            drawn = tokens.index_select(0, index_of(penalised, self.device))
            self.penalties.add(places, drawn, [rows[i] for i in penalised])
        result = Drawn(tokens, is_finite)
        if raw is not None:
            self._add_logprobs(result, raw, lines, rows)
        return result

    def forget(self) -> None:
        self.penalties.clear()

    # ---- what is possible, and how likely --------------------------------------------------------------------------

    def _shape(self, logits: Tensor, rows: Sequence[Row]) -> Tensor | None:
        """Penalties, bias, bans, masks, in place; returns the penalised rows' places in the penalties' state."""
        penalised = [(i, row) for i, row in enumerate(rows) if has_penalty(_params(row))]
        places = self.penalties.apply(logits, penalised, self.last_tokens) if penalised else None
        biased = [i for i, row in enumerate(rows) if _params(row).logit_bias]
        if biased:
            self._add_bias(logits, biased, rows)
        if penalised or biased:
            logits.clamp_(-MAX_SCORE, MAX_SCORE)
        banned = [i for i, row in enumerate(rows) if row.ban_ids]
        masked = [i for i, row in enumerate(rows) if row.matcher is not None]
        kept = logits.index_select(0, index_of(banned, self.device)) if banned and masked else None
        if banned:
            self._ban(logits, banned, rows)
        if masked:
            logits.index_copy_(0, *self._masked(logits, masked, rows))
            if kept is not None:
                self._lift_bans(logits, kept, banned, masked, rows)
        return places

    def _add_bias(self, logits: Tensor, lines: list[int], rows: Sequence[Row]) -> None:
        triples = [
            (i, token, bias)
            for i in lines
            for token, bias in _params(rows[i]).logit_bias.items()
            if token < self.vocab_size
        ]
        at = index_of([i for i, _, _ in triples], self.device), index_of([t for _, t, _ in triples], self.device)
        values = to_device([b for _, _, b in triples], self.device, torch.float32)
        logits.index_put_(at, values, accumulate=True)

    def _ban(self, logits: Tensor, lines: list[int], rows: Sequence[Row]) -> None:
        pairs = [(i, token) for i in lines for token in rows[i].ban_ids if token < self.vocab_size]
        at = index_of([i for i, _ in pairs], self.device), index_of([t for _, t in pairs], self.device)
        logits.index_put_(at, self.neg_inf)

    def _masked(self, logits: Tensor, lines: list[int], rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """The lines' index and their logits, -inf where the row's grammar does not allow the token."""
        index = index_of(lines, self.device)
        return index, logits.index_select(0, index).masked_fill_(~self._allowed(lines, rows), NEG_INF)

    def _allowed(self, lines: list[int], rows: Sequence[Row]) -> Tensor:
        """bool `[lines, vocab]` from the matchers' packed words (bit t of the little-endian words is token t)."""
        words = np.zeros((len(lines), (self.vocab_size + 31) // 32), dtype=np.uint32)
        for line, i in enumerate(lines):
            rows[i].matcher.fill_mask(words[line])
        packed = to_device(words.view(np.int32), self.device, torch.int32)
        bits = (packed.unsqueeze(-1) >> self.bits).bitwise_and_(1)
        return bits.view(len(lines), -1)[:, : self.vocab_size].bool()

    def _lift_bans(
        self, logits: Tensor, kept: Tensor, banned: list[int], masked: list[int], rows: Sequence[Row]
    ) -> None:
        """Where a ban left nothing that the grammar allows, the grammar wins: the row goes on without its ban."""
        both = [i for i in banned if rows[i].matcher is not None]
        if not both:
            return
        index = index_of(both, self.device)
        before = kept.index_select(0, index_of([banned.index(i) for i in both], self.device))
        before.masked_fill_(~self._allowed(both, rows), NEG_INF)
        lines = logits.index_select(0, index)
        is_dead = (lines == NEG_INF).all(-1, keepdim=True)
        logits.index_copy_(0, index, torch.where(is_dead, before, lines))

    # ---- the draw --------------------------------------------------------------------------------------------------

    def _choose(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        drawing = [i for i, row in enumerate(rows) if not _params(row).is_greedy]
        if not drawing:
            return logits.argmax(-1)  # ties: the lowest id
        plain = [i for i in drawing if not _is_filtered(_params(rows[i]))]
        filtered = [i for i in drawing if _is_filtered(_params(rows[i]))]
        if len(plain) == len(rows):
            return self._draw_plain(logits, rows)
        tokens = logits.argmax(-1)
        for lines, draw in ((plain, self._draw_plain), (filtered, self._draw_filtered)):
            if lines:
                self._fill(tokens, logits, rows, lines, draw)
        return tokens

    def _fill(
        self,
        tokens: Tensor,
        logits: Tensor,
        rows: Sequence[Row],
        lines: list[int],
        draw: Callable[[Tensor, Sequence[Row]], Tensor],
    ) -> None:
        index = index_of(lines, self.device)
        tokens.index_copy_(0, index, draw(logits.index_select(0, index), [rows[i] for i in lines]))

    def _draw_plain(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        scores = logits / self._floats([_params(row).temperature for row in rows])
        return scores.sub_(exponentials(self._keys(rows), self.ids).log_()).argmax(-1)

    def _draw_filtered(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        """Draw among the candidates that top-k, top-p and min-p leave, in the order of their probability."""
        params = [_params(row) for row in rows]
        scores = logits / self._floats([p.temperature for p in params])
        probs = scores.softmax(-1)
        limits = [self.vocab_size if p.top_k == -1 else min(p.top_k, self.vocab_size) for p in params]
        top_p, min_p = self._floats([p.top_p for p in params]), self._floats([p.min_p for p in params])
        ids = self._ranked(scores, probs, limits, top_p, min_p)
        scores, probs = scores.gather(1, ids), probs.gather(1, ids)
        # top-p keeps a token if those before it do not reach p: the first always, the one that crosses p too
        before = probs.cumsum(-1).sub_(probs)
        is_out = (self.ids[: ids.shape[1]] >= self._floats(limits)) | (before >= top_p)
        is_out |= probs < probs[:, :1] * min_p
        is_out[:, 0] = False
        noise = exponentials(self._keys(rows), ids.int()).log_()
        best = (scores - noise).masked_fill_(is_out, NEG_INF).argmax(-1, keepdim=True)
        return ids.gather(1, best).squeeze(1)

    def _ranked(self, scores: Tensor, probs: Tensor, limits: list[int], top_p: Tensor, min_p: Tensor) -> Tensor:
        """Token ids `[rows, n]` by falling score, equal scores by id: so many that no candidate is missing."""
        if self.device.type == "cpu":  # elsewhere the host would have to wait for the answer
            num = max(FEW_CANDIDATES if limit == self.vocab_size else limit for limit in limits)
            ids = _top_ids(scores, num) if num <= self.vocab_size // 4 else None
            if ids is not None:
                kept = probs.gather(1, ids)
                last, mass = kept[:, -1:], kept.sum(-1, keepdim=True)
                is_complete = (self._floats(limits) <= num) | (last == 0.0) | (last < kept[:, :1] * min_p)
                if bool((is_complete | (mass >= top_p + MASS_MARGIN)).all()):
                    return ids
        # stable: equal scores by id on every device; what is beyond every row's top-k need not be hashed
        return scores.sort(dim=-1, descending=True, stable=True).indices[:, : max(limits)]

    def _keys(self, rows: Sequence[Row]) -> Tensor:
        keys = []
        for row in rows:
            seed = _params(row).seed
            assert seed is not None, "a sampled run's seed is drawn before it reaches the worker"
            keys.append(draw_keys(seed, row.run_idx))
        return to_device(keys, self.device, torch.int32)

    def _floats(self, values: Sequence[float]) -> Tensor:
        """float32 `[rows, 1]`."""
        return to_device(values, self.device, torch.float32).unsqueeze(-1)

    # ---- log-probabilities -----------------------------------------------------------------------------------------

    def _add_logprobs(self, drawn: Drawn, raw: Tensor, lines: list[int], rows: Sequence[Row]) -> None:
        num_top = max(_params(rows[i]).top_logprobs_num for i in lines)
        tokens = drawn.tokens.index_select(0, index_of(lines, self.device))
        drawn.logprob_lines = lines
        drawn.logprobs, drawn.top_ids, drawn.top_logprobs = logprobs_of(raw, tokens, num_top)


def logprobs_of(logits: Tensor, tokens: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Float32 log-probability of one token (int64) per line of logits; ids and values of the `num_top` best.

    With kernels nothing of the logits' size is allocated.
    """
    if has_kernels(logits.device):
        from nbsgl.engine.kernels.logsumexp import logsumexp

        normaliser = logsumexp(logits).unsqueeze(-1)
    else:
        normaliser = logits.float().logsumexp(-1, keepdim=True)
    chosen = (logits.gather(1, tokens.unsqueeze(1)).float() - normaliser).squeeze(1)
    if not num_top:
        nothing = normaliser[:, :0]
        return chosen, nothing.long(), nothing
    best, ids = logits.topk(min(num_top, logits.shape[-1]), dim=-1)
    return chosen, ids, best.float() - normaliser


def has_kernels(device: torch.device) -> bool:
    """Whether tensors there are for Triton's kernels."""
    return device.type == "cuda" and find_spec("triton") is not None


def _lines_of(logits: Tensor, lines: list[int]) -> Tensor:
    return logits if len(lines) == logits.shape[0] else logits.index_select(0, index_of(lines, logits.device))


def _top_ids(scores: Tensor, num: int) -> Tensor | None:
    """Ids of the `num` best scores of each row, ranked as a stable sort does; None if equal scores lie on the cut.

    Scores of -inf may: none of them is ever drawn.
    """
    values, ids = scores.topk(num, dim=-1, sorted=False)
    cut = values.min(-1, keepdim=True).values
    num_above = (scores >= cut).sum(-1, keepdim=True)
    if not bool(((num_above == num) | (cut == NEG_INF)).all()):
        return None
    ids = ids.sort(-1).values
    order = scores.gather(1, ids).sort(dim=-1, descending=True, stable=True).indices
    return ids.gather(1, order)


def _params(row: Row) -> SamplingParams:
    assert row.params is not None, "only rows with parameters are drawn"
    return row.params


def _is_filtered(params: SamplingParams) -> bool:
    return params.top_k != -1 or params.top_p < 1.0 or params.min_p > 0.0
