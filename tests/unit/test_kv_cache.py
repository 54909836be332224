"""The KV cache's tensors: padding, the page table, and a cache in 8 bits behind the plain backend."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nbsgl.engine.attention import Span, create_attention
from nbsgl.engine.batch import Row
from nbsgl.engine.kv_cache import KVCache
from nbsgl.engine.model_config import ModelConfig, RopeConfig
from tests.unit.model_fakes import load_small, make_checkpoint, run

CPU = torch.device("cpu")
MODEL = ModelConfig("LlamaForCausalLM", 100, 64, 64, 2, 4, 2, 16, 4096, 1e-5, RopeConfig())


def cache_of(dtype: torch.dtype = torch.float32, page_size: int = 4) -> KVCache:
    return KVCache(MODEL, num_slots=32, max_running=3, context_length=20, dtype=dtype, device=CPU, page_size=page_size)


def test_padding_lies_beyond_rows_and_slots() -> None:
    cache = cache_of()
    assert cache.k[0].shape == cache.v[1].shape == (32 + 4, 2, 16)
    assert (cache.padding_row, cache.padding_slot) == (3, 32)
    assert cache.table[cache.padding_row].eq(cache.padding_slot).all()
    cache.write_table([(2, 18, [30, 31]), (0, 0, [5]), (1, 3, [])])
    assert cache.table[2, 17:].tolist() == [0, 30, 31]
    assert cache.table[0, 0] == 5
    cache.k[0][32:] = float("nan")
    cache.clear()
    assert cache.table[:3].eq(0).all()
    assert cache.table[3].eq(32).all()
    assert cache.pool.eq(0).all()


@pytest.mark.parametrize("scattered", [False, True])
def test_an_8_bit_cache_attends_to_its_rounded_values(scattered: bool) -> None:
    torch.manual_seed(0)
    lens = (6, 1, 11)  # an extend and, after it, single tokens of padded lengths
    exact, rounded = cache_of(), cache_of(torch.float8_e4m3fn)
    order = torch.randperm(32).tolist() if scattered else list(range(32))
    slots = {row: [order.pop(0) for _ in range(kv_len)] for row, kv_len in enumerate(lens)}
    tokens = sum(lens)
    q, k, v = torch.randn(3, tokens, 4, 16).unbind(0)
    k, v = 3 * k[:, :2], 3 * v[:, :2]
    k[0, 0, 0], v[-1, 0, 0] = 1e4, -1e4  # beyond e4m3: saturates
    outs = []
    for cache, kv in ((exact, (_round(k), _round(v))), (rounded, (k, v))):
        cache.write_table([(row, 0, slots[row]) for row in slots])
        backend = create_attention("torch", MODEL, cache)
        begins = [0, lens[0], lens[0] + lens[1]]
        spans = [Span(row, begin, kv_len, 0) for row, begin, kv_len in zip(slots, begins, lens)]
        backend.plan(sorted(spans, key=lambda span: span.num_tokens > 1), _flat(slots))
        first = backend.forward(1, q, *kv)
        singles = [Span(row, i, 1, lens[row] - 1) for i, row in enumerate(slots)]
        last = [begin + kv_len - 1 for begin, kv_len in zip(begins, lens)]
        backend.plan(singles, _flat(slots)[last])
        outs.append((first, backend.forward(1, q[last], *(x[last] for x in kv))))
    for one, other in zip(*outs):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-5)


def test_an_engine_with_an_8_bit_cache_decodes(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "Qwen3")
    logprobs = []
    for kv_cache_dtype in ("auto", "fp8_e4m3"):
        loaded = load_small(tmp_path, kv_cache_dtype=kv_cache_dtype)
        history = list(range(20, 45))
        run(loaded, Row(row=0, slots=range(23), history=history, start=0, num_tokens=23, slots_from=0))
        row = Row(row=0, slots=[40], history=history, start=23, num_tokens=1, slots_from=23, score=range(23, 24))
        logprobs.append(run(loaded, row)[0].scores[0])
    assert logprobs[0] != logprobs[1]
    assert logprobs[0] == pytest.approx(logprobs[1], abs=0.2)


def _round(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()


def _flat(slots: dict[int, list[int]]) -> torch.Tensor:
    return torch.tensor([slot for row in slots.values() for slot in row])
