"""What a sequence must become, computed alone: no batch, no cache, no slots, no fault (law 2, I11)."""

from __future__ import annotations

from dataclasses import dataclass, field

from nbsgl.engine.grammar.forced import propose, tail_of
from nbsgl.engine.jump_forward import MOST_DRAFT
from nbsgl.engine.segments import Forced, Sampled, Segment
from nbsgl.protocol import Finish, SamplingParams, unpack_ids
from tests.sim.oracle import EOS, START, VOCAB, entries_of, pick, score_of
from tests.sim.toy_grammar import ToyEncoder, ToyGrammar, ToyMatcher


@dataclass
class Outcome:
    """The end of one segment."""

    ids: list[int] = field(default_factory=list)
    finish: Finish | None = None
    tail: bytes = b""
    complete: bool = True
    logprobs: list[float | None] | None = None
    error: str = ""


def run_segment(tokens: list[int], segment: Segment, context_length: int, capacity: int) -> Outcome:
    """Grow `tokens` by the segment; the list is changed."""
    if isinstance(segment, Forced):
        return _forced(tokens, segment, context_length)
    return _sampled(tokens, segment, context_length, capacity)


def _forced(tokens: list[int], segment: Forced, context_length: int) -> Outcome:
    ids = unpack_ids(segment.ids)
    begin = len(tokens)
    if begin + len(ids) > context_length:
        return Outcome(error="RequestTooLong")
    tokens += ids
    if segment.score_from < 0:
        return Outcome()
    entries = entries_of(tokens)
    scored = range(min(begin + segment.score_from, len(tokens)), len(tokens))
    return Outcome(logprobs=[score_of(entries[i - 1], tokens[i]) if i else None for i in scored])


def _sampled(tokens: list[int], segment: Sampled, context_length: int, capacity: int) -> Outcome:
    params, run, logprobs = segment.params, [], []
    if segment.grammar is not None and segment.grammar.text == "bad":
        return Outcome(error="EngineError")  # whatever is not ours becomes one on the wire
    if params.max_tokens == "fit":
        limit = max(0, min(context_length, capacity + 1) - len(tokens))
    else:
        limit = params.max_tokens
        if len(tokens) + limit > context_length:
            return Outcome(error="RequestTooLong")
    matcher = ToyGrammar(segment.grammar.text, VOCAB).matcher() if segment.grammar else None
    is_canonical = segment.grammar is not None and segment.grammar.jump == "canonical"
    rest: tuple[int, ...] = ()
    ends_free = limit == 0 or (matcher is not None and matcher.is_finished())
    if not tokens and not (ends_free and not (limit == 0 and params.return_logprob)):
        return Outcome(error="ParameterError")
    outcome = Outcome(logprobs=[] if params.return_logprob else None)
    if matcher is not None and matcher.is_finished():
        outcome.finish = Finish(type="stop")
        return outcome
    while len(run) < limit:
        if matcher is not None and is_canonical and not rest:
            rest = propose(matcher, tail_of(tokens + run, VOCAB), VOCAB, ToyEncoder(VOCAB), MOST_DRAFT)
        token, logprob = _draw(tokens + run, params, len(run), matcher, rest[:1])
        rest = rest[1:]
        if _is_stop_token(token, params, len(run), matcher):
            outcome.finish = Finish(type="stop", matched=token)
            break
        run.append(token)
        logprobs.append(logprob)
        if matcher is not None:
            assert matcher.advance(token)
        met = _stop_string(run, params, segment)
        if met is not None:
            text, kept, outcome.tail = met
            run, logprobs = run[:kept], logprobs[:kept]
            outcome.finish = Finish(type="stop", matched=text)
            break
        if matcher is not None and matcher.is_finished():
            outcome.finish = Finish(type="stop")
            break
    if outcome.finish is None:
        outcome.finish = Finish(type="length", length=limit)
    if matcher is not None and not isinstance(outcome.finish.matched, str):
        outcome.complete = matcher.is_accepting()
    outcome.ids = run
    if outcome.logprobs is not None:
        outcome.logprobs = logprobs
    tokens += run
    return outcome


def _draw(
    tokens: list[int], params: SamplingParams, idx: int, matcher: ToyMatcher | None, narrowed: tuple[int, ...]
) -> tuple[int, float]:
    entry = entries_of(tokens)[-1] if tokens else START
    ban: set[int] = set()
    if idx < params.min_tokens:
        if matcher is not None or not params.ignore_eos:
            ban.add(EOS)
        if matcher is None:
            ban |= set(params.stop_token_ids)
    place = 0 if params.is_greedy else (params.seed or 0) * 1000 + idx + 1
    allowed = set(narrowed) or (matcher.allowed() if matcher is not None else None)
    token = pick(entry, place, sorted(ban), allowed)
    return token, score_of(entry, token)


def _is_stop_token(token: int, params: SamplingParams, idx: int, matcher: ToyMatcher | None) -> bool:
    if idx < params.min_tokens:
        return False
    is_eos = token == EOS and (matcher is not None or not params.ignore_eos)
    return is_eos or token in params.stop_token_ids


def _stop_string(run: list[int], params: SamplingParams, segment: Sampled) -> tuple[str, int, bytes] | None:
    """The stop string that the last token completes and that begins first; tokens kept, bytes kept of the next."""
    pieces = [VOCAB[token] or b"" for token in run]
    text = b"".join(pieces)
    old_len = len(text) - len(pieces[-1])
    found = []
    for stop in params.stop:
        wanted = stop.encode()
        for start in range(len(text) - len(wanted) + 1):
            if text[start : start + len(wanted)] == wanted and start + len(wanted) > old_len:
                found.append((start, stop))
    for start, stop in sorted(found, key=lambda match: match[0]):
        kept = 0
        while kept < len(run) and sum(map(len, pieces[: kept + 1])) <= start:
            kept += 1
        tail = text[sum(map(len, pieces[:kept])) : start]
        if len(run) >= params.min_tokens and _is_in_language(run[:kept], tail, segment):
            return stop, kept, tail
    return None


def _is_in_language(run: list[int], tail: bytes, segment: Sampled) -> bool:
    if segment.grammar is None:
        return True
    matcher = ToyGrammar(segment.grammar.text, VOCAB).matcher()
    spelt = [VOCAB.index(bytes([byte])) if bytes([byte]) in VOCAB else -1 for byte in tail]
    return all(matcher.advance(token) for token in [*run, *spelt]) and matcher.is_accepting()
