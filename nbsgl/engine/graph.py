"""Program graphs in `front`: nodes come in, segments go to the worker, updates come back, events go out.

One thread, no sockets: `send` and `emit` are given.  A branch's nodes are carried out in order, as far ahead as they
can be: text collects in the open run; a `Gen` closes the run, which is encoded once, and both go to the worker as
segments of one sequence, however many gens follow each other.  Only a `Select` (its winner is part of the open run), an
`Append`, and a fork after a run that a stop string may cut wait for what the worker answers.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import msgspec

from nbsgl import errors
from nbsgl.engine import grammar
from nbsgl.engine.branches import Branch, Cell, Posted, Run
from nbsgl.engine.segments import (
    Forced,
    Sampled,
    TokenScores,
    ToWorker,
    Update,
)
from nbsgl.engine.sequences import Sequences
from nbsgl.engine.slots import GenSlot, SelectSlot, Slot
from nbsgl.engine.text import TextCodec
from nbsgl.errors import (
    NbsglError,
    ParameterError,
    ProgramError,
    RequestTooLarge,
    RequestTooLong,
    TooManyBranches,
    Unsupported,
    UsageError,
)
from nbsgl.protocol import (
    AnyEvent,
    AnyNode,
    Append,
    BranchFailed,
    Choose,
    Close,
    Fork,
    Gen,
    GrammarSpec,
    Ref,
    Root,
    SamplingParams,
    Select,
    Text,
    Tokens,
    pack_ids,
    unpack_array,
    unpack_ids,
)

MAX_BRANCHES = 4096  # per run
MAX_DEPTH = 64
MAX_SEGMENTS = 65_536  # per branch
MAX_TEXT_BYTES = 16 << 20  # of one node
MAX_CHOICES = 1024
MAX_HEALED = 4  # tokens taken back: a character has four bytes at most

Key = tuple[object, int]  # client, run number


class GraphRunner:
    """Carries out the runs of all clients.

    `codec` is None for an engine without a tokenizer (then only `Tokens` nodes and token results exist);
    `send` takes messages for the worker, `emit` events for one run of one client.
    """

    def __init__(
        self,
        codec: TextCodec | None,
        *,
        send: Callable[[ToWorker], None],
        emit: Callable[[object, int, list[AnyEvent]], None],
        context_length: int,
        vocab_size: int,
        rng: random.Random | None = None,
    ) -> None:
        self.codec, self._emit = codec, emit
        self.context_length, self.vocab_size = context_length, vocab_size
        self._rng = rng or random.SystemRandom()
        self._runs: dict[Key, Run] = {}
        self._seqs = Sequences(codec, send, self._take)
        self._events: dict[Key, list[AnyEvent]] = {}

    # ---- from clients ------------------------------------------------------------------------------------------------

    def submit(self, client: object, run: int, nodes: Sequence[AnyNode]) -> None:
        """Take nodes of one run and carry out what can be.  Never raises: what is wrong fails its branch."""
        owner = self._runs.setdefault((client, run), Run((client, run)))
        touched: dict[int, Branch] = {}
        for node in nodes:
            try:
                branch = self._place(owner, node)
                touched[id(branch)] = branch
            except NbsglError as error:
                self._tell(owner, _failed(node, errors.encode(error)))
        for branch in touched.values():
            self._advance(branch)
        self._flush()

    def abort(self, client: object, run: int, branches: Sequence[int] | None, by: str) -> None:
        """End these branches (None: all of the run); each unfinished one answers with `Aborted`."""
        owner = self._runs.get((client, run))
        if owner is None:
            return
        chosen = list(owner.branches.values() if branches is None else map(owner.branches.get, branches))
        error = errors.encode(errors.Aborted(by=by))
        for branch in chosen:
            if branch is not None and not branch.is_idle:
                self._fail(branch, error)
        self._flush()

    def close_run(self, client: object, run: int) -> None:
        """Free everything the run holds; nothing more is told."""
        owner = self._runs.pop((client, run), None)
        if owner:
            self._seqs.drop(owner.branches.values())
            self._events.pop(owner.key, None)

    def drop_client(self, client: object) -> None:
        """The client is gone: free all its runs."""
        for key in [key for key in self._runs if key[0] == client]:
            self.close_run(*key)

    # ---- from the worker ---------------------------------------------------------------------------------------------

    def on_updates(self, updates: Iterable[Update]) -> None:
        """Take the news of one step, tell whoever waits, and carry out what they unblock."""
        for update in updates:
            route = self._seqs.routes.get(update.seq)
            if route is None:
                continue  # of a sequence that was aborted meanwhile
            branch, take = route
            if update.error is not None:
                slot = branch.posted[update.segment].slot if update.segment in branch.posted else branch.slot
                self._fail(branch, update.error, slot)
            else:
                take(update)
                self._advance(branch)
        self._flush()

    def worker_died(self, error: NbsglError) -> None:
        """Everything under way fails with `error`; idle branches go on from their tokens with the next worker."""
        data = errors.encode(error)
        for owner in list(self._runs.values()):
            for branch in list(owner.branches.values()):
                if not branch.is_idle and branch.error is None:
                    self._fail(branch, data)
                branch.is_lost = True
        self._seqs.routes.clear()
        self._flush()

    @property
    def num_unfinished(self) -> int:
        """Branches with something still to do."""
        return sum(not b.is_idle for run in self._runs.values() for b in run.branches.values() if b.error is None)

    # ---- taking nodes in ---------------------------------------------------------------------------------------------

    def _place(self, run: Run, node: AnyNode) -> Branch:
        """Put the node in the queue it belongs to (a fork: its parent's) and return that branch."""
        if isinstance(node, Root):
            return self._new(run, node.branch)
        if isinstance(node, Fork):
            parent = self._known(run, node.parent)
            child = self._new(run, node.branch, parent)
            if parent.error is not None:
                self._fail(child, parent.error)
                return child
            parent.nodes.append(node)
            parent.children.append(child)
            return parent
        branch = self._known(run, node.branch)
        if isinstance(node, Choose):
            self._choose(branch, node)
            return branch
        if isinstance(node, Close):
            branch.is_closed = True
            return branch
        if branch.error is not None:
            self._tell(run, _failed(node, branch.error))
            return branch
        branch.num_nodes += 1
        if branch.num_nodes > MAX_SEGMENTS:
            raise TooManyBranches(what="segments of one branch", n=branch.num_nodes, limit=MAX_SEGMENTS)
        if isinstance(node, Append):
            self._known(run, node.source).readers += 1
        elif isinstance(node, (Gen, Select)):
            run.owners[node.slot] = branch
        branch.nodes.append(node)
        return branch

    def _new(self, run: Run, number: int, parent: Branch | None = None) -> Branch:
        if number in run.branches:
            raise ProgramError(f"branch {number} exists already in this run")
        if len(run.branches) >= MAX_BRANCHES:
            raise TooManyBranches(what="branches of one run", n=len(run.branches) + 1, limit=MAX_BRANCHES)
        depth = parent.depth + 1 if parent else 0
        if depth > MAX_DEPTH:
            raise TooManyBranches(what="fork depth", n=depth, limit=MAX_DEPTH)
        branch = run.branches[number] = Branch(number, run, parent=parent, depth=depth, is_born=parent is None)
        return branch

    def _known(self, run: Run, number: int) -> Branch:
        try:
            return run.branches[number]
        except KeyError:
            raise ProgramError(f"branch {number} is not open in this run") from None

    # ---- carrying out ------------------------------------------------------------------------------------------------

    def _advance(self, branch: Branch) -> None:
        """Carry out the branch's nodes until one has to wait; then wake those who waited for this branch."""
        while branch.nodes and branch.is_born and branch.slot is None and branch.error is None:
            try:
                if not self._carry_out(branch, branch.nodes[0]):
                    break
            except NbsglError as error:
                self._fail(branch, errors.encode(error), node=branch.nodes[0])
                break
            if branch.nodes:  # a node that failed has emptied the queue
                branch.nodes.popleft()
        if branch.is_idle or branch.error is not None:
            self._wake(branch)
            if branch.is_closed and not branch.readers:
                self._forget(branch)

    def _carry_out(self, branch: Branch, node: AnyNode) -> bool:
        """False: the node has to wait."""
        match node:
            case Text():
                if len(node.text) > MAX_TEXT_BYTES:
                    raise RequestTooLarge(what="text of one node", n=len(node.text), limit=MAX_TEXT_BYTES)
                if node.text:
                    piece = (node.text, node.parse_special)
                    branch.run.append(piece)
                    branch.own.append(piece)
                return True
            case Tokens():
                self._seqs.post_tokens(branch, self._checked_ids(node.ids), packed=node.ids)
                return True
            case Gen():
                return self._gen(branch, node)
            case Select():
                return self._select(branch, node)
            case Fork():
                return self._fork(branch, node)
            case Append():
                return self._append(branch, node)
            case Ref():
                return self._refer(branch, node)
        raise ProgramError(f"a {type(node).__name__} cannot stand here")

    def _checked_ids(self, data: bytes) -> array[int]:
        import numpy as np  # not above: the front starts without it, and `TextRoom` reads it meanwhile

        if len(data) % 4:
            raise ParameterError(name="input_ids", value=f"{len(data)} bytes", allowed="int32 token ids")
        unsigned = np.frombuffer(data, "<u4")  # what is below zero is far too large
        if unsigned.size and unsigned.max() >= self.vocab_size:
            wrong = next(token for token in unpack_ids(data) if not 0 <= token < self.vocab_size)
            raise ParameterError(name="input_ids", value=wrong, allowed=f"0..{self.vocab_size - 1}")
        return unpack_array(data)

    # ---- gen ---------------------------------------------------------------------------------------------------------

    def _gen(self, branch: Branch, node: Gen) -> bool:
        wants_prompt = node.params.return_logprob and node.params.logprob_start_len >= 0
        if (wants_prompt and branch.posted) or ((node.params.n > 1 or node.heal) and branch.may_be_cut):
            return False
        params = self._resolved(node.params)
        if params.stop_regex:
            self._check_stop_regex(params)
        if node.grammar:
            self._check_grammar(node.grammar)
        before = self._seqs.closed_run(branch)
        if branch.is_first and not before:
            before = self._begin_empty(branch)
        self._check_fits(branch, params, node.name)
        one = params if params.n == 1 else msgspec.structs.replace(params, n=1)
        spec, healed = node.grammar, b""
        if node.heal:
            healed, num_taken = self._take_back(branch, before)
        if healed:
            spec = _after(healed, spec)
            if isinstance(one.max_tokens, int):
                one = msgspec.structs.replace(one, max_tokens=one.max_tokens + num_taken)
        slot = GenSlot(node, params, self.codec, healed)
        drawn = Posted(Sampled(params=one, grammar=spec, stream=node.stream), Cell(), slot)
        branch.cells.append(drawn.cell)
        branch.own.append(drawn.cell)
        if wants_prompt:
            self._score_prompt(branch, slot)
        self._seqs.post(branch, [*before, drawn])
        for i, sample in enumerate(slot.samples[1:], 1):
            mine = Sampled(params=msgspec.structs.replace(one, seed=sample.seed), grammar=spec)
            take = self._sample_taker(branch, slot, i)
            self._seqs.helper(branch, slot, [mine], take, parent=branch.seq, after=branch.num_posted - 1)
        if slot.rewrites:
            branch.slot = slot  # what follows waits: it may stand after another text than the one drawn
        return True

    def _take_back(self, branch: Branch, before: list[Posted]) -> tuple[bytes, int]:
        """Token healing: take the last token of the run that closes back.  Its bytes, and of how many tokens.

        Further ones go with it until the bytes are whole characters; a marker, and the only token there is, stay.
        """
        self._check_bytes("token healing")
        assert self.codec is not None
        if not before or before[-1].pieces is None:
            return b"", 0
        last = before[-1]
        ids, taken, data = list(last.cell.ids or ()), 0, b""
        while taken < min(MAX_HEALED, len(ids)):
            piece = self.codec.vocab.tokens[ids[-1 - taken]]
            if not piece:
                return b"", 0
            taken, data = taken + 1, piece + data
            if _is_text(data):
                break
        kept = ids[: len(ids) - taken]
        if not data or not _is_text(data) or (not kept and len(branch.cells) == 1):
            return b"", 0
        last.cell.ids, last.segment, last.pieces = kept, Forced(ids=pack_ids(kept)), None
        if not kept:
            before.pop()
        return data, taken

    def _check_grammar(self, spec: GrammarSpec) -> None:
        self._check_bytes("a grammar")
        grammar.check(spec)

    def _check_stop_regex(self, params: SamplingParams) -> None:
        from nbsgl.engine import stop_regex  # not above: the front starts without numpy

        self._check_bytes("stop_regex")
        stop_regex.check(params.stop_regex)

    def _check_bytes(self, what: str) -> None:
        if self.codec is None:
            raise UsageError(f"{what} needs a tokenizer.", hint="Start the engine without skip_tokenizer_init.")
        if self._misspelt is not None:
            raise Unsupported(
                f"{what} needs the bytes of every token, and this tokenizer's do not give back {self._misspelt!r}.",
                hint="Leave it out, or take another model.",
            )

    @cached_property
    def _misspelt(self) -> str | None:
        """A text that the tokenizer's bytes table gets wrong: then no mask could be trusted.  About 10 ms, once."""
        return self.codec.self_test() if self.codec else None

    def _resolved(self, params: SamplingParams) -> SamplingParams:
        """Draw a seed if there is none; stop strings that are special tokens become stop ids."""
        for name, ids in (("stop_token_ids", params.stop_token_ids), ("logit_bias", params.logit_bias)):
            for token in ids:
                if token >= self.vocab_size:
                    raise ParameterError(name=name, value=token, allowed=f"token ids below {self.vocab_size}")
        if params.stop and self.codec is None:
            raise ParameterError(name="stop", value=params.stop, allowed="stop_token_ids: the engine has no tokenizer")
        stop, stop_ids = [], list(params.stop_token_ids)
        for text in params.stop:
            token = self.codec.token_id(text) if self.codec else None
            if token is None or self.codec is None or token not in self.codec.special_ids:
                stop.append(text)
            elif token not in stop_ids:
                stop_ids.append(token)
        seed = self._rng.getrandbits(63) if params.seed is None else params.seed
        return msgspec.structs.replace(params, stop=tuple(stop), stop_token_ids=tuple(stop_ids), seed=seed)

    def _check_fits(self, branch: Branch, params: SamplingParams, name: str | None) -> None:
        """Too long is an error before anything runs; tokens still being drawn count as none here (the worker knows)."""
        prompt, wanted = branch.known_len, 1 if params.max_tokens == "fit" else params.max_tokens
        if prompt + wanted > self.context_length:
            most = max(0, self.context_length - prompt)
            hint = f'Pass max_tokens={most} or less, or max_tokens="fit".' if most else _longest_part(branch)
            raise RequestTooLong(
                prompt_len=prompt, max_tokens=params.max_tokens, limit=self.context_length, variable=name, hint=hint
            )

    def _begin_empty(self, branch: Branch) -> list[Posted]:
        """A sequence needs one token to draw the next from: BOS, or the end-of-text token."""
        begin = self._seqs.encode(branch, [])
        if not begin and self.codec is not None:
            begin = [self.codec.bos_id] if self.codec.bos_id is not None else list(self.codec.eos_ids[:1])
        if not begin:
            raise ProgramError("there is no prompt to generate from.", hint="Add text before gen(...).")
        cell = Cell(begin)
        branch.cells.append(cell)
        return [Posted(Forced(ids=pack_ids(begin)), cell)]

    def _score_prompt(self, branch: Branch, slot: GenSlot) -> None:
        """Prompt log-probabilities come from a sequence of their own, which takes nothing behind their start from the
        cache."""
        ids = branch.ids()
        start = slot.params.logprob_start_len
        if start >= len(ids):
            raise ParameterError(
                name="logprob_start_len", value=start, allowed=f"0..{len(ids) - 1} (the prompt's tokens)"
            )
        slot.prompt_ids = ids[start:]
        scored = Forced(ids=pack_ids(ids), score_from=start, top=slot.params.top_logprobs_num)

        def take(update: Update) -> None:
            slot.prompt_scores = update.scores or TokenScores()
            self._finish_gen(branch, slot)

        self._seqs.helper(branch, slot, [scored], take)

    def _sample_taker(self, branch: Branch, slot: GenSlot, i: int) -> Callable[[Update], None]:
        def take(update: Update) -> None:
            slot.take(i, update)
            self._finish_gen(branch, slot)

        return take

    def _finish_gen(self, branch: Branch, slot: GenSlot) -> None:
        if slot.is_done:
            self._seqs.release(slot)
            event = slot.event()
            self._tell(branch.of, event)
            self._keep(branch, slot.number, [result.text for result in event.results])

    # ---- select ------------------------------------------------------------------------------------------------------

    def _select(self, branch: Branch, node: Select) -> bool:
        """Post every choice as a scored forced run on a sequence of its own; the branch waits for the scores."""
        if branch.may_be_cut:
            return False
        if self.codec is None:
            raise UsageError("select needs a tokenizer.", hint="Start the engine without skip_tokenizer_init.")
        if not 0 < len(node.choices) <= MAX_CHOICES:
            raise ParameterError(name="choices", value=len(node.choices), allowed=f"1..{MAX_CHOICES} choices")
        run = self._seqs.encode(branch, branch.run)
        whole = [self._seqs.encode(branch, [*branch.run, (choice, False)]) for choice in node.choices]
        starts = [_common_len(run, ids) for ids in whole]
        longest = max(map(len, whole))
        if branch.known_len + longest > self.context_length:
            prompt = branch.known_len + len(run)
            raise RequestTooLong(prompt_len=prompt, max_tokens=longest - len(run), limit=self.context_length)
        slot = SelectSlot(node, [ids[start:] for ids, start in zip(whole, starts, strict=True)], self.codec)
        branch.slot = slot
        if branch.is_lost:
            self._seqs.open_anew(branch, branch.ids())
        self._post_choices(branch, slot, whole, starts)
        return True

    def _post_choices(self, branch: Branch, slot: SelectSlot, whole: list[list[int]], starts: list[int]) -> None:
        """The first choice stands in a sequence with what all begin with; the others fork there."""
        stem, parent, after = min(starts), branch.seq if branch.seq >= 0 else None, branch.num_posted
        before = [Forced(ids=pack_ids(whole[0][:stem]))] if stem else []
        for i, (ids, start) in enumerate(zip(whole, starts, strict=True)):
            scored = Forced(ids=pack_ids(ids[stem:]), score_from=start - stem)
            take = self._choice_taker(branch, slot, i, False)
            seq = self._seqs.helper(branch, slot, [*before, scored], take, parent=parent, after=after)
            if before:
                parent, after, before = seq, 1, []
            if slot.node.needs_unconditional:
                alone = Forced(ids=pack_ids(ids[start:]), score_from=0)
                self._seqs.helper(branch, slot, [alone], self._choice_taker(branch, slot, i, True))

    def _choice_taker(
        self, branch: Branch, slot: SelectSlot, i: int, is_unconditional: bool
    ) -> Callable[[Update], None]:
        def take(update: Update) -> None:
            slot.take(i, is_unconditional, update)
            if slot.is_done:
                self._seqs.release(slot)
                self._tell(branch.of, slot.event())
                if slot.index >= 0:
                    self._settle_choice(branch, slot, slot.index)

        return take

    def _choose(self, branch: Branch, node: Choose) -> None:
        """The caller's own decision for a select with method "ask"."""
        slot = branch.slot
        waits = isinstance(slot, SelectSlot) and slot.is_done and slot.number == node.slot
        if not waits or not 0 <= node.index < len(slot.node.choices):
            raise ProgramError(f"slot {node.slot} of branch {branch.number} does not wait for choice {node.index}")
        self._settle_choice(branch, slot, node.index)

    def _settle_choice(self, branch: Branch, slot: SelectSlot, index: int) -> None:
        piece = (slot.node.choices[index], False)
        branch.run.append(piece)
        branch.own.append(piece)
        branch.slot = None
        self._keep(branch, slot.number, [piece[0]])

    # ---- fork, append ------------------------------------------------------------------------------------------------

    def _fork(self, parent: Branch, node: Fork) -> bool:
        if parent.may_be_cut:
            return False
        child = next((child for child in parent.children if child.number == node.branch), None)
        if child is None:
            return True  # it was ended before it was born
        parent.children.remove(child)
        child.run, child.lead, child.cells = list(parent.run), parent.lead, list(parent.cells)
        child.is_born = True
        if parent.is_lost:
            self._seqs.open_anew(parent, parent.ids())
        if parent.seq >= 0:
            self._seqs.open(child, parent)
        self._advance(child)
        return True

    def _append(self, branch: Branch, node: Append) -> bool:
        """What `source` grew since its fork: its text joins our open run, its drawn tokens follow as they are."""
        source = branch.of.branches[node.source]
        if source.error is not None:
            self._fail(branch, source.error)
            return True
        if not source.is_idle:
            branch.waits_for = source
            source.is_awaited = True
            return False
        branch.waits_for = None
        for item in list(source.own):
            if isinstance(item, Cell):
                self._seqs.post_tokens(branch, list(item.ids or ()))
            elif isinstance(item, bytes):
                branch.lead = item
                branch.own.append(item)
            else:
                branch.run.append(item)
                branch.own.append(item)
        source.readers -= 1
        if source.is_closed and not source.readers:
            self._forget(source)
        return True

    def _refer(self, branch: Branch, node: Ref) -> bool:
        """The text of another result, which may be under way, joins the open run."""
        texts, owner = branch.of.texts.get(node.slot), branch.of.owners.get(node.slot)
        if texts is not None:
            if not 0 <= node.sample < len(texts):
                raise ProgramError(f"slot {node.slot} has {len(texts)} results, none with index {node.sample}")
            piece = (texts[node.sample], False)
            branch.run.append(piece)
            branch.own.append(piece)
            branch.waits_for = None
            return True
        if owner is None:
            raise ProgramError(f"slot {node.slot} was not submitted before the value that refers to it")
        if owner.error is not None:
            self._fail(branch, owner.error)
            return True
        branch.waits_for = owner
        owner.is_awaited = True
        return False

    def _keep(self, branch: Branch, slot: int, texts: list[str]) -> None:
        """A result is there: those who wait for its text go on."""
        branch.of.texts[slot] = texts
        branch.of.owners.pop(slot, None)
        self._wake(branch)

    # ---- news of a branch's own sequence -----------------------------------------------------------------------------

    def _take(self, branch: Branch, update: Update) -> None:
        """News of the branch's own sequence."""
        posted = branch.posted.get(update.segment)
        if posted is None:
            return
        if posted.slot is None:
            branch.prefill_cached += update.prefill_cached
            branch.prefill_computed += update.prefill_computed
        else:
            slot = posted.slot
            assert isinstance(slot, GenSlot)
            chunk = slot.take(0, update)
            if chunk is not None:
                self._tell(branch.of, chunk)
        if not update.done:
            return
        del branch.posted[update.segment]
        if posted.slot is not None:
            posted.cell.ids = slot.samples[0].ids
            slot.prefill_cached += branch.prefill_cached
            slot.prefill_computed += branch.prefill_computed
            branch.prefill_cached = branch.prefill_computed = 0
            if update.tail:
                self._seqs.go_on_after_tail(branch, update.segment, posted.cell, update.tail)
            if slot.rewrites:
                self._rewrite(branch, slot, posted.cell)
            self._finish_gen(branch, slot)

    def _rewrite(self, branch: Branch, slot: GenSlot, cell: Cell) -> None:
        """What stands in the branch after a gen that was healed, or from which thinking was cut out."""
        assert self.codec is not None
        branch.slot = None
        sample = slot.samples[0]
        at = next(i for i, item in enumerate(branch.own) if item is cell)
        branch.own[at:] = [(sample.text, False)]  # for who appends it: the drawn tokens have more, or less
        if sample.splitter is None or not sample.splitter.has_cut:
            drawn = self.codec.vocab.bytes_of(sample.ids) if slot.healed else b""
            if len(drawn) < len(slot.healed):  # it ended before all was drawn again
                branch.lead = slot.healed[len(drawn) :]
            return
        branch.cells.pop()  # the gen's own: what follows waits
        branch.lead = slot.healed
        branch.run.append((sample.text, False))
        self._seqs.close(branch)
        branch.is_lost = True  # the next segment opens a sequence without the thinking

    # ---- ends --------------------------------------------------------------------------------------------------------

    def _fail(
        self, branch: Branch, error: dict[str, object], slot: Slot | None = None, node: AnyNode | None = None
    ) -> None:
        """The branch ends with `error`, and so does what depends on it: unborn children, forks of tokens that will
        never come, and those who wait to append its text."""
        if branch.error is not None:
            return
        branch.error = error
        slot = slot or branch.slot or next((p.slot for _, p in sorted(branch.posted.items()) if p.slot), None)
        number = slot.number if slot else getattr(node, "slot", -1)
        self._tell(
            branch.of,
            BranchFailed(branch=branch.number, slot=number, error=error, partial=slot.partial if slot else ""),
        )
        never = {id(posted.cell) for posted in branch.posted.values()}
        self._seqs.drop([branch])
        if not branch.is_born and branch.parent is not None and branch in branch.parent.children:
            branch.parent.children.remove(branch)
        heirs = list(branch.children)
        branch.children.clear()
        for other in branch.of.branches.values():
            if other.waits_for is branch or (never and any(id(cell) in never for cell in other.cells)):
                heirs.append(other)
        for heir in heirs:
            self._fail(heir, error)
        if branch.is_closed and not branch.readers:
            self._forget(branch)

    def _wake(self, branch: Branch) -> None:
        if not branch.is_awaited:
            return
        branch.is_awaited = False
        for other in list(branch.of.branches.values()):
            if other.waits_for is branch:
                self._advance(other)

    def _forget(self, branch: Branch) -> None:
        """A closed branch with nothing left to do: the worker may forget its sequence."""
        if branch.of.branches.pop(branch.number, None) is None:
            return
        self._seqs.close(branch)
        if not branch.of.branches:
            self._runs.pop(branch.of.key, None)

    # ---- telling -----------------------------------------------------------------------------------------------------

    def _tell(self, run: Run, event: AnyEvent) -> None:
        self._events.setdefault(run.key, []).append(event)

    def _flush(self) -> None:
        events, self._events = self._events, {}
        for (client, run), news in events.items():
            self._emit(client, run, news)


def _after(healed: bytes, spec: GrammarSpec | None) -> GrammarSpec:
    """What may be drawn: the bytes taken back, and then anything, or what the gen's own grammar allows."""
    spec = spec or GrammarSpec(kind="regex", text=r"(?s:.*)")
    return msgspec.structs.replace(spec, prefix=healed.decode())


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _common_len(a: Sequence[int], b: Sequence[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def _longest_part(branch: Branch) -> str:
    texts = [item[0] for item in branch.own if isinstance(item, tuple)]
    longest = max(texts, key=len, default="")
    if not longest:
        return "Shorten the prompt."
    return f"Shorten the prompt; its longest part begins {longest[:24]!r} ({len(longest):,} characters)."


def _failed(node: AnyNode, error: dict[str, object]) -> BranchFailed:
    return BranchFailed(branch=node.branch, slot=getattr(node, "slot", -1), error=error)
