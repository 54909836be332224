"""What a start does beforehand: reads files, opens the context, reads texts; and its time line."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from pathlib import Path

import pytest

from nbsgl.engine import cuda_context, readahead, text_room
from nbsgl.engine.config import EngineConfig
from nbsgl.engine.folders import EMBEDDED
from nbsgl.engine.readahead import WeightsAhead, host_ranges, torch_files
from nbsgl.engine.text_room import Outputs, TextRoom
from nbsgl.engine.timeline import Timeline
from nbsgl.protocol import ModelInfo
from tests.unit.ready import READY

ALLOC, NO_BITS, PROGRAM = 2, 8, 1


def elf(path: Path, sections: list[tuple[bytes, int, int, int, int]]) -> None:
    """An ELF file with sections of (name, type, flags, offset, size)."""
    names = b"\0" + b"".join(name + b"\0" for name, *_ in sections) + b".names\0"
    table_at, names_at = 4096, 64
    table = bytearray()
    for name, kind, flags, offset, size in [*sections, (b".names", 3, 0, names_at, len(names))]:
        place = names.index(b"\0" + name + b"\0") + 1
        table += struct.pack("<IIQQQQ", place, kind, flags, 0, offset, size).ljust(64, b"\0")
    head = bytearray(64)
    head[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", head, 0x28, table_at)
    struct.pack_into("<HHH", head, 0x3A, 64, len(sections) + 1, len(sections))
    path.write_bytes(bytes(head) + names.ljust(table_at - names_at, b"\0") + bytes(table))


def test_device_code_and_debug_sections_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "lib.so"
    sections = [
        (b".text", PROGRAM, ALLOC, 1000, 50),
        (b".nv_fatbin", PROGRAM, ALLOC, 2000, 900),
        (b".bss", NO_BITS, ALLOC, 2900, 10_000),
        (b".debug_info", PROGRAM, 0, 3000, 60),
        (b".data", PROGRAM, ALLOC, 3500, 70),
    ]
    elf(path, sections)
    assert host_ranges(path) == [(1000, 1050), (3500, 3570)]
    for data in (b"", b"no library", path.read_bytes()[:100]):
        path.write_bytes(data)
        assert host_ranges(path) == [(0, len(data))]


def test_torchs_own_files_are_found_without_its_headers() -> None:
    files = dict(torch_files())
    names = {path.name for path in files}
    assert "libtorch_cpu.so" in names
    assert any(name.startswith("functional.") and name.endswith(".pyc") for name in names)
    assert not any("include" in path.parts for path in files)
    library = next(path for path in files if path.name == "libtorch_cpu.so")
    assert 0 < sum(end - begin for begin, end in files[library]) <= library.stat().st_size


def test_only_what_is_not_in_memory_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(os.urandom(2500))
    assert not readahead._is_cached(-1, 0)
    cached = {0, 999}  # the first step's ends
    monkeypatch.setattr(readahead, "_is_cached", lambda fd, offset: offset in cached)
    buffer = memoryview(bytearray(1000))
    assert readahead._read(path, [(0, 2500)], buffer, lambda: True) == 1500
    assert bytes(buffer[:500]) == path.read_bytes()[2000:]
    turns = iter([True, False])
    assert readahead._read(path, [(1000, 2500)], buffer, lambda: next(turns)) == 1000


def test_the_threads_share_the_weights_and_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("1", 5 << 20), ("2", 300)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "3").symlink_to("nowhere")
    read: list[tuple[str, int, int]] = []

    def note(path, ranges, buffer, is_wanted):
        read.extend((path.name, *part) for part in ranges if is_wanted())
        return 0

    monkeypatch.setattr(readahead, "WEIGHTS_STEP", 2 << 20)
    monkeypatch.setattr(readahead, "_read", note)
    ahead = WeightsAhead(tmp_path.iterdir())
    for thread in ahead.threads:
        thread.join()
    assert sorted(read) == [("1", 0, 2 << 20), ("1", 2 << 20, 4 << 20), ("1", 4 << 20, 5 << 20), ("2", 0, 300)]
    ahead.stop()
    assert not ahead._is_wanted
    monkeypatch.setattr(readahead.psutil, "virtual_memory", lambda: type("M", (), {"available": 9 << 20}))
    assert WeightsAhead(tmp_path.iterdir()).threads == []


def test_the_context_of_the_asked_device_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []

    class Driver:
        def cuInit(self, flags: int) -> int:
            calls.append(("init", flags))
            return 0

        def cuDeviceGet(self, device: object, index: int) -> int:
            calls.append(("get", index))
            return 0

        def cuDevicePrimaryCtxRetain(self, context: object, device: ctypes.c_int) -> int:
            calls.append(("retain", device.value))
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert cuda_context.begin("cpu") is None
    thread = cuda_context.begin("cuda:3")
    assert thread is not None
    thread.join()
    assert calls == [("init", 0), ("get", 3), ("retain", 0)]


def test_without_a_driver_the_start_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    thread = cuda_context.begin("auto")
    assert thread is not None
    thread.join()


def test_parts_of_a_start_add_up() -> None:
    times = iter([10.0, 12.0, 12.5, 20.0])
    timeline = Timeline(lambda: next(times))
    for part in ("torch", "weights", "torch"):
        timeline.mark(part)
    assert timeline.seconds == {"torch": 9.5, "weights": 0.5}


def test_texts_are_read_before_the_worker_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Path] = []
    load = text_room.TextCodec.load

    def counted(folder: Path) -> object:
        loads.append(folder)
        return load(folder)

    monkeypatch.setattr(text_room.TextCodec, "load", counted)
    infos: list[ModelInfo] = []
    nothing = lambda *args: None  # noqa: E731
    room = TextRoom(EngineConfig(), Outputs(nothing, lambda epoch, info: infos.append(info), nothing, nothing))
    room.thread.daemon = True
    room.thread.start()
    _until(lambda: loads == [EMBEDDED])
    ready = type(READY)(**{name: getattr(READY, name) for name in READY.__struct_fields__} | {"folder": str(EMBEDDED)})
    room.worker_ready(1, ready)
    _until(lambda: bool(infos))
    assert loads == [EMBEDDED]
    assert set(infos[0].roles) >= {"user", "assistant"}


def _until(is_true) -> None:
    deadline = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)
