"""The picture of a run: how much of the card's lower bound each engine reaches, workload by workload."""

from __future__ import annotations

from pathlib import Path

from nbsgl.bench.drive import BenchError
from nbsgl.bench.report import share
from nbsgl.bench.rows import Row, latest

Bars = dict[str, dict[str, float]]
"""Engine -> label of a workload -> share of the bound."""


def bars(rows: list[Row]) -> Bars:
    """What the plot shows: measured rows, and the peers' known figures where a peer was not measured itself."""
    found: Bars = {}
    rows = [row for row in latest(rows) if share(row) is not None]
    for row in rows:
        label = f"{row['model']} {row['workload']}"
        found.setdefault(row["engine"], {})[label] = share(row) or 0.0
    for row in rows:
        label = f"{row['model']} {row['workload']}"
        for peer, figure in row.get("peers", {}).items():
            found.setdefault(peer, {}).setdefault(label, share(row, figure) or 0.0)
    return found


def draw(rows: list[Row], path: Path) -> None:
    """Write the picture; BenchError without matplotlib or without a row that has a bound."""
    shares = bars(rows)
    if not shares:
        raise BenchError("There is no row with a lower bound to plot.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BenchError("--plot needs matplotlib.", hint="pip install 'nbsgl[bench]'") from error
    labels = list(dict.fromkeys(label for values in shares.values() for label in values))
    figure = Figure(figsize=(8, 1.2 + 0.28 * len(labels) * (1 + len(shares))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    height = 0.8 / len(shares)
    for i, (engine, values) in enumerate(shares.items()):
        places = [labels.index(label) + i * height for label in values]
        drawn = axes.barh(places, list(values.values()), height=height * 0.9, label=engine)
        axes.bar_label(drawn, [f"{value:.0%}" for value in values.values()], padding=2, fontsize=8)
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(labels))], labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlabel(f"share of the lower bound reached ({rows[0]['card']}); 1 = nothing is faster on this card")
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=150)
