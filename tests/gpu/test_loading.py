"""Loading onto a CUDA device: the same weights as on a CPU, at which rate, and how much of the card they and KV take.

`-rP` shows the rates.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nbsgl import Engine
from nbsgl.engine import weights
from nbsgl.engine.batch import Batch, Row
from nbsgl.engine.config import EngineConfig
from nbsgl.engine.device import slot_bytes
from nbsgl.engine.loader import load, load_decoder
from nbsgl.engine.model_config import read_model_config
from nbsgl.engine.models.decoder import Decoder
from nbsgl.errors import CorruptWeights

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "bfloat16",
}
NUM_SHARDS = 3
LEAST_RATE = 1.0  # GB/s from the page cache: any machine with a card is faster, one thread through pageable memory too


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint of 1.24 GB in three files, random but for the same on every machine."""
    path = tmp_path_factory.mktemp("checkpoint")
    (path / "config.json").write_text(json.dumps(CONFIG))
    model = Decoder(read_model_config(path), torch.bfloat16, CUDA)
    weights.fill_dummy(dict(model.parameters()), 1, lambda *words: None)
    places: dict[str, str] = {}
    for shard in range(NUM_SHARDS):
        tensors = {n: x.cpu() for i, (n, x) in enumerate(model.parameters()) if i % NUM_SHARDS == shard}
        name = f"model-{shard + 1:05}-of-{NUM_SHARDS:05}.safetensors"
        save_file(tensors, path / name)
        places |= dict.fromkeys(tensors, name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    yield path
    for file in path.iterdir():
        file.unlink()


@pytest.fixture(autouse=True)
def give_back() -> Iterator[None]:
    yield
    gc.collect()
    torch.cuda.empty_cache()


def decoder(folder: Path, device: torch.device, dtype: torch.dtype, notes: list[str], **settings: object) -> Decoder:
    config = EngineConfig.of(model_path=str(folder), **settings)
    return load_decoder(config, folder, read_model_config(folder), dtype, device, lambda f, note: notes.append(note))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_same_weights_as_on_a_cpu_at_a_rate(folder: Path, dtype: torch.dtype) -> None:
    notes: list[str] = []
    on_cpu = dict(decoder(folder, CPU, dtype, []).parameters())
    on_cuda = dict(decoder(folder, CUDA, dtype, notes).parameters())
    assert on_cpu.keys() == on_cuda.keys()
    for name, place in on_cuda.items():
        assert torch.equal(place.cpu(), on_cpu[name]), name
    print(f"{dtype}: {notes[-1]}")
    assert float(notes[-1].partition("(")[2].split()[0]) > LEAST_RATE


def test_a_file_cut_short_meanwhile_ends_the_load(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.randn(64, 1 << 20)}, path)  # 268 MB: 16 ranges
    entries = weights.read_entries([path])
    os.truncate(path, path.stat().st_size // 2)
    begin = time.perf_counter()
    with pytest.raises(CorruptWeights, match=r"model\.safetensors.*cut off"):
        weights.load(entries, {"a": torch.empty(64, 1 << 20, device=CUDA)}, lambda *words: None)
    assert time.perf_counter() - begin < 5


def test_random_weights_are_quick_and_the_same_each_time() -> None:
    def fill(seed: int) -> tuple[torch.Tensor, float]:
        place = torch.empty((1 << 31,), dtype=torch.bfloat16, device=CUDA)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        weights.fill_dummy({"a.weight": place}, seed, lambda *words: None)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        return place.view(-1, 1 << 20)[:: 1 << 9].clone(), place.nbytes / 1e9 / seconds

    fill(0)
    (first, _), (again, rate), (other, _) = fill(0), fill(0), fill(1)
    print(f"random weights: {rate:.0f} GB/s, 16 GB in {16 / rate:.2f} s")
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.float().std().item() == pytest.approx(weights.DUMMY_STD, rel=0.01)
    assert abs(first.float().mean().item()) < 1e-4
    assert rate > 16 / 1.5


def test_an_8_bit_cache_holds_twice_the_tokens_and_runs(folder: Path) -> None:
    history = torch.randint(0, 32_000, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    slots, logprobs = {}, {}
    for kind in ("auto", "fp8_e4m3"):
        config = EngineConfig.of(
            model_path=str(folder), device="cuda", load_format="dummy", random_seed=3, kv_cache_dtype=kind
        )
        model = load(config)
        cache = model.runner.cache
        assert cache.pool.dtype is (torch.bfloat16 if kind == "auto" else torch.float8_e4m3fn)
        slots[kind] = model.num_slots
        row = Row(0, 0, 299, history, 0, range(100, 399), score=range(200, 299))
        logprobs[kind] = torch.tensor(model.runner.launch(Batch([row])).result()[0].scores)
        del model, cache
        gc.collect()
        torch.cuda.empty_cache()
    assert slots["fp8_e4m3"] == pytest.approx(2 * slots["auto"], rel=0.01)
    difference = (logprobs["auto"] - logprobs["fp8_e4m3"]).abs()
    print(f"fp8 cache: log-probabilities differ by {difference.mean():.4f} on average, {difference.max():.4f} at most")
    assert 0 < difference.mean() < 0.1


def test_weights_and_pool_take_their_share_of_the_card(folder: Path) -> None:
    free, total = torch.cuda.mem_get_info(CUDA)
    if free < 0.97 * total or total < 40e9:
        pytest.skip("needs a large card of its own")
    model = load(EngineConfig.of(model_path=str(folder), device="cuda", load_format="dummy"))
    pool = model.num_slots * slot_bytes(model.config, torch.bfloat16)
    share = (model.runner.model.num_bytes + pool) / total
    left = torch.cuda.mem_get_info(CUDA)[0]
    print(f"weights and pool: {share:.1%} of {total / 1e9:.1f} GB; {left / 1e9:.2f} GB are left after loading")
    assert share >= 0.9
    assert left > 1.5e9


def test_an_engine_says_where_its_start_went(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBSGL_RUNTIME_DIR", str(tmp_path))
    begin = time.perf_counter()
    with Engine(model_path=str(folder), device="cuda", skip_tokenizer_init=True, num_slots=8192, keep=0) as engine:
        info = engine.info
        ready = time.perf_counter() - begin
        ids = engine.generate(input_ids=[[5, 6, 7]], sampling_params={"max_new_tokens": 1, "ignore_eos": True})
        first = time.perf_counter() - begin
        assert len(ids) == 1
    parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in info.start_s.items())
    print(f"ready after {ready:.2f} s, first token after {first:.2f} s ({parts}); attention by {info.attention}")
    assert {"importing torch", "device", "weights", "KV pool"} <= info.start_s.keys()
    assert sum(info.start_s.values()) < ready
    assert info.attention.split(":")[0] in ("flashinfer", "triton", "torch")
