"""The nouns every room shares, as msgspec structs, and `Backend`: the waist between language and engine.

A program is a set of *branches*; a branch grows by nodes, in the order they are submitted.  What the language sends is
a list of `Node`s (`Run.submit`); what comes back is a stream of `Event`s.  Branch and slot numbers are chosen by the
caller and are unique within one run; a *slot* is the place of one sampled result (a `gen` or a `select`).
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Callable, Collection, Sequence
from typing import Literal, Protocol, runtime_checkable

import msgspec

from nbsgl.errors import ParameterError
from nbsgl.reasoning import Markers

PROTOCOL_VERSION = 2

# ---- token ids on the wire -------------------------------------------------------------------------------------------


def pack_ids(ids: Sequence[int]) -> bytes:
    """Token ids as little-endian int32 bytes."""
    packed = array("i", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_ids(data: bytes) -> list[int]:
    """The inverse of `pack_ids`; ValueError if the length is no multiple of four."""
    return unpack_array(data).tolist()


def unpack_array(data: bytes) -> array[int]:
    """The same as an array, for many ids: made, cut and compared at a hundredth of a list's cost."""
    ids = array("i")
    ids.frombytes(data)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids


# ---- sampling --------------------------------------------------------------------------------------------------------


_GOOD = {
    "max_tokens": "128",
    "min_tokens": "0",
    "n": "1",
    "temperature": "0.7",
    "top_p": "0.9",
    "top_k": "40",
    "min_p": "0.05",
    "frequency_penalty": "0.5",
    "presence_penalty": "0.5",
    "repetition_penalty": "1.1",
    "stop": '["\\n"]',
    "stop_token_ids": "[2]",
    "stop_regex": '[r"\\n[0-9]+\\."]',
    "logit_bias": "{42: -100}",
    "seed": "1",
    "logprob_start_len": "0",
    "top_logprobs_num": "5",
}


_MAX_GOOD_NUMBERS = 4096
_good_numbers: set[tuple[object, ...]] = set()


def _check(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise ParameterError(name=name, value=value, allowed=allowed, hint=f"For example {name}={_GOOD[name]}.")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: object, most: int) -> bool:
    """A string of 1 to so many bytes; half a character (a lone surrogate) has none."""
    try:
        return isinstance(value, str) and 0 < len(value.encode()) <= most
    except UnicodeEncodeError:
        return False


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


SAME_IN_SGLANG = (
    *("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "stop"),
    *("stop_token_ids", "stop_regex", "ignore_eos", "logit_bias", "n"),
)
"""Of the fields of `SamplingParams` those that SGLang's `sampling_params` have under the same name."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one sampled run is drawn and where it ends.  Checked when made; `ParameterError` names value and limit.

    `max_tokens="fit"` means as many as fit the context.  `top_k=-1` means all.  A `seed` of None is replaced by a drawn
    one before it reaches the worker.  `logprob_start_len=-1` asks for no log-probabilities of the prompt.  A text ends
    before a `stop` string, and right behind the first match of a `stop_regex`.
    """

    max_tokens: int | Literal["fit"] = 128
    min_tokens: int = 0
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stop_regex: tuple[str, ...] = ()
    ignore_eos: bool = False
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    return_logprob: bool = False
    logprob_start_len: int = -1
    top_logprobs_num: int = 0

    def __post_init__(self) -> None:
        self._check_numbers()
        _check(len(self.stop) <= 32, "stop", self.stop, "at most 32 strings")
        for text in self.stop:
            _check(_is_text(text, 1024), "stop", text, "non-empty strings of at most 1,024 bytes, no half characters")
        _check(len(self.stop_regex) <= 32, "stop_regex", self.stop_regex, "at most 32 patterns")
        for text in self.stop_regex:
            _check(
                _is_text(text, 256), "stop_regex", text, "non-empty patterns of at most 256 bytes, no half characters"
            )
        for token in self.stop_token_ids:
            _check(_is_int(token) and token >= 0, "stop_token_ids", self.stop_token_ids, "ids >= 0")
        _check(len(self.logit_bias) <= 1024, "logit_bias", len(self.logit_bias), "at most 1,024 entries")
        for token, bias in self.logit_bias.items():
            _check(_is_int(token) and token >= 0, "logit_bias", token, "token ids >= 0 as keys")
            _check(_is_number(bias) and -100 <= bias <= 100, "logit_bias", bias, "-100..100")
        _check(self.seed is None or _is_int(self.seed), "seed", self.seed, "an int")

    def _check_numbers(self) -> None:
        """Values that were found good once are not checked again: that took a third of a short call's time."""
        lengths = (self.max_tokens, self.min_tokens, self.n, self.logprob_start_len, self.top_logprobs_num)
        draws = (self.temperature, self.top_p, self.top_k, self.min_p)
        penalties = (self.frequency_penalty, self.presence_penalty, self.repetition_penalty)
        values = (*lengths, *draws, *penalties)
        key = (values, *map(type, values))  # 1, 1.0 and True are equal
        try:
            if key in _good_numbers:
                return
        except TypeError:  # a list, say: the checks say what is wrong
            pass
        self._check_lengths()
        self._check_draws()
        if len(_good_numbers) >= _MAX_GOOD_NUMBERS:
            _good_numbers.clear()
        _good_numbers.add(key)

    def _check_lengths(self) -> None:
        good = _is_int(self.min_tokens) and self.min_tokens >= 0
        if self.max_tokens != "fit":
            most = self.max_tokens
            _check(_is_int(most) and most >= 0, "max_tokens", most, "an int >= 0, or 'fit'")
            _check(good and self.min_tokens <= most, "min_tokens", self.min_tokens, f"0..max_tokens ({most})")
        else:
            _check(good, "min_tokens", self.min_tokens, "an int >= 0")
        _check(_is_int(self.n) and 1 <= self.n <= 128, "n", self.n, "1..128")
        good = _is_int(self.logprob_start_len) and self.logprob_start_len >= -1
        _check(good, "logprob_start_len", self.logprob_start_len, ">= 0, or -1 for the output only")
        good = _is_int(self.top_logprobs_num) and 0 <= self.top_logprobs_num <= 128
        _check(good, "top_logprobs_num", self.top_logprobs_num, "0..128")

    def _check_draws(self) -> None:
        _check(_is_number(self.temperature) and self.temperature >= 0, "temperature", self.temperature, "a number >= 0")
        _check(_is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", self.top_p, "0 < top_p <= 1")
        _check(_is_int(self.top_k) and (self.top_k == -1 or self.top_k >= 1), "top_k", self.top_k, "-1 (all) or >= 1")
        _check(_is_number(self.min_p) and 0 <= self.min_p <= 1, "min_p", self.min_p, "0..1")
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            _check(_is_number(value) and -2 <= value <= 2, name, value, "-2..2")
        value = self.repetition_penalty
        _check(_is_number(value) and 0 < value <= 2, "repetition_penalty", value, "0 < repetition_penalty <= 2")

    @property
    def is_greedy(self) -> bool:
        return self.temperature < 1e-6


class GrammarSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which texts a sampled run may become, and how the engine goes about it.

    `text` by kind: a regex as `re.fullmatch` reads it; a JSON schema as JSON text (property order is kept); "json" (any
    JSON value: `text` is empty); choices as a JSON list of strings; EBNF in the GBNF dialect; Lark as llguidance reads
    it; "tags", structural tags as JSON (`nbsgl.structural_tags`).  `prefix` is text that stands
    before that, whatever the kind.

    `after`: the grammar begins behind the first occurrence of this text (the end of thinking); at most
    `max_think_tokens` tokens come before it.  `whitespace` between the parts of JSON.  `on_unsupported`: what a
    schema's keyword that no engine can hold is: an error, or left out with a note.

    The rest is how a run goes, not what its language is: `engine` ("auto": the first that takes the spec), `jump`
    (forced text: not foreseen, proposed and verified, or spelt canonically), `on_limit` ("fit": only tokens from which
    the end is in reach of max_tokens).
    """

    kind: Literal["regex", "json_schema", "json", "choices", "ebnf", "lark", "tags"]
    text: str
    prefix: str = ""
    after: str = ""
    max_think_tokens: int | None = None
    whitespace: Literal["compact", "spaced", "flexible"] = "spaced"
    on_unsupported: Literal["error", "loosen"] = "error"
    engine: Literal["auto", "fsm", "llguidance", "xgrammar", "outlines"] = "auto"
    jump: Literal["off", "verify", "canonical"] = "verify"
    on_limit: Literal["keep", "fit"] = "keep"

    @property
    def language(self) -> GrammarSpec:
        """The same without what is only about how a run goes: what compiled grammars are kept by."""
        return msgspec.structs.replace(self, jump="verify", on_limit="keep")


class GrammarUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a grammar did in one run: `get_meta_info(name)["grammar"]`.

    Sizes are of the fsm's tables (0 with another engine).  `compile_ms` is 0.0 for one that was at hand.  Of the tokens
    `proposed` by jump-forward, `accepted` were drawn as proposed; `steps_saved` forward passes fewer than tokens.
    `stood_in`: tokens masked by the host's matcher before the tables were there.
    """

    engine: str
    states: int = 0
    classes: int = 0
    rows: int = 0
    table_bytes: int = 0
    compile_ms: float = 0.0
    cached: bool = False
    proposed: int = 0
    accepted: int = 0
    steps_saved: int = 0
    stood_in: int = 0
    loosened: tuple[str, ...] = ()


# ---- nodes: what a program submits -----------------------------------------------------------------------------------


class Node(msgspec.Struct, frozen=True, tag=True, kw_only=True, forbid_unknown_fields=True):
    """One growth of one branch.  Nodes of a branch are carried out in the order they were submitted."""

    branch: int


class Root(Node, frozen=True, tag=True, kw_only=True):
    """A new, empty branch."""


class Fork(Node, frozen=True, tag=True, kw_only=True):
    """A new branch that starts as a copy of `parent` as it will be when all nodes submitted for it so far are done."""

    parent: int


class Text(Node, frozen=True, tag=True, kw_only=True):
    """Forced text.  With `parse_special`, special tokens written in it count; without, it is characters only."""

    text: str
    parse_special: bool = False


class Tokens(Node, frozen=True, tag=True, kw_only=True):
    """Forced token ids (`pack_ids`).  Closes the open run before it."""

    ids: bytes


class Role(Node, frozen=True, tag=True, kw_only=True):
    """From here on the branch stands in a message of this role; None: in none.

    Sent instead of the template's markup, and only to backends whose `ModelInfo.service` is "chat".
    """

    role: str | None


class Gen(Node, frozen=True, tag=True, kw_only=True):
    """A sampled run.  With `stream`, its text comes in `Chunk`s too; `name` is for messages and views.

    `heal`: the last token of the text before is drawn again, as any tokens that begin with its characters (which are
    no part of the result).  With `markers`, the thinking between them is cut out: of the result's text, and of the
    branch, which goes on as if the answer alone had been written.

    `lookahead` is for services: ask for so many tokens at once, past this gen, and match what follows.
    """

    slot: int
    params: SamplingParams
    grammar: GrammarSpec | None = None
    stream: bool = False
    heal: bool = False
    markers: Markers | None = None
    name: str | None = None
    lookahead: int = 0


class Select(Node, frozen=True, tag=True, kw_only=True):
    """Score every choice after the branch's text, append the winner as text.

    `method` is a name of `scoring.METHODS`, or "ask": then the scores come back in `SelectDone` with index -1 and the
    branch waits for a `Choose`.  `temperature` > 0 draws with probability softmax(score / temperature).
    """

    slot: int
    choices: tuple[str, ...]
    method: str = "token_length_normalized"
    needs_unconditional: bool = False
    temperature: float = 0.0
    seed: int | None = None
    name: str | None = None


class Choose(Node, frozen=True, tag=True, kw_only=True):
    """The answer to a select with method "ask": append choice `index`."""

    slot: int
    index: int


class Append(Node, frozen=True, tag=True, kw_only=True):
    """Append the tokens which branch `source` grew since it was forked (never re-tokenised), once `source` is idle."""

    source: int


class Ref(Node, frozen=True, tag=True, kw_only=True):
    """Append the text of the result in `slot` (of n results, the one with index `sample`) once it is there.

    The slot may be any branch's whose node was submitted before; if it fails, so does this branch.
    """

    slot: int
    sample: int = 0


class Close(Node, frozen=True, tag=True, kw_only=True):
    """No node follows on this branch: what the engine holds for it is freed when its nodes are done."""


AnyNode = Root | Fork | Text | Tokens | Role | Gen | Select | Choose | Append | Ref | Close


# ---- events: what comes back -----------------------------------------------------------------------------------------

TokenLogprob = tuple[float | None, int, str | None]
"""(log-probability, token id, token's text); None as probability for the first token of a sequence."""


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """Why a run ended.  `matched` is the stop string, pattern or token id that was met; `length` the limit reached.

    `matched_text` is what in the text matched a pattern.
    """

    type: Literal["stop", "length", "abort", "error"]
    matched: str | int | None = None
    matched_text: str | None = None
    length: int | None = None


class Logprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Log-probabilities of consecutive tokens, and the best `top_logprobs_num` candidates per position."""

    tokens: list[TokenLogprob] = []
    top: list[list[TokenLogprob] | None] = []


class GenResult(msgspec.Struct, frozen=True, kw_only=True):
    """The end of one sampled run.

    `cached_tokens` counts prompt tokens whose KV was there already (from the tree, or from this branch's own earlier
    steps); `prefill_cached` and `prefill_computed` count what was taken from the tree and what was computed for this
    segment and the forced run before it, so their sums over a run's slots are its cache statistics.  Times in seconds.
    `reasoning` is the thinking that was cut out of `text`; the ids have both.  `complete`: the text is in the language
    of the gen's grammar; if it is not, `needed` is the least max_tokens that could have done, where that is known.
    """

    text: str
    ids: bytes
    finish: Finish
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    prefill_cached: int = 0
    prefill_computed: int = 0
    seed: int = 0
    queued_s: float = 0.0
    ttft_s: float = 0.0
    e2e_s: float = 0.0
    complete: bool = True
    needed: int | None = None
    reasoning: str = ""
    output_logprobs: Logprobs | None = None
    input_logprobs: Logprobs | None = None
    grammar: GrammarUse | None = None


class Event(msgspec.Struct, frozen=True, tag=True, kw_only=True, forbid_unknown_fields=True):
    """Something that happened to one branch."""

    branch: int


class Chunk(Event, frozen=True, tag=True, kw_only=True):
    """New text (whole characters only, nothing that may still be cut off by a stop string) of a streaming `Gen`."""

    slot: int
    text: str
    ids: bytes = b""
    logprobs: Logprobs | None = None
    reasoning: str = ""


class GenDone(Event, frozen=True, tag=True, kw_only=True):
    """A `Gen` has ended; `results` has `n` entries and the branch goes on with the first."""

    slot: int
    results: list[GenResult]


class SelectDone(Event, frozen=True, tag=True, kw_only=True):
    """A `Select` has been scored and decided (`index` -1: waiting for `Choose`).

    Per choice: its tokens' log-probabilities, and those of the same tokens as a sequence of their own if asked.
    """

    slot: int
    index: int
    scores: list[float]
    token_logprobs: list[list[TokenLogprob]]
    unconditional: list[list[TokenLogprob]] | None = None
    prompt_tokens: int = 0
    prefill_cached: int = 0
    prefill_computed: int = 0
    e2e_s: float = 0.0
    seed: int | None = None


class BranchFailed(Event, frozen=True, tag=True, kw_only=True):
    """A node of the branch failed (`slot` is the slot that failed, -1 if none): its later nodes were dropped.

    `error` is `errors.encode`'s data.  `partial` is what the failed slot had generated.
    """

    slot: int = -1
    error: dict[str, object]
    partial: str = ""


AnyEvent = Chunk | GenDone | SelectDone | BranchFailed


# ---- the engine as seen from outside ---------------------------------------------------------------------------------


class RoleFormat(msgspec.Struct, frozen=True):
    """The text before and after a message of one role; special tokens in it count."""

    prefix: str
    suffix: str


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the language needs to know of the model behind a backend.

    With `folds_system` a leading system message stands inside the first user's message (whose prefix then comes first).
    `service` is the kind of remote service behind it; None: an engine, which runs branches itself.
    `thinking` are the model's own marks around its thinking.
    `attention` is what computes it and why; `start_s` are the parts of the engine's start in seconds.
    """

    model: str
    context_length: int
    vocab_size: int
    roles: dict[str, RoleFormat]
    stop: tuple[str, ...] = ()
    default_system: str | None = None
    folds_system: bool = False
    template: str = "model"
    device: str = "cpu"
    dtype: str = "float32"
    device_reason: str = ""
    attention: str = ""
    num_parameters: int = 0
    has_vision: bool = False
    service: Literal["chat", "completions"] | None = None
    thinking: tuple[str, str] | None = None
    versions: dict[str, str] = {}
    start_s: dict[str, float] = {}


class TreeNode(msgspec.Struct, frozen=True, kw_only=True):
    """One node of the prefix tree: a run of tokens; `age_s` since its last use; `text` its first characters."""

    id: int
    parent: int
    num_tokens: int
    locks: int
    hits: int
    age_s: float
    depth: int
    parked: bool = False
    text: str = ""


class EngineSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A frozen, JSON-ready picture of the engine.  Slots count tokens; rates are tokens per second over 10 s."""

    time: float
    uptime_s: float
    info: ModelInfo
    epoch: int
    health: bool
    policy: str
    slots_total: int
    slots_free: int
    slots_in_tree: int
    slots_owned: int
    slots_quarantined: int = 0
    slots_evictable: int = 0
    running: int
    waiting: int
    parked: int
    steps: int
    last_step_ms: float = 0.0
    prefill_tokens_computed: int
    prefill_tokens_cached: int
    decode_tokens: int
    hit_rate: float
    prefill_tok_s: float = 0.0
    decode_tok_s: float = 0.0
    retractions: int = 0
    evicted_tokens: int = 0
    clients: int = 0
    counters: dict[str, int] = {}
    tree: list[TreeNode] | None = None


# ---- what a prompt would cost ----------------------------------------------------------------------------------------


class Prompt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A forced run as (text, do special tokens in it count) pairs.  `is_first`: it begins its sequence."""

    pieces: list[tuple[str, bool]]
    is_first: bool = True


class Peek(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt's token ids (`pack_ids`), and how many of the first ones the cache holds (0 unless `is_first`)."""

    ids: bytes
    cached: int = 0


# ---- a run as seen from outside -------------------------------------------------------------------------------------

Status = Literal["queued", "running", "done", "failed", "aborted"]


class SegmentView(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of a branch as a view shows it.

    kind "forced": `text` is prompt text (`role` is the role it stands in, `is_markup` the role's own prefix or suffix);
    "gen": `text` is what has been generated so far; "select": `choices` with their `scores`, `chosen` the winner.
    Times are seconds since the run began; None where not reached yet.
    """

    kind: Literal["forced", "gen", "select"]
    status: Status = "done"
    text: str = ""
    name: str | None = None
    role: str | None = None
    is_markup: bool = False
    num_tokens: int = 0
    finish: Finish | None = None
    choices: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    chosen: int = -1
    prefill_cached: int = 0
    prefill_computed: int = 0
    queued_at: float | None = None
    first_at: float | None = None
    ended_at: float | None = None
    error: str | None = None
    grammar: GrammarSpec | None = None


class BranchView(msgspec.Struct, frozen=True, kw_only=True):
    """One branch: the segments it grew itself.  It began as a copy of `parent`'s first `fork_at` segments."""

    id: int
    parent: int | None = None
    fork_at: int = 0
    status: Status = "queued"
    segments: list[SegmentView] = []


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """A picture of one run: its branches, variables as text, and its totals.  JSON-ready, so it can be saved."""

    title: str = ""
    status: Status = "queued"
    elapsed_s: float = 0.0
    branches: list[BranchView] = []
    variables: dict[str, str] = {}
    prefill_cached: int = 0
    prefill_computed: int = 0
    generated: int = 0
    error: str | None = None


# ---- the waist -------------------------------------------------------------------------------------------------------

Listener = Callable[[list[AnyEvent]], None]
"""Called with new events, in order, on the backend's own thread: it must return at once and never raise."""


@runtime_checkable
class Run(Protocol):
    """One program's conversation with a backend."""

    def submit(self, nodes: Sequence[AnyNode]) -> None:
        """Queue nodes; returns at once.  Raises `EngineError` if the backend is gone, `WrongProcess` after a fork."""

    def abort(self, branches: Sequence[int] | None = None, by: str = "the caller") -> None:
        """End these branches (None: all) now; each unfinished one answers with `BranchFailed(Aborted)`."""

    def close(self) -> None:
        """Nothing more will be submitted or listened to; everything the run still holds is freed.  Idempotent."""


@runtime_checkable
class CacheProbe(Protocol):
    """A backend that can tell what prompts would cost now; computes nothing and changes nothing."""

    def peek(self, prompts: Sequence[Prompt]) -> list[Peek]:
        """One answer per prompt, in order."""


@runtime_checkable
class Limited(Protocol):
    """A backend that cannot carry out every gen and select."""

    def check(self, node: Gen | Select, given: Collection[str]) -> None:
        """`Unsupported`, naming the ability, for a node it cannot carry out; called where a state takes the node.

        `given` are the names of the parameters that the program itself gave.
        """


@runtime_checkable
class Backend(Protocol):
    """Whatever can run branches of segments: the engine's handle, a remote server, a fake."""

    @property
    def info(self) -> ModelInfo:
        """The model behind it.  May start the engine, and then waits for it."""

    def open_run(self, listener: Listener) -> Run:
        """Begin a run.  If the backend dies, every unfinished branch gets `BranchFailed` with the reason."""

    def snapshot(self, *, tree: bool = False) -> EngineSnapshot:
        """A picture of the engine now; with `tree`, the prefix tree too."""

    def flush_cache(self) -> bool:
        """Drop every cached prefix nobody uses.  False if there is no cache to flush."""

    def close(self) -> None:
        """Let go of the backend.  Idempotent."""
