"""What a client tells the front that it starts, and what that answers by its exit code."""

from __future__ import annotations

import msgspec

from nbsgl.engine.config import EngineConfig

TAKEN = 4  # exit code: another front owns the folder
MIN_FILES = 256  # descriptors: two for each of 64 clients, and what front and worker need themselves


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of the front's standard input.  `launch` comes back in that client's Hello."""

    config: EngineConfig
    keep: float
    launch: str
    worker_module: str = "nbsgl.engine.worker"
