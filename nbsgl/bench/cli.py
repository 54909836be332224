"""`python -m nbsgl bench`: measure engines on this machine, each figure beside the card's lower bound.

    nbsgl bench                                    the six workloads on the embedded model, scaled down
    nbsgl bench all --model llama-3.1-8b           a shape without weights; qwen3-0.6b is the other
    nbsgl bench --model llama-3.1-8b --json now.jsonl --baseline before.jsonl --plot now.png
    nbsgl bench tokens --engine nbsgl vllm         beside a peer that is installed
    nbsgl bench --report now.jsonl                 rows as a Markdown table
    nbsgl bench steps --help                       scheduler and runner alone, in this process
    nbsgl bench grammar --help                     compiling grammars and filling masks, in this process

The warm-up runs the same prompts with short outputs; then each repeat begins with an empty cache, and the best counts.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbsgl.bench import report, rows
from nbsgl.bench.cards import ceilings, find_card
from nbsgl.bench.engines import ENGINES
from nbsgl.bench.models import NAMES, find_model, write_checkpoint
from nbsgl.bench.programs import ARGUMENTS
from nbsgl.bench.session import GROUPS, ITEM_BYTES, Plan, Session, expand
from nbsgl.bench.workloads import SCALES, WORKLOADS
from nbsgl.errors import ParameterError

EXPLAINED = {
    "start": "a fresh process until its engine's first token",
    **{name: (make.__doc__ or "").splitlines()[0] for name, make in WORKLOADS.items()},
    "latency": "time between tokens of 8 streams while a prompt of 32k comes, over the time without",
    "mixed": "minutes of random load; the share of the card's memory that holds weights and KV",
    "select": "256 programs that choose of four answers over shared examples",
    "judge": "64 programs that fork into four verdicts and join them",
    "chain": "128 programs of sixteen short calls with text between",
    "json": "64 programs that fill a record under a grammar",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; 1 if something is slower than the baseline by more than the tolerance."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["steps"]:
        from nbsgl.engine import bench as steps

        return steps.main(given[1:])
    if given[:1] == ["grammar"]:
        from nbsgl.bench import grammars

        return grammars.main(given[1:])
    args = _parser().parse_args(given)
    if args.list:
        say(_listing())
        return 0
    if args.report:
        found = [row for path in args.report for row in rows.read(path)]
        say(report.markdown(found).rstrip())
        return _finish(args, found)
    model = find_model(args.model, args.load_format)
    if args.make_checkpoint:
        size = write_checkpoint(model, args.make_checkpoint)
        say(f"{args.make_checkpoint}: {size / 1e9:.2f} GB of random weights of {model.name}")
        return 0
    plan = _plan(args)
    _introduce(plan)
    found = []
    for engine in args.engine:
        for row in Session(plan, engine).rows():
            found.append(row)
            if args.json:
                rows.append(args.json, row)
            say(report.line(row))
            if row["workload"] in ("latency", "mixed", "start"):
                say(f"           {json.dumps({k: v for k, v in row.items() if k in _DETAILS})}")
    return _finish(args, found)


_DETAILS = (
    "alone_p50_ms", "alone_p99_ms", "beside_p50_ms", "beside_p99_ms", "prefill_s", "alone_s", "phases", "requests",
    "errors", "pool_peak", "leaked", "retractions", "worker_epoch", "memory_peak_bytes", "memory_bytes",
)  # fmt: skip


def say(line: str) -> None:
    """To standard output at once: whoever ends this process early has what was measured."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _plan(args: argparse.Namespace) -> Plan:
    names = expand(args.workload or ["tokens"])
    model = find_model(args.model, args.load_format)
    card = find_card(args.device)
    dtype = args.dtype
    if dtype == "auto":
        own = model.config.dtype if model.config.dtype in ITEM_BYTES else "bfloat16"
        dtype = own if card.is_gpu and own else "float32"
    settings = _settings(args.set or [])
    if args.attention_backend:
        settings["attention_backend"] = args.attention_backend
    return Plan(
        model=model,
        card=card,
        ceilings=ceilings(card, args.device, dtype, args.measure_ceilings),
        dtype=dtype,
        names=names,
        scale=args.scale or ("tiny" if model.name == "embedded" or not card.is_gpu else "full"),
        repeat=args.repeat,
        device=args.device,
        tokenizer=args.tokenizer,
        settings=settings,
        minutes=args.minutes,
        budget_s=args.budget_s,
        say=say,
    )


def _settings(pairs: list[str]) -> dict[str, Any]:
    """`name=value` pairs; a value is Python's or JSON's where it reads as that, else text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise ParameterError(name="--set", value=pair, allowed="NAME=VALUE")
        found[name] = _read(value)
    return found


def _read(value: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError):
            return read(value)
    return value


def _introduce(plan: Plan) -> None:
    top = plan.ceilings
    say(
        f"{plan.model.name} ({plan.model.load_format}, {plan.dtype}, scale {plan.scale}) on {plan.card.name}: "
        f"{top.bytes_s / 1e9:,.0f} GB/s, {top.flop_s / 1e12:,.2f} TFLOP/s sustained, "
        f"{top.burst_flop_s / 1e12:,.2f} at first ({top.source})"
    )
    say(report.HEAD)


def _finish(args: argparse.Namespace, found: list[rows.Row]) -> int:
    """Plot and compare."""
    if args.plot:
        from nbsgl.bench.plot import draw

        draw(found, args.plot)
        say(f"written: {args.plot}")
    if not args.baseline:
        return 0
    changes = rows.compare(found, rows.read(args.baseline))
    for line in report.told(changes, args.tolerance):
        say(line)
    if not changes:
        say(f"{args.baseline} has none of these rows")
    return int(any(change.ratio > 1 + args.tolerance for change in changes))


def _listing() -> str:
    width = max(map(len, EXPLAINED))
    lines = [f"{name:<{width}}  {text}" for name, text in EXPLAINED.items()]
    lines += [f"{name:<{width}}  = {' '.join(members)}" for name, members in GROUPS.items()]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nbsgl bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workload", nargs="*", metavar="WORKLOAD", help="names or groups (default: tokens); see --list")
    parser.add_argument("--list", action="store_true", help="say what the workloads are")
    parser.add_argument("--model", default="embedded", help=f"{', '.join(NAMES)}, embedded, a folder or a hub name")
    parser.add_argument("--load-format", choices=("auto", "dummy"), help="dummy: random weights of a folder's shape")
    parser.add_argument("--engine", nargs="+", default=["nbsgl"], choices=tuple(ENGINES), help="one after another")
    parser.add_argument("--scale", choices=tuple(SCALES), help="tiny: seconds on a CPU (the default there)")
    parser.add_argument("--repeat", type=_at_least_one, default=2, metavar="N", help="runs after the warm-up")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", choices=("auto", *ITEM_BYTES))
    parser.add_argument("--attention-backend", metavar="NAME")
    parser.add_argument("--set", nargs="+", action="extend", metavar="NAME=VALUE", help="other settings of the engine")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help=f"for {', '.join(ARGUMENTS)} (default: made)")
    parser.add_argument("--minutes", type=float, default=6.0, metavar="N", help="of mixed (default: 6)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a line per workload, as soon as it is known")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw how much of the bounds is reached")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="rows of an earlier run to compare with")
    parser.add_argument("--tolerance", type=float, default=rows.TOLERANCE, metavar="X", help="default: 0.03")
    parser.add_argument("--report", type=Path, nargs="+", metavar="FILE", help="measure nothing, show these rows")
    parser.add_argument("--budget-s", type=float, metavar="N", help="begin no workload that will not end in time")
    parser.add_argument("--measure-ceilings", action="store_true", help="also where the card's ceilings are known")
    parser.add_argument("--make-checkpoint", type=Path, metavar="DIR", help="write random weights of --model there")
    return parser


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value
