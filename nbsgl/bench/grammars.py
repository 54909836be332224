"""`nbsgl bench grammar`: what constrained decoding costs before and beside the model, without one.

    nbsgl bench grammar                              every engine that is installed, vocabularies of 32k and 128k
    nbsgl bench grammar --vocab 32000 --engine fsm llguidance --json now.jsonl

A table, then one JSON line with everything.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbsgl.bench import tokenizer
from nbsgl.bench.cli import say
from nbsgl.protocol import GrammarSpec

SIZES = (32_000, 128_256)

REGEXES = (
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}", r"\d{1,3}(\.\d{1,3}){3}", r"(yes|no|maybe)", r"[a-z]{1,30}@[a-z]{1,20}\.(com|org)",
    r"-?(0|[1-9][0-9]{0,18})", r"[A-Z][a-z]+( [A-Z][a-z]+){0,3}", r"#?([a-f0-9]{6}|[a-f0-9]{3})", r"\w+",
    r"(\w+ ){3,8}\w+\.", r'"[^"\\]{0,64}"', r"[^\n]{1,200}", r"```python\n[^`]{1,400}\n```", r"(a|b)*abb",
    r"(?i:monday|tuesday|wednesday|thursday|friday|saturday|sunday)", r"https?://[a-z0-9.-]{1,60}(/[a-zA-Z0-9_.-]{0,40}){0,4}",
    r"[\u4e00-\u9fff]{1,12}", r"\s*\S+\s*", r"(\d+, )*\d+", r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    r"Thought: [^\n]{1,120}\nAction: (search|open|answer)\([^\n)]{0,80}\)\n", r"(.*\n){2}.*", r"\[( )?\]|\[x\]",
    r"(0?[1-9]|1[0-2]):[0-5][0-9] (am|pm)", r"[+-]?\d{1,15}(\.\d{1,15})?([eE][+-]?\d{1,3})?",
)  # fmt: skip

_NAME = {"type": "string", "maxLength": 40}
SCHEMAS: tuple[Any, ...] = (
    {"type": "integer", "minimum": 0, "maximum": 120},
    {"enum": ["red", "green", "blue", 7, None]},
    {"type": "array", "items": {"type": "integer"}, "maxItems": 8},
    {"type": "object", "properties": {"name": _NAME, "age": {"type": "integer"}}, "required": ["name", "age"],
     "additionalProperties": False},
    {"type": "object", "properties": {f"field_{i}": _NAME for i in range(12)}, "additionalProperties": False},
    {"type": "object", "properties": {f"flag_{i}": {"type": "boolean"} for i in range(20)},
     "required": [f"flag_{i}" for i in range(20)], "additionalProperties": False},
    {"type": "object", "properties": {"when": {"type": "string", "format": "date-time"},
     "id": {"type": "string", "format": "uuid"}, "mail": {"type": "string", "format": "email"}},
     "required": ["when", "id"], "additionalProperties": False},
    {"type": "object", "properties": {"items": {"type": "array", "maxItems": 4, "items": {"type": "object",
     "properties": {"sku": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"}, "price": {"type": "number"}},
     "required": ["sku", "price"], "additionalProperties": False}}}, "required": ["items"],
     "additionalProperties": False},
    {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[a-z]+$"}, {"const": {"a": [1, 2]}}]},
    {"type": "object", "properties": {"kind": {"const": "circle"}, "r": {"type": "number", "minimum": 0}},
     "required": ["kind", "r"], "additionalProperties": False},
    {"type": "string", "minLength": 3, "maxLength": 60},
    {"type": "object", "properties": {"tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
     "score": {"type": "number"}, "note": {"type": ["string", "null"]}}, "additionalProperties": False},
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    from nbsgl.engine.grammar import bench

    engines = args.engine or bench.installed()
    sets = {"regexes": _regexes(), "schemas": _schemas()}
    found: dict[str, Any] = {"workload": "grammar", "rows": [], "first": []}
    say(f"{'vocab':>7} {'set':8} {'engine':10} {'compile ms p50/p90/p99':>24} {'mask us p50/p99':>18}  refused  MB")
    for size in args.vocab:
        vocab = vocab_of(args.tokenizer or tokenizer.cached(), size)
        for name, specs in sets.items():
            for engine in engines:
                row = {"set": name, **bench.measure(vocab, engine, specs)}
                found["rows"].append(row)
                say(_line(row))
        first = bench.first_tokens(vocab, [*sets["regexes"], *sets["schemas"]])
        found["first"].append(first)
        say(_first_line(first))
    line = json.dumps(found)
    if args.json:
        with args.json.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    say(line)
    return 0


def vocab_of(folder: Path, size: int) -> Any:
    """The tokenizer's first tokens: of a BPE, what it would be if it had been trained to that size."""
    from nbsgl.engine.grammar.vocab import TokenVocab
    from nbsgl.engine.tokenizer_files import TokenizerFiles

    whole = TokenVocab.of_files(TokenizerFiles.load(folder))
    if size >= len(whole):
        return whole
    return TokenVocab([*whole.tokens[: size - 1], None], [size - 1])


def _regexes() -> list[GrammarSpec]:
    return [GrammarSpec(kind="regex", text=text) for text in REGEXES]


def _schemas() -> list[GrammarSpec]:
    return [GrammarSpec(kind="json_schema", text=json.dumps(one)) for one in SCHEMAS]


def _line(row: dict[str, Any]) -> str:
    compile_ms, mask_us = _slashed(row["compile_ms"]), _slashed(row["mask_us"])
    return (
        f"{row['vocab']:>7} {row['set']:8} {row['engine']:10} {compile_ms:>24} {mask_us:>18}"
        f"  {row['refused']:>7}  {row['table_bytes_max'] / 1e6:.1f}"
    )


def _first_line(first: dict[str, Any]) -> str:
    return (
        f"{first['vocab']:>7} first token ms p50/p90/max: {_slashed(first['first_ms'])}, llguidance alone "
        f"{_slashed(first['llguidance_ms'])}, later {_slashed(first['later_ms'])}; {first['grammars']} at once p50/p99 "
        f"{_slashed(first['at_once_ms'])}, their tables {_slashed(first['at_once_tables_ms'])}; "
        f"cached us {_slashed(first['cached_us'])}"
    )


def _slashed(values: dict[str, float]) -> str:
    return " / ".join(f"{value:g}" for value in values.values()) or "-"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nbsgl bench grammar", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocab", nargs="+", type=int, default=list(SIZES), metavar="N", help="numbers of tokens")
    parser.add_argument(
        "--engine", nargs="+", metavar="NAME", help="fsm, llguidance, xgrammar, outlines (if installed)"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="whose first tokens they are (default: made)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the line there too")
    return parser
