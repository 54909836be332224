"""The JSON of a schema, its limits, and complaints that name a place in it."""

from __future__ import annotations

import json
from typing import Any

from nbsgl.errors import BadGrammar

MAX_SCHEMA_BYTES = 1 << 20
MAX_NESTING = 128
MAX_ENUM = 10_000


def parse(text: str, **readers: Any) -> Any:
    """The JSON of a schema; `BadGrammar` if it is none, too long or nested too deep.  Property order is kept."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_SCHEMA_BYTES:
        raise bad("", f"{size:,} bytes, the limit is {MAX_SCHEMA_BYTES:,}", limit="1 MiB of schema")
    try:
        schema = json.loads(text, parse_constant=_no_constant, **readers)
    except RecursionError:
        raise bad("", f"nested deeper than {MAX_NESTING}", limit=f"nesting of {MAX_NESTING}") from None
    except ValueError as error:
        raise bad("", f"not JSON: {error}") from None
    _check_depth(schema)
    return schema


def bad(pointer: str, reason: str, limit: str | None = None) -> BadGrammar:
    return BadGrammar(kind="json_schema", path=f"#{pointer}", reason=reason, limit=limit)


def _check_depth(schema: Any) -> None:
    level, depth = [schema], 0
    while level:
        if depth > MAX_NESTING:
            raise bad("", f"nested deeper than {MAX_NESTING}", limit=f"nesting of {MAX_NESTING}")
        depth += 1
        containers = [
            item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list))
        ]
        level = [child for items in containers for child in items]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
