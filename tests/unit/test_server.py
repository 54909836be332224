"""The HTTP door over a fake engine: shapes, refusals, limits, and clients that leave."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from nbsgl import errors
from nbsgl.engine.server import cli, serving
from nbsgl.engine.server.app import make_app, status_of
from nbsgl.engine.server.guard import Rules
from nbsgl.errors import ParameterError
from tests.unit.served import FakeEngine, served, until

KEY = "k" * 43


@pytest.fixture(scope="module")
def engine() -> Iterator[FakeEngine]:
    engine = FakeEngine(lambda prompt, node: ["an", "swer"])
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def url(engine: FakeEngine) -> Iterator[str]:
    with served(engine) as url:
        yield url


def ask(url: str, body: Any, **more: Any) -> httpx.Response:
    return httpx.post(f"{url}/generate", json=body, timeout=10, **more)


def events(text: str) -> list[Any]:
    lines = [line for line in text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


# ---- shapes ----------------------------------------------------------------------------------------------------------


def test_one_prompt_gives_one_answer_and_a_list_a_list(url) -> None:
    one = ask(url, {"text": "Hello", "sampling_params": {"max_new_tokens": 4}}).json()
    assert one["text"] == "answer"
    assert one["meta_info"]["prompt_tokens"] == 5
    assert one["meta_info"]["finish_reason"] == {"type": "stop", "matched": 2}
    assert [a["text"] for a in ask(url, {"text": ["a", "b"]}).json()] == ["answer"] * 2
    assert isinstance(ask(url, {"input_ids": [1, 2]}).json(), dict)
    assert len(ask(url, {"input_ids": [[1], [2]], "sampling_params": [{"n": 2}, {"n": 2}]}).json()) == 4


def test_request_ids_are_the_callers_own(url) -> None:
    assert ask(url, {"text": "a", "rid": "mine"}).json()["meta_info"]["id"] == "mine"
    both = ask(url, {"text": ["a", "b"], "rid": ["x", "y"]}).json()
    assert [one["meta_info"]["id"] for one in both] == ["x", "y"]


def test_logprobs_come_with_their_text_on_request(url) -> None:
    body = {"text": "ab", "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 1}
    meta = ask(url, body).json()["meta_info"]
    assert meta["input_token_logprobs"] == [[-0.5, 97, None], [-0.5, 98, None]]
    meta = ask(url, {**body, "return_text_in_logprobs": True}).json()["meta_info"]
    assert meta["output_token_logprobs"][0] == [-0.5, 97, "a"]
    assert meta["output_top_logprobs"][0] == [[-0.5, 97, "a"]]


def test_scoring_a_prompt_without_naming_its_start_scores_all_of_it(url, engine) -> None:
    ask(url, {"input_ids": [[1, 2]], "sampling_params": {"max_new_tokens": 0}, "return_logprob": True})
    gens = [node for node in engine.submissions[-1] if hasattr(node, "params")]
    assert gens[0].params.logprob_start_len == 0


def test_a_stream_has_all_text_so_far_in_each_event(url) -> None:
    response = ask(url, {"text": "a", "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    texts = [event["text"] for event in events(response.text)]
    assert texts == ["an", "answer", "answer"]
    assert events(response.text)[-1]["meta_info"]["finish_reason"]["type"] == "stop"
    many = events(ask(url, {"text": ["a", "b"], "stream": True}).text)
    assert {event["index"] for event in many} == {0, 1}


def test_the_other_routes(url, engine) -> None:
    assert httpx.get(f"{url}/health").status_code == 200
    assert httpx.get(f"{url}/health_generate").status_code == 200
    info = httpx.get(f"{url}/get_model_info").json()
    assert (info["model_path"], info["is_generation"], info["nbsgl"]["model"]) == ("embedded", True, "fake")
    assert info["tokenizer_path"].endswith("tiny")
    server = httpx.get(f"{url}/get_server_info").json()
    assert server["max_total_num_tokens"] == 0
    assert server["nbsgl"]["info"]["context_length"] == 4096
    assert httpx.get(f"{url}/model_info").json() == info
    assert httpx.get(f"{url}/server_info").json().keys() == server.keys()
    before = engine.num_flushes
    assert httpx.get(f"{url}/flush_cache").status_code == 200
    assert httpx.post(f"{url}/flush_cache", json={"empty_cache": True}).status_code == 200
    assert engine.num_flushes == before + 2
    engine.is_ready = False
    assert httpx.get(f"{url}/health").status_code == 503
    engine.is_ready = True


# ---- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "input_ids"),
        ([], "JSON object"),
        ({"text": 5}, "text"),
        ({"text": "a", "input_ids": [1]}, "one of the two"),
        ({"text": ["a", "b"], "sampling_params": [{}]}, "one per prompt"),
        ({"text": "a", "sampling_params": {"temperature": -1}}, "temperature"),
        ({"text": "a", "sampling_params": {"temperature": "hot"}}, "temperature"),
        ({"text": "a", "sampling_params": {"stop": 5}}, "stop"),
        ({"text": "a", "sampling_params": {"max_tokens": 5}}, "max_new_tokens"),
        ({"text": "a", "sampling_params": {"ebnf": 5}}, "ebnf"),
        ({"text": "a", "sampling_params": {"structural_tag": "{"}}, "tags at #"),
        ({"text": "a", "sampling_params": {"regex": "a", "ebnf": "b"}}, "both given"),
        ({"text": "a", "sampling_params": {"grammar": {"kind": "x"}}}, "grammar"),
        ({"text": "a", "nonsense": 1}, "nonsense"),
        ({"text": "ab", "plain_ranges": [[[1, 3]]]}, "0..2"),
        ({"text": "ab", "plain_ranges": [[[1, 2], [0, 1]]]}, "in order"),
        ({"text": "ab", "plain_ranges": [[[0, 1]], [[0, 1]]]}, "one per prompt"),
        ({"text": "a", "image_data": "file:///etc/passwd"}, "image_data"),
        ({"text": "a", "stream": True, "sampling_params": {"n": 2}}, "n > 1"),
        ({"input_ids": [[1], "x"]}, "input_ids"),
        ({"input_ids": [99999999999999]}, "input_ids"),
    ],
)
def test_bad_input_is_a_400_that_says_what(url, body, says) -> None:
    response = ask(url, body)
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]
    assert set(response.json()["error"]) <= {"type", "message", "request_id"}


def test_what_is_no_json_is_a_400(url) -> None:
    head = {"content-type": "application/json"}
    for content in (b"{", b"\xff\xfe", b"[" * 100_000, b""):
        assert httpx.post(f"{url}/generate", content=content, headers=head).status_code == 400


def test_an_unknown_route_or_method_is_said_in_json(url) -> None:
    assert httpx.get(f"{url}/v1/nothing").status_code == 404
    assert "generate" in httpx.get(f"{url}/generate").json()["error"]["message"]
    assert httpx.get(f"{url}/docs").status_code == httpx.get(f"{url}/openapi.json").status_code == 404


def test_errors_of_the_engine_have_their_status() -> None:
    engine = FakeEngine(lambda prompt, node: errors.QueueFull(what="requests", n=5, limit=4))
    with served(engine) as url:
        for is_stream in (False, True):
            response = ask(url, {"text": "a", "stream": is_stream})
            assert response.status_code == 503
            assert response.json()["error"]["type"] == "QueueFull"
    engine.close()
    statuses = {errors.RequestTooLong: 400, errors.EngineDied: 503, errors.NumericalError: 500, errors.BadGrammar: 400}
    assert {kind: status_of(kind()) for kind in statuses} == statuses


# ---- who may come in -------------------------------------------------------------------------------------------------


def test_every_route_is_guarded() -> None:
    engine = FakeEngine()
    guard = make_app(engine, Rules(api_key=KEY))
    paths = {(route.path, method) for route in guard.app.routes for method in route.methods}
    assert len(paths) == 9
    with served(engine, Rules(api_key=KEY)) as url:
        for path, method in paths:
            for head in ({}, {"authorization": "Bearer nope"}, {"authorization": KEY}, {"x-api-key": KEY}):
                response = httpx.request(method, url + path, headers={"content-type": "application/json", **head})
                assert response.status_code == 401, (path, method)
        assert httpx.get(f"{url}/health?api_key={KEY}").status_code == 401
        assert httpx.get(f"{url}/health", headers={"authorization": f"Bearer {KEY}"}).status_code == 200
    engine.close()


@pytest.mark.parametrize(
    "head",
    [
        {"host": "evil.example"},
        {"host": "evil.example:80"},
        {"host": ""},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_dns_rebinding_and_foreign_pages_are_refused(url, head) -> None:
    assert httpx.get(f"{url}/health", headers=head).status_code == 403


def test_no_page_of_another_site_can_post(url) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        response = httpx.post(f"{url}/generate", content=b'{"text": "a"}', headers={"content-type": kind})
        assert response.status_code == 415
    response = ask(url, {"text": "a"})
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_an_address_for_others_needs_a_key() -> None:
    with pytest.raises(ParameterError, match="api-key new"):
        Rules.of("0.0.0.0", None, [])
    assert "box.example" in Rules.of("0.0.0.0", KEY, ["Box.example"]).hosts


def test_two_host_headers_are_refused(url) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n")
        assert b" 400 " in sock.recv(4096)


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_limits_table() -> None:
    engine = FakeEngine()
    with served(engine, Rules(max_body=1000, body_s=0.3)) as url:
        assert ask(url, {"text": "x" * 1100}).status_code == 413

        def chunks() -> Iterator[bytes]:
            yield b'{"text": "'
            for _ in range(20):
                yield b"x" * 100

        head = {"content-type": "application/json"}
        assert httpx.post(f"{url}/generate", content=chunks(), headers=head).status_code == 413

        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as sock:
            sock.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
            sock.sendall(b"Content-Length: 100\r\n\r\n{")
            assert b" 408 " in sock.recv(4096)
        with socket.create_connection((host, int(port)), timeout=5) as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (40 << 10))
            assert b" 400 " in sock.recv(4096)
        assert not engine.submissions
    engine.close()


def test_slowloris(monkeypatch) -> None:
    monkeypatch.setattr(serving, "HEADER_S", 0.3)
    engine = FakeEngine()
    with served(engine) as url:
        host, port = url.removeprefix("http://").split(":")
        for start in (b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET"):
            with socket.create_connection((host, int(port)), timeout=5) as sock:
                sock.sendall(start)
                began = time.monotonic()
                try:
                    while sock.recv(4096):
                        pass
                except ConnectionResetError:
                    pass
                assert time.monotonic() - began < 3
    engine.close()


def test_disconnect_aborts() -> None:
    engine = FakeEngine()
    engine.gate = threading.Event()
    with served(engine) as url:
        for is_stream in (False, True):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/generate", json={"text": "a", "stream": is_stream}, timeout=0.3)
            until(lambda: not engine.runs)
        assert len(engine.all_runs) == 2
    engine.close()


def test_leaving_in_the_middle_of_a_stream_aborts() -> None:
    engine = FakeEngine(lambda prompt, node: ["x" * 50] * 2000)
    body = {"text": "a", "stream": True}
    with served(engine) as url:
        with httpx.stream("POST", f"{url}/generate", json=body, timeout=5) as response:
            next(response.iter_lines())
        until(lambda: not engine.runs)
    engine.close()


def test_slow_reader_evicted() -> None:
    engine = FakeEngine(lambda prompt, node: ["x" * 2000] * 300)  # 300 events, 600 kB the last: about 90 MB
    body = json.dumps({"text": "a", "stream": True}).encode()
    with served(engine, Rules(stall_s=0.3)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as sock:
            head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            sock.sendall(f"POST /generate HTTP/1.1\r\n{head}".encode() + body)
            until(lambda: engine.all_runs)
            until(lambda: not engine.runs)  # it was cut, and its request has ended
            assert httpx.get(f"{url}/health").status_code == 200
    engine.close()


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_commands_help_and_its_refusals(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert "--api-key" in shown
    assert "--mem-fraction-static" in shown
    with pytest.raises(ParameterError, match="api-key new"):
        cli.main(["--host", "0.0.0.0", "--port", "0"])
    with serving.listen("127.0.0.1", 0) as taken:
        taken.listen(1)
        with pytest.raises(ParameterError, match="--port"):
            cli.main(["--port", str(taken.getsockname()[1])])


def test_a_missing_package_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(cli, "PACKAGES", ("uvicorn", "no_such_package"))
    with pytest.raises(errors.Unsupported, match=r'pip install "nbsgl\[serve\]"'):
        cli.main([])


def test_key_not_in_logs(caplog, capfd) -> None:
    engine = FakeEngine()
    with caplog.at_level(0), served(engine, Rules(api_key=KEY)) as url:
        httpx.get(f"{url}/health", headers={"authorization": f"Bearer {KEY}"})
        httpx.get(f"{url}/health", headers={"authorization": f"Bearer {KEY}x"})
    engine.close()
    out = capfd.readouterr()
    ours = [r.getMessage() for r in caplog.records if not r.name.startswith(("httpcore", "httpx"))]
    assert KEY not in "".join([*ours, out.out, out.err])


def test_the_package_is_imported_without_the_servers() -> None:
    code = "import sys, nbsgl.engine.handle, nbsgl.engine.server.cli; print('fastapi' in sys.modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"
