"""Which card a run is on and what it can do: known ceilings, else measured on the spot by a helper process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nbsgl
from nbsgl.bench.clocks import Nvml
from nbsgl.bench.drive import BenchError
from nbsgl.bench.floors import Ceilings

# Measured with `nbsgl.bench.ceilings` and held over many sessions: HBM copy, bf16 matmul 8192^3 sustained at the power
# cap, and in its first 20 calls.
KNOWN = {"NVIDIA H200": Ceilings(4277e9, 670e12, 822e12, "known for this card")}

HELPER_S = 180.0


@dataclass(frozen=True, slots=True)
class Card:
    """A device by the name its driver gives it; "cpu" where there is none or none is asked for."""

    name: str
    index: str | None = None  # as NVML counts, or a UUID; None: no card
    memory_bytes: int | None = None

    @property
    def is_gpu(self) -> bool:
        return self.index is not None


def find_card(device: str) -> Card:
    """The card that `device` ("auto", "cpu", "cuda", "cuda:N") means, as far as the driver knows."""
    if device == "cpu":
        return Card("cpu")
    index = _driver_index(int(device[5:]) if device.startswith("cuda:") else 0)
    nvml = Nvml.open(index) if index is not None else None
    return Card("cpu") if nvml is None else Card(nvml.name, index, nvml.total_bytes)


def _driver_index(number: int) -> str | None:
    """CUDA's N-th device as NVML names it; CUDA_VISIBLE_DEVICES chooses and orders."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return str(number)
    names = [name.strip() for name in shown.split(",") if name.strip()]
    return names[number] if number < len(names) else None


def ceilings(card: Card, device: str, dtype: str, measure: bool = False) -> Ceilings:
    """The card's ceilings: known ones unless `measure`; else of `nbsgl.bench.ceilings` in a process of its own."""
    if card.name in KNOWN and dtype in ("bfloat16", "float16") and not measure:
        return KNOWN[card.name]
    command = [sys.executable, "-m", "nbsgl.bench.ceilings", device, dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HELPER_S, check=False, env=environment())
    if done.returncode:
        raise BenchError(f"The ceilings could not be measured: {done.stderr.strip()[-300:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Ceilings(found["bytes_s"], found["flop_s"], found["burst_flop_s"], "measured before this run")


def environment() -> dict[str, str]:
    """This process's environment, in which a helper finds this nbsgl."""
    root = str(Path(nbsgl.__file__).parents[1])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
