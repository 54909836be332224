"""The threads that bring weights to a device, run towards a CPU: same code, copies done at once."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nbsgl.engine import weight_stream
from nbsgl.engine.weight_stream import plan_chunks, stream
from nbsgl.engine.weights import read_entries
from nbsgl.errors import CorruptWeights

SHAPES = {"a": (7, 9), "b": (1,), "c": (31, 33), "d": (5,), "e": (3, 1, 11)}


@pytest.fixture
def tensors(tmp_path: Path) -> dict[str, torch.Tensor]:
    """Tensors of odd sizes and three dtypes, saved to two files."""
    dtypes = [torch.float16, torch.float32, torch.bfloat16, torch.float64, torch.float32]
    made = {name: torch.randn(shape).to(dtype) for (name, shape), dtype in zip(SHAPES.items(), dtypes)}
    save_file({name: made[name] for name in "abe"}, tmp_path / "1.safetensors")
    save_file({name: made[name] for name in "cd"}, tmp_path / "2.safetensors")
    return made


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.parametrize("size", [8, 50, 101, 1 << 20])
@pytest.mark.parametrize("num_threads", [1, 5])
def test_all_bytes_arrive(tensors: dict[str, torch.Tensor], tmp_path: Path, size: int, num_threads: int) -> None:
    entries = read_entries(files(tmp_path))
    fused = torch.full((31 * 33 + 200,), 7.0)  # places are views of larger tensors
    places = {"c": fused[100:-100].view(31, 33), "a": torch.zeros(7, 9, dtype=torch.float16), "b": torch.zeros(1)}
    places |= {"d": torch.zeros(5, dtype=torch.float64), "e": torch.zeros(3, 1, 11, dtype=torch.bfloat16)}
    said: list[tuple[float, str]] = []
    stream(entries, places, lambda *words: said.append(words), num_threads=num_threads, chunk_bytes=size)
    for name, place in places.items():
        assert torch.equal(place, tensors[name].to(place.dtype)), name
    assert fused[:100].eq(7).all()
    assert fused[-100:].eq(7).all()
    assert said[-1][0] == 1.0
    assert "GB/s" in said[-1][1]


def test_chunks_hold_neighbours_and_whole_elements(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    entries = read_entries(files(tmp_path))
    assert [len(chunk.parts) for chunk in plan_chunks(entries, entries, 1 << 20)] == [3, 2]
    for size in (8, 13, 64):
        chunks = plan_chunks(entries, entries, size)
        assert all(chunk.end - chunk.begin <= size for chunk in chunks)
        sizes = {name: tensors[name].element_size() for name in entries}
        parts = [part for chunk in chunks for part in chunk.parts]
        assert all(part.begin % sizes[part.name] == part.end % sizes[part.name] == 0 for part in parts)
        assert sum(part.end - part.begin for part in parts) == sum(e.end - e.begin for e in entries.values())


def test_unwanted_tensors_are_not_read(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    entries = read_entries(files(tmp_path))
    middle = sorted("abe", key=lambda name: entries[name].begin)[1]
    wanted = {name: torch.empty(0) for name in entries if name != middle}
    chunks = plan_chunks(entries, wanted, 1 << 20)
    assert len(chunks) == 3
    assert sum(chunk.end - chunk.begin for chunk in chunks) == sum(tensors[name].nbytes for name in wanted)


def test_a_file_cut_short_meanwhile_is_named(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    entries = read_entries(files(tmp_path))
    last = max("cd", key=lambda name: entries[name].begin)
    os.truncate(tmp_path / "2.safetensors", entries[last].end - 1)
    places = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    with pytest.raises(CorruptWeights, match=rf"2\.safetensors.*{last}"):
        stream(entries, places, lambda *words: None, num_threads=3, chunk_bytes=64)


def test_one_failing_thread_ends_all_at_once(
    tensors: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries, read, turns = read_entries(files(tmp_path)), weight_stream._read, iter(range(10_000))

    def failing(chunk: weight_stream.Chunk, buffer: memoryview) -> None:
        if next(turns) == 20:
            raise OSError("the disk is gone")
        read(chunk, buffer)

    monkeypatch.setattr(weight_stream, "_read", failing)
    places = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    before = threading.active_count()
    with pytest.raises(OSError, match="disk is gone"):
        stream(entries, places, lambda *words: None, num_threads=4, chunk_bytes=8)
    assert threading.active_count() == before
    assert next(turns) < 40  # of more than 500 chunks


def test_an_interrupt_leaves_no_thread(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    def interrupted(fraction: float, note: str) -> None:
        raise KeyboardInterrupt

    places = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        stream(read_entries(files(tmp_path)), places, interrupted, num_threads=4, chunk_bytes=8)
    assert threading.active_count() == before
