"""Rows for people: a line each in the terminal, a Markdown table, and what got slower."""

from __future__ import annotations

from typing import Any

from nbsgl.bench.rows import HIGH, Change, Row, latest

HEAD = "workload      figure  unit    floor   of floor  sglang    vllm   MHz    W   C"


def floor_figure(row: Row, name: str = "floor_s") -> float | None:
    """The lower bound of a row in the unit of its figure."""
    floor = row.get(name)
    if not floor:
        return None
    return float(row["output_tokens"]) / floor if row["unit"] == "tok/s" else float(floor)


def share(row: Row, figure: float | None = None) -> float | None:
    """How much of the bound a figure (default: the row's) reaches; 1 is the bound itself."""
    bound, figure = floor_figure(row), row["figure"] if figure is None else figure
    if bound is None or not figure:
        return None
    return float(figure / bound) if row["unit"] in HIGH else float(bound / figure)


def line(row: Row) -> str:
    """One row under HEAD."""
    peers, part = row.get("peers", {}), share(row)
    cells = [
        f"{row['workload']:<10s}",
        f"{shown(row['figure']):>9s}",
        f"{row['unit']:<6s}",
        f"{shown(floor_figure(row)):>7s}",
        f"{'' if part is None else format(part, '.0%'):>9s}",
        *(f"{shown(peers.get(name)):>8s}" for name in ("sglang", "vllm")),
        *(f"{row.get(name, ''):>{width}}" for name, width in (("sm_mhz", 5), ("watts", 4), ("celsius_max", 3))),
    ]
    return " ".join(cells)


def shown(figure: Any) -> str:
    """A number with as many digits as it deserves; "" for None."""
    if figure is None:
        return ""
    return f"{figure:,.0f}" if figure >= 1000 else f"{figure:.1f}" if figure >= 100 else f"{figure:.3f}"


def markdown(rows: list[Row]) -> str:
    """The latest rows as a table for `docs/`; one column per engine that was measured in these rows or is known."""
    rows = latest(rows)
    lines = []
    for group in dict.fromkeys((row["card"], row["model"], row["load_format"], row["scale"]) for row in rows):
        mine = [row for row in rows if (row["card"], row["model"], row["load_format"], row["scale"]) == group]
        lines += [f"**{group[1]}** ({group[2]} weights, scale {group[3]}) on {group[0]}", ""]
        lines += ["| workload | engine | figure | lower bound | reached | SGLang | vLLM | SM MHz | W | max C |"]
        lines += ["| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
        lines += [_markdown_line(row) for row in mine] + [""]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_line(row: Row) -> str:
    peers, part = row.get("peers", {}), share(row)
    bound = floor_figure(row)
    cells = [
        row["workload"],
        row["engine"],
        f"{shown(row['figure'])} {row['unit']}",
        f"{shown(bound)} {row['unit']}" if bound is not None else "",
        "" if part is None else f"{part:.0%}",
        shown(peers.get("sglang")),
        shown(peers.get("vllm")),
        *(str(row.get(name, "")) for name in ("sm_mhz", "watts", "celsius_max")),
    ]
    return f"| {' | '.join(cells)} |"


def told(changes: list[Change], tolerance: float) -> list[str]:
    """Lines that say what got slower, what got faster, and how much."""
    lines = []
    for change in sorted(changes, key=lambda change: -change.ratio):
        row = change.row
        word = "slower" if change.ratio > 1 + tolerance else "faster" if change.ratio < 1 / (1 + tolerance) else "same"
        lines.append(
            f"{word:7s}{row['engine']} {row['model']} {row['workload']}: {shown(change.before)} -> "
            f"{shown(row['figure'])} {row['unit']} (time x {change.ratio:.3f})"
        )
    return lines
