"""Tab completion: the commands and options of `%sgl` lines, the language's names in `%%sgl` cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import nbsgl
from nbsgl.magics.args import CELL_OPTIONS, COMMANDS, Option


def completions(shell: Any) -> Callable[[Any], dict[str, Any]]:
    """A matcher for IPython's `custom_matchers`; it asks for the whole cell, not only the word."""
    from IPython.core.completer import SimpleCompletion, context_matcher

    @context_matcher(identifier="nbsgl")  # type: ignore[untyped-decorator]
    def nbsgl_matcher(context: Any) -> dict[str, Any]:
        line = context.full_text.split("\n")[context.cursor_line][: context.cursor_position]
        found = candidates(line, context.full_text, context.token)
        return {"completions": [SimpleCompletion(text=name, type="nbsgl") for name in found]}

    return cast("Callable[[Any], dict[str, Any]]", nbsgl_matcher)


def candidates(line: str, cell: str, text: str) -> list[str]:
    """What could stand at the cursor: `line` is the current line up to it, `text` the word being completed."""
    head = line.lstrip()
    words = head.split()
    if head.startswith("%%sgl "):
        return _starting(_flags(CELL_OPTIONS), text)
    if head.startswith("%sgl "):
        ended = len(words) > 1 + (not line.endswith(" "))
        if not ended:
            return _starting([*COMMANDS, "help"], text)
        command = COMMANDS.get(words[1])
        return _starting(_flags(command.options) if command else [], text)
    if cell.lstrip().startswith("%%sgl") and "." not in text:
        return _starting([*nbsgl.__all__, "s"], text)
    return []


def _flags(options: tuple[Option, ...]) -> list[str]:
    return [flag for option in options for flag in option.flags if flag.startswith("-")]


def _starting(names: list[str], text: str) -> list[str]:
    return sorted(name for name in names if name.startswith(text) and name != text)
