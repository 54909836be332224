"""Bad model folders are refused with the file and the field, before memory is taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nbsgl.engine.model_config import parse_model_config
from nbsgl.engine.weights import read_header
from nbsgl.errors import BadConfig, CorruptWeights, ModelNotFound, UnsafeFile
from tests.unit.model_fakes import load_small, make_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path, "Llama")
    return tmp_path


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_missing_config_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        load_small(tmp_path)
    with pytest.raises(ModelNotFound, match="no folder"):
        load_small(tmp_path / "nothing")


def test_pickles_are_refused_with_the_way_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsafeFile, match=r"pytorch_model\.bin.*safe_serialization"):
        load_small(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelNotFound, match="no weights"):
        load_small(folder)


def test_truncated_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    for length in (0, 5, 9, 200, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CorruptWeights, match=r"model\.safetensors"):
            load_small(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["a"].update(data_offsets=[0, 4]),
        lambda h: h["b"].update(data_offsets=[0, 8]),
        lambda h: h["b"].update(data_offsets=[12, 20]),
        lambda h: h["b"].update(shape=[-1, -2]),
        lambda h: h["b"].update(dtype="F99"),
        lambda h: h.update(c=7),
        lambda h: h["b"].pop("shape"),
    ],
)
def test_header_mutations(tmp_path: Path, change: Callable[[dict], None]) -> None:
    header = {n: {"dtype": "F32", "shape": [2], "data_offsets": [8 * i, 8 * i + 8]} for i, n in enumerate("ab")}
    path = tmp_path / "x.safetensors"

    def write() -> None:
        raw = json.dumps(header).encode()
        path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(16))

    write()
    assert list(read_header(path)) == ["a", "b"]
    change(header)
    write()
    with pytest.raises(CorruptWeights):
        read_header(path)


def test_wrong_missing_and_extra_tensors(folder: Path) -> None:
    edit(folder, lambda t: t.update({"model.norm.weight": torch.zeros(49)}))
    with pytest.raises(CorruptWeights, match=r"model\.norm\.weight.*\[49\].*\[48\]"):
        load_small(folder)
    edit(folder, lambda t: t.update({"model.norm.weight": torch.zeros(48, dtype=torch.int8)}))
    with pytest.raises(CorruptWeights, match="I8"):
        load_small(folder)
    edit(folder, lambda t: t.update({"model.norm.weight": torch.zeros(48), "extra": torch.zeros(1)}))
    with pytest.raises(CorruptWeights, match="extra"):
        load_small(folder)
    edit(folder, lambda t: [t.pop("extra"), t.pop("model.layers.1.mlp.up_proj.weight")])
    with pytest.raises(CorruptWeights, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*missing"):
        load_small(folder)


def test_half_precision_is_converted(folder: Path) -> None:
    exact = load_small(folder).runner.model.layers[1].down.plain()
    edit(folder, lambda t: t.update({name: x.bfloat16() for name, x in t.items()}))
    assert torch.equal(load_small(folder).runner.model.layers[1].down.plain(), exact.bfloat16().float())
    assert load_small(folder, dtype="bfloat16").runner.model.layers[1].down.plain().dtype is torch.bfloat16


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "link.safetensors"]
)
def test_index_cannot_leave_the_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    outside = tmp_path_factory.mktemp("outside") / "w.safetensors"
    outside.write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "link.safetensors").symlink_to(outside)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(BadConfig, match="weight_map"):
        load_small(folder)


def test_hub_cache_links_are_followed(folder: Path) -> None:
    root = folder / "models--a--b"
    snapshot, blobs = root / "snapshots" / "abc", root / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (folder / "config.json").rename(snapshot / "config.json")
    (folder / "model.safetensors").rename(blobs / "0123")
    (snapshot / "model.safetensors").symlink_to(blobs / "0123")
    assert load_small(snapshot).vocab_size == 211


BASE = {"architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8}
BASE |= {"num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", None),
        ("vocab_size", 3_000_000),
        ("hidden_size", "8"),
        ("hidden_size", 9),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 1_025),
        ("num_key_value_heads", 3),
        ("rms_norm_eps", -1),
        ("eos_token_id", 8),
        ("head_dim", 3),
        ("rope_scaling", {"rope_type": "linear"}),
        ("architectures", "Llama"),
    ],
)
def test_bad_config_fields(field: str, value: object) -> None:
    assert parse_model_config(BASE).head_dim == 4
    with pytest.raises(BadConfig, match=r"config\.json") as caught:
        parse_model_config({**BASE, field: value})
    assert caught.value.field in (field, "num_attention_heads", "factor")


def test_config_too_large_or_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{" + " " * (1 << 20) + "}")
    with pytest.raises(BadConfig, match="1,048,576"):
        load_small(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(BadConfig, match="JSON object"):
        load_small(folder)


def test_auto_map_is_ignored(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, "auto_map": {"AutoConfig": "evil.Config"}}))
    with caplog.at_level("INFO", logger="nbsgl"):
        load_small(folder)
    assert sum("auto_map" in record.message for record in caplog.records) == 1
