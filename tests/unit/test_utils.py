"""`global_config`, `ServerArgs`, and the helpers of SGLang's notebooks."""

from __future__ import annotations

import http.server
import json
import sys
import threading

import psutil
import pytest

import nbsgl as sgl
from nbsgl import utils
from nbsgl.errors import ParameterError, Unsupported
from nbsgl.lang.default import default
from nbsgl.lang.global_config import GlobalConfig, global_config
from tests.unit.fakes import FakeBackend


@pytest.fixture
def backend():
    fake = FakeBackend()
    yield fake
    fake.close()


# ---- global_config ---------------------------------------------------------------------------------------------------


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setattr(default, "_backend", None)
    monkeypatch.setattr(default, "_was_set", False)
    values = dict(global_config._values)
    yield global_config
    global_config._values.update(values)


def test_the_default_backend_is_that_of_the_session(config, backend) -> None:
    config.default_backend = backend
    assert sgl.get_default_backend() is backend is config.default_backend is sgl.global_config.default_backend


def test_verbosity_prints_what_was_waited_for(config, backend, capsys) -> None:
    program = sgl.function(lambda s, a: s.__iadd__(a + sgl.gen("x")))
    program.run_batch([("p",), ("q",)], backend=backend)
    assert capsys.readouterr().out == ""
    config.verbosity = 2
    program.run_batch([("p",), ("q",)], backend=backend)
    with sgl.state(backend) as s:
        s += "block"
    assert capsys.readouterr().out == "p[x]\nq[x]\nblock\n"


def test_what_cannot_be_kept_raises() -> None:
    config = GlobalConfig()
    config.enable_precache_with_tracing = False
    assert config.enable_precache_with_tracing is False
    for name in ("skip_special_tokens_in_output", "spaces_between_special_tokens_in_out", "enable_parallel_encoding"):
        setattr(config, name, True)
        with pytest.raises(Unsupported, match=name):
            setattr(config, name, False)
    for name, wrong in (("verbosity", "high"), ("verbosity", True), ("enable_parallel_encoding", 1)):
        with pytest.raises(ParameterError):
            setattr(config, name, wrong)
    with pytest.raises(AttributeError, match="it has default_backend"):
        config.verbose = 1
    assert "verbosity=0" in repr(config)


# ---- ServerArgs ------------------------------------------------------------------------------------------------------


def test_server_args_are_the_engines_settings() -> None:
    args = sgl.ServerArgs(model_path="embedded", random_seed=3)
    with sgl.Engine(server_args=args) as engine:
        assert engine.config == args
    with pytest.raises(TypeError, match="tp_sise"):
        sgl.ServerArgs(tp_sise=2)
    for wrong in (
        {"server_args": args, "random_seed": 3},
        {"server_args": 3},
        {"server_args": args, "model_path": "m"},
    ):
        with pytest.raises(ParameterError):
            sgl.Engine(**wrong)


# ---- utils -----------------------------------------------------------------------------------------------------------


class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer(200 if self.path == "/v1/models" else 404, b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        told = {"body": body, "key": self.headers.get("Authorization"), "method": self.command}
        self.answer(200, json.dumps(told).encode() + b"\nsecond\n")

    do_PUT = do_POST

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def url():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_http_request_sends_json_and_gives_errors_as_answers(url) -> None:
    answer = utils.http_request(f"{url}/x", json={"a": 1}, api_key="k", method="PUT")
    told = json.loads(answer.text.splitlines()[0])
    assert told == {"body": {"a": 1}, "key": "Bearer k", "method": "PUT"}
    assert (answer.ok, answer.status_code) == (True, 200)
    missing = utils.http_request(f"{url}/x")
    assert (missing.ok, missing.status_code, missing.json()) == (False, 404, {})
    lines = utils.http_request(f"{url}/x", json=1, stream=True).iter_lines()
    assert list(lines)[1] == b"second"
    with pytest.raises(ParameterError):
        utils.http_request("file:///etc/hosts")


def test_waiting_for_a_server_has_ways_out(url) -> None:
    utils.wait_for_server(url, timeout=5)
    with pytest.raises(TimeoutError, match="does not answer"):
        utils.wait_for_server("http://127.0.0.1:9", timeout=0.1)
    process, _ = utils.launch_server_cmd(f"{sys.executable} -c 'raise SystemExit(3)'")
    with pytest.raises(utils.ServerEnded, match="ended with 3"):
        utils.wait_for_server("http://127.0.0.1:9", process=process)
    utils.terminate_process(process)


def test_a_launched_server_and_its_children_end() -> None:
    code = (
        "import http.server, subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "http.server.ThreadingHTTPServer((sys.argv[2], int(sys.argv[4])), http.server.SimpleHTTPRequestHandler)"
        ".serve_forever()"
    )
    process, port = utils.launch_server_cmd(f'{sys.executable} -c "{code}"')
    for _ in range(200):
        try:
            utils.http_request(f"http://127.0.0.1:{port}/none", timeout=5)
            break
        except OSError:
            assert process.poll() is None
            threading.Event().wait(0.05)
    children = psutil.Process(process.pid).children()
    assert len(children) == 1
    utils.terminate_process(process)
    assert process.poll() is not None
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []


def test_texts_are_dumped_and_highlighted(tmp_path, backend, capsys) -> None:
    with sgl.state(backend) as s:
        s += "a" + sgl.gen("x")
    utils.dump_state_text(str(tmp_path / "out"), [s, "plain", 3])
    text = (tmp_path / "out").read_text()
    assert "0 ====" in text.splitlines()[0]
    assert text.splitlines()[1] == "a[x]"
    assert ("plain" in text, "\n3\n" in text) == (True, True)
    utils.print_highlight("seen")
    assert capsys.readouterr().out == "seen\n"
