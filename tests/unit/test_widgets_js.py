"""The views' JavaScript: what it must not contain, and its own tests on messages recorded here."""

from __future__ import annotations

import base64
import itertools
import json
import os
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nbsgl.grammar import picture
from nbsgl.protocol import GrammarSpec, TreeNode
from nbsgl.widgets.grammar import grammar_message
from nbsgl.widgets.icicle import icicle
from nbsgl.widgets.run import run_delta
from nbsgl.widgets.text import visible
from nbsgl.widgets.tree import TreePicture, _payload, tree_delta, tree_picture
from nbsgl.widgets.view import STATIC, module
from tests.unit.widget_pictures import PAYLOADS, chat, random_run, random_tree, snapshot

JS_TESTS = Path(__file__).parent.parent / "js"
MAX_BYTES = 40_000
SINKS = r"""innerHTML|outerHTML|insertAdjacentHTML|document\s*\.\s*write|\beval\b|new\s+Function|\bFunction\s*\(|srcdoc|
createContextualFragment|DOMParser|setHTMLUnsafe|\bimport\s*\(|\bfetch\b|XMLHttpRequest|WebSocket|https?://|\.src\b|\.href\b|
setAttribute\(\s*["'](?:on|src|href|style)"""


@pytest.mark.parametrize("path", sorted(STATIC.glob("*.js")), ids=lambda path: path.name)
def test_no_html_sinks(path: Path) -> None:
    namespace = "http://www.w3.org/2000/svg"  # a name, which nothing loads
    found = re.findall(SINKS.replace("\n", ""), path.read_text().replace(namespace, ""))
    assert not found


@pytest.mark.parametrize("name", ["run", "tree", "grammar"])
def test_a_view_is_one_module_of_at_most_40_kb(name: str) -> None:
    code = module(name)
    assert len(code.encode()) <= MAX_BYTES
    assert not re.search(r"^\s*import\b", code, re.MULTILINE)
    assert code.count("export default ") == 1


def test_style_sheet_loads_nothing() -> None:
    css = (STATIC / "base.css").read_text()
    assert not re.search(r"url\(|@import|https?:", css)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def record_run(rng: random.Random) -> dict[str, Any]:
    old = random_run(rng)
    recorded: dict[str, Any] = {"full": b64(msgspec.json.encode(old)), "steps": []}
    for _ in range(8):
        new = random_run(rng, old)
        delta = msgspec.json.encode(run_delta(old, new))
        recorded["steps"].append({"delta": b64(delta), "want": b64(msgspec.json.encode(new))})
        old = new
    return recorded


def record_tree(rng: random.Random) -> dict[str, Any]:
    nodes = random_tree(rng, 60)
    picture = tree_picture(snapshot(nodes), 100.0)
    messages = [_payload(picture.facts, [], picture.rows.values()).buffers]
    wanted = [rows_of(picture)]
    for step in range(1, 5):
        nodes = shuffled(rng, nodes)
        new = tree_picture(snapshot(nodes, time=100.0 + step), 100.0, picture)
        payload = tree_delta(picture, new)
        assert payload is not None
        messages.append(payload.buffers)
        wanted.append(rows_of(new))
        picture = new
    return {"messages": [[b64(buffer) for buffer in buffers] for buffers in messages], "want": wanted}


def shuffled(rng: random.Random, nodes: list[TreeNode]) -> list[TreeNode]:
    """Some leaves evicted, some nodes used again, one added."""
    parents = {n.parent for n in nodes}
    kept = [n for n in nodes if n.id in parents or rng.random() < 0.8]
    kept = [msgspec.structs.replace(n, hits=n.hits + 1, age_s=0.0) if rng.random() < 0.2 else n for n in kept]
    new = TreeNode(id=rng.randrange(1000, 9999), parent=0, num_tokens=7, locks=1, hits=0, age_s=0.0, depth=1)
    return [*kept, new]


def rows_of(picture: TreePicture) -> list[list[object]]:
    rows = sorted(picture.rows.values())
    return [[r.id, r.parent, r.tokens, r.locks, r.hits, round(r.last_use * 100), bool(r.flags & 1)] for r in rows]


def record_grammar() -> dict[str, Any]:
    """A text's growth under a grammar, as the widget's messages."""
    pattern = r'\{"name": "[^"\\]{1,20}", "born": "[0-9]{4}-(0[1-9]|1[0-2])", "role": "(admin|author)"\}'
    text = '{"name": "Zoë", "born": "1815-12", "role": "author"}'
    texts = [text[:end] for end in (0, 3, 12, 14, 20, 27, 40, len(text))]
    pictures = [picture(GrammarSpec(kind="regex", text=pattern), text) for text in texts]
    messages = [grammar_message(pictures[0])]
    messages += [grammar_message(new, old) for old, new in itertools.pairwise(pictures)]
    return {"messages": [b64(msgspec.json.encode(message)) for message in messages], "texts": texts}


def record_all(folder: Path) -> None:
    rng = random.Random(7)
    nodes = random_tree(rng, 200)
    boxes = icicle(nodes, 700, 300)
    texts = [text for text in (*PAYLOADS, "a\x85b\u200b\ufeff", "plain é 😀\n\t") if "\ud800" not in text]
    recorded = {
        "runs": [record_run(rng) for _ in range(25)],
        "trees": [record_tree(rng) for _ in range(4)],
        "grammar": record_grammar(),
        "chat": b64(msgspec.json.encode(chat())),
        "visible": [[text, visible(text)] for text in texts],
        "icicle": {
            "nodes": [[n.id, n.parent, n.num_tokens] for n in nodes],
            "boxes": [[box.node.id, *box[1:]] for box in boxes],
        },
    }
    for name, value in recorded.items():
        (folder / f"{name}.json").write_text(json.dumps(value))


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_javascript_units(tmp_path: Path) -> None:
    record_all(tmp_path)
    files = sorted(str(path) for path in JS_TESTS.glob("*.test.mjs"))
    env = os.environ | {"NBSGL_RECORDINGS": str(tmp_path)}
    command = ["node", "--test", "--test-reporter=spec", *files]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"pass [1-9]\d", done.stdout)
