"""Every kernel compiles for every kind of card, without one, and what is compiled ahead is what is launched."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no build for this platform")

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver

from nbsgl.engine.kernels import (
    decode_attention,
    draw,
    edit,
    extend_attention,
    flat_indices,
    fused,
    logsumexp,
    merge_states,
    nucleus,
    rope_kv,
    split_decode,
    tables,
)
from nbsgl.engine.kernels.aot import (
    Card,
    Compiled,
    ModelShape,
    Variant,
    compile_jobs,
    jobs,
    module_variants,
    modules,
)
from nbsgl.engine.kernels.gemv import gemv
from nbsgl.engine.kernels.invariant_matmul import invariant_matmul

LLAMA_8B = ModelShape(4096, 14336, 32, 8, 128, 128256)
QWEN3_06B = ModelShape(1024, 3072, 16, 8, 128, 151936, qk_norm=True)
SMALL = ModelShape(896, 4864, 14, 2, 64, 151643, qkv_bias=True)
SHAPES = (LLAMA_8B, QWEN3_06B, SMALL)
CAPABILITIES = (80, 86, 89, 90)
MAX_STACK_BYTES = 256  # registers that did not fit, per thread: some are harmless, hundreds are a wrong tile


def stack_bytes(compiled: Compiled) -> int:
    """Bytes of local memory per thread: what was spilled."""
    command = [knobs.nvidia.cuobjdump.path, "-res-usage", compiled.cubin_path]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return max(int(size) for size in re.findall(r"STACK:(\d+)", said))


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_kernel_compiles_within_the_cards_limits(capability: int, pool: ProcessPoolExecutor) -> None:
    card = Card(capability)
    listed = jobs(SHAPES, card)
    assert listed
    assert card.pdl or not any(job.variant().pdl for job in listed), "dependent launch is there from 9.0 on"
    for compiled in compile_jobs(listed, pool):
        assert compiled.shared_bytes <= card.shared_bytes, compiled
        assert stack_bytes(compiled) <= MAX_STACK_BYTES, compiled


# ---- what is listed is what is launched --------------------------------------------------------------------------

Key = tuple[str, int, int, bool]


def key_of(variant: Variant) -> Key:
    return variant.source().hash(), variant.num_warps, variant.num_stages, variant.pdl


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[[Card, Callable[[], None]], dict[Key, str]]:
    """`launched(card, act)`: what Triton would compile for the launches of `act` on that card; nothing is launched.

    A driver that only says what card it drives stands in for CUDA's.  Tensors may be on the meta device: their address
    is 0, which is aligned.
    """
    found: dict[Key, str] = {}

    def record(*, fn: Any, compile: dict, **_: object) -> bool:
        options = json.loads(compile["specialization_data"])["options"]
        source = ASTSource(fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0])
        options_key = options["num_warps"], options["num_stages"], options["launch_pdl"]
        found[(source.hash(), *options_key)] = f"{fn.name}: {compile['constants']} {options_key}"
        return True  # nothing is compiled, so nothing is launched

    def run(card: Card, act: Callable[[], None]) -> dict[Key, str]:
        device = object()  # Triton keeps what it compiled by device: a fresh one has nothing
        fake = SimpleNamespace(
            get_current_device=lambda: device,
            get_current_stream=lambda _: 0,
            get_current_target=lambda: GPUTarget("cuda", card.capability, 32),
        )
        monkeypatch.setattr(driver, "_active", fake)
        monkeypatch.setattr(knobs.runtime, "jit_cache_hook", record)
        found.clear()
        act()
        return dict(found)

    return run


def meta(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(sizes, dtype=dtype, device="meta")


def launch_gemvs(shape: ModelShape, pdl: bool) -> None:
    h, i, vocab = shape.hidden, shape.intermediate, shape.vocab
    x, mixed, active = meta(1, h)[0], meta(1, shape.q_size)[0], meta(1, i)[0]
    bias = meta(shape.qkv_size) if shape.qkv_bias else None
    norm = {"norm_weight": meta(h), "eps": 1e-5}
    gemv(meta(shape.qkv_size, h), x, meta(1, shape.qkv_size)[0], bias=bias, **norm, pdl=pdl)
    gemv(meta(h, shape.q_size), mixed, x, residual=x, pdl=pdl)
    gemv(meta(2 * i, h), x, active, silu=True, **norm, pdl=pdl)
    gemv(meta(h, i), active, x, residual=x, pdl=pdl)
    gemv(meta(vocab, h), x, meta(1, vocab)[0], **norm, pdl=pdl)


def launch_fused(shape: ModelShape, pdl: bool) -> None:
    h, i, vocab = shape.hidden, shape.intermediate, shape.vocab
    for num_rows in (1, 7, 64, 8192):
        ids, rows = meta(num_rows, dtype=torch.int32), meta(num_rows, h)
        fused.embed(ids, ids, meta(513, dtype=torch.int32), meta(vocab, h), rows, pdl=pdl)
        fused.add_rmsnorm(None, rows, meta(h), 1e-5, rows, pdl=pdl)
        fused.add_rmsnorm(rows, rows, meta(h), 1e-5, rows, pdl=pdl)
        fused.rmsnorm_rows(rows, rows, ids, meta(h), 1e-5, rows, pdl=pdl)
        fused.silu_mul(meta(num_rows, 2 * i), meta(num_rows, i), pdl=pdl)


def launch_invariant(shape: ModelShape, pdl: bool) -> None:
    h, i, vocab = shape.hidden, shape.intermediate, shape.vocab
    bias = meta(shape.qkv_size) if shape.qkv_bias else None
    for num_rows in (1, 16, 77):
        invariant_matmul(meta(num_rows, h), meta(shape.qkv_size, h), meta(num_rows, shape.qkv_size), bias=bias)
        for n, k in ((h, shape.q_size), (2 * i, h), (h, i), (vocab, h)):
            invariant_matmul(meta(num_rows, k), meta(n, k), meta(num_rows, n))


def table_lines(num: int) -> tables.TableLines:
    """Columns as they lie in a larger block, from any number on."""
    columns = meta(2, num + 1, dtype=torch.int32)
    return tables.TableLines(
        columns[0, 1:], columns[1, 1:], meta(513, dtype=torch.int32), meta(4096, dtype=torch.int32)
    )


def launch_tables(shape: ModelShape, pdl: bool) -> None:
    for num in (1, 16, 77):
        ints, words = meta(num, dtype=torch.int32), -(-shape.vocab // 32)
        lists = ints, meta(num + 1, dtype=torch.int32), meta(2 * num, dtype=torch.int32)
        tables.gather_masks(table_lines(num), ints, *lists, meta(num + 3, words, dtype=torch.int32)[3:])
        tables.step_states(table_lines(num), ints, ints)


def launch_draws(shape: ModelShape, pdl: bool, *, filtered: bool) -> None:
    scratch = draw.DrawScratch(512, torch.device("meta"))
    for dtype, num in itertools.product((shape.dtype, torch.float32), (1, 7, 512)):
        ints, floats = meta(num, dtype=torch.int32), meta(num, dtype=torch.float32)
        given = (meta(num, 2, dtype=torch.int32), ints, ints, ints, meta(2, num, dtype=torch.int32), scratch)
        if filtered:
            filters = (floats, ints, floats, floats)
            nucleus.draw_filtered(meta(num, shape.vocab, dtype=dtype), *filters, *given, pdl=pdl)
        else:
            for lines in (None, table_lines(num)):
                draw.draw(meta(num, shape.vocab, dtype=dtype), floats, *given, lines=lines, pdl=pdl)


def launch_edits(shape: ModelShape, pdl: bool) -> None:
    words = -(-shape.vocab // 32)
    for dtype, num in itertools.product((shape.dtype, torch.float32), (1, 16, 77)):
        table, masks = meta(num, shape.vocab, dtype=torch.int32), meta(num, words, dtype=torch.int32)
        asked, entries = meta(edit.NUM_COLUMNS, num, dtype=torch.int32), meta(3, 5 * num, dtype=torch.int32)
        seen, out = meta(num, shape.vocab, dtype=torch.uint8), meta(num, shape.vocab, dtype=torch.float32)
        edit.edit(meta(num, shape.vocab, dtype=dtype), asked, entries, table, seen, masks, out, 1e4)


def launch_logsumexp(shape: ModelShape, pdl: bool) -> None:
    for dtype, num in itertools.product((shape.dtype, torch.float32), (1, 512)):
        logsumexp.logsumexp(meta(num, shape.vocab, dtype=dtype))


def launch_extends(shape: ModelShape, pdl: bool) -> None:
    tile = extend_attention.tile_of(shape.head_dim, shape.heads // shape.kv_heads, 2, Card(90 if pdl else 80))
    q, cache = meta(9, shape.heads, shape.head_dim), meta(99, shape.kv_heads, shape.head_dim)
    for num_tiles, context in ((1, 4096), (3, 4095)):
        given = meta(5, context, dtype=torch.int32), meta(num_tiles, 4, dtype=torch.int32)
        extend_attention.extend_attention(q, q, cache, cache, *given, tile=tile, pdl=pdl)


def launch_splits(shape: ModelShape, pdl: bool) -> None:
    scratch = split_decode.SplitScratch(shape.heads, shape.kv_heads, shape.head_dim, 132, torch.device("meta"))
    cache = meta(99, shape.kv_heads, shape.head_dim)
    for num, context in ((1, 4096), (7, 4095), (512, 4096)):
        q, ints = meta(num, shape.heads, shape.head_dim), meta(num, dtype=torch.int32)
        given = q, q, cache, cache, meta(5, context, dtype=torch.int32), ints, ints
        splits = split_decode.splits_of(num, shape.kv_heads, 132)
        split_decode.split_decode(*given, scratch=scratch, splits=splits, pdl=pdl)


def norms_of(shape: ModelShape) -> dict[str, Any]:
    norm = meta(shape.head_dim) if shape.qk_norm else None
    return {"q_norm": norm, "k_norm": norm, "eps": 1e-5}


def launch_rotations(shape: ModelShape, pdl: bool) -> None:
    cache, angles = meta(99, shape.kv_heads, shape.head_dim), meta(64, shape.head_dim, dtype=torch.float32)
    for num, keeps_k in itertools.product((1, 16, 77), (False, True)):
        ints, q = meta(num, dtype=torch.int32), meta(num, shape.heads, shape.head_dim)
        given = meta(num, shape.qkv_size), q, cache, cache, meta(5, 4095, dtype=torch.int32), ints, ints, angles, angles
        rope_kv.rope_kv(*given, num_heads=shape.heads, **norms_of(shape), keeps_k=keeps_k, pdl=pdl)


def launch_decodes(shape: ModelShape, pdl: bool) -> None:
    sizes = SimpleNamespace(num_heads=shape.heads, num_kv_heads=shape.kv_heads, head_dim=shape.head_dim)
    scratch = decode_attention.DecodeScratch(sizes, torch.device("meta"))
    cache, angles = meta(99, shape.kv_heads, shape.head_dim), meta(64, shape.head_dim, dtype=torch.float32)
    for num in range(1, decode_attention.MAX_BATCH + 1):
        ints, out = meta(num, dtype=torch.int32), meta(num, shape.q_size)
        given = (
            meta(num, shape.qkv_size),
            out,
            cache,
            cache,
            meta(5, 4095, dtype=torch.int32),
            ints,
            ints,
            angles,
            angles,
        )
        decode_attention.decode_attention(
            *given, num_heads=shape.heads, **norms_of(shape), scratch=scratch, pdl=pdl
        )  # fmt: skip


def launch_flat_indices(shape: ModelShape, pdl: bool) -> None:
    for num, page_size, has_starts in itertools.product((1, 77), flat_indices.PAGE_SIZES, (False, True)):
        ints = meta(num, dtype=torch.int32)
        out = {name: meta(num + 1, dtype=torch.int32) for name in ("indptr", "indices", "last_lens")}
        given = meta(5, 4095, dtype=torch.int32), ints, ints if has_starts else None, ints
        flat_indices.flat_indices(*given, page_size=page_size, max_pages=3_000, **out)


def launch_merges(shape: ModelShape, pdl: bool) -> None:
    for num in (1, 77):
        out, lse = meta(num, shape.heads, shape.head_dim), meta(num, shape.heads, dtype=torch.float32)
        merge_states.merge_states(out, lse, meta(num, dtype=torch.int32), out, lse)


LAUNCHES = [
    ("gemv", launch_gemvs),
    ("fused", launch_fused),
    ("invariant_matmul", launch_invariant),
    ("extend_attention", launch_extends),
    ("split_decode", launch_splits),
    ("draw", partial(launch_draws, filtered=False)),
    ("nucleus", partial(launch_draws, filtered=True)),
    ("edit", launch_edits),
    ("logsumexp", launch_logsumexp),
    ("tables", launch_tables),
    ("rope_kv", launch_rotations),
    ("decode_attention", launch_decodes),
    ("flat_indices", launch_flat_indices),
    ("merge_states", launch_merges),
]


def test_no_kernel_module_is_left_out() -> None:
    assert {f"nbsgl.engine.kernels.{name}" for name, _ in LAUNCHES} == set(modules())


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name, act", LAUNCHES)
def test_what_is_listed_is_what_is_launched(name, act, shape, capability, launched) -> None:
    card = Card(capability)
    listed = {key_of(v): v.name for v in module_variants(f"nbsgl.engine.kernels.{name}", shape, card)}
    seen = launched(card, lambda: act(shape, card.pdl))
    assert not {seen[key] for key in set(seen) - set(listed)}, "launched, but not listed"
    assert not {listed[key] for key in set(listed) - set(seen)}, "listed, but not launched"
