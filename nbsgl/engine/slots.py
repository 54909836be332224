"""The results `front` is gathering: a `Gen` from one or more sampled sequences, a `Select` from its scored choices."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from nbsgl import scoring
from nbsgl.engine.segments import TokenScores, Update
from nbsgl.engine.text import Detokenizer, TextCodec
from nbsgl.protocol import (
    Chunk,
    Finish,
    Gen,
    GenDone,
    GenResult,
    Logprobs,
    SamplingParams,
    Select,
    SelectDone,
    TokenLogprob,
    pack_ids,
    unpack_ids,
)
from nbsgl.reasoning import Splitter


def sample_seed(seed: int, sample: int) -> int:
    """The seed of the n-th sample of a `gen(n=...)`; the first sample keeps the gen's own."""
    if sample == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed}/{sample}".encode(), digest_size=8).digest(), "little") >> 1


def with_text(codec: TextCodec | None, ids: Sequence[int], scores: TokenScores) -> Logprobs:
    """Scores as (log-probability, id, text) triples."""

    def triple(token: int, logprob: float | None) -> TokenLogprob:
        return (logprob, token, codec.token_text(token) if codec else None)

    tokens = [triple(token, logprob) for token, logprob in zip(ids, scores.logprobs)]
    return Logprobs(tokens=tokens, top=[[triple(token, lp) for token, lp in row] or None for row in scores.top])


@dataclass(slots=True)
class Sample:
    """One sampled sequence of a gen, as its updates come in."""

    seed: int
    detokenizer: Detokenizer | None
    skip: int = 0  # characters that stand in the prompt already
    splitter: Splitter | None = None
    reasoning: str = ""
    ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: TokenScores = field(default_factory=TokenScores)
    last: Update | None = None

    def take(self, update: Update, with_logprobs: bool) -> tuple[list[int], str, str]:
        """Add an update's tokens; returns the new ids, the whole characters they complete, and those of thinking."""
        new = unpack_ids(update.ids)
        self.ids += new
        text = ""
        if self.detokenizer:
            text = self.detokenizer.push(new)
            if update.done:
                text += self.detokenizer.push_bytes(update.tail) + self.detokenizer.finish()
        text, self.skip = text[self.skip :], max(0, self.skip - len(text))
        thought = ""
        if self.splitter is not None:
            thought, text = self._split(text, update.done)
        self.text += text
        self.reasoning += thought
        if update.scores and with_logprobs:
            self.logprobs.logprobs.extend(update.scores.logprobs)
            self.logprobs.top.extend(update.scores.top)
        if update.done:
            self.last = update
        return new, text, thought

    def _split(self, text: str, is_end: bool) -> tuple[str, str]:
        assert self.splitter is not None
        parts = [self.splitter.push(text)] + ([self.splitter.finish()] if is_end else [])
        return "".join(thought for thought, _ in parts), "".join(answer for _, answer in parts)


class GenSlot:
    """A `Gen` under way.  `samples[0]` is the branch's own; prompt scores arrive from a sequence of their own.

    `healed` are the bytes of the prompt that are drawn again.
    """

    def __init__(self, node: Gen, params: SamplingParams, codec: TextCodec | None, healed: bytes = b"") -> None:
        assert params.seed is not None
        self.node, self.params, self.codec, self.healed = node, params, codec, healed
        self.samples = [self._sample(sample_seed(params.seed, i)) for i in range(params.n)]
        self.helpers: list[int] = []  # further sequences the worker runs for this slot
        self.prompt_ids: list[int] | None = None
        self.prompt_scores: TokenScores | None = None
        self.prefill_cached = self.prefill_computed = 0

    def _sample(self, seed: int) -> Sample:
        detokenizer = self.codec.detokenizer() if self.codec else None
        splitter = Splitter(self.node.markers) if self.node.markers else None
        return Sample(seed, detokenizer, len(self.healed.decode()), splitter)

    @property
    def number(self) -> int:
        return self.node.slot

    @property
    def has_stop_strings(self) -> bool:
        """Whether the run may end inside a token."""
        return bool(self.params.stop or self.params.stop_regex)

    @property
    def rewrites(self) -> bool:
        """Whether what comes to stand in the branch may be other than what was drawn."""
        return bool(self.healed) or self.node.markers is not None

    @property
    def partial(self) -> str:
        return self.samples[0].text

    def take(self, sample: int, update: Update) -> Chunk | None:
        """Add an update of one sample; the chunk to stream, if there is one."""
        ids, text, thought = self.samples[sample].take(update, self.params.return_logprob)
        self.prefill_cached += update.prefill_cached
        self.prefill_computed += update.prefill_computed
        if sample or not self.node.stream or not (text or ids or thought):
            return None
        scores = update.scores if self.params.return_logprob else None
        logprobs = with_text(self.codec, ids, scores) if scores else None
        return Chunk(
            branch=self.node.branch,
            slot=self.number,
            text=text,
            ids=pack_ids(ids),
            logprobs=logprobs,
            reasoning=thought,
        )

    @property
    def is_done(self) -> bool:
        wants_prompt = self.prompt_ids is not None and self.prompt_scores is None
        return not wants_prompt and all(sample.last is not None for sample in self.samples)

    def event(self) -> GenDone:
        return GenDone(
            branch=self.node.branch, slot=self.number, results=[self._result(i) for i in range(self.params.n)]
        )

    def _result(self, i: int) -> GenResult:
        sample, end = self.samples[i], self.samples[i].last
        assert end is not None
        wants = self.params.return_logprob
        prompt = None
        if self.prompt_ids is not None and self.prompt_scores is not None:
            prompt = with_text(self.codec, self.prompt_ids, self.prompt_scores)
        return GenResult(
            text=sample.text,
            ids=pack_ids(sample.ids),
            finish=self._finish(end.finish),
            prompt_tokens=end.prompt_len,
            cached_tokens=end.cached_len,
            completion_tokens=len(sample.ids),
            prefill_cached=0 if i else self.prefill_cached,
            prefill_computed=0 if i else self.prefill_computed,
            seed=sample.seed,
            queued_s=end.queued_s,
            ttft_s=end.ttft_s,
            e2e_s=end.e2e_s,
            complete=end.complete,
            needed=end.needed,
            reasoning=sample.reasoning,
            output_logprobs=with_text(self.codec, sample.ids, sample.logprobs) if wants else None,
            input_logprobs=prompt,
            grammar=end.grammar,
        )

    def _finish(self, finish: Finish | None) -> Finish:
        """The limit as it was asked for: tokens that are drawn again do not count."""
        if self.healed and finish and finish.type == "length" and isinstance(self.node.params.max_tokens, int):
            return Finish(type="length", length=self.node.params.max_tokens)
        return finish or Finish(type="stop")


class SelectSlot:
    """A `Select` under way: every choice is a forced run on a forked sequence, scored from where it differs."""

    has_stop_strings = False
    partial = ""

    def __init__(self, node: Select, scored: list[list[int]], codec: TextCodec | None) -> None:
        self.node, self.scored, self.codec = node, scored, codec
        self.helpers: list[int] = []
        self.logprobs: list[TokenScores | None] = [None] * len(scored)
        self.unconditional: list[TokenScores | None] | None = [None] * len(scored) if node.needs_unconditional else None
        self.prompt_tokens = 0
        self.prefill_cached = self.prefill_computed = 0
        self.e2e_s = 0.0
        self.index = -1

    @property
    def number(self) -> int:
        return self.node.slot

    def take(self, i: int, is_unconditional: bool, update: Update) -> None:
        """Add the scores of choice i; news without scores are of what stands before all choices."""
        scores = update.scores
        self.prefill_cached += update.prefill_cached
        self.prefill_computed += update.prefill_computed
        if scores is None:
            return
        self.e2e_s = max(self.e2e_s, update.e2e_s)
        if is_unconditional:
            assert self.unconditional is not None
            self.unconditional[i] = scores
        else:
            self.logprobs[i] = scores
            self.prompt_tokens = max(self.prompt_tokens, update.prompt_len - len(self.scored[i]))

    @property
    def is_done(self) -> bool:
        return None not in self.logprobs and None not in (self.unconditional or ())

    def event(self) -> SelectDone:
        """Decide (unless the method is "ask") and tell."""
        rows = [scores.logprobs for scores in self.logprobs if scores]
        bases = [scores.logprobs for scores in self.unconditional if scores] if self.unconditional else None
        method = scoring.METHODS.get(self.node.method, scoring.token_length_normalized)
        scores = method(rows, bases)
        if self.node.method != "ask":
            self.index = scoring.decide(scores, self.node.temperature, self.node.seed)
        return SelectDone(
            branch=self.node.branch,
            slot=self.number,
            index=self.index,
            scores=scores,
            token_logprobs=self._triples(self.logprobs),
            unconditional=self._triples(self.unconditional) if self.unconditional else None,
            prompt_tokens=self.prompt_tokens,
            prefill_cached=self.prefill_cached,
            prefill_computed=self.prefill_computed,
            e2e_s=self.e2e_s,
            seed=self.node.seed,
        )

    def _triples(self, rows: Sequence[TokenScores | None]) -> list[list[TokenLogprob]]:
        return [with_text(self.codec, ids, row).tokens for ids, row in zip(self.scored, rows) if row]


Slot = GenSlot | SelectSlot
