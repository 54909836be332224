"""The CUDA runner in Triton's interpreter, kernel by kernel, against the plain runner: same rows, same answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from nbsgl.engine.attention.paged import Layout
from nbsgl.engine.attention.triton_paged import TritonAttention
from nbsgl.engine.batch import Batch, Row, RowResult
from nbsgl.engine.cuda import dense
from nbsgl.engine.cuda.graphs import GraphKey, NoRoomForGraph, way_of
from nbsgl.engine.cuda.runner import CudaRunner
from nbsgl.engine.kv_cache import KVCache
from nbsgl.engine.loader import LoadedModel
from nbsgl.engine.runner import ModelRunner
from nbsgl.protocol import SamplingParams
from tests.unit.model_fakes import VOCAB, load_small, make_checkpoint

GREEDY = SamplingParams(temperature=0.0)
DRAWN = SamplingParams(temperature=0.9, seed=7)
FILTERED = SamplingParams(temperature=0.9, seed=7, top_p=0.7, top_k=20, return_logprob=True, top_logprobs_num=3)
NUM_SLOTS = 400


class PlainAttention:
    """`PagedAttention` by definition: each token's softmax over its positions' slots."""

    name, generation = "plain", 0

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.layout: Layout | None = None

    def plan(self, layout: Layout, *, is_graph: bool) -> None:
        self.layout = layout

    def attend(self, layer_idx: int, q: torch.Tensor, out: torch.Tensor) -> None:
        assert self.layout is not None
        tokens = list(zip(self.layout.rows.tolist(), self.layout.kv_lens.tolist()))
        for extend in self.layout.extends:
            tokens += [(extend.row, extend.kv_len - extend.num_tokens + 1 + i) for i in range(extend.num_tokens)]
        groups = q.shape[1] // self.cache.k[0].shape[1]
        for i, (row, kv_len) in enumerate(tokens):
            slots = self.cache.table[row, :kv_len].long()
            k = self.cache.k[layer_idx][slots].repeat_interleave(groups, 1)
            v = self.cache.v[layer_idx][slots].repeat_interleave(groups, 1)
            weights = torch.einsum("hd,shd->hs", q[i], k).div(q.shape[2] ** 0.5).softmax(-1)
            out[i] = torch.einsum("hs,shd->hd", weights, v)


def cuda_runner(loaded: LoadedModel, *, deterministic: bool = False) -> CudaRunner:
    """A CUDA runner on the CPU, with a cache of its own, over the weights of a loaded model.

    Deterministic, it runs with Triton's attention, as the loader has it.
    """
    plain = loaded.runner
    cache = KVCache(
        plain.model.config,
        num_slots=NUM_SLOTS,
        max_running=5,
        context_length=200,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    attention = TritonAttention(plain.model.config, cache) if deterministic else PlainAttention(cache)
    return CudaRunner(
        plain.model, cache, attention, plain.rope, max_running=5, max_tokens=128, deterministic=deterministic
    )


def unpack(loaded: LoadedModel) -> None:
    """The kernels read plain weights."""
    for layer in loaded.runner.model.layers:
        for linear in (layer.qkv, layer.o, layer.gate_up, layer.down):
            linear.weight, linear.is_packed = linear.plain().contiguous(), False
    head = loaded.runner.model.head
    head.weight, head.is_packed = head.plain().contiguous(), False


@pytest.fixture(scope="module", params=["Llama", "Qwen2", "Qwen3"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp(request.param)
    make_checkpoint(folder, request.param)
    loaded = load_small(folder)
    unpack(loaded)
    return loaded


def some_steps(runner: ModelRunner | CudaRunner) -> list[list[RowResult]]:
    """A prefill with scores, extends beside a decode, decodes fed back, a lone decode; scattered slots."""
    rng = random.Random(0)
    prompts = [[rng.randrange(VOCAB) for _ in range(n)] for n in (20, 7, 33)]
    order = rng.sample(range(NUM_SLOTS), NUM_SLOTS)
    slots = [[order.pop() for _ in range(60)] for _ in prompts]
    a, b, c = prompts

    def run(*rows: Row) -> list[RowResult]:
        return runner.launch(Batch(list(rows))).result()

    steps = [
        run(Row(0, 0, 8, a, 0, slots[0], score=range(2, 7), score_top=2), Row(1, 0, 7, b, 0, slots[1], params=GREEDY))
    ]
    steps.append(
        run(
            Row(1, 7, 1, b, is_fed_back=True, params=DRAWN, run_begin=7, run_idx=1),
            Row(0, 8, 12, a, params=FILTERED, run_begin=20),
            Row(2, 0, 30, c, 0, slots[2]),
        )
    )
    steps.append(
        run(
            Row(1, 8, 1, b, is_fed_back=True, params=GREEDY, run_begin=7, run_idx=2),
            Row(0, 20, 1, a, is_fed_back=True, params=FILTERED, run_begin=20, run_idx=1),
            Row(2, 30, 3, c, params=DRAWN, run_begin=33),
        )
    )
    for i in range(3):
        steps.append(
            run(
                *(
                    Row(r, s + i, 1, prompts[r], is_fed_back=True, params=DRAWN, run_idx=i)
                    for r, s in ((0, 21), (2, 33))
                )
            )
        )
    steps.append(run(Row(1, 9, 1, b, is_fed_back=True, params=DRAWN, run_idx=3)))
    return steps


def assert_same(found: list[list[RowResult]], expected: list[list[RowResult]]) -> None:
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        for row, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            where = f"step {step}, row {row}"
            assert one.token == other.token, where
            assert one.is_finite, where
            assert other.is_finite, where
            assert one.scores == pytest.approx(other.scores, abs=1e-3), where
            assert (one.logprob is None) == (other.logprob is None), where
            if other.logprob is not None:
                assert one.logprob == pytest.approx(other.logprob, abs=1e-3), where
            assert [i for i, _ in one.top] == [i for i, _ in other.top], where


@pytest.mark.parametrize("deterministic", [False, True])
def test_fused_runner_answers_as_the_plain_one(loaded: LoadedModel, deterministic: bool) -> None:
    loaded.runner.forget()
    expected = some_steps(loaded.runner)
    assert_same(some_steps(cuda_runner(loaded, deterministic=deterministic)), expected)


class Recorded:
    """`Graphs` without a device: a graph is what was recorded, carried out again."""

    def __init__(self) -> None:
        self.found: dict[GraphKey, list[SimpleNamespace]] = {}
        self.replayed: set[GraphKey] = set()

    def find(self, key: GraphKey) -> list[SimpleNamespace] | None:
        return self.found.get(key)

    def capture(self, key: GraphKey, parts: Sequence[Callable[[], None]]) -> list[SimpleNamespace]:
        for run in parts:
            run()  # over padding
        self.found[key] = [SimpleNamespace(replay=partial(self._replay, key, run)) for run in parts]
        return self.found[key]

    def _replay(self, key: GraphKey, run: Callable[[], None]) -> None:
        self.replayed.add(key)
        run()

    def forget(self) -> None:
        self.found.clear()


def test_padded_steps_and_steps_in_pieces_answer_as_the_plain_one(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with graphs: what they read lies where it lay, sizes are padded, attention stands between the pieces."""
    from nbsgl.engine.cuda import runner as module

    monkeypatch.setattr(module, "MAX_SMALL_READS", 900)  # the second step's extends beside a decode are in pieces
    loaded.runner.forget()
    expected = some_steps(loaded.runner)
    runner = cuda_runner(loaded)
    runner.use_graphs, runner.graphs = True, Recorded()
    runner.buffers = runner._make_buffers()
    assert_same(some_steps(runner), expected)
    assert {key.way for key in runner.graphs.replayed} == set(module.Way)
    pieces = [graphs for key, graphs in runner.graphs.found.items() if key.way is module.Way.PIECES]
    assert {len(graphs) for graphs in pieces} == {loaded.runner.model.config.num_layers + 1}


def test_without_room_for_graphs_steps_go_kernel_by_kernel(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise NoRoomForGraph("no room")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    loaded.runner.forget()
    expected = some_steps(loaded.runner)
    runner = cuda_runner(loaded)
    runner.use_graphs, runner.graphs = True, SimpleNamespace(find=lambda key: None, capture=full)
    runner.buffers = runner._make_buffers()
    assert_same(some_steps(runner), expected)
    assert not runner.prepare_next(), "nothing to do in idle moments either"
    assert [record.levelname for record in caplog.records if "without a graph" in record.message] == ["WARNING"]


def test_one_and_few_ways_answer_as_the_plain_one(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways that only graphs take on a GPU, taken kernel by kernel."""
    from nbsgl.engine.cuda import runner as module

    loaded.runner.forget()
    expected = some_steps(loaded.runner)
    runner = cuda_runner(loaded)
    hidden = type(runner.forward).hidden
    taken = []

    def by_way(forward: module.Forward, way: module.Way, inputs: module.DeviceInputs, *dense: object) -> module.Hidden:
        num = inputs.tokens.shape[0]
        is_decode = len(set(inputs.rows.tolist())) == num
        taken.append(way_of(num, is_decode=is_decode))
        return hidden(forward, taken[-1], inputs)

    monkeypatch.setattr(type(runner.forward), "hidden", by_way)
    assert_same(some_steps(runner), expected)
    assert set(taken) == {module.Way.ONE, module.Way.FEW, module.Way.ANY}


def test_prompts_that_begin_are_attended_without_the_cache(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one step: a decode, an extend over a cached prefix, two prompts of a rounded length and one of another."""
    monkeypatch.setattr(dense, "LEAST_TOKENS", 9)
    monkeypatch.setattr(dense, "ROUNDING", 8)
    calls = []

    def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(q.shape[::2]))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    monkeypatch.setattr(dense, "_causal", causal)
    rng = random.Random(1)
    prompts = [[rng.randrange(VOCAB) for _ in range(n)] for n in (11, 30, 16, 16, 19)]
    slots = [range(i * 40, i * 40 + 40) for i in range(5)]
    fresh = range(2, 5)

    def steps(runner: ModelRunner | CudaRunner) -> list[list[RowResult]]:
        first = [Row(0, 0, 8, prompts[0][:8], 0, slots[0], params=GREEDY), Row(1, 0, 8, prompts[1], 0, slots[1])]
        second = [Row(i, 0, len(prompts[i]), prompts[i], 0, slots[i], params=GREEDY) for i in fresh]
        second.insert(1, Row(1, 8, 22, prompts[1], params=GREEDY))
        second.append(Row(0, 8, 1, prompts[0][:8], is_fed_back=True, params=GREEDY, run_idx=1))
        last = [Row(i, len(prompts[i]), 1, prompts[i], is_fed_back=True, params=GREEDY, run_idx=1) for i in fresh]
        return [runner.launch(Batch(rows)).result() for rows in (first, second, last)]

    loaded.runner.forget()
    expected = steps(loaded.runner)
    runner = cuda_runner(loaded)
    runner.has_dense = True
    assert_same(steps(runner), expected)
    layers = loaded.runner.model.config.num_layers
    assert sorted(set(calls)) == [(1, 24), (2, 16)]
    assert len(calls) == 2 * layers


def test_prompts_of_one_rounded_length_are_one_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library keeps a plan for each shape and each stride it was ever asked for."""
    asked = set()

    def causal(*qkv: torch.Tensor) -> torch.Tensor:
        asked.add(tuple((x.shape, x.stride()) for x in qkv))
        return torch.nn.functional.scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=True)

    monkeypatch.setattr(dense, "_causal", causal)
    q, k, v = torch.randn(3 * dense.ROUNDING, 12, 4).split([4, 4, 4], dim=1)
    for length in (513, 700, 1023, 1024):
        for group in dense.groups_of([length], begin=3):
            mixed = dense.attend_dense(group, q, k, v)
            one = [x[3 : 3 + length].transpose(0, 1) for x in (q, k, v)]
            expected = torch.nn.functional.scaled_dot_product_attention(*one, is_causal=True).transpose(0, 1)
            torch.testing.assert_close(mixed, expected)
    assert len(asked) == 1
