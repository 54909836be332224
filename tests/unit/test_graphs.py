"""CUDA graphs where there is no card: sizes, and that no record begins without room for it."""

from __future__ import annotations

import pytest
import torch

from nbsgl.engine.cuda.forward import MAX_FUSED, Way
from nbsgl.engine.cuda.graphs import (
    LEAST_FREE_BYTES,
    MAX_BUCKET,
    PIECES_STEP,
    SIZES,
    GraphKey,
    Graphs,
    NoRoomForGraph,
    bucket_of,
    pieces_bucket_of,
    way_of,
)

KEY = GraphKey(Way.ANY, 16, draws=True)


def test_every_number_of_tokens_has_the_next_size() -> None:
    for num in range(1, MAX_BUCKET + 1):
        assert bucket_of(num) == min(size for size in SIZES if size >= num)
        assert 0 <= pieces_bucket_of(num) - num < PIECES_STEP
    assert SIZES[-1] == pieces_bucket_of(MAX_BUCKET) == MAX_BUCKET


def test_ways() -> None:
    ways = [way_of(num, is_decode=True) for num in (1, 2, MAX_FUSED, MAX_FUSED + 1)]
    assert ways == [Way.ONE, Way.FEW, Way.FEW, Way.ANY]
    assert way_of(1, is_decode=False) is Way.ANY


def test_without_free_memory_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (LEAST_FREE_BYTES - 1, 1 << 40))
    ran = []
    with pytest.raises(NoRoomForGraph, match="255 MiB"):
        Graphs().capture(KEY, [lambda: ran.append(1)])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (120 << 20, 8 << 30))
    with pytest.raises(NoRoomForGraph, match="120 MiB"):
        Graphs().capture(KEY, [lambda: ran.append(1)])
    assert not ran


def test_after_a_record_that_could_not_be_ended_there_are_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 40, 1 << 40))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Unending)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    ended = []
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *pool: ended.append(pool), raising=False)
    graphs = Graphs()
    with pytest.raises(RuntimeError, match="out of memory"):
        graphs._record(lambda: None)
    assert len(ended) == 1, "what is allocated next is not the graphs'"
    with pytest.raises(NoRoomForGraph, match="restart"):
        graphs.capture(KEY, [lambda: None])


class Unending:
    def capture_begin(self, **_: object) -> None:
        pass

    def capture_end(self) -> None:
        raise RuntimeError("CUDA error: out of memory")
