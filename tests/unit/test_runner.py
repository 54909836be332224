"""What the runner gives back beside tokens: log-probabilities, scores, faults of one row, memory errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nbsgl.engine import runner as runner_module
from nbsgl.engine.batch import Batch, Row, StepOutOfMemory
from nbsgl.engine.loader import LoadedModel
from nbsgl.protocol import SamplingParams
from tests.unit.model_fakes import load_small, make_checkpoint, reference_logits, run

GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, torch.nn.Module]:
    folder: Path = tmp_path_factory.mktemp("llama")
    model = make_checkpoint(folder, "Llama")
    return load_small(folder), model


def test_scores_are_the_models_logprobs_in_chunks(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, model = pair
    monkeypatch.setattr(runner_module, "SCORE_CHUNK", 7)
    ids = list(range(3, 43))
    wanted = reference_logits(model, ids).log_softmax(-1)
    result = run(loaded, Row(0, 0, 40, ids, 0, range(40), score=range(5, 39), score_top=3, params=GREEDY))[0]
    assert result.token == wanted[-1].argmax().item()
    assert result.scores == pytest.approx([wanted[p, ids[p + 1]].item() for p in range(5, 39)], abs=1e-4)
    assert [[t for t, _ in top] for top in result.score_tops] == wanted[5:39].topk(3).indices.tolist()


def test_logprobs_are_of_the_model_before_any_shaping(pair: Any) -> None:
    loaded, model = pair
    ids = [5, 6, 7]
    wanted = reference_logits(model, ids).log_softmax(-1)[-1]
    params = SamplingParams(
        temperature=0.3, seed=1, logit_bias={9: 100.0}, return_logprob=True, top_logprobs_num=4, top_k=5
    )
    plain = Row(1, 0, 3, ids, 0, range(10, 13), params=GREEDY)
    asking = Row(0, 0, 3, ids, 0, range(3), params=params)
    first, second = run(loaded, plain, asking)
    assert (first.logprob, first.top) == (None, [])
    assert second.token == 9
    assert second.logprob == pytest.approx(wanted[9].item(), abs=1e-4)
    assert [t for t, _ in second.top] == wanted.topk(4).indices.tolist()


def test_nan_in_one_row_spares_its_neighbours(pair: Any) -> None:
    loaded, _ = pair
    ids = [5, 6, 7, 8]
    run(loaded, Row(0, 0, 3, ids, 0, range(4)), Row(1, 0, 3, ids, 0, range(4, 8)))
    alone = run(loaded, Row(1, 3, 1, ids, params=GREEDY))[0]
    loaded.runner.cache.pool[:, :, :3] = float("nan")
    hurt, spared = run(loaded, Row(0, 3, 1, ids, params=GREEDY), Row(1, 3, 1, ids, params=GREEDY))
    assert not hurt.is_finite
    assert (spared.is_finite, spared.token) == (True, alone.token)
    loaded.runner.forget()
    assert run(loaded, Row(0, 0, 4, ids, 0, range(4), params=GREEDY))[0].is_finite


def test_out_of_memory_is_a_step_error(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, _ = pair

    def refuse(*_: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(loaded.runner.model, "forward", refuse)
    with pytest.raises(StepOutOfMemory, match="9 bytes"):
        loaded.runner.launch(Batch([Row(0, 0, 2, [1, 2], 0, range(2), params=GREEDY)]))
