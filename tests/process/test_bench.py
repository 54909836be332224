"""`nbsgl bench` on real engines, scaled down."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbsgl.__main__ import main
from nbsgl.bench import rows

pytestmark = pytest.mark.process

CPU = ["--device", "cpu", "--repeat", "1", "--set", "num_slots=8192", "num_threads=2"]


@pytest.mark.timeout(300)  # where something else computes too, all takes thrice as long
def test_each_kind_of_workload_is_measured_beside_its_bound(home: Path, tmp_path: Path) -> None:
    found = tmp_path / "rows.jsonl"
    names = ["start", "single", "prefix", "latency", "mixed", "judge", "json"]
    assert main(["bench", *names, "--minutes", "0.05", "--json", str(found), *CPU]) == 0
    by_name = {row["workload"]: row for row in rows.read(found)}
    assert list(by_name) == names
    assert all(row["card"] == "cpu" and row["scale"] == "tiny" for row in by_name.values())
    assert all(by_name[name]["floor_s"] > 0 for name in ("single", "prefix", "judge", "json"))
    assert by_name["start"]["phases"]["ready"] < by_name["start"]["figure"]
    assert by_name["prefix"]["output_tokens"] == 32
    assert 0 < by_name["judge"]["output_tokens"] <= 2 * 5 * 48  # the embedded model's template has a stop token
    assert by_name["latency"]["gaps"][1] > 0
    assert by_name["mixed"]["errors"] == by_name["mixed"]["leaked"] == 0
    assert by_name["mixed"]["requests"]["batch"] > 0
