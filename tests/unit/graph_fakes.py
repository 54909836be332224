"""A codec small enough to read and a worker that carries out segments one token at a time, for tests of the graph."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence

from nbsgl.engine.segments import AbortSeqs, CloseSeq, Extend, Forced, Open, Sampled, TokenScores, Update
from nbsgl.protocol import Finish, pack_ids, unpack_ids

EOS = 256
TOKENS: list[bytes | None] = [bytes([i]) for i in range(256)] + [None, b"ab", b"b\n", b"Hello", b" world"]


class ByteDetokenizer:
    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        return self.decoder.decode(b"".join(TOKENS[i] or b"" for i in ids))

    def push_bytes(self, data: bytes) -> str:
        return self.decoder.decode(data)

    def finish(self) -> str:
        return self.decoder.decode(b"", final=True)


class ByteCodec:
    """One token a byte, and five longer ones (longest match); `<e>` is the special token EOS."""

    eos_ids = (EOS,)
    bos_id = None
    special_ids = frozenset({EOS})
    misspelt: str | None = None

    def self_test(self) -> str | None:
        return self.misspelt

    def encode_run(self, pieces: Sequence[tuple[str, bool]], *, is_first: bool, lead: bytes = b"") -> list[int]:
        data = lead + "".join(text for text, _ in pieces).encode()
        ids = []
        while data:
            best = max(
                (i for i, t in enumerate(TOKENS) if t and data.startswith(t)), key=lambda i: len(TOKENS[i] or b"")
            )
            ids.append(best)
            data = data[len(TOKENS[best] or b"") :]
        return ids

    def detokenizer(self) -> ByteDetokenizer:
        return ByteDetokenizer()

    def token_id(self, text: str) -> int | None:
        return EOS if text == "<e>" else None

    def token_text(self, token: int) -> str:
        return (TOKENS[token] or b"<e>").decode("utf-8", "replace")


class Seq:
    def __init__(self, tokens: list[int]) -> None:
        self.tokens, self.queue, self.done, self.generation = tokens, [], 0, 0
        self.drawn: list[int] = []
        self.is_closed = False
        self.lengths = [len(tokens)]  # after n segments


class FakeWorker:
    """Carries out segments; `draw(tokens, idx, seed)` is the model.  `step` moves each sequence by one move."""

    def __init__(self, draw: Callable[[list[int], int, int], int]) -> None:
        self.draw = draw
        self.seqs: dict[int, Seq] = {}
        self.waiting: list[Open] = []
        self.log: list[object] = []
        self.forced: list[list[int]] = []
        self.on_updates: Callable[[list[Update]], None] = lambda updates: None

    def send(self, message: object) -> None:
        self.log.append(message)
        match message:
            case Open():
                self.waiting.append(message)
                self._open_waiting()
            case Extend():
                seq = self.seqs.get(message.seq) or next(s for s in [self._pending(message.seq)] if s)
                if message.generation == seq.generation:
                    seq.queue += list(enumerate(message.segments, message.first))
            case CloseSeq():
                if message.seq in self.seqs:
                    self.seqs[message.seq].is_closed = True
            case AbortSeqs():
                for number in message.seqs:
                    self.seqs.pop(number, None)

    def _pending(self, number: int) -> Seq | None:
        """A forked sequence whose parent has not come so far: it is there, but empty and not runnable."""
        return self.seqs.setdefault(number, Seq([])) if any(o.seq == number for o in self.waiting) else None

    def _open_waiting(self) -> None:
        for message in list(self.waiting):
            if message.parent is None:
                start: list[int] = []
            else:
                if any(other.seq == message.parent for other in self.waiting):
                    continue  # it comes first, and is not there either
                parent = self.seqs[message.parent]
                if parent.done < message.after:
                    continue
                start = parent.tokens[: parent.lengths[message.after]]
            seq = self.seqs.setdefault(message.seq, Seq([]))
            seq.tokens, seq.lengths = list(start), [len(start)]
            self.waiting.remove(message)

    def step(self) -> bool:
        updates = []
        blocked = {o.seq for o in self.waiting}
        for number, seq in list(self.seqs.items()):
            if seq.queue and number not in blocked:
                updates += self._move(number, seq, *seq.queue[0])
        self._open_waiting()
        if updates:
            self.on_updates(updates)
        return bool(updates) or any(s.queue for s in self.seqs.values())

    def _move(self, number: int, seq: Seq, index: int, segment: object) -> list[Update]:
        if isinstance(segment, Forced):
            ids = unpack_ids(segment.ids)
            self.forced.append(ids)
            scores = None
            if segment.score_from >= 0:
                known = [*seq.tokens, *ids]
                at = len(seq.tokens) + segment.score_from
                scores = TokenScores(logprobs=[None if p == 0 else -float(known[p] % 7) for p in range(at, len(known))])
            seq.tokens += ids
            self._finish(seq)
            return [Update(seq=number, segment=index, done=True, scores=scores, prompt_len=len(seq.tokens))]
        assert isinstance(segment, Sampled)
        params = segment.params
        token = self.draw(seq.tokens, len(seq.drawn), params.seed or 0)
        if token == EOS:
            return [self._end(number, seq, index, Finish(type="stop", matched=EOS))]
        seq.drawn.append(token)
        seq.tokens.append(token)
        data = b"".join(TOKENS[i] or b"" for i in seq.drawn)
        for stop in params.stop:
            if (at := data.find(stop.encode())) >= 0:
                return [self._cut(number, seq, index, at, stop)]
        if len(seq.drawn) == params.max_tokens:
            return [self._end(number, seq, index, Finish(type="length", length=len(seq.drawn)))]
        return []

    def _cut(self, number: int, seq: Seq, index: int, at: int, stop: str) -> Update:
        kept, length = [], 0
        while length + len(TOKENS[seq.drawn[len(kept)]] or b"") <= at:
            kept.append(seq.drawn[len(kept)])
            length += len(TOKENS[kept[-1]] or b"")
            if length == at:
                break
        tail = (TOKENS[seq.drawn[len(kept)]] or b"")[: at - length]
        seq.tokens = seq.tokens[: len(seq.tokens) - len(seq.drawn) + len(kept)]
        seq.drawn = kept
        if tail:
            seq.queue = seq.queue[:1]
            seq.generation += 1
        return self._end(number, seq, index, Finish(type="stop", matched=stop), tail)

    def _end(self, number: int, seq: Seq, index: int, finish: Finish, tail: bytes = b"") -> Update:
        drawn, seq.drawn = seq.drawn, []
        self._finish(seq)
        prompt = len(seq.tokens) - len(drawn)
        return Update(
            seq=number, segment=index, ids=pack_ids(drawn), done=True, finish=finish, tail=tail, prompt_len=prompt
        )

    def _finish(self, seq: Seq) -> None:
        seq.queue.pop(0)
        seq.done += 1
        seq.lengths.append(len(seq.tokens))
