"""A row: one measured workload as plain data, one JSON line; and rows compared with those of an earlier run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbsgl.bench.drive import BenchError

Row = dict[str, Any]

FORMAT = 1  # of a JSON line
KEY = ("engine", "model", "workload", "scale", "load_format", "card")

# workload -> unit of its figure.  Rates are better high, all else low.
UNITS = {"single": "tok/s", "nano": "tok/s", "latency": "ratio", "mixed": "share"}
HIGH = ("tok/s", "share")
TOLERANCE = 0.03


def unit(workload: str) -> str:
    return UNITS.get(workload, "s")


def key(row: Row) -> tuple[Any, ...]:
    """What a row measures; of two rows with one key the later counts."""
    return tuple(row.get(name) for name in KEY)


def latest(rows: Iterable[Row]) -> list[Row]:
    """The last row of each key, in the order the keys came first."""
    return list({key(row): row for row in rows}.values())


def append(path: Path, row: Row) -> None:
    """Add a line and see it to the disk: a run may be killed at any time."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Row]:
    """The rows of a file; BenchError names the line that is none."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or row.get("format") != FORMAT or "figure" not in row:
            raise BenchError(f"{path}, line {number}: not a row of nbsgl bench (format {FORMAT}).")
        rows.append(row)
    return rows


@dataclass(frozen=True, slots=True)
class Change:
    """A workload now and before; `ratio` > 1 means slower now."""

    row: Row
    before: float
    ratio: float


def compare(rows: list[Row], baseline: list[Row]) -> list[Change]:
    """Each row that the baseline has too."""
    known = {key(row): row["figure"] for row in baseline}
    changes = []
    for row in latest(rows):
        before = known.get(key(row))
        if before and row["figure"]:
            now = row["figure"]
            changes.append(Change(row, before, before / now if row["unit"] in HIGH else now / before))
    return changes
