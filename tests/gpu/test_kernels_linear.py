"""The linears of one row and the elementwise kernels in bfloat16, at real sizes, against float32 torch."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

EPS = 1e-5
BF16 = torch.bfloat16
# rows of the result, size of x, what is folded in
LINEARS = {
    "8B qkv": (6144, 4096, "norm"),
    "8B o": (4096, 4096, "residual"),
    "8B gate_up": (14336, 4096, "norm silu"),
    "8B down": (4096, 14336, "residual"),
    "8B head": (128256, 4096, "norm"),
    "0.6B qkv": (4096, 1024, "norm"),
    "0.6B o": (1024, 2048, "residual"),
    "0.6B gate_up": (3072, 1024, "norm silu"),
    "0.6B down": (1024, 3072, "residual"),
    "0.6B head": (151936, 1024, "norm"),
    "0.5B qkv": (1152, 896, "norm bias"),
    "0.5B down": (896, 4864, "residual"),
    "odd": (151643, 896, "norm"),
}


def on(*sizes: int) -> torch.Tensor:
    return torch.randn(sizes, device="cuda", dtype=BF16)


def close(actual: torch.Tensor, wanted: torch.Tensor) -> None:
    """One rounding to bfloat16 is 2^-9 of the value; the sums are in float32."""
    torch.testing.assert_close(actual.float(), wanted.float(), rtol=5e-3, atol=2e-3)


def can_pdl() -> bool:
    return torch.cuda.get_device_capability() >= (9, 0)


@pytest.mark.parametrize("name", LINEARS)
def test_gemv_at_real_sizes(name: str) -> None:
    from nbsgl.engine.kernels.gemv import gemv

    n, k, folded = LINEARS[name]
    rows = 2 * n if "silu" in folded else n
    weight, x = on(rows, k) / k**0.5, on(k)
    norm = torch.rand(k, device="cuda", dtype=BF16) + 0.5 if "norm" in folded else None
    bias = on(rows) if "bias" in folded else None
    residual = on(n) if "residual" in folded else None
    y = x.float() if norm is None else F.rms_norm(x.float(), (k,), norm.float(), EPS)
    y = F.linear(y, weight.float(), None if bias is None else bias.float())
    if "silu" in folded:
        gate, up = y.chunk(2)
        y = F.silu(gate) * up
    if residual is not None:
        y += residual.float()
    for pdl in {False, can_pdl()}:
        out = residual.clone() if residual is not None else torch.empty(n, device="cuda", dtype=BF16)
        stream = out if residual is not None else None
        gemv(weight, x, out, norm_weight=norm, eps=EPS, residual=stream, bias=bias, silu="silu" in folded, pdl=pdl)
        close(out, y)


@pytest.mark.parametrize("num_rows", [1, 8, 65, 300])
@pytest.mark.parametrize("name", [name for name in LINEARS if "head" not in name and name != "odd"])
def test_invariant_product_at_real_sizes(name: str, num_rows: int) -> None:
    """Right, and each row the same to the last bit as when it is alone."""
    from nbsgl.engine.kernels.invariant_matmul import invariant_matmul

    n, k, folded = LINEARS[name]
    weight, x = on(n, k) / k**0.5, on(num_rows, k)
    bias = on(n) if "bias" in folded else None
    out, alone = torch.empty(num_rows, n, device="cuda", dtype=BF16), torch.empty(1, n, device="cuda", dtype=BF16)
    invariant_matmul(x, weight, out, bias=bias)
    close(out, F.linear(x.float(), weight.float(), None if bias is None else bias.float()))
    for i in {0, num_rows // 2, num_rows - 1}:
        invariant_matmul(x[i : i + 1], weight, alone, bias=bias)
        assert torch.equal(alone[0], out[i])


@pytest.mark.parametrize("num_rows", [1, 8, 257, 1024, 8192])
@pytest.mark.parametrize("hidden, intermediate", [(4096, 14336), (1024, 3072), (896, 4864)])
def test_elementwise_kernels_at_real_sizes(hidden: int, intermediate: int, num_rows: int) -> None:
    from nbsgl.engine.kernels.fused import add_rmsnorm, embed, rmsnorm_rows, silu_mul

    pdl = can_pdl()
    table, last_tokens = on(5000, hidden), torch.randint(5000, (9,), device="cuda", dtype=torch.int32)
    tokens = torch.randint(-1, 5000, (num_rows,), device="cuda", dtype=torch.int32)
    tokens[0] = -1
    rows = torch.randint(9, (num_rows,), device="cuda", dtype=torch.int32)
    stream, out = torch.empty(num_rows, hidden, device="cuda", dtype=BF16), on(num_rows, hidden)
    embed(tokens, rows, last_tokens, table, stream, pdl=pdl)
    assert torch.equal(stream, table[torch.where(tokens < 0, last_tokens[rows.long()], tokens).long()])

    x, weight = on(num_rows, hidden), torch.rand(hidden, device="cuda", dtype=BF16)
    total = stream + x
    index = torch.randint(num_rows, (min(num_rows, 64),), device="cuda", dtype=torch.int32)
    picked = torch.empty(len(index), hidden, device="cuda", dtype=BF16)
    rmsnorm_rows(x, stream, index, weight, EPS, picked, pdl=pdl)
    add_rmsnorm(x, stream, weight, EPS, out, pdl=pdl)
    assert torch.equal(stream, total)
    wanted = F.rms_norm(total.float(), (hidden,), weight.float(), EPS)
    close(out, wanted)
    close(picked, wanted[index.long()])

    gate_up = on(num_rows, 2 * intermediate)
    active = torch.empty(num_rows, intermediate, device="cuda", dtype=BF16)
    silu_mul(gate_up, active, pdl=pdl)
    gate, up = gate_up.float().chunk(2, 1)
    close(active, F.silu(gate) * up)


def test_offsets_beyond_31_bits() -> None:
    from nbsgl.engine.kernels.fused import silu_mul

    num_rows, intermediate = 75_500, 14336  # 2.16e9 elements
    if torch.cuda.mem_get_info()[0] < 8 << 30:
        pytest.skip("needs 8 GiB of the card's memory")
    gate_up = torch.zeros(num_rows, 2 * intermediate, device="cuda", dtype=BF16)
    gate_up[-1] = 2.0
    out = torch.empty(num_rows, intermediate, device="cuda", dtype=BF16)
    silu_mul(gate_up, out, pdl=False)
    close(out[-1], F.silu(torch.full((intermediate,), 2.0, device="cuda")) * 2.0)
    assert not out[:-1].any()


def chain(hidden: int, intermediate: int, num_layers: int) -> Callable[[bool], torch.Tensor]:
    """A step of dependent kernels, library products among them, as a function of `pdl` that returns its result."""
    from nbsgl.engine.kernels.fused import add_rmsnorm, embed, rmsnorm_rows, silu_mul
    from nbsgl.engine.kernels.gemv import gemv

    def scaled(n: int, k: int) -> torch.Tensor:
        return on(n, k) / k**0.5

    table, norm = on(100, hidden), torch.rand(hidden, device="cuda", dtype=BF16)
    layers = [(scaled(2 * intermediate, hidden), scaled(hidden, intermediate)) for _ in range(num_layers)]
    square = scaled(hidden, hidden)
    ids = torch.tensor([7], device="cuda", dtype=torch.int32)
    first = torch.zeros(1, device="cuda", dtype=torch.int32)

    def step(pdl: bool) -> torch.Tensor:
        stream, normed, mixed = (torch.empty(1, hidden, device="cuda", dtype=BF16) for _ in range(3))
        active = torch.empty(1, intermediate, device="cuda", dtype=BF16)
        gate_up = torch.empty(1, 2 * intermediate, device="cuda", dtype=BF16)
        embed(ids, first, ids, table, stream, pdl=pdl)
        for up, down in layers:
            gemv(up, stream[0], active[0], norm_weight=norm, eps=EPS, silu=True, pdl=pdl)
            gemv(down, active[0], stream[0], residual=stream[0], pdl=pdl)
            add_rmsnorm(None, stream, norm, EPS, normed, pdl=pdl)
            torch.mm(normed, square.t(), out=mixed)
            add_rmsnorm(mixed, stream, norm, EPS, normed, pdl=pdl)
            gemv(up, normed[0], gate_up[0], pdl=pdl)
            silu_mul(gate_up, active, pdl=pdl)
            gemv(down, active[0], mixed[0], pdl=pdl)
        rmsnorm_rows(mixed, stream, first, norm, EPS, normed, pdl=pdl)
        return normed

    return step


@pytest.mark.skipif(not torch.cuda.is_available() or not can_pdl(), reason="needs compute capability 9.0")
@pytest.mark.parametrize("hidden, intermediate", [(4096, 14336), (1024, 3072)])
def test_dependent_launch_changes_no_bit_inside_a_graph(hidden: int, intermediate: int) -> None:
    step = chain(hidden, intermediate, num_layers=8)
    results = []
    for pdl in (False, True):
        step(pdl)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = step(pdl)
        for _ in range(20):
            graph.replay()
            results.append(out.clone())
    assert results[0].isfinite().all()
    assert results[0].abs().max() > 0.1
    assert all(torch.equal(result, results[0]) for result in results)


def test_launches_find_what_was_compiled_ahead() -> None:
    """A shape of its own, so that nothing of it has been launched before."""
    from triton import knobs

    from nbsgl.engine.kernels.aot import Card, ModelShape, module_variants
    from nbsgl.engine.kernels.fused import silu_mul
    from nbsgl.engine.kernels.gemv import gemv

    major, minor = torch.cuda.get_device_capability()
    card = Card(10 * major + minor)
    shape = ModelShape(hidden=640, intermediate=1792, heads=10, kv_heads=2, head_dim=64, vocab=3000)
    for module in ("gemv", "fused"):
        for variant in module_variants(f"nbsgl.engine.kernels.{module}", shape, card):
            variant.compile(card)
    hits: list[bool] = []
    knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
    try:
        norm, x, stream = on(640), on(640), on(640)
        gemv(on(2 * 1792, 640), x, on(1792), norm_weight=norm, eps=EPS, silu=True, pdl=card.pdl)
        gemv(on(640, 1792), on(1792), stream, residual=stream, pdl=card.pdl)
        silu_mul(on(4, 2 * 1792), on(4, 1792), pdl=card.pdl)
    finally:
        knobs.compilation.listener = None
    assert hits == [True, True, True]


@pytest.mark.parametrize("num_rows", [16, 64, 192])
def test_every_candidate_of_a_tuned_product_is_right(num_rows: int, tmp_path, monkeypatch) -> None:
    """What is picked, and what a pick of an earlier run may name, gives torch's product; in a graph too."""
    from nbsgl.engine.cuda.matmul import WORKSPACE_BYTES, CublasLt, Matmul

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    weights = [on(4096, 1024) / 32 for _ in range(3)]
    x, out = on(num_rows, 1024), torch.empty(num_rows, 4096, device="cuda", dtype=BF16)
    wanted = F.linear(x.float(), weights[0].float())
    library = CublasLt(x.device, WORKSPACE_BYTES)
    product = library.product(num_rows, 4096, 1024, BF16)
    for candidate in range(product.num_candidates):
        out.fill_(torch.nan)
        library.run(product, candidate, weights[0], x, out)
        close(out, wanted)
    tuned = Matmul(x.device, BF16)
    tuned.tune(num_rows, [weights])
    linear = SimpleNamespace(weight=weights[0], bias=None)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        tuned(linear, x, out)
    out.fill_(torch.nan)
    graph.replay()
    close(out, wanted)
    assert list(tmp_path.rglob("*.json")), "the picks are kept"
