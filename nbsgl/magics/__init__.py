"""The IPython extension: `%load_ext nbsgl` loads the magics; it starts no engine, and loading twice changes nothing."""

from __future__ import annotations

from typing import Any

_ATTRIBUTE = "_nbsgl"  # on the shell: the extension has no state of its own


def load(shell: Any) -> None:
    """Register `%sgl` and `%%sgl`, and say in one line if an engine of this user runs already."""
    if getattr(shell, _ATTRIBUTE, None) is not None:
        return
    from nbsgl.magics.cell import CellSyntaxError, show_syntax_error
    from nbsgl.magics.completion import completions
    from nbsgl.magics.display import say
    from nbsgl.magics.session import Session
    from nbsgl.magics.sgl import SglMagics

    session = Session(shell)
    magics = SglMagics(shell, session)
    shell.register_magics(magics)
    session.remember_history()
    shell.events.register("pre_run_cell", magics.note_cell)
    shell.events.register("post_run_cell", session.log_cell)
    shell.input_transformers_cleanup.append(keep_empty)
    if not shell.custom_exceptions:  # there is one handler for all, and it may be somebody else's
        shell.set_custom_exc((CellSyntaxError,), show_syntax_error)
    matcher = completions(shell)
    shell.Completer.custom_matchers.append(matcher)
    setattr(shell, _ATTRIBUTE, (magics, session, matcher))
    found = session.lingering()
    if found:
        say(found)


def unload(shell: Any) -> None:
    """Take the magics away and stop background runs; the engine goes on."""
    loaded = getattr(shell, _ATTRIBUTE, None)
    if loaded is None:
        return
    magics, session, matcher = loaded
    session.close()
    from nbsgl.magics.cell import CellSyntaxError

    if shell.custom_exceptions == (CellSyntaxError,):
        shell.set_custom_exc((), None)
    shell.events.unregister("pre_run_cell", magics.note_cell)
    shell.events.unregister("post_run_cell", session.log_cell)
    shell.Completer.custom_matchers.remove(matcher)
    shell.input_transformers_cleanup.remove(keep_empty)
    for kind in ("line", "cell"):
        shell.magics_manager.magics[kind].pop("sgl", None)
    setattr(shell, _ATTRIBUTE, None)


def load_ipython_extension(ipython: Any) -> None:
    """`%load_ext nbsgl`."""
    load(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """`%unload_ext nbsgl`."""
    unload(ipython)


def keep_empty(lines: list[str]) -> list[str]:
    """Give an empty `%%sgl` cell a comment as its body: IPython itself would refuse it, `--help` and all."""
    if lines and lines[0].startswith("%%sgl") and not "".join(lines[1:]).strip():
        return [lines[0].rstrip("\n") + "\n", "#\n"]
    return lines
