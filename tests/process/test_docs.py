"""The user's pages on the language are true: their examples run, and their names and signatures are those there are."""

from __future__ import annotations

import contextlib
import doctest
import inspect
import io
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbsgl

pytestmark = pytest.mark.process

PAGE = Path(__file__).parents[2] / "docs" / "language.md"
TEXT = PAGE.read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
SIGNATURE = re.compile(r"^([\w.]+)(\(.*)", re.DOTALL)
PUBLIC = {name: getattr(nbsgl, name) for name in nbsgl.__all__}
ERRORS = {name for name, it in PUBLIC.items() if inspect.isclass(it) and issubclass(it, Exception)}


def blocks(language: str) -> Iterator[tuple[int, str, str | None]]:
    """(line, source, shown output) of each block of the language."""
    for found in BLOCK.finditer(TEXT):
        if found[1] == language:
            yield TEXT[: found.start(2)].count("\n") + 1, found[2], found[3]


def signature(name: str) -> str:
    """A public name's signature as the page shows it: annotations unquoted, a choices method by its name."""
    target: object = nbsgl
    for part in name.split("."):
        target = getattr(target, part)
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(target)))  # type: ignore[arg-type]
    return re.sub(r"<[\w.]+\.TokenLengthNormalized object at \w+>", "token_length_normalized", text)


def squeezed(text: str) -> str:
    return re.sub(r"\s+|,(?=\s*\))", "", text)


@pytest.fixture
def engines() -> Iterator[None]:
    """A runtime folder for the page's engines; the default backend of before afterwards."""
    before = nbsgl.get_default_backend()
    with tempfile.TemporaryDirectory(prefix="nb", dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "NBSGL_RUNTIME_DIR", folder)
        nbsgl.set_default_backend(nbsgl.Engine(keep=0))
        try:
            yield
        finally:
            nbsgl.get_default_backend().stop(force=True)  # type: ignore[union-attr]
            nbsgl.set_default_backend(before)


@pytest.mark.timeout(110)
def test_examples_give_what_is_shown(engines: None) -> None:
    names: dict[str, object] = {"__name__": "language_page"}
    for line, source, shown in blocks("python"):
        written = io.StringIO()
        code = compile("\n" * (line - 1) + source, str(PAGE), "exec", dont_inherit=True)
        with contextlib.redirect_stdout(written):
            exec(code, names)
        if shown is not None:
            expected = shown.replace("…", "...")
            is_as_shown = doctest.OutputChecker().check_output(expected, written.getvalue(), doctest.ELLIPSIS)
            assert is_as_shown, f"{PAGE.name}:{line} printed\n{written.getvalue()}instead of\n{shown}"


def test_every_public_name_has_a_section_or_a_row() -> None:
    sections = set(re.findall(r"^### `(\w+)`$", TEXT, re.MULTILINE))
    rows = set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE))
    assert sections == set(nbsgl.__all__) - ERRORS
    assert rows == ERRORS


def test_signatures_shown_are_those_there_are() -> None:
    shown = {found[1]: found[2] for _, source, _ in blocks("py") if (found := SIGNATURE.match(source))}
    for name, text in shown.items():
        assert squeezed(text) == squeezed(signature(name)), f"{name}{signature(name)}"
    callables = {name for name in nbsgl.__all__ if callable(getattr(nbsgl, name))} - ERRORS
    assert not callables - shown.keys()
