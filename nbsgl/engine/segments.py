"""What front and worker say to each other: sequences that grow by segments, and what became of them.

A worker's *sequence* is one branch as token ids.  `front` opens sequences, extends them by segments, and closes them;
the worker runs through the segments without coming back and reports in `Update`s, one list per step.
"""

from __future__ import annotations

from typing import Any

import msgspec

from nbsgl.protocol import Finish, GrammarSpec, GrammarUse, SamplingParams

# ---- segments --------------------------------------------------------------------------------------------------------


class Forced(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Known tokens (`pack_ids`).

    With `score_from` >= 0, the log-probabilities of the tokens ids[score_from:] are wanted, each with the best `top`
    candidates; their KV may be in the tree, their logits are computed all the same.  The first token of a whole
    sequence has none (None).
    """

    ids: bytes
    score_from: int = -1
    top: int = 0


class Sampled(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Tokens to be drawn.  `params.seed` is an int and `params.max_tokens` an int that fits the context, or "fit".

    With `stream`, new ids are reported step by step, else all of them at the end.
    """

    params: SamplingParams
    grammar: GrammarSpec | None = None
    stream: bool = False


Segment = Forced | Sampled


# ---- front -> worker -------------------------------------------------------------------------------------------------


class Open(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """A new sequence; with `parent`, it starts as the parent's tokens at the end of its first `after` segments."""

    seq: int
    parent: int | None = None
    after: int = 0


class Extend(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Segments for a sequence; the first has number `first` in it.

    When a sampled run ends inside a token (`Update.tail`), the worker drops the segments behind it: `front` sends them
    anew, encoded after that tail, with `generation` + 1; those of an older generation are ignored.
    """

    seq: int
    first: int
    generation: int = 0
    segments: list[Segment]


class CloseSeq(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """No further segments: forget the sequence when its queue is empty and its waiting children are opened."""

    seq: int


class AbortSeqs(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """End these sequences now, whatever they do; no further update of them is sent.  Unknown ones are ignored."""

    seqs: list[int]


class Ask(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """A question with an `Answer`: "snapshot" (args: {"tree": bool}), "peek" (args: {"prompts": ids}), "flush"."""

    ask: int
    what: str
    args: dict[str, Any] = {}


class Stop(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """End the worker's process in order."""


ToWorker = Open | Extend | CloseSeq | AbortSeqs | Ask | Stop


# ---- worker -> front -------------------------------------------------------------------------------------------------


class TokenScores(msgspec.Struct, frozen=True, kw_only=True):
    """Log-probabilities of consecutive tokens; `top[i]` are (token id, log-probability) pairs, best first."""

    logprobs: list[float | None] = []
    top: list[list[tuple[int, float]]] = []


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """News of one segment of one sequence.

    Sampled: `ids` are the new ids since the last update (nothing reported is ever taken back; what may still be part of
    a stop string is held back).  At the end `finish` is set; EOS, stop tokens and stop strings are not in `ids`, and
    `tail` holds the kept bytes of the token in which a stop string began (then the queue behind was dropped).
    Forced: one update when done, with `scores` if they were asked for.
    An `error` (of `errors.encode`) ends the sequence.
    `prompt_len` counts the tokens before the segment's first sampled token (forced: up to its end), `cached_len` those
    of them whose KV was not computed for this segment; `prefill_cached`/`prefill_computed`: tokens matched in the tree
    and tokens computed by extends since the last finished segment.  Times in seconds since the segment was received.
    `complete`, `needed` and `grammar` at the end of a run that had a grammar: as in `GenResult`.
    """

    seq: int
    segment: int
    ids: bytes = b""
    done: bool = False
    finish: Finish | None = None
    tail: bytes = b""
    complete: bool = True
    needed: int | None = None
    scores: TokenScores | None = None
    error: dict[str, Any] | None = None
    prompt_len: int = 0
    cached_len: int = 0
    prefill_cached: int = 0
    prefill_computed: int = 0
    queued_s: float = 0.0
    ttft_s: float = 0.0
    e2e_s: float = 0.0
    grammar: GrammarUse | None = None


class Updates(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """All news of one step."""

    step: int
    updates: list[Update]


class Phase(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The worker has entered a phase that may take long: "load", "warmup", "serve"; `progress` 0..1 where known."""

    phase: str
    progress: float | None = None
    note: str = ""


class Ready(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The worker serves.  What it found out about model and device; `folder` is where the model's files lie.

    `attention` is the backend with the reason for it; `phases` are the parts of the start in seconds, in their order.
    """

    context_length: int
    vocab_size: int
    num_slots: int
    device: str
    device_reason: str
    dtype: str
    num_parameters: int
    eos_ids: list[int]
    load_s: float
    folder: str = ""
    attention: str = ""
    phases: dict[str, float] = {}


class StartFailed(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The worker could not start; it ends after this."""

    stage: str
    error: dict[str, Any]


class WorkerAnswer(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The answer to an `Ask`; `error` of `errors.encode` if it could not be given."""

    ask: int
    value: Any = None
    error: dict[str, Any] | None = None


FromWorker = Updates | Phase | Ready | StartFailed | WorkerAnswer
