"""Every family is held to transformers' logits: prefill, decode, chunks, cache hits, mixed batches."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from nbsgl.engine.batch import Batch, Row
from nbsgl.engine.config import EngineConfig
from nbsgl.engine.layers.linear import Linear
from nbsgl.engine.layers.norm import Norm
from nbsgl.engine.loader import LoadedModel, load
from nbsgl.engine.model_config import parse_model_config
from nbsgl.errors import ModelUnsupported, ParameterError
from nbsgl.protocol import SamplingParams
from tests.unit.model_fakes import VOCAB, load_small, make_checkpoint, reference_logits, run

GREEDY = SamplingParams(temperature=0.0)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 4.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-llama3": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "llama-dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "llama-yarn-mscale": ("Llama", {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}}),
    "llama-bias": ("Llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 6}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 1}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
}


@pytest.fixture(scope="module", params=CASES)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LoadedModel, torch.nn.Module]:
    folder = tmp_path_factory.mktemp(request.param)
    family, settings = CASES[request.param]
    shard = "20KB" if request.param in ("llama", "qwen3") else None
    model = make_checkpoint(folder, family, shard=shard, **settings)
    assert (folder / "model.safetensors.index.json").exists() is (shard is not None)
    return load_small(folder), model


def some_ids(num: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=num)


class Tap:
    """Keeps the logits that the runner's model computes."""

    def __init__(self, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[torch.Tensor] = []
        inner = loaded.runner.model.logits
        monkeypatch.setattr(
            loaded.runner.model, "logits", lambda h: self.seen.append(inner(h)) or self.seen[-1].clone()
        )


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (got - wanted).abs().max().item() <= 1e-4


def test_prefill_matches_transformers(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, model = pair
    tap = Tap(loaded, monkeypatch)
    for num in (2, 17, 200):
        ids = some_ids(num, num)
        tap.seen.clear()
        run(loaded, Row(0, 0, num, ids, 0, range(num), score=range(num - 1)))
        assert_close(tap.seen[0], reference_logits(model, ids)[:-1])


def test_scattered_chunks_and_decode_match_transformers(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, model = pair
    ids = some_ids(90, 7)
    slots = random.Random(3).sample(range(512), 90)
    wanted = reference_logits(model, ids)
    tap = Tap(loaded, monkeypatch)
    run(loaded, Row(3, 0, 30, ids, 0, slots[:40]))
    assert not tap.seen  # nobody asked for logits: the head was not computed
    run(loaded, Row(3, 30, 50, ids, 40, slots[40:], params=GREEDY))
    for position in range(80, 90):
        run(loaded, Row(3, position, 1, ids, params=GREEDY, run_begin=80, run_idx=position - 79))
    assert_close(torch.cat(tap.seen), wanted[79:])


def test_cache_hit_on_shared_slots_matches_transformers(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, model = pair
    shared, slots = some_ids(40, 1), random.Random(5).sample(range(512), 120)
    run(loaded, Row(0, 0, 40, shared, 0, slots[:40]))
    tap = Tap(loaded, monkeypatch)
    one, two = shared + some_ids(20, 2), shared + some_ids(9, 3)
    run(
        loaded,
        Row(1, 40, 20, one, 0, [*slots[:40], *slots[50:70]], params=GREEDY),
        Row(2, 40, 9, two, 0, [*slots[:40], *slots[80:90]], params=GREEDY),
    )
    assert_close(tap.seen[0], torch.stack([reference_logits(model, ids)[-1] for ids in (one, two)]))


def test_mixed_batch_equals_each_row_alone(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, model = pair
    lengths = [5, 64, 33, 150, 12]
    prompts = [some_ids(n, n) for n in lengths]
    order = random.Random(9).sample(range(512), 400)
    slots = [[order.pop() for _ in range(n)] for n in lengths]
    computed = [4, 63, 0, 100, 11]  # 0, 1 and 4 decode, 2 is a prefill, 3 an extend after a prefix
    run(loaded, *[Row(i, 0, c, prompts[i], 0, slots[i]) for i, c in enumerate(computed) if c])
    tap = Tap(loaded, monkeypatch)
    run(
        loaded,
        *[Row(i, c, lengths[i] - c, prompts[i], 0, slots[i], params=GREEDY) for i, c in enumerate(computed)],
    )
    assert_close(tap.seen[0], torch.stack([reference_logits(model, ids)[-1] for ids in prompts]))


def test_old_and_new_rope_fields_mean_the_same() -> None:
    common = {"architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8}
    common |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 512}
    inner = {k: v for k, v in LLAMA3.items() if k != "rope_theta"}
    old = parse_model_config({**common, "rope_theta": 5e5, "rope_scaling": inner})
    new = parse_model_config({**common, "rope_parameters": {**inner, "rope_theta": 5e5}})
    assert old.rope == new.rope
    assert old.rope.theta == 5e5


def test_unknown_architecture_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(ModelUnsupported, match=r"FooForCausalLM.*LlamaForCausalLM.*Qwen3ForCausalLM"):
        parse_model_config({"architectures": ["FooForCausalLM"]})
    with pytest.raises(ModelUnsupported, match="longrope"):
        parse_model_config(
            {"architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8}
            | {"num_hidden_layers": 1, "num_attention_heads": 2, "rope_scaling": {"rope_type": "longrope"}}
        )


def test_context_is_bounded_by_model_and_window(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "Mistral", sliding_window=64)
    assert load_small(tmp_path, load_format="dummy").context_length == 64
    with pytest.raises(ModelUnsupported, match="sliding_window"):
        load_small(tmp_path, context_length=65)
    with pytest.raises(ParameterError, match="256"):
        load_small(tmp_path, context_length=257)


def test_dummy_weights_read_no_weights_and_repeat(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "Llama")
    (tmp_path / "model.safetensors").unlink()
    notes: list[float] = []
    config = EngineConfig.of(model_path=str(tmp_path), load_format="dummy", random_seed=5, num_slots=64, num_threads=2)
    one = load(config, progress=lambda fraction, note: notes.append(fraction))
    two = load(config)
    assert notes[-1] == 1.0
    for (name, a), (_, b) in zip(one.runner.model.parameters(), two.runner.model.parameters()):
        assert torch.equal(a, b), name


def test_fed_back_token_equals_known_token(pair: Any) -> None:
    loaded, _ = pair
    ids = some_ids(20, 4)
    tokens = {}
    for is_fed_back in (False, True):
        history = list(ids)
        batch = Batch([Row(0, 0, 20, history, 0, range(40), params=GREEDY, is_run_start=True)])
        launched = [loaded.runner.launch(batch)]
        for step in range(6):
            if not is_fed_back:
                history.append(launched[-1].result()[0].token)
            row = Row(0, 20 + step, 1, history, params=GREEDY, run_begin=20, run_idx=step + 1, is_fed_back=is_fed_back)
            launched.append(loaded.runner.launch(Batch([row])))
        tokens[is_fed_back] = [step.result()[0].token for step in launched]
    assert tokens[True] == tokens[False]


@pytest.mark.parametrize("num_rows", [1, 3, 16, 65])
def test_packed_layers_equal_plain_ones(num_rows: int) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(num_rows, 96), torch.randn(40, 96), torch.randn(40)
    linear, norm = Linear(weight, bias), Norm(torch.rand(96), 1e-5)
    wanted, wanted_norm = linear(x), norm(x * 1e-3)
    linear.pack()
    norm.pack()
    with torch.inference_mode():
        torch.testing.assert_close(linear(x), wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(norm(x * 1e-3), wanted_norm, atol=1e-6, rtol=1e-5)
    assert torch.equal(linear.plain(), weight)
