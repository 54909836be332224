"""A real JupyterLab in a real browser, for tests: one server, one notebook, one page, gone when the `with` block ends.

    with open_lab(notebook_of("1 + 1")) as lab:
        lab.run_cell(0)
        assert lab.text(0) == "2"

Needs jupyterlab, ipykernel, playwright (the Python package; no browser download) and a Chromium
(tests/notebook/install_browser.sh).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import nbformat
import psutil
from playwright.sync_api import ConsoleMessage, Locator, Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SETTINGS: dict[str, dict[str, object]] = {
    # All cells stay in the DOM: in the default mode a cell outside the viewport has no nodes to look at.
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "apputils-extension/sessionDialogs": {"skipKernelRestartDialog": True},
}
# `window.jupyterapp` exists because the server is started with expose_app_in_browser.
PANEL = "const panel = jupyterapp.shell.currentWidget, cells = panel.content.widgets, kernel = panel.sessionContext;"


def find_browser() -> str:
    """Return the path of a Chromium: $CHROMIUM, else the first of `BROWSERS` on PATH."""
    for name in (os.environ.get("CHROMIUM"), *BROWSERS):
        if name and (path := shutil.which(name)):
            return path
    raise FileNotFoundError(
        "no Chromium on PATH. Type: sh tests/notebook/install_browser.sh (or set CHROMIUM=/path/to/it)."
    )


def notebook_of(*cells: str) -> nbformat.NotebookNode:
    """Return a Python notebook with these code cells; the kernel is named, so that Lab asks no question."""
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells], metadata={"kernelspec": spec})


def wait_for(probe: Callable[[], object], what: str, timeout_s: float, tick: Callable[[float], object]) -> Any:
    """Return the first true value of `probe`, calling `tick(50)` in between; TimeoutError names `what`."""
    deadline = time.monotonic() + timeout_s
    while not (value := probe()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        tick(50)
    return value


class Lab:
    """One open notebook. Times are seconds; cells are numbered from 0; every wait may raise TimeoutError."""

    def __init__(self, page: Page, path: Path, timeout_s: float) -> None:
        self.page, self.path, self.timeout_s = page, path, timeout_s
        self.console_errors: list[str] = []
        page.on("console", self._note_console)
        page.on("pageerror", lambda error: self.console_errors.append(f"uncaught: {error}"))
        page.on("dialog", lambda dialog: dialog.accept())  # "leave this page?"

    def _note_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.console_errors.append(f"{message.text} [{message.location.get('url', '')}]")

    def js(self, body: str, *args: object) -> Any:
        """Run the body of an async function in the page, with `panel`, `cells`, `kernel` and `args` in reach."""
        return self.page.evaluate(f"async args => {{ {PANEL} {body} }}", list(args))

    def wait_until(self, probe: Callable[[], object], what: str = "condition", timeout_s: float | None = None) -> Any:
        """Wait for `probe()` to be true and return its value; the page's events are handled meanwhile."""
        # Not time.sleep: the synchronous Playwright handles events only inside its own calls.
        return wait_for(probe, what, timeout_s or self.timeout_s, self.page.wait_for_timeout)

    def wait_ready(self) -> None:
        """Wait until the notebook is drawn and its session has settled, with a kernel or without one."""
        ready = "() => { const p = window.jupyterapp?.shell?.currentWidget; return !!p?.content?.widgets?.length"
        ready += " && p.sessionContext.isReady && p.context.isReady }"
        self.page.wait_for_function(ready, timeout=self.timeout_s * 1000)

    # ---- cells ----

    def start_cell(self, i: int) -> None:
        """Run cell i and return at once; `wait_idle(i)` waits for its end."""
        self.js(
            """panel.content.activeCellIndex = args[0]; window.runs ??= {};
                const run = {done: false}; window.runs[args[0]] = run;
                jupyterapp.commands.execute('notebook:run-cell').finally(() => { run.done = true; }); return null;""",
            i,
        )

    def wait_idle(self, i: int, timeout_s: float | None = None) -> None:
        """Wait until cell i, begun by `start_cell` since the last reload, has ended, with a result or with an error."""
        self.wait_until(lambda: self.js("return window.runs[args[0]].done", i), f"cell {i} to end", timeout_s)

    def run_cell(self, i: int, timeout_s: float | None = None) -> None:
        self.start_cell(i)
        self.wait_idle(i, timeout_s)

    def run_all(self, timeout_s: float | None = None) -> None:
        """Run the cells in order and wait; stops at the first error, as Lab does."""
        self.js(
            "window.runs ??= {}; const run = {done: false}; window.runs.all = run;"
            "jupyterapp.commands.execute('notebook:run-all-cells').finally(() => { run.done = true; }); return null;"
        )
        self.wait_until(lambda: self.js("return window.runs.all.done"), "all cells to end", timeout_s)

    def outputs(self, i: int) -> list[dict[str, Any]]:
        """Return cell i's outputs as nbformat dictionaries, as the page holds them now (saved or not)."""
        return self.js("return cells[args[0]].model.outputs?.toJSON() ?? []", i)

    def text(self, i: int) -> str:
        """Return cell i's outputs as plain text: streams, then text/plain, then `Error: value`."""
        parts = []
        for out in self.outputs(i):
            plain = (
                out.get("text") or out.get("data", {}).get("text/plain") or f"{out.get('ename')}: {out.get('evalue')}"
            )
            parts.append(plain if isinstance(plain, str) else "".join(plain))
        return "".join(parts)

    def cell(self, i: int) -> Locator:
        """Locate cell i's output area: `lab.cell(0).locator("button").click()` clicks in its widget."""
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").nth(i).locator(".jp-OutputArea")

    # ---- kernel and page ----

    def interrupt(self) -> None:
        """Press the toolbar's stop button."""
        self.page.locator("[data-command='notebook:interrupt-kernel']").first.click()

    def restart(self) -> None:
        """Restart the kernel; outputs stay."""
        self.js("await kernel.restartKernel()")
        self.wait_until(lambda: self.js("return kernel.session?.kernel?.status") == "idle", "the kernel to restart")

    def shut_kernel(self) -> None:
        """Shut the kernel down, so that what is drawn after a reload is what the file holds."""
        self.js("await kernel.shutdown()")

    def save(self) -> nbformat.NotebookNode:
        """Save, and return the file as it lies on disk."""
        self.js("await panel.context.save()")
        return nbformat.read(self.path, as_version=4)

    def reload(self, *, with_kernel: bool = True) -> None:
        """Load the page anew. Without a kernel, the page is kept from starting one, from here on."""
        if not with_kernel:
            starts_kernel = "(r.method ?? o?.method) === 'POST' && /api.(sessions|kernels)/.test(r.url ?? r)"
            self.page.add_init_script(
                f"window.fetch = (f => (r, o) => {starts_kernel}"
                " ? Promise.reject(new Error('no kernel')) : f(r, o))(fetch)"
            )
        self.page.reload()
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=self.timeout_s * 1000)
        if with_kernel:
            self.wait_ready()

    def screenshot(self, path: Path | str) -> None:
        self.page.screenshot(path=str(path))


@contextmanager
def open_lab(notebook: nbformat.NotebookNode | Path, *, timeout_s: float = 60, **env: str) -> Iterator[Lab]:
    """Serve `notebook` from a fresh directory on 127.0.0.1, open it headless, yield a `Lab`; end what was started."""
    browser = find_browser()
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lab-", ignore_cleanup_errors=True)))
        path = _lay_out(home, notebook)
        url, token = stack.enter_context(_server(home, timeout_s, env))
        page = stack.enter_context(_browser(browser, home / "profile"))
        lab = Lab(page, path, timeout_s)
        page.goto(f"{url}lab/tree/{path.name}?token={token}", timeout=timeout_s * 1000)
        lab.wait_ready()
        yield lab


def _lay_out(home: Path, notebook: nbformat.NotebookNode | Path) -> Path:
    for name, value in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))
    (home / "work").mkdir()
    path = home / "work" / "test.ipynb"
    nbformat.write(nbformat.read(notebook, as_version=4) if isinstance(notebook, Path) else notebook, path)
    return path


@contextmanager
def _server(home: Path, timeout_s: float, env: dict[str, str]) -> Iterator[tuple[str, str]]:
    token = secrets.token_hex(16)
    folders = {f"JUPYTER_{kind.upper()}_DIR": str(home / kind) for kind in ("config", "data", "runtime")}
    folders |= {"IPYTHONDIR": str(home / "ipython"), "JUPYTERLAB_SETTINGS_DIR": str(home / "settings")}
    # The token goes by the environment: a command line is everybody's to read.
    env = os.environ | folders | {"JUPYTER_TOKEN": token, "JUPYTER_PREFER_ENV_PATH": "1"} | env
    options = ["--no-browser", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", "--LabApp.expose_app_in_browser=True"]
    options += ["--allow-root"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            cwd=home / "work",
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        # Jupyter writes this file when it listens; with port 0 it is the only place that knows the port.
        # It is seen empty for a moment: created first, filled next.
        info = home / "runtime" / f"jpserver-{server.pid}.json"
        wait_for(
            lambda: server.poll() is not None or (info.exists() and info.read_text().endswith("}")),
            "the server to listen",
            timeout_s,
            lambda ms: time.sleep(ms / 1000),
        )
        if server.poll() is not None:
            raise RuntimeError(
                f"jupyterlab ended with {server.returncode}:\n{(home / 'server.log').read_text()[-2000:]}"
            )
        yield json.loads(info.read_text())["url"], token
    finally:
        _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ask the server to end (it ends its kernels), then kill what is left of its family, kernels' children too."""
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(server.pid).children(recursive=True)
    server.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.wait(timeout=10)
    for process in psutil.wait_procs(family, timeout=1)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    if server.poll() is None:
        server.kill()
        server.wait()


@contextmanager
def _browser(executable: str, profile: Path) -> Iterator[Page]:
    flags = ["--disable-dev-shm-usage", "--disable-gpu"]  # a container's /dev/shm is often 64 MiB: too small for a tab
    with sync_playwright() as playwright:  # no sandbox: it cannot start as root, and the page is our own
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=executable,
            headless=True,
            args=flags,
            chromium_sandbox=False,
            viewport={"width": 1200, "height": 900},
        )
        try:
            yield context.pages[0]
        finally:
            context.close()
