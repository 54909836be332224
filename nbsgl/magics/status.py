"""`%sgl status`: an engine's snapshot as a short table, in text and in HTML."""

from __future__ import annotations

import html

from nbsgl.protocol import EngineSnapshot

LEAST_SHOWN_S = 0.05  # shorter parts of a start are of no interest


def status_rows(snapshot: EngineSnapshot) -> list[tuple[str, str]]:
    """Pairs of what and its value, in the order to show them."""
    s, info = snapshot, snapshot.info
    size = f" · {info.num_parameters / 1e6:,.1f}M parameters" if info.num_parameters else ""
    reason = info.device_reason.removeprefix(f"{info.device}: ") if info.device_reason else ""
    why = f" ({reason})" if reason else ""
    used = s.slots_total - s.slots_free
    share = used / s.slots_total if s.slots_total else 0.0
    pool = f"{used:,} of {s.slots_total:,} slots in use ({share:.0%}) · {s.slots_owned:,} by running requests"
    tree = f"{s.slots_in_tree:,} tokens cached · {s.slots_evictable:,} evictable · {s.evicted_tokens:,} evicted"
    hits = f"{s.prefill_tokens_cached:,} prompt tokens cached, {s.prefill_tokens_computed:,} computed"
    speed = f"prefill {s.prefill_tok_s:,.0f} tok/s · decode {s.decode_tok_s:,.0f} tok/s (last 10 s)"
    rows = [
        ("model", f"{info.model}{size} · {info.dtype} · context {info.context_length:,}"),
        ("device", f"{info.device}{why}"),
        *([("attention", info.attention)] if info.attention else []),
        ("engine", f"{'healthy' if s.health else 'not healthy'} · up {duration(s.uptime_s)} · {_clients(s.clients)}"),
        ("KV pool", pool),
        ("prefix tree", tree),
        ("batch", f"{s.running} running · {s.waiting} waiting · {s.parked} parked · policy {s.policy}"),
        ("cache hits", f"{s.hit_rate:.0%} · {hits}"),
        ("speed", f"{speed} · {s.decode_tokens:,} tokens generated"),
    ]
    if info.start_s:
        parts = ", ".join(f"{part} {spent:.1f} s" for part, spent in info.start_s.items() if spent >= LEAST_SHOWN_S)
        rows.append(("start", f"{sum(info.start_s.values()):.1f} s: {parts}"))
    if s.slots_quarantined:
        rows.append(("quarantine", f"{s.slots_quarantined:,} slots"))
    if s.retractions:
        rows.append(("retractions", f"{s.retractions:,}"))
    counters = [f"{name} {value:,}" for name, value in sorted(s.counters.items()) if value]
    return [*rows, ("counters", " · ".join(counters))] if counters else rows


def html_table(rows: list[tuple[str, str]]) -> str:
    """Rows as a table that needs no style sheet and no script."""
    cells = "".join(
        f'<tr><th style="text-align:left">{html.escape(key)}</th>'
        f'<td style="text-align:left">{html.escape(value)}</td></tr>'
        for key, value in rows
    )
    return f"<table>{cells}</table>"


def duration(seconds: float) -> str:
    """A time in its two largest units."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _clients(n: int) -> str:
    return "1 client" if n == 1 else f"{n} clients"
