"""The folder in which an engine can be found: one per key and user, private, owned by whoever holds its lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
from pathlib import Path

import msgspec

from nbsgl.engine.watch import is_same, start_time
from nbsgl.errors import RuntimeFolderError

MAX_SOCKET_PATH = 107  # bytes; libzmq refuses more
LONGEST_SOCKET = "worker-999.sock"
LOGS = ("front.log", "worker.log")


class EngineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`engine.json`: who owns the folder.  `started` tells the process from a stranger who got its number."""

    pid: int
    started: float
    protocol: int
    version: str
    state: str
    key: str
    model: str
    device: str
    keep: float
    worker: int | None = None
    config: dict[str, object] = {}

    @property
    def is_alive(self) -> bool:
        return is_same(self.pid, self.started)


def root() -> Path:
    """Where this user's engines are: $NBSGL_RUNTIME_DIR, $XDG_RUNTIME_DIR/nbsgl or /tmp/nbsgl-<uid>."""
    if chosen := os.environ.get("NBSGL_RUNTIME_DIR"):
        return Path(chosen).absolute()
    session = os.environ.get("XDG_RUNTIME_DIR")
    if session and os.path.isdir(session):
        return Path(session).absolute() / "nbsgl"
    return Path(f"/tmp/nbsgl-{os.getuid()}")


class RuntimeFolder:
    """One engine's folder.  Making the object creates and checks nothing; `open` does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock_path, self.record_path, self.token_path = path / "lock", path / "engine.json", path / "token"
        self.front_log, self.worker_log = path / "front.log", path / "worker.log"

    @classmethod
    def open(cls, key: str) -> RuntimeFolder:
        """The folder for `key`, created if missing.  `RuntimeFolderError` if it is not private or its path too long."""
        folder = cls(root() / key)
        longest = len(os.fsencode(folder.path / LONGEST_SOCKET))
        if longest > MAX_SOCKET_PATH:
            raise RuntimeFolderError(
                path=str(folder.path),
                reason=f"socket paths in it take {longest} bytes, the limit is {MAX_SOCKET_PATH}",
                hint="Set NBSGL_RUNTIME_DIR to a folder with a shorter path.",
            )
        folder.make()
        return folder

    def make(self) -> None:
        """Create what is missing and `check`.  To be repeated: an owner that ends removes the folder."""
        for path in (self.path.parent, self.path):
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                hint = "Set NBSGL_RUNTIME_DIR to a folder you can write to."
                raise RuntimeFolderError(path=str(path), reason=error.strerror or "not usable", hint=hint) from error
        self.check()

    def check(self) -> None:
        """`RuntimeFolderError` unless it and its parent are real folders of ours that nobody else may enter."""
        for path in (self.path.parent, self.path):
            try:
                found = os.lstat(path)
            except OSError as error:
                raise RuntimeFolderError(path=str(path), reason=error.strerror or "gone") from error
            if stat.S_ISLNK(found.st_mode) or not stat.S_ISDIR(found.st_mode):
                reason = "is a symbolic link or no folder"
                hint = f"Remove it, or set NBSGL_RUNTIME_DIR: rm {path}"
                raise RuntimeFolderError(path=str(path), reason=reason, hint=hint)
            if found.st_uid != os.getuid():
                reason = f"belongs to user {found.st_uid}, not to {os.getuid()}"
                raise RuntimeFolderError(
                    path=str(path), reason=reason, hint="Set NBSGL_RUNTIME_DIR to a folder of yours."
                )
            if found.st_mode & 0o077:
                mode = stat.S_IMODE(found.st_mode)
                raise RuntimeFolderError(
                    path=str(path), reason=f"others may enter it (mode {mode:04o})", hint=f"Run: chmod 700 {path}"
                )

    def socket(self, name: str) -> str:
        """The address of a socket in the folder."""
        return f"ipc://{self.path / name}"

    # ---- the owner ---------------------------------------------------------------------------------------------------

    def try_lock(self) -> int | None:
        """Take the lock, which lives as long as the descriptor returned; None if somebody has it.

        To be taken before a socket is bound: a second bind on a live path succeeds and steals every later connection.
        """
        while True:
            self.make()
            try:
                fd = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:
                continue  # an owner that ended has just removed the folder
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(fd)
                if isinstance(error, BlockingIOError):
                    return None
                raise
            if self.is_owner(fd):
                return fd
            os.close(fd)  # an owner that ended has removed it between our open and our lock

    def is_owner(self, lock: int) -> bool:
        """Whether the folder is still that of the lock held: if somebody removed it, others may have begun anew."""
        try:
            return os.path.samestat(os.fstat(lock), os.stat(self.lock_path))
        except OSError:
            return False

    def clear(self) -> None:
        """Remove what a dead owner left, logs excepted.  For the holder of the lock."""
        for path in self.path.iterdir():
            if path.name not in (self.lock_path.name, *LOGS):
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def new_token(self) -> bytes:
        """Write a new secret (0600) for clients to show."""
        token = secrets.token_bytes(32)
        self._write(self.token_path, token)
        return token

    def read_token(self) -> bytes:
        """Empty if there is none."""
        try:
            return self.token_path.read_bytes()
        except OSError:
            return b""

    def write(self, record: EngineRecord) -> None:
        """Replace `engine.json` at once: readers see the old one or the new one."""
        self._write(self.record_path, msgspec.json.encode(record))

    def read(self) -> EngineRecord | None:
        """The record of the owner if that process is still alive, else None."""
        try:
            record = msgspec.json.decode(self.record_path.read_bytes(), type=EngineRecord)
        except (OSError, msgspec.MsgspecError):
            return None
        return record if record.is_alive else None

    def remove(self, lock: int, *, keep_logs: bool) -> None:
        """The owner's last act: remove everything in it, the lock at the end, and the folder if it is empty then."""
        if self.is_owner(lock):
            with contextlib.suppress(OSError):
                self.clear()
                for log in self.path.glob("*.log*"):
                    if not keep_logs:
                        log.unlink()
            with contextlib.suppress(OSError):
                self.lock_path.unlink()
            with contextlib.suppress(OSError):
                self.path.rmdir()
        os.close(lock)

    def _write(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        temporary.replace(path)


def my_start_time() -> float:
    started = start_time(os.getpid())
    assert started is not None
    return started


def list_engines() -> list[EngineRecord]:
    """The engines of this user that are alive."""
    try:
        folders = sorted(root().iterdir())
    except OSError:
        return []
    records = (RuntimeFolder(folder).read() for folder in folders if folder.is_dir())
    return [record for record in records if record is not None]
