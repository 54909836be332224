"""`ApiServer`: a real HTTP server on this machine that speaks as OpenAI's, Azure's or Anthropic's do.

Tests lean on: `requests` has every body with its path and headers; `said(prompt or messages)` is the model; `refusals`
are sent, one each, before any answer; `calls` are the tool calls of every answer, as (name, arguments).  Its tokens are
words with the blanks before them.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = re.compile(r"\s*[^\s]+|\s+$")


def words(text: str) -> list[str]:
    return WORDS.findall(text)


def logprob(token: str) -> float:
    return -len(token) / 10


class Refusal(Exception):
    """An HTTP answer that is none: `Refusal(503, {"error": ...}, {"retry-after": "0"})`."""

    def __init__(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        self.status, self.body, self.headers = status, body or {"error": {"message": "no"}}, headers or {}


class ApiServer:
    """`with ApiServer(said) as server:`; `server.url` is its address.  `said` gives a text, or raises `Refusal`."""

    def __init__(self, said: Callable[[Any], str], has_echo: bool = True) -> None:
        self.said, self.has_echo = said, has_echo
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.refusals: list[Refusal] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.cut_streams = False
        self.pause_s = 0.0  # before each event
        self.gate: threading.Event | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = False
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> ApiServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.gate is not None:
            self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, body, _ in self.requests]

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            timeout = 5.0  # an idle connection does not keep the server from closing

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.requests.append((self.path, body, {k.lower(): v for k, v in self.headers.items()}))
                if server.gate is not None:
                    server.gate.wait(10)
                try:
                    with contextlib.suppress(ConnectionError):
                        server.answer(self, self.path.partition("?")[0], body)
                except Refusal as refusal:
                    self.send(refusal.status, refusal.body, refusal.headers)

            def send(self, status: int, body: Any, headers: dict[str, str]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"content-length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def send_events(self, events: list[dict[str, Any]], last: str) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.end_headers()
                for event in events:
                    kind = f"event: {event['type']}\n" if "type" in event else ": a comment\n"
                    time.sleep(server.pause_s)
                    self.wfile.write(f"{kind}data: {json.dumps(event)}\n\n".encode())
                self.wfile.write(last.encode())

            def log_message(self, *args: Any) -> None:
                pass

        return Handler

    def answer(self, handler: Any, path: str, body: dict[str, Any]) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        if path.endswith("/messages"):
            self._anthropic(handler, body)
        elif path.endswith("/chat/completions"):
            self._chat(handler, body)
        elif path.endswith("/completions"):
            self._completions(handler, body)
        else:
            raise Refusal(404)

    # ---- the model ---------------------------------------------------------------------------------------------------

    def _write(self, prompt: Any, stops: list[str], limit: int | None) -> tuple[list[str], str, str | None]:
        """Tokens, finish reason, the stop that was met."""
        text, reason, met = self.said(prompt), "stop", None
        found = [(text.find(stop), stop) for stop in stops if stop in text]
        if found:
            at, met = min(found)
            text = text[:at]
        tokens = words(text)
        if limit is not None and len(tokens) > limit:
            tokens, reason, met = tokens[:limit], "length", None
        return tokens, reason, met

    # ---- OpenAI ------------------------------------------------------------------------------------------------------

    def _chat(self, handler: Any, body: dict[str, Any]) -> None:
        limit = body.get("max_tokens") or body.get("max_completion_tokens")
        tokens, reason, _ = self._write(body["messages"], body.get("stop", []), limit)
        asked = sum(len(words(message["content"])) for message in body["messages"])
        rows = [{"token": t, "logprob": logprob(t), "top_logprobs": []} for t in tokens]
        if body.get("top_logprobs"):
            rows = [{**row, "top_logprobs": [{"token": row["token"], "logprob": row["logprob"]}]} for row in rows]
        told = body.get("logprobs")
        if not body.get("stream"):
            message = {"role": "assistant", "content": "".join(tokens) or None}
            if self.calls:
                message["tool_calls"] = [{"function": call} for call in self._functions()]
            choice = {"message": message, "finish_reason": reason}
            choice["logprobs"] = {"content": rows} if told else None
            self._send(handler, [{**choice, "index": i} for i in range(body.get("n", 1))], asked, len(tokens))
            return
        events = [
            {"choices": [{"delta": {"content": t}, "logprobs": {"content": [row]} if told else None}]}
            for t, row in zip(tokens, rows, strict=True)
        ]
        for i, call in enumerate(self._functions()):
            for part in ({"name": call["name"], "arguments": ""}, *({"arguments": c} for c in call["arguments"])):
                events.append({"choices": [{"delta": {"tool_calls": [{"index": i, "function": part}]}}]})
        self._stream(handler, events, {"delta": {}}, reason, asked, len(tokens))

    def _functions(self) -> list[dict[str, str]]:
        return [{"name": name, "arguments": json.dumps(arguments)} for name, arguments in self.calls]

    def _completions(self, handler: Any, body: dict[str, Any]) -> None:
        if body.get("echo"):
            self._echo(handler, body)
            return
        bias = body.get("logit_bias")
        if bias:
            self._send(handler, [{"text": self.biased(body), "finish_reason": "length", "index": 0}], 1, 1)
            return
        tokens, reason, _ = self._write(body["prompt"], body.get("stop", []), body["max_tokens"])
        logprobs = {"tokens": tokens, "token_logprobs": [logprob(t) for t in tokens], "top_logprobs": None}
        asked = len(words(body["prompt"]))
        if not body.get("stream"):
            choice = {"text": "".join(tokens), "finish_reason": reason}
            choice["logprobs"] = logprobs if "logprobs" in body else None
            self._send(handler, [{**choice, "index": i} for i in range(body.get("n", 1))], asked, len(tokens))
            return
        events = [{"choices": [{"text": token}]} for token in tokens]
        self._stream(handler, events, {"text": ""}, reason, asked, len(tokens))

    def _echo(self, handler: Any, body: dict[str, Any]) -> None:
        if not self.has_echo:
            raise Refusal(400, {"error": {"message": "echo is not supported"}})
        choices = []
        for i, prompt in enumerate(body["prompt"]):
            tokens = [*words(prompt), " more"]
            values = [None, *(logprob(t) for t in tokens[1:])]
            logprobs = {"tokens": tokens, "token_logprobs": values, "top_logprobs": None}
            choices.append({"index": i, "text": "".join(tokens), "logprobs": logprobs, "finish_reason": "length"})
        self._send(handler, choices[::-1], sum(len(words(p)) for p in body["prompt"]), len(choices))

    def biased(self, body: dict[str, Any]) -> str:
        """The token of the text that the bias allows: ids are characters."""
        wanted = self.said(body["prompt"])
        done = body["prompt"].rpartition("? ")[2]
        token = wanted[len(done) : len(done) + 1]
        return token if not token or str(ord(token)) in body["logit_bias"] else "!"

    def _send(self, handler: Any, choices: list[dict[str, Any]], asked: int, told: int) -> None:
        usage = {"prompt_tokens": asked, "completion_tokens": told, "prompt_tokens_details": {"cached_tokens": 1}}
        handler.send(200, {"choices": choices, "usage": usage}, {"x-request-id": "r1"})

    def _stream(self, handler: Any, events: Any, last: Any, reason: str, asked: int, told: int) -> None:
        if not self.cut_streams:
            events = [*events, {"choices": [{**last, "finish_reason": reason}]}]
            events.append({"choices": [], "usage": {"prompt_tokens": asked, "completion_tokens": told}})
        handler.send_events(events, "" if self.cut_streams else "data: [DONE]\n\n")

    # ---- Anthropic ---------------------------------------------------------------------------------------------------

    def _anthropic(self, handler: Any, body: dict[str, Any]) -> None:
        assert all(stop.strip() for stop in body.get("stop_sequences", [])), "blank stop_sequences"
        known = {"id": "m1", "type": "message", "role": "assistant", "model": body["model"]}
        if "tools" in body and self.calls:
            blocks = [{"type": "text", "text": self.said(body["messages"])}]
            blocks += [{"type": "tool_use", "name": name, "input": arguments} for name, arguments in self.calls]
            usage = {"input_tokens": 3, "output_tokens": 2}
            handler.send(200, {**known, "content": blocks, "stop_reason": "tool_use", "usage": usage}, {})
            return
        if "tools" in body:
            block = {"type": "tool_use", "name": "choose", "input": {"choice": self.said(body["messages"])}}
            usage = {"input_tokens": 3, "output_tokens": 2}
            handler.send(200, {**known, "content": [block], "stop_reason": "tool_use", "usage": usage}, {})
            return
        tokens, reason, met = self._write(body["messages"], body.get("stop_sequences", []), body["max_tokens"])
        asked = sum(len(words(message["content"])) for message in body["messages"])
        names = {"stop": "stop_sequence" if met else "end_turn", "length": "max_tokens"}
        end = {"stop_reason": names[reason], "stop_sequence": met}
        if not body.get("stream"):
            content = [{"type": "text", "text": "".join(tokens)}]
            usage = {"input_tokens": asked, "output_tokens": len(tokens), "cache_read_input_tokens": 1}
            handler.send(200, {**known, "content": content, **end, "usage": usage}, {})
            return
        deltas = [{"type": "content_block_delta", "delta": {"type": "text_delta", "text": t}} for t in tokens]
        started = {"type": "message_start", "message": {**known, "usage": {"input_tokens": asked, "output_tokens": 1}}}
        ended = {"type": "message_delta", "delta": end, "usage": {"output_tokens": len(tokens)}}
        handler.send_events([started, {"type": "ping"}, *deltas, ended, {"type": "message_stop"}], "")
