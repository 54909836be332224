"""Products with the weights where there is no card: the picks' file, and what is done without the library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nbsgl.engine.cuda import matmul
from nbsgl.engine.cuda.matmul import Matmul, Picks
from nbsgl.engine.layers.linear import Linear

CARD = torch.device("cuda")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A Card/80GB")
    return tmp_path / "nbsgl" / "matmul"


def test_picks_outlive_the_process(folder: Path) -> None:
    picks = Picks(CARD, torch.bfloat16, 130000)
    assert picks.find((64, 4096, 512)) is None
    picks.keep((64, 4096, 512), 3)
    picks.keep((8, 4096, 512), 0)
    again = Picks(CARD, torch.bfloat16, 130000)
    assert (again.find((64, 4096, 512)), again.find((8, 4096, 512))) == (3, 0)
    assert [path.name for path in folder.iterdir()] == ["A-Card-80GB-bfloat16-130000.json"], "no part is left behind"


def test_picks_are_of_one_card_dtype_and_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Picks(CARD, torch.bfloat16, 130000).keep((64, 4096, 512), 3)
    others = [Picks(CARD, torch.float16, 130000), Picks(CARD, torch.bfloat16, 130100)]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Another")
    others.append(Picks(CARD, torch.bfloat16, 130000))
    assert [picks.find((64, 4096, 512)) for picks in others] == [None, None, None]


@pytest.mark.parametrize("content", ["", "[]", '{"64x1x1": "x"}', json.dumps({"64x1x1": None})])
def test_a_spoilt_file_is_as_none(folder: Path, content: str) -> None:
    picks = Picks(CARD, torch.bfloat16, 1)
    picks.path.parent.mkdir(parents=True)
    picks.path.write_text(content)
    again = Picks(CARD, torch.bfloat16, 1)
    assert again.find((64, 1, 1)) is None
    again.keep((64, 1, 1), 2)
    assert Picks(CARD, torch.bfloat16, 1).find((64, 1, 1)) == 2


def test_what_cannot_be_written_is_kept_for_the_process(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("a file where the folder should be")
    picks = Picks(CARD, torch.bfloat16, 1)
    picks.keep((64, 1, 1), 2)
    assert picks.find((64, 1, 1)) == 2


@pytest.mark.parametrize("has_bias", [False, True])
def test_without_the_library_torch_multiplies(has_bias: bool) -> None:
    product = Matmul(torch.device("cpu"), torch.bfloat16)
    product.tune(4, [[torch.zeros(8, 16)]])  # nothing to choose from
    linear = Linear(torch.randn(8, 16), torch.randn(8) if has_bias else None)
    x, out = torch.randn(4, 16), torch.empty(4, 8)
    product(linear, x, out)
    torch.testing.assert_close(out, torch.nn.functional.linear(x, linear.weight, linear.bias))


def test_a_missing_library_is_no_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise OSError("libcublasLt.so.13: cannot open shared object file")

    monkeypatch.setattr(matmul, "CublasLt", missing)
    product = Matmul(CARD, torch.bfloat16)
    product.tune(4, [[torch.zeros(8, 16)]])
    assert not folder.exists()
