"""What grammars cost: compiling them, filling masks, waiting for the first token.  Everything in this process."""

from __future__ import annotations

import gc
import importlib.util
import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

import llguidance
import msgspec
import numpy as np

from nbsgl.engine.grammar import MODULES, CompiledGrammar, HandOver
from nbsgl.engine.grammar.cache import GrammarCache, Pending
from nbsgl.engine.grammar.host import LlguidanceEngine
from nbsgl.engine.grammar.optional import PACKAGES
from nbsgl.engine.grammar.plans import plan_of
from nbsgl.engine.grammar.vocab import TokenVocab
from nbsgl.errors import GrammarError, Unsupported
from nbsgl.protocol import GrammarSpec

STEPS = 40  # of a walk
WAIT_S = 60.0
ROUNDS = 9


def installed() -> list[str]:
    """The engines that can be measured here."""
    return [name for name in MODULES if name not in PACKAGES or importlib.util.find_spec(PACKAGES[name])]


def measure(vocab: TokenVocab, engine: str, specs: Sequence[GrammarSpec], seed: int = 0) -> dict[str, Any]:
    """One engine on some grammars: compile times in ms, mask times in us, and how many it refused.

    A compile is all from the spec's text on; the vocabulary's own preparation is counted apart (`prepare_s`).
    """
    cache = GrammarCache(vocab)
    try:
        prepare_s, first = _timed(lambda: _compiled(cache, GrammarSpec(kind="regex", text="a"), engine))
        assert not isinstance(first, Exception), first
        compile_ms, masks_us, refused, num_bytes = [], [], 0, []
        for place, spec in enumerate(specs):
            seconds, found = _timed(lambda spec=spec: _compiled(cache, spec, engine))
            if isinstance(found, Exception):
                refused += 1
                continue
            compile_ms.append(seconds * 1e3)
            num_bytes.append(found.table_bytes)
            masks_us += _masks(found, vocab, random.Random(seed + place))
    finally:
        cache.close()
    return {
        "vocab": len(vocab),
        "engine": engine,
        "grammars": len(specs),
        "refused": refused,
        "prepare_s": round(prepare_s, 3),
        "compile_ms": spread(compile_ms, (50, 90, 99)),
        "mask_us": spread(masks_us, (50, 99)),
        "masks": len(masks_us),
        "table_bytes_max": max(num_bytes, default=0),
    }


def first_tokens(vocab: TokenVocab, specs: Sequence[GrammarSpec]) -> dict[str, Any]:
    """Until a first token can be masked, in ms: by the cache (stand-in or tables), and by llguidance alone.

    One grammar after the other, each by the median of `ROUNDS` texts of its cost, of which nobody has read any; then
    all at once; and a grammar that is there, in us.  llguidance reads each text in its own way, in this thread.
    """
    news = threading.Event()
    cache = GrammarCache(vocab, notify=news.set)
    wait_for = partial(_wait_for, news)
    gc.collect()
    gc.disable()  # as in the worker
    try:
        cache.warm_up()
        wait_for([cache.request(GrammarSpec(kind="regex", text="warm"))], tables=True)
        for spec in specs:  # character classes and formats, made once by a process
            cache.compiler.planner.plan(spec, WAIT_S)
        first, general, cached = [], [], []
        for spec in specs:
            texts = list(_alike(spec, ROUNDS))
            times = [(_first_ms(cache, wait_for, one), _library_ms(cache, one)) for one in texts]
            first.append(median(own for own, _ in times))
            general.append(median(other for _, other in times))
            cached += [_cached_us(cache, one) for one in texts[-5:]]
        pending = [cache.request(msgspec.structs.replace(spec, prefix="y")) for spec in specs]
        together = wait_for(pending)
        tables = wait_for(pending, tables=True)
    finally:
        gc.enable()
        cache.close()
    return {
        "vocab": len(vocab),
        "grammars": len(specs),
        "first_ms": spread(first, (50, 90, 100)),
        "llguidance_ms": spread(general, (50, 90, 100)),
        "later_ms": spread([one - other for one, other in zip(first, general, strict=True)], (50, 90, 100)),
        "at_once_ms": spread(together, (50, 99)),
        "at_once_tables_ms": spread(tables, (50, 99)),
        "cached_us": spread(cached, (50, 99)),
    }


def _alike(spec: GrammarSpec, count: int) -> Iterator[GrammarSpec]:
    """Specs that are read anew though they cost the same: schemas with another comment, others behind another text."""
    for number in range(count):
        if spec.kind == "json_schema":
            text = json.dumps({"$comment": f"no. {number}"} | json.loads(spec.text))
            yield msgspec.structs.replace(spec, text=text)
        else:
            yield msgspec.structs.replace(spec, prefix="x" * number)


def _first_ms(cache: GrammarCache, wait_for: Callable[..., list[float]], spec: GrammarSpec) -> float:
    """By the cache; returns when the tables are there too, beside which the next would wait for a processor."""
    begin = time.perf_counter()
    pending = [cache.request(spec)]
    wait_for(pending)
    first_ms = (time.perf_counter() - begin) * 1e3
    wait_for(pending, tables=True)
    return first_ms


def _cached_us(cache: GrammarCache, spec: GrammarSpec) -> float:
    seconds, compiled = _timed(lambda: cache.request(spec).ready())
    assert compiled is not None
    return seconds * 1e6


def _library_ms(cache: GrammarCache, spec: GrammarSpec) -> float:
    """By llguidance alone, from the user's text."""
    matcher, host = llguidance.LLMatcher, cache.engine("llguidance")
    assert isinstance(host, LlguidanceEngine)
    source_of = {"regex": matcher.grammar_from_regex, "json_schema": matcher.grammar_from_json_schema}[spec.kind]
    seconds, made = _timed(lambda: matcher(host.tokenizer.handle, source_of(spec.text), log_level=0))
    assert not made.is_error(), made.get_error()
    return seconds * 1e3


def spread(values: Iterable[float], percents: Sequence[int]) -> dict[str, float]:
    """Percentiles by name, three digits each."""
    ordered = sorted(values)
    if not ordered:
        return {}
    last = len(ordered) - 1
    return {f"p{percent}": float(f"{ordered[round(last * percent / 100)]:.3g}") for percent in percents}


def _timed(call: Any) -> tuple[float, Any]:
    begin = time.perf_counter()
    made = call()
    return time.perf_counter() - begin, made


def _compiled(cache: GrammarCache, spec: GrammarSpec, engine: str) -> CompiledGrammar | Exception:
    """By that engine, nothing kept; the error if it takes it not.  outlines-core only under a helper's clock."""
    named = msgspec.structs.replace(spec, engine=engine)
    try:
        if engine == "outlines":
            return cache.request(named).wait(WAIT_S)
        plan = plan_of(named)
        return cache.engine(engine).compile(named, plan.source, plan.notes)
    except (GrammarError, HandOver, Unsupported) as error:
        return error


def _masks(compiled: CompiledGrammar, vocab: TokenVocab, rng: random.Random) -> list[float]:
    """Times of masks in us, along a walk by random allowed tokens."""
    row = np.zeros((len(vocab) + 31) // 32, np.uint32)
    matcher, times = compiled.matcher(), []
    for _ in range(STEPS):
        begin = time.perf_counter()
        try:
            matcher.fill_mask(row)
        except GrammarError:
            break
        times.append((time.perf_counter() - begin) * 1e6)
        allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
        tokens = [token for token in (int(rng.choice(allowed)) for _ in range(4)) if token not in vocab.eos_ids]
        if not tokens or not matcher.advance(tokens[0]):
            break
    return times


def _wait_for(news: threading.Event, pending: Sequence[Pending], *, tables: bool = False) -> list[float]:
    """Until each has something to begin with, or its tables, in ms from now; `news` is set when something has come."""
    begin, times = time.perf_counter(), [0.0] * len(pending)
    waiting = dict(enumerate(pending))
    while waiting:
        news.clear()
        for place, one in list(waiting.items()):
            if one.ready() is not None or (not tables and one.standin() is not None):
                times[place] = (time.perf_counter() - begin) * 1e3
                del waiting[place]
        if waiting and not news.wait(WAIT_S):
            raise TimeoutError(f"{len(waiting)} grammars were not there after {WAIT_S:g} s")
    return times
