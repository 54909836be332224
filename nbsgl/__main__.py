"""`python -m nbsgl` and the command `nbsgl`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import nbsgl
from nbsgl.errors import NbsglError


def _export(args: argparse.Namespace) -> int:
    from nbsgl.magics.export import export_notebook

    text = export_notebook(args.notebook)
    if args.output == "-":
        sys.stdout.write(text)
        return 0
    path = Path(args.output) if args.output else args.notebook.with_suffix(".py")
    path.write_text(text, encoding="utf-8")
    print(f"written: {path}")
    return 0


def _info(args: argparse.Namespace) -> int:
    from nbsgl.magics.info import report, table

    print(table(report()))
    return 0


def _engines(args: argparse.Namespace) -> int:
    from nbsgl.magics.info import engine_lines, stop_engine

    if args.stop:
        print(stop_engine(args.stop, force=args.force))
        return 0
    print("\n".join(engine_lines()) or "No engine is running.")
    return 0


def _demo(args: argparse.Namespace) -> int:
    from nbsgl.magics.demo import run_demo

    return run_demo(args.notebook, save=args.save, timeout_s=args.timeout, write=lambda text: print(text, flush=True))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nbsgl", description="SGLang made native to the notebook.  In one: %load_ext nbsgl, then a %%sgl cell."
    )
    parser.add_argument("--version", action="version", version=f"nbsgl {nbsgl.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    sub = commands.add_parser("export", help="write a notebook as one Python file that runs by itself")
    sub.add_argument("notebook", type=Path, metavar="NB.ipynb")
    sub.add_argument("-o", "--output", metavar="OUT.py", help="file to write (default: NB.py; - is standard output)")
    sub.set_defaults(do=_export)

    sub = commands.add_parser("info", help="environment report: versions, machine, runtime folder, engines")
    sub.set_defaults(do=_info)

    sub = commands.add_parser("engines", help="list the engines of this user, or stop one")
    sub.add_argument("--stop", metavar="KEY", help="stop the engine of this key or name")
    sub.add_argument("--force", action="store_true", help="stop it even if programs are connected to it")
    sub.set_defaults(do=_engines)

    sub = commands.add_parser("demo", help="run the quickstart notebook and show its cells and their output here")
    sub.add_argument("notebook", nargs="?", type=Path, metavar="NB.ipynb", help="another notebook")
    sub.add_argument("--save", action="store_true", help="write the outputs into the notebook's file")
    sub.add_argument("--timeout", type=float, default=300.0, metavar="S", help="longest time for a cell (default: 300)")
    sub.set_defaults(do=_demo)

    commands.add_parser("bench", help="measure the engine on this machine", add_help=False)
    commands.add_parser("serve", help="serve a model over HTTP, with SGLang's routes", add_help=False)
    return parser


def _bench(options: Sequence[str]) -> int:
    from nbsgl.bench import cli

    return cli.main(options)


def _serve(options: Sequence[str]) -> int:
    from nbsgl.engine.server import cli

    return cli.main(options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors of ours and missing files end in one line on standard error and status 1."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        own = {"bench": _bench, "serve": _serve}.get(given[0]) if given else None  # their options are their own
        if own is not None:
            return own(given[1:])
        args = _parser().parse_args(given)
        return int(args.do(args))
    except (NbsglError, OSError) as error:
        print(f"nbsgl: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
