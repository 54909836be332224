"""`python -m nbsgl demo`: a notebook run in a kernel of its own, each cell and its output shown as text."""

from __future__ import annotations

import logging
import os
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbsgl
from nbsgl.errors import UsageError

QUICKSTART = Path("notebooks") / "01_quickstart.ipynb"


def run_demo(path: Path | None, *, save: bool, timeout_s: float, write: Callable[[str], None]) -> int:
    """Run the notebook's cells in order; the first error ends it.  Returns the exit status.

    The engine that the notebook started is stopped at the end.  With `save` the outputs go into the file.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    own = path is None
    path = path or quickstart()
    notebook = nbformat.read(path, as_version=4)
    logging.getLogger("traitlets").setLevel(logging.ERROR)
    client = NotebookClient(
        notebook,
        timeout=timeout_s,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        extra_arguments=["--log-level=ERROR"],
    )
    began, failed = time.monotonic(), False
    with (
        tempfile.TemporaryDirectory(prefix="nbsgl-demo-") as scratch,
        client.setup_kernel(
            # what the quickstart writes is for a reader's own run of it, not for this one
            cwd=scratch if own else str(path.resolve().parent),
            env=_environment(scratch),
        ),
    ):
        try:
            for index, cell in enumerate(notebook.cells):
                write(source_text(cell))
                if cell.cell_type == "code":
                    client.execute_cell(cell, index)
                    write(output_text(cell))
        except CellExecutionError as error:
            failed = True
            write(output_text(notebook.cells[index]).strip() or str(error))
        finally:
            _stop_engine(client)
    if save and not failed:
        _tidy(notebook)
        nbformat.write(notebook, path)
        write(f"saved: {path}")
    write(f"{path.name}: {'failed' if failed else 'done'} in {time.monotonic() - began:.1f} s")
    if not failed:
        write("To open it in JupyterLab: make lab")
    return 1 if failed else 0


def quickstart() -> Path:
    """The quickstart notebook: in the folder where one stands, or beside the package."""
    for folder in (Path.cwd(), Path(nbsgl.__file__).parents[1]):
        if (folder / QUICKSTART).is_file():
            return folder / QUICKSTART
    raise UsageError(f"{QUICKSTART} was not found.", hint="Run this in a clone of the repository, or name a notebook.")


def source_text(cell: Any) -> str:
    """A cell's source as a terminal shows it: code behind a bar, prose plain."""
    text = cell.source.rstrip()
    if cell.cell_type != "code":
        return f"{text}\n"
    return textwrap.indent(text, "│ ", lambda line: True)


def output_text(cell: Any) -> str:
    """The plain text of a cell's outputs."""
    parts = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            parts.append(output.text)
        elif output.output_type == "error":
            parts.append("\n".join(output.traceback))
        else:
            parts.append(output.data.get("text/plain", ""))
    return "\n".join(part.rstrip() for part in parts if part.strip()) + "\n"


def _environment(scratch: str) -> dict[str, str]:
    """A front end without widgets gets HTML from the start; engines of the demo's own, with nothing cached yet."""
    return {
        "NBSGL_VIEW": "html",
        "NBSGL_RUNTIME_DIR": str(Path(scratch) / "engines"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        **os.environ,
    }


def _stop_engine(client: Any) -> None:
    from nbclient.exceptions import CellExecutionError
    from nbformat.v4 import new_code_cell

    code = "import nbsgl\nif (engine := nbsgl.get_default_backend()) is not None:\n    engine.stop()"
    cells = client.nb.cells
    cells.append(new_code_cell(code))
    try:
        client.execute_cell(cells[-1], len(cells) - 1)
    except CellExecutionError:
        logging.getLogger("nbsgl").info("the notebook's engine goes on: others are connected to it")
    finally:
        cells.pop()


def _tidy(notebook: Any) -> None:
    """What would differ from run to run without a reason is not kept."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
