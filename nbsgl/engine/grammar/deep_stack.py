"""Calls that need more stack than a thread has: libraries that go down a grammar by recursion."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

# A frame for each of 2,000 rules in a chain was too much for 8 MiB (llguidance); 64 MiB were enough for 20,000.
STACK_BYTES = 64 << 20
_STACKS = threading.Lock()  # the size is the process's: none of another thread's may come between

Made = TypeVar("Made")


def with_stack(call: Callable[[], Made]) -> Made:
    """Call it on a thread with a stack of 64 MiB, of which only what is used takes memory (0.1 ms)."""
    made: Future[Made] = Future()

    def run() -> None:
        try:
            made.set_result(call())
        except BaseException as error:
            made.set_exception(error)

    with _STACKS:
        before = threading.stack_size(STACK_BYTES)
        try:
            threading.Thread(target=run, name="nbsgl-deep", daemon=True).start()
        finally:
            threading.stack_size(before)
    return made.result()
