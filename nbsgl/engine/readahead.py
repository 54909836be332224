"""What a start is going to need from the disk, read before it is needed: torch's files, and the weights.

On a machine that has just started, torch's import and the weights come from the disk, a page fault or a read at a time;
threads that read ahead keep the disk busy meanwhile.  What is in the page cache already is only looked at: a system
call per step.  Without torch.  Every failure is ignored: a start that nobody prepared is slower, not wrong.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

import psutil

log = logging.getLogger("nbsgl")

LIBRARY_STEP = 1 << 20
# Large, because each read takes the interpreter's lock, which an import of torch gives up every 5 ms only.
WEIGHTS_STEP = 16 << 20
NUM_WEIGHT_THREADS = 2
LEAST_LIBRARY = 1 << 20  # smaller ones come with their first page fault
NOT_IMPORTED = {"include", "share", "test", "bin", "lib", "testing"}  # folders of torch without modules of its import

Range = tuple[int, int]


def begin_torch() -> threading.Thread:
    """Read torch's byte code and libraries, on a thread that ends with it."""
    return _begin("nbsgl-ahead", lambda: _read_all("torch", torch_files(), lambda: True))


class WeightsAhead:
    """Reads the files until `stop`; by then the weights are read for good.  Nothing if memory could not hold them."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._is_wanted = True
        sizes = {path: path.stat().st_size for path in sorted(files) if path.is_file()}
        is_room = sum(sizes.values()) <= psutil.virtual_memory().available // 2
        self.threads = [self._begin(sizes, turn) for turn in range(NUM_WEIGHT_THREADS if sizes and is_room else 0)]

    def _begin(self, sizes: dict[Path, int], turn: int) -> threading.Thread:
        mine = [(path, _turns(size, turn)) for path, size in sizes.items()]
        return _begin("nbsgl-ahead", lambda: _read_all("weights", mine, lambda: self._is_wanted, WEIGHTS_STEP))

    def stop(self) -> None:
        self._is_wanted = False


def _turns(size: int, turn: int) -> list[Range]:
    """Every NUM_WEIGHT_THREADS-th step of a file."""
    begins = range(turn * WEIGHTS_STEP, size, NUM_WEIGHT_THREADS * WEIGHTS_STEP)
    return [(begin, min(begin + WEIGHTS_STEP, size)) for begin in begins]


def torch_files() -> list[tuple[Path, list[Range]]]:
    """What an import of torch reads: byte code of its modules, then the libraries, without code for the device.

    CUDA libraries lie beside torch, in `nvidia/`.  cuDNN's parts are left out: they are loaded when first called.
    """
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return []
    root = Path(spec.submodule_search_locations[0])
    files = [(path, [(0, path.stat().st_size)]) for path in _byte_code(root)]
    folders = [root / "lib", *(root.parent / "nvidia").glob("*/lib")]
    libraries = [path for folder in folders for path in folder.glob("*.so*")]
    for path in sorted(libraries, key=lambda path: path.name != "libtorch_cpu.so"):
        if path.stat().st_size >= LEAST_LIBRARY and not path.name.startswith("libcudnn_"):
            files.append((path, host_ranges(path)))
    return files


def _byte_code(root: Path) -> Iterable[Path]:
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in NOT_IMPORTED]
        if folder.endswith("__pycache__"):
            tag = f".{sys.implementation.cache_tag}.pyc"
            yield from (Path(folder, name) for name in names if name.endswith(tag))


def host_ranges(path: Path) -> list[Range]:
    """The parts of an ELF library that its loading may touch; of anything else the whole file.

    Left out are the device's code, which is most of a CUDA library, and what only debuggers read.  Format: elf(5), 64
    bits, little-endian.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
        if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
            return [(0, size)]
        (table_at,) = struct.unpack_from("<Q", head, 0x28)
        entry_size, count, names_idx = struct.unpack_from("<HHH", head, 0x3A)
        file.seek(table_at)
        table = file.read(entry_size * count)
        if entry_size < 64 or len(table) < entry_size * count or names_idx >= count:
            return [(0, size)]
        # name, type, flags, address, offset, size
        sections = [struct.unpack_from("<IIQQQQ", table, i * entry_size) for i in range(count)]
        file.seek(sections[names_idx][4])
        names = file.read(sections[names_idx][5])
    is_loaded, no_bits = 2, 8
    return [
        (offset, offset + length)
        for name, kind, flags, _, offset, length in sections
        if flags & is_loaded and kind != no_bits and length and not names[name:].startswith((b".nv_fatbin", b"__nv_"))
    ]


def _read_all(
    what: str, files: Iterable[tuple[Path, list[Range]]], is_wanted: Callable[[], bool], step: int = LIBRARY_STEP
) -> None:
    begin = time.monotonic()
    buffer = memoryview(bytearray(step))
    count = 0
    for path, ranges in files:
        with contextlib.suppress(OSError):
            count += _read(path, ranges, buffer, is_wanted)
    log.info("read %.2f GB of %s ahead in %.2f s", count / 1e9, what, time.monotonic() - begin)


def _read(path: Path, ranges: list[Range], buffer: memoryview, is_wanted: Callable[[], bool]) -> int:
    """Read what is not in the page cache; returns how many bytes that were."""
    count = 0
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for begin, end in ranges:
            for at in range(begin, end, len(buffer)):
                if not is_wanted():
                    return count
                stop = min(at + len(buffer), end)
                if not (_is_cached(fd, at) and _is_cached(fd, stop - 1)):
                    count += os.preadv(fd, [buffer[: stop - at]], at)
    finally:
        os.close(fd)
    return count


def _is_cached(fd: int, offset: int) -> bool:
    """Whether that page is in memory; False where the file system does not tell."""
    try:
        return os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except (OSError, AttributeError):  # BlockingIOError: it is not; AttributeError: no Linux
        return False


def _begin(name: str, run: Callable[[], None]) -> threading.Thread:
    def guarded() -> None:
        try:
            run()
        except Exception:  # nobody depends on it
            log.debug("reading ahead ended early", exc_info=True)

    thread = threading.Thread(target=guarded, name=name, daemon=True)
    thread.start()
    return thread
