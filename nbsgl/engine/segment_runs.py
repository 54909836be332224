"""How a sequence goes through its segments: which begin now, how they end, and what is told about it."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from nbsgl.engine.batch import RowResult
from nbsgl.engine.constraint import Constraint, ready_or_standin
from nbsgl.engine.grammar import CompiledGrammar
from nbsgl.engine.jump_forward import JumpForward
from nbsgl.engine.request import ForcedRun, Queued, SampledRun, Sequence
from nbsgl.engine.segments import Forced, Sampled, TokenScores, Update
from nbsgl.engine.stop import Ending, Refused, StopRules, Vocab
from nbsgl.errors import GrammarError, OutOfMemory, ParameterError, RequestTooLong
from nbsgl.protocol import pack_ids, unpack_array


@dataclass(frozen=True, slots=True)
class Bounds:
    """What limits every sequence."""

    eos_ids: tuple[int, ...]
    vocab: Vocab
    context_length: int
    capacity: int  # slots of the pool
    page_size: int


# ---- beginning


def check_fits(seq: Sequence, bounds: Bounds) -> None:
    """Raise OutOfMemory if the sequence with all that is queued needs more than the pool, alone.

    The last token that is drawn needs no slot until something follows; max_tokens="fit" takes what there is.
    """
    length = len(seq.tokens) + (seq.room_for_run if seq.run else 0)
    most = length - 1
    for queued in seq.queue:
        segment = queued.segment
        if isinstance(segment, Forced):
            length += len(segment.ids) // 4
            most = length if segment.ids else most
        elif segment.params.max_tokens != "fit":
            most = max(most, length + max(0, segment.params.max_tokens - 1))
            length += segment.params.max_tokens
    _check_slots(most, bounds)


def _check_slots(num_tokens: int, bounds: Bounds) -> None:
    size = bounds.page_size
    needs = -(-num_tokens // size) * size
    if needs > bounds.capacity:
        raise OutOfMemory(
            needs=needs, has=bounds.capacity, hint="Shorten it, or start the engine with a larger num_slots."
        )


def begin_segments(seq: Sequence, bounds: Bounds, jump: JumpForward) -> bool:
    """Take segments from the queue as far as they can be computed together: forced runs, then at most one sampled.

    A run that must not draw waits until the forced runs before it are done.  True if a run waits for its grammar's
    compile.  Raises the error of the segment at the head of the queue, which stays there.
    """
    while seq.queue and seq.run is None:
        head = seq.queue[0]
        if head.error is not None:
            raise head.error
        if isinstance(head.segment, Forced):
            if head.segment.score_from >= 0 and any(forced.score_begin >= 0 for forced in seq.forced):
                return False  # one row has one range of scores
            _begin_forced(seq, head, head.segment, bounds)
        else:
            compiled = pending = None
            if head.segment.grammar is not None:
                compiled, pending = ready_or_standin(head.grammar, head.segment.grammar)
                if compiled is None:
                    return True
            constraint = _constraint(seq, head, head.segment, bounds, compiled)
            if constraint is not None:
                constraint.pending = pending
                jump.serve(constraint)
            if not _begin_sampled(seq, head, head.segment, bounds, constraint, jump):
                return False
        seq.queue.popleft()
    return False


def _begin_forced(seq: Sequence, head: Queued, segment: Forced, bounds: Bounds) -> None:
    ids = unpack_array(segment.ids)
    begin, end = len(seq.tokens), len(seq.tokens) + len(ids)
    if end > bounds.context_length:
        raise RequestTooLong(prompt_len=end, max_tokens=0, limit=bounds.context_length)
    _check_slots(end, bounds)
    score_begin = begin + min(segment.score_from, len(ids)) if segment.score_from >= 0 else -1
    seq.tokens += ids
    seq.forced.append(ForcedRun(head.number, begin, end, head.received, score_begin, segment.top))


def _constraint(
    seq: Sequence, head: Queued, segment: Sampled, bounds: Bounds, compiled: CompiledGrammar | None
) -> Constraint | None:
    if compiled is None or segment.grammar is None:
        return None
    limit = _limit(seq, segment.params.max_tokens, bounds)
    return Constraint(compiled, head.grammar, segment.grammar, seq.tokens, limit)


def _begin_sampled(
    seq: Sequence, head: Queued, segment: Sampled, bounds: Bounds, constraint: Constraint | None, jump: JumpForward
) -> bool:
    """Make it the sequence's run; False if it has to wait for the forced runs before it.

    What its grammar leaves no choice about from the start may be appended, without being drawn.
    """
    params, begin = segment.params, len(seq.tokens)
    limit = _limit(seq, params.max_tokens, bounds)
    rules = StopRules(params, limit, bounds.eos_ids, bounds.vocab, constraint)
    needs_no_token = rules.at_start() is not None
    if needs_no_token and seq.forced:
        return False
    is_probe = limit == 0 and params.return_logprob
    if is_probe or not needs_no_token:
        _check_slots(begin + max(limit, 1) - 1, bounds)
    if not seq.tokens and (is_probe or not needs_no_token):
        raise ParameterError("A sampled run needs at least one token before it.", hint="Begin with a forced run.")
    run = SampledRun(
        head.number, params, begin, limit, rules, head.received, constraint=constraint, stream=segment.stream
    )
    if not needs_no_token:
        run.ending = jump.spell(run, seq.tokens)
        if run.ending is not None and seq.forced:
            del seq.tokens[begin:]
            return False
    seq.run = run
    return True


def _limit(seq: Sequence, max_tokens: int | str, bounds: Bounds) -> int:
    length = len(seq.tokens)
    if isinstance(max_tokens, str):  # "fit"
        capacity = bounds.capacity - bounds.capacity % bounds.page_size
        return max(0, min(bounds.context_length - length, capacity + 1 - length))
    if length + max_tokens > bounds.context_length:
        raise RequestTooLong(prompt_len=length, max_tokens=max_tokens, limit=bounds.context_length)
    return max_tokens


def ending_at_start(seq: Sequence) -> Ending | None:
    """The end of a run that has just begun and needs no token; a probe still has to be computed."""
    run = seq.run
    if run is None or seq.forced or run.num_pending:
        return None
    if run.ending is not None or seq.num_drawn:
        return run.ending
    ending = run.rules.at_start()
    if ending is not None and run.is_probe and run.params.return_logprob and ending.finish.type == "length":
        return None
    return ending


# ---- going on


def take_tokens(run: SampledRun, tokens: array[int], drawn: Iterable[int], result: RowResult) -> Ending | None:
    """Append the tokens drawn with this result as far as the run goes; its end if that was it.

    Raises `GrammarError`: the grammar failed, or does not allow a token.
    """
    if run.constraint is not None and run.constraint.failure is not None:
        raise run.constraint.failure
    for token in drawn:
        try:
            ending = _take_token(run, tokens, token, result)
        except Refused:
            reason = f"token {token} was drawn though the grammar does not allow it"
            raise GrammarError(kind="grammar", path=f"token {len(tokens) - run.begin}", reason=reason) from None
        if ending is not None:
            return ending
    return None


def _take_token(run: SampledRun, tokens: array[int], token: int, result: RowResult) -> Ending | None:
    if run.params.return_logprob:
        run.logprobs.append(result.logprob)
        run.tops.append(result.top)
    if run.is_probe:
        run.logprobs.clear()
        return run.rules.at_start()
    ending = run.rules.feed(token)
    tokens.append(token)
    return ending


def news_of(seq: Sequence, run: SampledRun) -> Update | None:
    """The ids that have become sure since the last update, if there are any."""
    released = run.rules.num_released
    if released <= run.num_sent:
        return None
    update = Update(
        seq=seq.id,
        segment=run.number,
        ids=pack_ids(seq.tokens[run.begin + run.num_sent : run.begin + released]),
        scores=_scores(run, released),
    )
    run.num_sent = released
    return update


def _scores(run: SampledRun, end: int) -> TokenScores | None:
    if not run.params.return_logprob:
        return None
    begin = run.num_sent
    if run.is_probe:
        return TokenScores(logprobs=[], top=run.tops[:1])
    return TokenScores(logprobs=run.logprobs[begin:end], top=run.tops[begin:end])


# ---- ending


def end_run(seq: Sequence, ending: Ending, now: float) -> Update:
    """Finish the sampled run: drop what is not kept, and the queue too if the run ended inside a token."""
    run = seq.run
    assert run is not None
    del seq.tokens[run.begin + ending.kept :]
    update = Update(
        seq=seq.id,
        segment=run.number,
        ids=pack_ids(seq.tokens[run.begin + run.num_sent :]),
        done=True,
        finish=ending.finish,
        tail=ending.tail,
        complete=ending.complete,
        needed=ending.needed,
        scores=_scores(run, ending.kept),
        prompt_len=run.begin,
        cached_len=max(0, run.begin - seq.computed_for_run),
        prefill_cached=seq.prefill_cached,
        prefill_computed=seq.prefill_computed,
        queued_s=_since(run.received, run.launched_at, now),
        ttft_s=_since(run.received, run.first_at, now),
        e2e_s=now - run.received,
        grammar=run.constraint.use() if run.constraint is not None else None,
    )
    if run.num_pending:  # it ran once too often, and nobody will hear whether that went well
        seq.epoch += 1
        seq.kv_len = seq.settled_len
    seq.run = None
    seq.settled_len = min(seq.settled_len, len(seq.tokens))
    seq.kv_len = min(seq.kv_len, len(seq.tokens))
    seq.computed_for_run = 0
    _end_segment(seq, len(seq.tokens))
    if ending.tail:
        seq.generation += 1
        seq.awaits_resend = seq.awaits_resend or bool(seq.queue)
        seq.queue.clear()
        seq.next_number = seq.num_done
    return update


def end_forced(seq: Sequence, now: float) -> Update:
    """Finish the first forced run under way."""
    forced = seq.forced.popleft()
    scores = None
    if forced.score_begin >= 0:
        scores = TokenScores(logprobs=forced.logprobs, top=forced.tops)
    update = Update(
        seq=seq.id,
        segment=forced.number,
        done=True,
        scores=scores,
        prompt_len=forced.end,
        cached_len=max(0, forced.end - seq.prefill_computed),
        prefill_cached=seq.prefill_cached,
        prefill_computed=seq.prefill_computed,
        queued_s=_since(forced.received, forced.launched_at, now),
        e2e_s=now - forced.received,
    )
    _end_segment(seq, forced.end)
    return update


def _end_segment(seq: Sequence, length: int) -> None:
    seq.ends.append(length)
    seq.prefill_cached = seq.prefill_computed = 0


def _since(begin: float, at: float | None, now: float) -> float:
    return (now if at is None else at) - begin
