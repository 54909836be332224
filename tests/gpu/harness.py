"""Scheduler and runner in this process, without front or tokenizer: token ids in, tokens and log-probabilities out.

`tests/unit/test_gpu_harness.py` holds this file to its word on a CPU.  With NBSGL_TEST_DEVICE=cpu the tests built on
it run without a card: small, in float32, on the plain runner.  That tries the tests, not the engine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nbsgl.engine.config import EngineConfig
from nbsgl.engine.grammar.forced import Encoder
from nbsgl.engine.grammar.vocab import TokenVocab
from nbsgl.engine.limits import Limits
from nbsgl.engine.loader import LoadedModel, load
from nbsgl.engine.scheduler import Scheduler
from nbsgl.engine.segments import Forced, Sampled, Segment, Update
from nbsgl.protocol import GrammarSpec, SamplingParams, pack_ids, unpack_ids
from tests.unit.model_fakes import make_checkpoint

ON_CPU = os.environ.get("NBSGL_TEST_DEVICE") == "cpu"
ON_CARD = [pytest.mark.gpu, pytest.mark.skipif(not (ON_CPU or torch.cuda.is_available()), reason="needs a CUDA device")]
NEEDS_FLASHINFER = pytest.mark.skipif(not ON_CPU and find_spec("flashinfer") is None, reason="needs FlashInfer")
FLASHINFER = pytest.param("flashinfer", marks=NEEDS_FLASHINFER)

CONTEXT = 2048
HIDDEN = {"Llama": 512, "Qwen3": 256}
SCALES = {"q_proj": 1.6, "k_proj": 1.6, "q_norm": 1.6, "k_norm": 1.6, "o_proj": 3.0, "lm_head": 1 / 3}
HEADS = {"Llama": (4, 2, 128), "Qwen3": (8, 2, 64)}  # query heads, key heads, head_dim


def make_model(folder: Path, family: str, *, vocab: int = 2000, num_layers: int = 3, **settings: Any) -> Path:
    """Save a random model of the family in bfloat16: what any dtype loads is the same numbers.

    Matrices keep the size of what they multiply, and the head's are smaller: rounding to bfloat16 then moves the
    log-probabilities by about 0.01.
    """
    heads, kv_heads, head_dim = HEADS[family]
    shape = {
        "vocab_size": vocab,
        "hidden_size": HIDDEN[family],
        "intermediate_size": 2 * HIDDEN[family],
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False,
    }
    make_checkpoint(folder, family, **{**shape, **settings})
    file, config = folder / "model.safetensors", folder / "config.json"
    scaled = {name: (tensor * _scale(name, tensor)).bfloat16() for name, tensor in load_file(file).items()}
    save_file(scaled, file, {"format": "pt"})
    settings = json.loads(config.read_text())
    settings.pop("torch_dtype", None)
    config.write_text(json.dumps({**settings, "dtype": "bfloat16"}))
    return folder


def _scale(name: str, tensor: torch.Tensor) -> float:
    """From the 0.08 of `make_checkpoint` to a standard deviation of 1 / sqrt(inputs), with three exceptions.

    Attention is sharp and heard (else it is a mean of many, and a wrong token among them hardly shows); the head is
    low.
    """
    factor = next((by for part, by in SCALES.items() if part in name), 1.0)
    is_matrix = tensor.ndim == 2 and "embed" not in name
    return factor / (0.08 * tensor.shape[1] ** 0.5) if is_matrix else factor


def load_model(folder: Path, **settings: Any) -> LoadedModel:
    """Load onto the card unless told otherwise, with a small pool."""
    small = {"device": "cuda", "num_slots": 40_000, "max_running_requests": 256, "chunked_prefill_size": 4096}
    if ON_CPU:
        small |= {"device": "cpu", "dtype": "float32", "num_threads": 2}
        settings.pop("attention_backend", None)
    return load(EngineConfig.of(model_path=str(folder), **{**small, **settings}))


def load_reference(folder: Path, **settings: Any) -> LoadedModel:
    """What answers are judged by: plain torch in float32, so that only those who are judged round.

    A reference in bfloat16 saw a gap of 0.102 at one of 16,384 tokens of FlashInfer's, where there was one of 0.036.
    """
    return load_model(folder, attention_backend="torch", dtype="float32", **settings)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.  `score_from` >= 0 wants the log-probabilities of prompt[score_from:], `with_best` those of the best
    tokens there.  `fork_at`: first only so much of the prompt is computed, and the rest in a fork of that; asks with
    the same beginning share the parent.  A `grammar` needs a server that has grammars.
    """

    prompt: Sequence[int]
    max_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    with_logprobs: bool = False
    score_from: int = -1
    with_best: bool = False
    fork_at: int = 0
    stream: bool = False
    grammar: GrammarSpec | None = None

    def segments(self) -> list[Segment]:
        rest = pack_ids(list(self.prompt[self.fork_at :]))
        score_from = self.score_from - self.fork_at if self.score_from >= 0 else -1
        listed: list[Segment] = [Forced(ids=rest, score_from=score_from, top=int(self.with_best))]
        if self.max_tokens:
            params = SamplingParams(
                temperature=self.temperature,
                top_p=self.top_p,
                max_tokens=self.max_tokens,
                ignore_eos=True,
                seed=self.seed,
                return_logprob=self.with_logprobs,
            )
            listed.append(Sampled(params=params, stream=self.stream, grammar=self.grammar))
        return listed


@dataclass(slots=True)
class Answer:
    """What became of an ask.  `scores` and `bests` are of the prompt, `logprobs` of the drawn tokens."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    bests: list[float] = field(default_factory=list)
    num_cached: int = 0
    is_done: bool = False


@dataclass(frozen=True, slots=True)
class Grammars:
    """What a scheduler needs for grammars; without `encode` nothing jumps forward."""

    vocab: TokenVocab
    compile: Callable[[GrammarSpec], Any]
    encode: Encoder | None = None


class Server:
    """A scheduler with an empty cache on a loaded model's runner; one at a time for a runner.

    `limits` are those of `Limits`; smaller ones than the model was loaded with are possible, larger ones are not.
    """

    def __init__(self, loaded: LoadedModel, grammars: Grammars | None = None, **limits: Any) -> None:
        self.loaded = loaded
        given = {
            "num_slots": loaded.num_slots,
            "page_size": loaded.page_size,
            "max_running": loaded.max_running,
            "token_budget": loaded.chunked_prefill_size,
            "overlap": True,
        }
        self.scheduler = Scheduler(
            Limits(**{**given, **limits}),
            loaded.runner,
            eos_ids=grammars.vocab.eos_ids if grammars else (),
            vocab_bytes=grammars.vocab.tokens if grammars else [b"x"] * loaded.vocab_size,
            compile_grammar=grammars.compile if grammars else lambda spec: None,
            context_length=loaded.context_length,
            emit=self._take,
            encode=grammars.encode if grammars else None,
        )
        self.answers: dict[int, Answer] = {}
        self.errors: dict[int, dict[str, Any]] = {}
        self._last: dict[int, int] = {}  # the number of each ask's last segment
        self._next_seq = 0

    def run(self, asks: Iterable[Ask]) -> list[Answer]:
        """Answer these asks together."""
        seqs = self.submit(asks)
        while self.scheduler.has_work:
            self.scheduler.step()
        assert not self.errors, self.errors
        return [self._pop(seq) for seq in seqs]

    def take_done(self) -> list[tuple[int, Answer]]:
        """The sequences that were answered since the last call."""
        return [(seq, self._pop(seq)) for seq in [seq for seq, answer in self.answers.items() if answer.is_done]]

    def submit(self, asks: Iterable[Ask]) -> list[int]:
        """Give the asks to the scheduler; their sequences.  Nothing is computed before a step."""
        parents: dict[tuple[int, ...], int] = {}
        seqs = []
        for ask in asks:
            parent = None
            if ask.fork_at:
                begin = tuple(ask.prompt[: ask.fork_at])
                if begin not in parents:
                    parents[begin] = self._open([Forced(ids=pack_ids(list(begin)))])
                parent = parents[begin]
            segments = ask.segments()
            seq = self._open(segments, parent)
            self.answers[seq], self._last[seq] = Answer(), len(segments) - 1
            seqs.append(seq)
        for seq in (*parents.values(), *seqs):
            self.scheduler.close(seq)
        return seqs

    def abort(self, seqs: Iterable[int]) -> None:
        """End these sequences; what came of them so far is dropped."""
        seqs = list(seqs)
        self.scheduler.abort(seqs)
        for seq in seqs:
            if seq in self.answers:
                self._pop(seq)

    def _pop(self, seq: int) -> Answer:
        del self._last[seq]
        return self.answers.pop(seq)

    def _open(self, segments: list[Segment], parent: int | None = None) -> int:
        seq, self._next_seq = self._next_seq, self._next_seq + 1
        first = int(parent is not None)
        self.scheduler.open(seq, parent, first)
        self.scheduler.extend(seq, 0, 0, segments)
        return seq

    def _take(self, updates: list[Update]) -> None:
        for update in updates:
            if update.error is not None:
                self.errors[update.seq] = update.error
            answer = self.answers.get(update.seq)
            if answer is None:
                continue
            scores = [value for value in update.scores.logprobs if value is not None] if update.scores else []
            if update.segment == 0:
                answer.scores += scores
                answer.bests += [top[0][1] for top in update.scores.top if top] if update.scores else []
            else:
                answer.tokens += unpack_ids(update.ids)
                answer.logprobs += scores
            answer.num_cached = max(answer.num_cached, update.cached_len)
            answer.is_done |= update.done and update.segment == self._last[update.seq]
