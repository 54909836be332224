"""Weights from safetensors files into a model's own tensors.

Headers are checked against what the model declares before the model is allocated; then bytes are read (not mapped: a
file cut short while loading is an error here, not a SIGBUS) straight into their place in the fused tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from nbsgl.engine.model_config import read_json
from nbsgl.errors import BadConfig, CorruptWeights, ModelNotFound, UnsafeFile

Progress = Callable[[float, str], None]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_INDEX_BYTES, MAX_HEADER_BYTES, MAX_TENSORS, MAX_SHARDS = 16 << 20, 16 << 20, 1_000_000, 4_096
UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".gguf")
FILE_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
ITEM_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}
ITEM_BYTES |= {"I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8}
DUMMY_STD = 0.02


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: bytes [begin, end) of it."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def find_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: those its index names, or the single one.

    UnsafeFile if there are only formats that can carry code, ModelNotFound if there are none, BadConfig or
    CorruptWeights if the index is bad.
    """
    if (folder / INDEX).is_file():
        return _indexed_files(folder)
    files = [folder / SINGLE] if (folder / SINGLE).is_file() else sorted(folder.glob("*.safetensors"))
    if files:
        return [_inside(folder, path.name) for path in files]
    unsafe = sorted(path.name for path in folder.iterdir() if path.suffix in UNSAFE_SUFFIXES)
    if unsafe:
        raise UnsafeFile(
            f"{unsafe[0]} is not read: this format can carry code or is not safetensors.",
            file=unsafe[0],
            field="format",
            value=Path(unsafe[0]).suffix,
            allowed="safetensors",
            hint="Convert it where you trust it: AutoModelForCausalLM.from_pretrained(folder)"
            ".save_pretrained(new_folder, safe_serialization=True).",
        )
    raise ModelNotFound(
        f"{folder} has no weights (*.safetensors).",
        file=str(folder),
        hint="Give a folder with model.safetensors, or load_format='dummy' for random weights.",
    )


def _indexed_files(folder: Path) -> list[Path]:
    weight_map = read_json(folder / INDEX, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadConfig(file=INDEX, field="weight_map", value=weight_map, allowed="an object: tensor -> file")
    names = sorted({str(name) for name in weight_map.values()})
    if len(names) > MAX_SHARDS:
        raise BadConfig(file=INDEX, field="weight_map", value=len(names), allowed=f"at most {MAX_SHARDS:,} files")
    return [_inside(folder, name) for name in names]


def _inside(folder: Path, name: str) -> Path:
    """The file of that plain name; a link may only lead to the folder or to the blobs of the same hub cache."""
    if name != Path(name).name or not name.endswith(".safetensors") or "\\" in name:
        raise BadConfig(file=INDEX, field="weight_map", value=name, allowed="plain names of .safetensors files")
    real = (folder / name).resolve()
    root = folder.resolve()
    blobs = root.parent.parent / "blobs"  # models--x--y/snapshots/<hash>/ beside models--x--y/blobs/
    is_ours = real.parent == root or (root.parent.name == "snapshots" and real.parent == blobs)
    if not is_ours:
        raise BadConfig(file=INDEX, field="weight_map", value=name, allowed="files inside the model folder")
    if not real.is_file():
        raise CorruptWeights(file=name, field="file", value="missing", allowed="all files that the index names")
    return real


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file.  CorruptWeights if header, offsets or sizes do not hold together."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            allowed = f"2..{MAX_HEADER_BYTES:,} and inside the file ({size:,} bytes)"
            raise corrupt(path, "header length", length, allowed)
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise corrupt(path, "header", "broken", "JSON") from error
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise corrupt(path, "header", type(header).__name__, f"an object of at most {MAX_TENSORS:,} tensors")
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, raw, 8 + length) for name, raw in header.items()}
    _check_layout(path, entries, 8 + length, size)
    return entries


def _entry(path: Path, name: str, raw: Any, data_begin: int) -> Entry:
    def is_ints(value: Any) -> bool:
        return isinstance(value, list) and all(type(i) is int and i >= 0 for i in value)

    good = isinstance(raw, dict) and is_ints(raw.get("shape")) and is_ints(raw.get("data_offsets"))
    if not good or len(raw["data_offsets"]) != 2 or len(raw["shape"]) > 8:
        raise corrupt(path, name, "broken entry", "dtype, shape and data_offsets")
    item = ITEM_BYTES.get(str(raw.get("dtype")))
    if item is None:
        raise corrupt(path, name, raw.get("dtype"), "a dtype of the safetensors format")
    begin, end = raw["data_offsets"]
    if end - begin != item * math.prod(raw["shape"]):
        raise corrupt(path, name, f"{end - begin} bytes", f"{item * math.prod(raw['shape'])} bytes for its shape")
    return Entry(path, raw["dtype"], tuple(raw["shape"]), data_begin + begin, data_begin + end)


def _check_layout(path: Path, entries: dict[str, Entry], begin: int, size: int) -> None:
    """Law of the format: tensors lie one after the other, from the header's end to the file's end."""
    for name, entry in sorted(entries.items(), key=lambda pair: (pair[1].begin, pair[1].end)):
        if entry.begin != begin:
            raise corrupt(path, name, f"offset {entry.begin}", f"offset {begin}: no gap, no overlap")
        begin = entry.end
    if begin != size:
        raise corrupt(path, "size", size, f"{begin} bytes, as its header says")


def check(entries: Mapping[str, Entry], declared: Mapping[str, Tensor], *, is_tied: bool) -> None:
    """Every declared tensor is there in its shape and a float dtype, and no other.  CorruptWeights names the first.

    Left out of account: rotary tables that old checkpoints carry, and the head where it is tied to the embedding.
    """
    for name, tensor in declared.items():
        entry = entries.get(name)
        if entry is None:
            raise CorruptWeights(file="*.safetensors", field=name, value="missing", allowed=str(list(tensor.shape)))
        if entry.shape != tuple(tensor.shape):
            raise corrupt(entry.path, name, list(entry.shape), f"shape {list(tensor.shape)} as in config.json")
        if entry.dtype not in FILE_DTYPES:
            raise corrupt(entry.path, name, entry.dtype, " | ".join(FILE_DTYPES))
    for name in entries.keys() - declared.keys():
        if not (name.endswith("rotary_emb.inv_freq") or (is_tied and name == "lm_head.weight")):
            raise corrupt(entries[name].path, name, "extra tensor", "only tensors of the architecture")


def read_entries(files: list[Path]) -> dict[str, Entry]:
    """The tensors of all files.  CorruptWeights if one stands in two of them."""
    entries: dict[str, Entry] = {}
    for path in files:
        for name, entry in read_header(path).items():
            if name in entries:
                raise corrupt(path, name, "twice", "each tensor once")
            entries[name] = entry
    return entries


def load(entries: Mapping[str, Entry], parameters: Mapping[str, Tensor], progress: Progress) -> None:
    """Read every parameter from its file into its place, converting the dtype.  CorruptWeights if a file is short."""
    if any(place.device.type == "cuda" for place in parameters.values()):
        from nbsgl.engine.weight_stream import stream

        stream(entries, parameters, progress)
        return
    total = sum(entries[name].end - entries[name].begin for name in parameters) or 1
    done, reported = 0, 0.0
    by_file: dict[Path, list[str]] = {}
    for name in parameters:
        by_file.setdefault(entries[name].path, []).append(name)
    for path, names in by_file.items():
        with path.open("rb", buffering=0) as file:
            for name in sorted(names, key=lambda name: entries[name].begin):
                _read_into(file, name, entries[name], parameters[name])
                done += entries[name].end - entries[name].begin
                if done / total - reported >= 0.01:
                    reported = done / total
                    progress(reported, f"weights: {done / 1e9:.2f} of {total / 1e9:.2f} GB")
    progress(1.0, f"weights: {total / 1e9:.2f} GB")


def _read_into(file: BinaryIO, name: str, entry: Entry, place: Tensor) -> None:
    dtype = FILE_DTYPES[entry.dtype]
    is_direct = place.device.type == "cpu" and place.dtype is dtype and place.is_contiguous()
    target = place if is_direct else torch.empty(entry.shape, dtype=dtype)
    view = memoryview(target.view(-1).view(torch.uint8).numpy())
    file.seek(entry.begin)
    read = 0
    while read < len(view):
        count = file.readinto(view[read : read + (64 << 20)])  # type: ignore[attr-defined]
        if not count:
            raise corrupt(entry.path, name, f"{read} bytes", f"{len(view)} bytes (the file changed while loading)")
        read += count
    if not is_direct:
        place.copy_(target)


def fill_dummy(parameters: Mapping[str, Tensor], seed: int, progress: Progress) -> None:
    """Seeded random weights, normal with deviation DUMMY_STD; norms are 1 and biases 0.  Reads no file."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, place in parameters.items():
        if name.endswith("norm.weight"):
            place.fill_(1.0)
        elif name.endswith(".bias"):
            place.zero_()
        else:
            if place.device not in generators:
                generators[place.device] = torch.Generator(place.device).manual_seed(seed)
            place.normal_(0.0, DUMMY_STD, generator=generators[place.device])
    progress(1.0, "weights: random")


def corrupt(path: Path, field: str, value: object, allowed: str) -> CorruptWeights:
    """The error of a weights file."""
    return CorruptWeights(
        file=path.name,
        field=field,
        value=value,
        allowed=allowed,
        hint="Download the model again, or check that config.json belongs to these weights.",
    )
