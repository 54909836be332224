"""Models by hub name, without a net: what is asked of huggingface_hub, what is reported, what a failure says."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest

from nbsgl.engine import hub
from nbsgl.engine.folders import resolve_model
from nbsgl.errors import ModelNotFound


def test_download_reports_the_bytes_of_all_files_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fake_download(name: str, allow_patterns: list[str], tqdm_class: type) -> str:
        assert "*.safetensors" in allow_patterns
        assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in allow_patterns)
        files = tqdm_class(range(2), desc="Fetching 2 files", total=2)
        bytes_bar = tqdm_class(desc="Reconstructing", total=0, unit="B", unit_scale=True, mininterval=0)
        bytes_bar.total += 4_000_000
        for _ in files:
            bytes_bar.update(2_000_000)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake_download)
    told: list[tuple[float, str]] = []
    assert resolve_model("org/model", lambda fraction, note: told.append((fraction, note))) == tmp_path
    assert told[-1] == (1.0, "downloading: 4.00MB of 4.00MB")


def test_bars_draw_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    bar = hub._bar(lambda fraction, note: None)(total=3)
    bar.update(3)
    bar.close()
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_no_net_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_net(*args: object, **kwargs: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_net)
    with pytest.raises(ModelNotFound, match="is no local folder") as caught:
        resolve_model("org/model")
    assert "model_path='/path/to/model'" in caught.value.hint
