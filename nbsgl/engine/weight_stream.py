"""Weights of many gigabytes onto a CUDA device: threads read ranges of files and copy each range on by themselves.

    range of a file, at most CHUNK_BYTES --read--> one of the thread's two pinned buffers --its stream--> the places

Ranges do not overlap, so there is no order to keep and nothing is handed from thread to thread.  A range holds whole
elements of one tensor or of several neighbours: small tensors are read together.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nbsgl.engine.weights import FILE_DTYPES, ITEM_BYTES, Entry, Progress, corrupt

# Page cache to pinned memory on an H200's host: 5.4, 17.6, 30 GB/s with 1, 4, 8 threads.  Pinning costs 0.44 s per GB:
# 8 x 2 x 16 MiB take 0.12 s.
NUM_THREADS = 8
CHUNK_BYTES = 16 << 20
REPORT_S = 0.1


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes [begin, end) of a tensor's data; they lie at `offset` in their chunk."""

    name: str
    offset: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes [begin, end) of a file."""

    path: Path
    begin: int
    end: int
    parts: tuple[Part, ...]


def stream(
    entries: Mapping[str, Entry],
    parameters: Mapping[str, Tensor],
    progress: Progress,
    *,
    num_threads: int = NUM_THREADS,
    chunk_bytes: int = CHUNK_BYTES,
) -> None:
    """Read every parameter from its file into its place (contiguous, all on one device), converting the dtype there.

    The weights are in place when this returns.  Raises the first error of any thread, at once: CorruptWeights if a
    file is short, OSError.  `progress` is called on this thread.
    """
    load = _Load(entries, parameters, plan_chunks(entries, parameters, chunk_bytes), chunk_bytes)
    threads = [threading.Thread(target=load.run, name=f"nbsgl-load-{i}", daemon=True) for i in range(num_threads)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(REPORT_S)
                progress(*load.report())
    finally:
        load.cancel()  # whatever ended the wait
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    if load.error is not None:
        raise load.error
    progress(*load.report())


def plan_chunks(entries: Mapping[str, Entry], names: Mapping[str, object], size: int) -> list[Chunk]:
    """Cut the tensors' bytes into ranges of at most `size` bytes, in the order of the files; empty tensors vanish.

    A range ends at a gap of unwanted bytes and never inside an element, so it may be a little shorter than `size`.
    """
    assert size >= max(ITEM_BYTES.values()), "an element fits"
    chunks: list[Chunk] = []
    parts: list[Part] = []
    path, begin, end = Path(), 0, 0
    for name in sorted(names, key=lambda name: (entries[name].path, entries[name].begin)):
        entry = entries[name]
        item = ITEM_BYTES[entry.dtype]
        at = entry.begin
        while at < entry.end:
            room = (size - (end - begin)) // item * item
            if entry.path != path or at != end or not room:
                if parts:
                    chunks.append(Chunk(path, begin, end, tuple(parts)))
                parts, path, begin, end = [], entry.path, at, at
                continue
            stop = min(entry.end, at + room)
            parts.append(Part(name, at - begin, at - entry.begin, stop - entry.begin))
            at = end = stop
    if parts:
        chunks.append(Chunk(path, begin, end, tuple(parts)))
    return chunks


class _Load:
    """What the threads of one load share: which chunk is next, how much is done, what went wrong."""

    def __init__(
        self, entries: Mapping[str, Entry], places: Mapping[str, Tensor], chunks: list[Chunk], chunk_bytes: int
    ) -> None:
        self.entries, self.places, self.chunk_bytes = entries, places, chunk_bytes
        self.error: BaseException | None = None
        self._chunks = iter(chunks)
        self._total = sum(chunk.end - chunk.begin for chunk in chunks)
        self._done = 0
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._began = time.monotonic()

    def run(self) -> None:
        """One thread: chunk after chunk until there is none, or somebody failed."""
        try:
            lane = _Lane(next(iter(self.places.values())).device, self.chunk_bytes)
            while (chunk := self._take()) is not None:
                _read(chunk, lane.next_buffer())
                lane.send(chunk, self.entries, self.places)
                with self._lock:
                    self._done += chunk.end - chunk.begin
            lane.finish()
        except BaseException as error:  # raised anew by `stream`
            with self._lock:
                self.error = self.error or error

    def _take(self) -> Chunk | None:
        with self._lock:
            return None if self._is_cancelled or self.error is not None else next(self._chunks, None)

    def cancel(self) -> None:
        with self._lock:
            self._is_cancelled = True

    def report(self) -> tuple[float, str]:
        """Arguments for `Progress`."""
        seconds = max(time.monotonic() - self._began, 1e-3)
        rate = f"{self._done / 1e9 / seconds:.1f} GB/s"
        if self._done == self._total:
            return 1.0, f"weights: {self._total / 1e9:.2f} GB ({rate})"
        return self._done / self._total, f"weights: {self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB ({rate})"


class _Lane:
    """One thread's way to the device: two buffers in turn and a stream; to a CPU, copies that are done at once."""

    def __init__(self, device: torch.device, size: int) -> None:
        is_cuda = device.type == "cuda"
        self._buffers = [torch.empty(size, dtype=torch.uint8, pin_memory=is_cuda) for _ in range(2)]
        self._views = [memoryview(buffer.numpy()) for buffer in self._buffers]
        self._stream = torch.cuda.Stream(device) if is_cuda else None
        self._copied = [torch.cuda.Event() for _ in self._buffers] if is_cuda else []
        self._idx = 0

    def next_buffer(self) -> memoryview:
        """The buffer to fill for the next `send`, once its last copy is done."""
        self._idx ^= 1
        if self._copied:
            self._copied[self._idx].synchronize()
        return self._views[self._idx]

    def send(self, chunk: Chunk, entries: Mapping[str, Entry], places: Mapping[str, Tensor]) -> None:
        """Queue the copies of the buffer's parts to their places."""
        buffer = self._buffers[self._idx]
        with torch.cuda.stream(self._stream):  # None: no stream
            for part in chunk.parts:
                source = buffer[part.offset : part.offset + part.end - part.begin]
                _place(source, part, FILE_DTYPES[entries[part.name].dtype], places[part.name])
            if self._stream is not None:
                self._copied[self._idx].record(self._stream)

    def finish(self) -> None:
        """Wait until all is in place."""
        if self._stream is not None:
            self._stream.synchronize()


def _place(source: Tensor, part: Part, dtype: torch.dtype, place: Tensor) -> None:
    """Raw bytes to their place.  They may lie at any address, so they become elements on the device only."""
    flat = place.view(-1)
    if flat.dtype is dtype:
        flat.view(torch.uint8)[part.begin : part.end].copy_(source, non_blocking=True)
        return
    raw = torch.empty(source.shape, dtype=torch.uint8, device=place.device).copy_(source, non_blocking=True)
    flat[part.begin // dtype.itemsize : part.end // dtype.itemsize].copy_(raw.view(dtype))


def _read(chunk: Chunk, buffer: memoryview) -> None:
    """CorruptWeights if the file ends before the chunk does."""
    view = buffer[: chunk.end - chunk.begin]
    fd = os.open(chunk.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        read = 0
        while read < len(view):
            count = os.preadv(fd, [view[read:]], chunk.begin + read)
            if not count:
                part = next(part for part in chunk.parts if read < part.offset + part.end - part.begin)
                raise corrupt(
                    chunk.path, part.name, "its data are cut off", "a file that does not change while loading"
                )
            read += count
    finally:
        os.close(fd)
