"""A real kernel: what a newcomer's cells show, the stop button, a killed worker, a restarted kernel."""

import json
import os
import signal
import time

import pytest

from tests.notebook.kernels import Kernel, Reply, kernel

pytestmark = pytest.mark.notebook

CHAT = """%%sgl
s += system("You answer in one word.")
s += user("What is the capital of France?")
s += assistant(gen("answer", max_tokens=8, temperature=0))"""
LONG = """%%sgl
for i in range(200):
    s += "Count:" + gen(f"x{i}", max_tokens=100, regex="[a-z ]{100,}")
s["x199"]"""


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernel")
    with kernel(folder, NBSGL_VIEW="html") as made:
        reply = made.run("%load_ext nbsgl")
        assert reply.error is None, reply.text
        yield made
        made.run("%sgl stop --force")


@pytest.fixture
def started(notebook: Kernel) -> Kernel:
    """The kernel with its engine up, so that a test measures its own cell."""
    reply = notebook.run(CHAT, timeout=120)
    assert reply.error is None, reply.text
    return notebook


def ok(reply: Reply) -> Reply:
    assert reply.error is None, reply.text
    return reply


def test_chat_cell_shows_prompt_and_answer_in_text_and_html(started):
    reply = ok(started.run(CHAT))
    assert "What is the capital of France?" in reply.text
    assert "[answer: Paris]" in reply.text
    assert "Paris" in reply.html
    assert "<script" not in reply.html
    assert ok(started.run('print(s["answer"])')).text == "Paris\n"


def test_second_run_reads_the_prefix_from_the_cache(started):
    ok(started.run("%sgl flush"))
    first, second = ok(started.run(CHAT)), ok(started.run(CHAT))
    assert " 0 tokens cached" in first.text
    assert " 0 tokens cached" not in second.text


def test_a_saved_output_holds_no_widget(started):
    assert ok(started.run(CHAT)).mimes <= {"text/html", "text/plain"}


def test_live_view_is_replaced_when_the_cell_ends(started):
    ok(started.run("import os; os.environ['NBSGL_VIEW'] = 'live'"))
    try:
        reply = ok(started.run(CHAT))
    finally:
        ok(started.run("os.environ['NBSGL_VIEW'] = 'html'"))
    assert reply.mimes <= {"text/html", "text/plain"}
    assert "[answer: Paris]" in reply.text


def test_on_goes_on_from_a_fork(started):
    ok(started.run('%%sgl --on s --out t\ns += user("And of Italy?")\ns += assistant(gen("next", max_tokens=8))'))
    assert ok(started.run('print(t["answer"], "next" in t, "next" in s)')).text == "Paris True False\n"


def test_the_kernel_never_imports_torch(started):
    ok(started.run(CHAT))
    ok(started.run("%sgl status"))
    code = "import sys; print([name for name in ('torch', 'transformers', 'triton') if name in sys.modules])"
    assert ok(started.run(code)).text == "[]\n"


def test_status_says_model_and_device(started):
    text = ok(started.run("%sgl status")).text
    for words in ("model", "device", "cpu", "KV pool", "prefix tree", "batch", "cache hits"):
        assert words in text


def test_tree_shows_the_cached_prompts(started):
    assert "prefix tree" in ok(started.run("%sgl tree")).text


def test_interrupt_raises_in_the_cell_at_once_and_the_next_cell_works(started):
    cell = started.start(LONG)
    started.wait_for_display(cell, "Count:")
    time.sleep(0.3)
    pressed = time.monotonic()
    started.interrupt()
    reply = started.finish(cell)
    assert reply.error == "KeyboardInterrupt", reply.text
    # 0.5 s of ours; an interrupt of a sleeping cell takes Jupyter's own part of it
    assert time.monotonic() - pressed < 0.5 + jupyters_own_time(started)
    assert "[answer: Paris]" in ok(started.run(CHAT)).text


def jupyters_own_time(notebook: Kernel) -> float:
    cell = notebook.start("import time\nprint('sleeping', flush=True)\ntime.sleep(30)")
    notebook.wait_for_display(cell, "sleeping")
    pressed = time.monotonic()
    notebook.interrupt()
    notebook.finish(cell)
    return time.monotonic() - pressed


def test_background_run_goes_on_while_other_cells_run(started):
    ok(started.run('%%sgl --bg --name w --out w\ns += "Count:" + gen("numbers", max_tokens=60)'))
    assert ok(started.run("1 + 1")).text == "2\n"
    assert ok(started.run('print(len(w["numbers"]) > 0)')).text == "True\n"
    assert "run w" in ok(started.run("%sgl show w")).text


def test_killed_worker_raises_engine_died_and_the_next_cell_works(started):
    cell = started.start(LONG)
    started.wait_for_display(cell, "Count:")
    time.sleep(0.3)
    killed = time.monotonic()
    os.kill(worker_pid(started), signal.SIGKILL)
    reply = started.finish(cell)
    assert "EngineDied" in reply.text + reply.traceback, reply.text
    assert time.monotonic() - killed < 2.0
    assert "[answer: Paris]" in ok(started.run(CHAT, timeout=60)).text


def test_restarted_kernel_finds_the_engine_and_its_cache(started):
    ok(started.run(CHAT))
    started.restart()
    assert "engine found" in ok(started.run("%load_ext nbsgl")).text
    reply = ok(started.run(CHAT))
    assert "[answer: Paris]" in reply.text
    assert " 0 tokens cached" not in reply.text


def worker_pid(notebook: Kernel) -> int:
    """The worker of the one engine in this test's runtime folder."""
    (record,) = [json.loads(path.read_text()) for path in notebook.runtime.glob("*/engine.json")]
    return int(record["worker"])
