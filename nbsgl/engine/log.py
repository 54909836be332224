"""Logs of front and worker: one rotating file each, which takes their standard output and error too."""

from __future__ import annotations

import io
import logging
import logging.handlers
import os
from pathlib import Path
from typing import Any

MAX_BYTES = 10 << 20
NUM_FILES = 3


class LogFile(logging.handlers.RotatingFileHandler):
    """The process's file (0600).  File descriptors 1 and 2 follow it, so nobody's print blocks or is lost."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=MAX_BYTES, backupCount=NUM_FILES - 1, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(message)s"))

    def _open(self) -> Any:
        fd = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        return io.open(fd, "a", encoding="utf-8", errors="backslashreplace")  # noqa: UP020

    def rotate_if_full(self) -> None:
        """For what was printed past the logger."""
        try:
            if os.fstat(1).st_size > MAX_BYTES:
                self.doRollover()
        except OSError:
            pass  # a full disk costs the log, not the engine


def log_to(path: Path, level: str) -> LogFile:
    """Send this process's log, output and errors to `path`.  For programs of ours only, never for a library."""
    logging.raiseExceptions = False
    handler = LogFile(path)
    root = logging.getLogger("nbsgl")
    root.addHandler(handler)
    root.setLevel(level.upper())
    root.propagate = False
    if level == "debug":
        root.debug("this log may hold prompts and outputs")
    return handler


def tail(path: Path, num_lines: int = 50) -> str:
    """The last lines of a log; empty if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 400 * num_lines))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-num_lines:])
