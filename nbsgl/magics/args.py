"""The options of `%%sgl` and of the `%sgl` lines: one table each, read by the magics and by the exporter.

Nothing here needs IPython, so a notebook can be exported where there is none.
"""

from __future__ import annotations

import argparse
import difflib
import shlex
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from nbsgl.errors import UsageError

VIEWS = ("run", "text", "none")


@dataclass(frozen=True)
class Option:
    """One option as `argparse.add_argument` takes it; `keyword` is its name in Python calls (None: not exported)."""

    flags: tuple[str, ...]
    settings: dict[str, Any]
    keyword: str | None = None

    @property
    def dest(self) -> str:
        return self.flags[0].lstrip("-").replace("-", "_")


def _option(*flags: str, keyword: str | None = None, **settings: Any) -> Option:
    return Option(flags, settings, keyword)


CELL_OPTIONS = (
    _option("--name", metavar="N", help="name of the run; the same name replaces the run before it"),
    _option("--on", metavar="STATE", help="go on from a fork of this state (a variable) instead of a fresh one"),
    _option("--out", metavar="VAR", help="leave the state in this variable instead of `s`"),
    _option("--bg", action="store_true", help="return at once with a Run: .status .result() .stop() .text()"),
    _option("--view", choices=VIEWS, default="run", help="what to show under the cell (default: run)"),
    _option("--model", metavar="MODEL", help="run on this model's engine instead of the default one"),
    _option("--seed", type=int, metavar="S", keyword="seed", help="seed of everything sampled in the cell"),
    _option("--temperature", type=float, metavar="T", keyword="temperature", help="default of every gen; 0 is greedy"),
    _option("--max-tokens", type=int, metavar="N", keyword="max_tokens", help="default of every gen"),
    _option("--top-p", type=float, metavar="P", keyword="top_p", help="default of every gen"),
    _option("--top-k", type=int, metavar="K", keyword="top_k", help="default of every gen"),
    _option("--min-p", type=float, metavar="P", keyword="min_p", help="default of every gen"),
    _option(
        "--stop", action="append", metavar="TEXT", keyword="stop", help="stop string of every gen; may be repeated"
    ),
)

START_OPTIONS = (
    _option("model", nargs="?", default="embedded", help="a model folder, a hub name, or `embedded` (the default)"),
    _option("--device", choices=("auto", "cpu", "cuda"), keyword="device", help="where to run (default: auto)"),
    _option(
        "--dtype", metavar="T", keyword="dtype", help="float32, bfloat16, float16 (default: what suits the device)"
    ),
    _option("--keep", type=float, metavar="S", keyword="keep", help="seconds the engine outlives its last client"),
    _option("--mem", type=float, metavar="F", keyword="mem_fraction_static", help="part of the memory to use, 0..1"),
    _option("--context", type=int, metavar="N", keyword="context_length", help="longest prompt + answer in tokens"),
    _option("--name", metavar="N", keyword="name", help="an engine of this name"),
)


class LineError(UsageError):
    """The line of a magic is wrong."""


class LineParser(argparse.ArgumentParser):
    """An argument parser that raises `LineError` instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()[0]
        flags = [flag for action in self._actions for flag in action.option_strings]
        close = difflib.get_close_matches(unknown, flags, n=1, cutoff=0.7)
        usage = " ".join(self.format_usage().split())
        hint = f"Did you mean {close[0]}? `{self.prog} --help` lists all." if close else f"{usage}."
        raise LineError(f"{self.prog}: {message}.", hint=hint)


@dataclass(frozen=True)
class Command:
    """One `%sgl` line: what it is called, what it does in one line, and its options."""

    name: str
    help: str
    options: tuple[Option, ...] = ()

    def parser(self) -> LineParser:
        parser = LineParser(
            prog=f"%sgl {self.name}",
            description=f"{self.help[0].upper()}{self.help[1:]}.",
            formatter_class=partial(argparse.HelpFormatter, width=100, max_help_position=28),
            add_help=False,
            allow_abbrev=False,
        )
        for option in self.options:
            parser.add_argument(*option.flags, **option.settings)
        return parser


COMMANDS = {
    command.name: command
    for command in (
        Command("start", "start an engine, or find the one that runs, and make it the default", START_OPTIONS),
        Command("status", "model, device and why, KV pool, prefix tree, batch, hit rate"),
        Command("info", "environment report: versions, machine, runtime folder, engines"),
        Command("tree", "the prefix tree as it is now", (_option("--live", action="store_true", help="follow it"),)),
        Command("show", "draw a run again", (_option("run", metavar="NAME", help="its name or number"),)),
        Command("runs", "the runs of this session"),
        Command(
            "abort", "end what runs: one run, or all", (_option("run", nargs="?", metavar="NAME", help="its name"),)
        ),
        Command("flush", "drop every cached prefix that nobody uses"),
        Command("restart", "end the engine's worker and start it anew; the cache is lost"),
        Command(
            "log",
            "the end of the engine's log",
            (_option("-n", type=int, default=20, metavar="N", help="number of lines (default: 20)"),),
        ),
        Command("engines", "all engines of this user"),
        Command(
            "stop",
            "end the engine",
            (_option("--force", action="store_true", help="also when other programs are connected to it"),),
        ),
        Command(
            "export",
            "write the session's successful cells, in the order they were run, as one Python file",
            (_option("path", metavar="OUT.py", help="file to write"),),
        ),
    )
}


def cell_parser(description: str = "") -> LineParser:
    """The parser of a `%%sgl` line."""
    parser = LineParser(
        prog="%%sgl",
        description=description,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=100, max_help_position=28),
        add_help=False,
        allow_abbrev=False,
    )
    for option in CELL_OPTIONS:
        parser.add_argument(*option.flags, **option.settings)
    return parser


def sampling_defaults(args: argparse.Namespace) -> dict[str, Any]:
    """The options given on a `%%sgl` line that are keywords of `state(...)`."""
    given = {o.keyword: getattr(args, o.dest) for o in CELL_OPTIONS if o.keyword is not None}
    return {keyword: value for keyword, value in given.items() if value is not None}


def start_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The options given on a `%sgl start` line that are keywords of `start(...)`."""
    given = {o.keyword: getattr(args, o.dest) for o in START_OPTIONS if o.keyword is not None}
    return {keyword: value for keyword, value in given.items() if value is not None}


def split_line(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise LineError(f"%sgl {line}: {error}.") from error


def parse_command(line: str) -> tuple[Command, argparse.Namespace]:
    """Take a `%sgl` line apart; `LineError` says which commands there are and which is closest."""
    words = split_line(line)
    if not words:
        raise LineError(
            "%sgl needs a command.", hint=f"Commands: {' '.join(COMMANDS)}. `%sgl help` says what each does."
        )
    command = COMMANDS.get(words[0])
    if command is None:
        close = difflib.get_close_matches(words[0], COMMANDS, n=1)
        guess = f"Did you mean `%sgl {close[0]}`? " if close else ""
        raise LineError(f"%sgl has no command {words[0]!r}.", hint=f"{guess}Commands: {' '.join(COMMANDS)}.")
    return command, command.parser().parse_args(words[1:])


def overview() -> str:
    """The commands of `%sgl`, one a line."""
    usages = {name: _usage(command) for name, command in COMMANDS.items()}
    width = min(max(map(len, usages.values())), 34)
    lines = [f"  {usages[name]:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(["%sgl COMMAND", *lines, "", "`%sgl COMMAND --help` says more; `%%sgl?` is about cells."])


def _usage(command: Command) -> str:
    parts = [command.name]
    for option in command.options if command.name != "start" else command.options[:1]:
        name = str(option.settings.get("metavar", option.dest.upper()))
        if option.flags[0].startswith("-"):
            name = option.flags[0] if "action" in option.settings else f"{option.flags[0]} {name}"
            parts.append(f"[{name}]")
        else:
            parts.append(f"[{name}]" if "nargs" in option.settings else name)
    if command.name == "start":
        parts.append("[options]")
    return " ".join(parts)
