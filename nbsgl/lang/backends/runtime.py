"""`Runtime`: an engine with its HTTP door open, in a child process of this one."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import AsyncIterator, Sequence
from typing import IO, Any

from nbsgl import chat_templates
from nbsgl.errors import EngineStartFailed, ParameterError, Unsupported
from nbsgl.lang.backends.http import HttpClient
from nbsgl.lang.backends.runtime_endpoint import RuntimeEndpoint

KEY_VARIABLE = "NBSGL_API_KEY"  # a key on a command line could be read by others
TICK_S = 0.1
END_S = 8.0  # the server ends what is under way within 3 s, its engine within 5 s
USAGE = 2  # argparse's exit status


class Runtime:
    """A server of its own (`python -m nbsgl serve`), and `.endpoint`, the backend for it.

    `server_args` are an engine's settings, and `host`, `port` (default: a free one) and `api_key`.  Waits until it
    answers: TimeoutError after `launch_timeout` seconds, `EngineStartFailed` or `ParameterError` if it ends before.
    It ends with `shutdown()`, when nobody holds it or its endpoint any more, or with this process.
    """

    def __init__(self, log_level: str = "error", launch_timeout: float = 300.0, **server_args: Any) -> None:
        if not isinstance(launch_timeout, int | float) or not launch_timeout > 0:
            raise ParameterError(name="launch_timeout", value=launch_timeout, allowed="a number > 0 (seconds)")
        key = server_args.pop("api_key", None) or os.environ.get(KEY_VARIABLE) or None
        self._skips_tokenizer = bool(server_args.get("skip_tokenizer_init"))
        words = _options({"port": 0, "log_level": log_level, **server_args})
        environment = {**os.environ, **({} if key is None else {KEY_VARIABLE: key})}
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as problems:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "nbsgl", "serve", "--until-eof", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=problems,
                env=environment,
                start_new_session=True,  # the stop button's signal is not for it
                text=True,
            )
            weakref.finalize(self, _let_go, self._process)
            try:
                self.url = _wait_for_url(self._process, problems, launch_timeout)
                self.endpoint = RuntimeEndpoint(self.url, api_key=key)
                self.endpoint.owner = self  # `set_default_backend(Runtime(...))` keeps the endpoint only
            except BaseException:
                _end(self._process)
                raise
        self.pid: int | None = self._process.pid
        self.generate_url = f"{self.url}/generate"

    def shutdown(self) -> None:
        """End the server; returns when it has ended.  Idempotent."""
        self.endpoint.close()
        _end(self._process)
        self.pid = None

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *raised: object) -> None:
        self.shutdown()

    def __repr__(self) -> str:
        return f"<nbsgl.Runtime at {self.url}{'' if self.pid else ', ended'}>"

    # ---- asking it ---------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str | list[str],
        sampling_params: dict[str, Any] | None = None,
        return_logprob: bool | list[bool] | None = False,
        logprob_start_len: int | list[int] | None = None,
        top_logprobs_num: int | list[int] | None = None,
        lora_path: str | None = None,
    ) -> str:
        """Complete a prompt, or a list of them: the server's answer as JSON text."""
        if lora_path is not None:
            raise Unsupported("The engine runs no LoRA adapters.", name="lora_path", value=lora_path)
        body = {
            self._field: prompt,
            "sampling_params": sampling_params,
            "return_logprob": return_logprob,
            "logprob_start_len": logprob_start_len,
            "top_logprobs_num": top_logprobs_num,
        }
        return json.dumps(self.endpoint.ask("generate", body))

    async def async_generate(self, prompt: str, sampling_params: dict[str, Any] | None = None) -> AsyncIterator[Any]:
        """The new text as it comes; of a server without a tokenizer its events."""
        http = HttpClient(self.endpoint.name, self.url, self.endpoint.headers, max_retries=0)
        body = {self._field: prompt, "sampling_params": sampling_params, "stream": True}
        told = 0
        try:
            async with contextlib.aclosing(http.stream("generate", body)) as events:
                async for event in events:
                    if self._skips_tokenizer:
                        yield event
                    elif new := event["text"][told:]:
                        told += len(new)
                        yield new
        finally:
            await http.close()

    def encode(self, prompt: str | list[str]) -> str:
        """Raises `Unsupported`: the engine runs models that generate, none that embed."""
        raise Unsupported(
            "encode() gives embeddings, and the engine runs models that generate.",
            name="prompt",
            value=prompt,
            hint="For token ids: runtime.get_tokenizer().encode(text).",
        )

    def get_tokenizer(self) -> Any:
        """The model's tokenizer, as transformers loads it."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.endpoint.model_info["tokenizer_path"])

    def cache_prefix(self, prefix: str) -> None:
        """Have this text computed, so that prompts that begin with it find it."""
        self.endpoint.cache_prefix(prefix)

    def start_profile(self) -> None:
        self.endpoint.start_profile()

    def stop_profile(self) -> None:
        self.endpoint.stop_profile()

    @property
    def _field(self) -> str:
        return "input_ids" if self._skips_tokenizer else "text"


def _options(settings: dict[str, Any]) -> list[str]:
    words = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if name == "chat_template" and value is not None:
            value = chat_templates.setting(value)
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words.append(f"--{flag}={value}")
    return words


def _wait_for_url(process: subprocess.Popen[str], problems: IO[str], timeout: float) -> str:
    """The URL in the child's first line."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process, lines), name="nbsgl-runtime", daemon=True).start()
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        with contextlib.suppress(queue.Empty):
            found = re.search(r"https?://\S+", lines.get(timeout=TICK_S))
            if found is not None:
                return found[0]
        if process.poll() is not None and lines.empty():
            raise _ended(process.returncode, problems)
    raise TimeoutError(f"the server did not answer within {timeout:g} s; Runtime(launch_timeout=...) waits longer")


def _read(process: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
    """Take all it prints, so that it never waits for a reader."""
    assert process.stdout is not None
    with contextlib.suppress(ValueError, OSError), process.stdout as stdout:
        for line in stdout:
            lines.put(line)


def _ended(status: int, problems: IO[str]) -> Exception:
    problems.seek(0)
    tail: Sequence[str] = problems.read()[-4000:].strip().splitlines()
    last = tail[-1] if tail else f"it ended with status {status} and said nothing"
    if status == USAGE:
        return ParameterError(f"Runtime(): {last}.", hint="Its settings are those of help(nbsgl.ServerArgs).")
    return EngineStartFailed(stage="serve", reason=last, log_tail="\n".join(tail))


def _let_go(process: subprocess.Popen[str]) -> None:
    """Nobody holds it any more: it is ended by a thread, as this may be called in any."""
    if process.poll() is None:
        with contextlib.suppress(RuntimeError):  # at this process's end, when the server sees its input end anyway
            threading.Thread(target=_end, args=(process,), name="nbsgl-runtime-end").start()


def _end(process: subprocess.Popen[str]) -> None:
    """Its standard input ends, and so does it; if not, it is killed with all it started."""
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
