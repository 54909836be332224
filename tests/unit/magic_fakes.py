"""A language and an engine that answer at once, in the place of nbsgl's own: the magics are tested, not these.

Tests lean on: `state(...)` keeps its arguments, `FakeState` its text and whether it was aborted.
"""

import threading

import msgspec

from nbsgl.protocol import BranchView, EngineSnapshot, ModelInfo, RunView, SegmentView, TreeNode

INFO = ModelInfo(model="fake", context_length=128, vocab_size=16, roles={}, device="cpu", device_reason="no GPU found")


class FakeState:
    def __init__(self, defaults):
        self.defaults = defaults
        self.parts = []
        self.status = "running"
        self.aborted = threading.Event()

    def __iadd__(self, text):
        self.parts.append(str(text))
        return self

    def __getitem__(self, name):
        return f"value of {name}"

    def text(self):
        return "".join(self.parts)

    def wait(self, seconds):
        """As a demand for a value that takes this long."""
        if self.aborted.wait(seconds):
            raise RuntimeError("aborted")

    def abort(self):
        self.aborted.set()

    def run_view(self):
        segments = [SegmentView(kind="forced", text=part) for part in self.parts]
        return RunView(
            status=self.status,
            branches=[BranchView(id=0, status=self.status, segments=segments)],
            prefill_cached=7,
            prefill_computed=5,
            generated=3,
            elapsed_s=0.25,
        )


class FakeManager:
    """What `nbsgl.state(...)` returns: enter gives the state, exit ends it."""

    made: list["FakeManager"] = []

    def __init__(self, backend=None, *, on=None, title="state", **defaults):
        self.backend = backend
        self.state = FakeState(defaults)
        if on is not None:
            self.state.parts = list(on.parts)
        FakeManager.made.append(self)

    def __enter__(self):
        return self.state

    def __exit__(self, kind, error, traceback):
        if kind is not None:
            self.state.abort()
        self.state.status = "done" if kind is None else "failed"


class FakeEngine:
    was_running = False

    def __init__(self, model="embedded", *, on_progress=None, **settings):
        self.info = msgspec.structs.replace(INFO, model=model)
        self.settings = settings
        self.calls = []
        self.cached = 40
        if on_progress is not None:
            on_progress("loading the model")

    def snapshot(self, *, tree=False):
        nodes = [TreeNode(id=1, parent=0, num_tokens=self.cached, locks=0, hits=1, age_s=2.0, depth=1, text="You")]
        return EngineSnapshot(
            time=0.0, uptime_s=61.0, info=self.info, epoch=1, health=True, policy="lpm", slots_total=100,
            slots_free=100 - self.cached, slots_in_tree=self.cached, slots_owned=0, running=0, waiting=0, parked=1,
            steps=9, prefill_tokens_computed=60, prefill_tokens_cached=40, decode_tokens=12, hit_rate=0.4, clients=1,
            tree=nodes if tree else None,
        )  # fmt: skip

    def flush_cache(self):
        self.cached = 0
        return True

    def log(self, n):
        return f"the last {n} lines"

    def restart(self):
        self.calls.append("restart")

    def close(self):
        self.is_closed = True

    def stop(self, force=False):
        self.calls.append(f"stop {force}")


class FakeLanguage:
    """The module-level names of nbsgl that the magics use, with one default engine."""

    def __init__(self):
        self.engine = None
        self.started = []

    def start(self, model="embedded", *, on_progress=None, **settings):
        self.started.append((model, settings))
        self.engine = FakeEngine(model, on_progress=on_progress, **settings)
        return self.engine

    def names(self):
        return {
            "ProgramState": FakeState,
            "Engine": FakeEngine,
            "state": FakeManager,
            "start": self.start,
            "gen": lambda name, **_: f"<{name}>",
            "select": lambda name, **_: f"<{name}>",
            "get_default_backend": lambda: self.engine,
            "set_default_backend": lambda engine: setattr(self, "engine", engine),
            "flush_cache": lambda: self.engine.flush_cache(),
        }
