"""The process in which grammars are compiled for their worker: what goes wrong in it, goes wrong in it alone.

python -m nbsgl.engine.grammar.compile_helper PARENT      (its standard input is the socket to its owner)
"""

from __future__ import annotations

import gc
import math
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
USUAL_FORMATS = ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")


def main() -> int:
    """Answer jobs until the owner is gone."""
    from nbsgl.engine import spawn

    spawn.tie_to_parent(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(dict.fromkeys(THREADS, "1"))  # each thread of numpy's takes of the address space
    from nbsgl.engine.grammar.helper import Answer, Channel, Job, Vocabulary
    from nbsgl.engine.grammar.vocab import TokenVocab

    channel = Channel(socket.socket(fileno=0))
    try:
        told = channel.receive(Vocabulary)
        vocab = TokenVocab(told.tokens, told.eos_ids) if told.tokens else None
        _import_all(vocab)
        _limit_memory()
        gc.disable()
        gc.freeze()
        channel.send(Answer())
        while True:
            job = channel.receive(Job)
            _limit_time(job.max_s)
            answer, data = _answered(job, vocab)
            channel.send(answer, data)
            gc.collect()  # nobody waits for it here
    except EOFError:
        return 0


def _import_all(vocab: Any) -> None:
    """What a job would wait for."""
    from nbsgl.engine.grammar import cache, fsm_engine  # noqa: F401

    if vocab is not None:
        len(vocab.trie)
    else:
        _read_once()


def _read_once() -> None:
    """What is made at first need, some of it in 0.1 s: classes and cases of characters, and usual formats."""
    import json

    from nbsgl.engine.grammar.host import LlguidanceEngine
    from nbsgl.engine.grammar.plans import plan_of
    from nbsgl.protocol import GrammarSpec

    parts: dict[str, Any] = {name: {"type": "string", "format": name} for name in USUAL_FORMATS}
    schema = json.dumps({"properties": parts | {"number": {"type": "number"}}, "additionalProperties": False})
    for spec in (GrammarSpec(kind="regex", text=r"(?i:k)\d\w\s\S.|\W"), GrammarSpec(kind="json_schema", text=schema)):
        LlguidanceEngine.probe(spec, plan_of(spec).source)


def _answered(job: Any, vocab: Any) -> tuple[Any, Any]:
    """The answer, and the bytes of a grammar."""
    from nbsgl import errors
    from nbsgl.engine.grammar import HandOver
    from nbsgl.engine.grammar.helper import MAX_MEMORY_BYTES, Answer

    try:
        if job.what == "plan":
            return Answer(plan=_plan(job.spec)), b""
        data = _pack(job.spec, vocab)
        return Answer(size=len(data)), data
    except HandOver as reason:
        return Answer(limit=str(reason)), b""
    except MemoryError:
        return Answer(limit=f"{MAX_MEMORY_BYTES >> 30} GiB of memory"), b""
    except Exception as error:  # whatever it is, it is the owner's to tell
        return Answer(error=errors.encode(error)), b""


def _pack(spec: Any, vocab: Any) -> Any:
    from nbsgl.engine.grammar.plans import engine_of
    from nbsgl.engine.grammar.trees import tree_of

    tree = tree_of(spec)
    engine = vocab.grammars.engine(engine_of(spec, tree))
    return engine.pack(spec, engine.source_of(spec, tree))


def _plan(spec: Any) -> Any:
    """The plan, whose engine has been probed; without a `source` for the general one if that cannot take it."""
    import msgspec

    from nbsgl.engine.grammar import engine_class
    from nbsgl.engine.grammar.host import LlguidanceEngine
    from nbsgl.engine.grammar.plans import plan_of
    from nbsgl.errors import GrammarError

    plan = plan_of(spec)
    engine_class(plan.engine).probe(spec, plan.source)
    if plan.may_hand_over and not LlguidanceEngine.is_bounded(plan.source):
        try:
            LlguidanceEngine.probe(spec, plan.source)
        except GrammarError:  # the tables have the last word on what is wrong with a spec
            return msgspec.structs.replace(plan, source="")
    return plan


def _limit_memory() -> None:
    import resource

    from nbsgl.engine.grammar.helper import MAX_MEMORY_BYTES

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = _address_space_bytes() + MAX_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _limit_time(max_s: float) -> None:
    """For the case that the owner, who has the clock, is held up himself."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(used.ru_utime + used.ru_stime + max_s + 1)
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _address_space_bytes() -> int:
    """What the interpreter itself has mapped by now: it differs from machine to machine.  0 where nobody tells."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


if __name__ == "__main__":
    sys.exit(main())
