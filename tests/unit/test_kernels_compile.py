"""Every kernel compiles for every kind of card, without one, and what is compiled ahead is what is launched."""

from __future__ import annotations

import multiprocessing
import re
import subprocess
from concurrent.futures import ProcessPoolExecutor

import pytest

pytest.importorskip("triton", reason="Triton has no build for this platform")

from triton import knobs

from nbsgl.engine.kernels.aot import Card, Compiled, ModelShape, compile_jobs, jobs

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
def pool():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_kernel_compiles_within_the_cards_limits(capability: int, pool: ProcessPoolExecutor) -> None:
    card = Card(capability)
    listed = jobs(SHAPES, card)
    assert listed
    assert all(job.variant().pdl == card.pdl or not job.variant().pdl for job in listed), "PDL only from 9.0 on"
    for compiled in compile_jobs(listed, pool):
        assert compiled.shared_bytes <= card.shared_bytes, compiled
        assert stack_bytes(compiled) <= MAX_STACK_BYTES, compiled
