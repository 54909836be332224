"""`View`: what every live view shares, Python's half.  The page's half is `static/base.js`.

Messages to the page carry `{"v", "view", "epoch", "seq", "kind"}` and buffers:

    full    the whole state (in `part`s of 256 kB when over 1 MB); `seq` is the message it stands for
    delta   what changed since message seq - 1; a view that sees a gap asks for a resync
    beat    no change; `seq` of the last message, so that a lost tail is noticed within a second

The end is two synced traits, `status` and `final_seq`, which cannot be lost.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anywidget
import msgspec
import traitlets

from nbsgl.widgets.html import frozen_bundle
from nbsgl.widgets.pump import pump

logger = logging.getLogger("nbsgl")

STATIC = Path(__file__).parent / "static"
VERSION = 1
HZ_STEPS = (30.0, 15.0, 8.0, 4.0, 2.0)
HZ_HIDDEN = 2.0
HZ_UNHEARD = 10.0  # no word from the page yet: perhaps its messages wait until the cell ends
HZ_SILENT = 0.2  # a page that spoke once and then not for a minute has been closed
BEAT_S = 1.0
LATE_S = 2.0  # unacknowledged for longer: halve the rate
CALM_S = 5.0  # in time for that long: double it
SILENT_S = 60.0
MAX_PAGES = 100  # names of pages kept, to notice a reload
PART_BYTES, WHOLE_BYTES = 256_000, 1_000_000


# ---- what the page may say -------------------------------------------------------------------------------------------


class FromPage(msgspec.Struct, frozen=True, tag_field="type", forbid_unknown_fields=True):
    """A message of the page.  Anything else is dropped: no message runs code, reads files or submits prompts."""


class Hello(FromPage, frozen=True, tag="hello"):
    """A page has drawn the view and holds the state up to `have_seq` (-1: none); `page` is its own random name."""

    epoch: int
    have_seq: int
    page: str = ""


class Resync(FromPage, frozen=True, tag="resync"):
    """A page has seen a gap and wants the whole state."""

    epoch: int


class Ack(FromPage, frozen=True, tag="ack"):
    """Once a second: the last message drawn, and whether anybody can see the view."""

    seq: int
    visible: bool


class Stop(FromPage, frozen=True, tag="stop"):
    """The stop button of the view."""


class Label(FromPage, frozen=True, tag="label"):
    """The texts of these tree nodes, please."""

    ids: list[int]


class Find(FromPage, frozen=True, tag="find"):
    """The tree nodes whose text holds this, please."""

    text: str


class Watch(FromPage, frozen=True, tag="watch"):
    """The grammar of this segment of a run, please, from now on; segment -1: no longer."""

    branch: int
    segment: int


PageMessage = Hello | Resync | Ack | Stop | Label | Find | Watch


def decode_page_message(content: object) -> PageMessage | None:
    """The typed message, or None if it is none that we know."""
    try:
        message: PageMessage = msgspec.convert(content, PageMessage)
        return message
    except (msgspec.ValidationError, RecursionError):
        logger.debug("dropped a widget message of an unknown form")
        return None


class Payload(msgspec.Struct, frozen=True):
    """The body of one message: binary parts, in the order the page expects them."""

    buffers: Sequence[bytes]


# ---- lag control -----------------------------------------------------------------------------------------------------


class Rate:
    """How often to send: falls by halves while the page is behind, and climbs back when it keeps up."""

    def __init__(self) -> None:
        self.visible = True
        self.heard_at: float | None = None
        self._step = 0
        self._changed_at = 0.0
        self._sent: deque[tuple[int, float]] = deque()

    def sent(self, seq: int, now: float) -> None:
        self._sent.append((seq, now))

    def acked(self, seq: int, now: float) -> None:
        self.heard_at = now
        while self._sent and self._sent[0][0] <= seq:
            self._sent.popleft()

    def reset(self) -> None:
        self._sent.clear()

    def hz(self, now: float) -> float:
        if self.heard_at is None:
            return HZ_UNHEARD
        if now - self.heard_at > SILENT_S:
            return HZ_SILENT
        late = bool(self._sent) and now - self._sent[0][1] > LATE_S
        if late and now - self._changed_at > LATE_S:
            self._step, self._changed_at = min(self._step + 1, len(HZ_STEPS) - 1), now
        elif not late and self._step and now - self._changed_at > CALM_S:
            self._step, self._changed_at = self._step - 1, now
        return min(HZ_STEPS[self._step], HZ_STEPS[0] if self.visible else HZ_HIDDEN)


# ---- the view --------------------------------------------------------------------------------------------------------


_IMPORT = re.compile(r'^import .+ from "\./(\w+)\.js";\n', re.MULTILINE)
_COMMENT = re.compile(r"^ *//.*\n", re.MULTILINE)


def module(name: str) -> str:
    """A view's ES module with the files it imports written before it, and without its lines of comment.

    One file for the page, small ones to read.
    """
    found: dict[str, str] = {}

    def add(name: str) -> None:
        code = (STATIC / f"{name}.js").read_text(encoding="utf-8")
        for other in _IMPORT.findall(code):
            if other not in found:
                add(other)
        found[name] = _COMMENT.sub("", _IMPORT.sub("", code))

    add(name)
    return "\n".join(found.values())


class View(anywidget.AnyWidget):  # type: ignore[misc]
    """A live view over a source that the pump asks.

    A subclass gives `picture()` (ask the source), `full(picture)` and `delta(old, new)` as payloads.  The source is
    called on the pump's thread and should return within milliseconds; a slow one is asked more seldom.
    `on_stop` is called on a thread of its own when the view's stop button is pressed.
    """

    _css = (STATIC / "base.css").read_text(encoding="utf-8")
    max_hz = HZ_STEPS[0]

    kind = traitlets.Unicode("view").tag(sync=True)
    view_id = traitlets.Unicode("").tag(sync=True)
    title = traitlets.Unicode("").tag(sync=True)
    epoch = traitlets.Int(1).tag(sync=True)
    status = traitlets.Unicode("live").tag(sync=True)
    final_seq = traitlets.Int(-1).tag(sync=True)
    can_stop = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self, source: Callable[[], Any], *, on_stop: Callable[[], None] | None = None, title: str = ""
    ) -> None:
        self._source = source
        self._on_stop = on_stop
        self._inbox: queue.SimpleQueue[PageMessage] = queue.SimpleQueue()
        self._lock = threading.RLock()  # one sender at a time: the pump, or the caller of `finish`
        self._rate = Rate()
        self._seq = -1
        self._sent_at = 0.0
        self._sent_picture: Any = None
        self._must_send_full = True
        self._source_cost_s = 0.0
        self._source_failed = False
        self._finished = False
        self._closed = False
        self._stopping: threading.Thread | None = None
        self._pages: set[str] = set()
        self.heard = False  # whether a page has answered yet
        super().__init__(title=title, view_id=uuid.uuid4().hex, can_stop=on_stop is not None)
        self._answer_while_busy()
        self.on_msg(self._on_page_message)
        pump.add(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.title or self.kind}, {self.status}>"

    # ---- for subclasses ----

    def picture(self) -> Any:
        return self._source()

    def full(self, picture: Any) -> Payload:
        raise TypeError(f"{type(self).__name__} has no full()")

    def delta(self, old: Any, new: Any) -> Payload | None:
        """What changed, or None if nothing did."""
        raise TypeError(f"{type(self).__name__} has no delta()")

    def answer(self, message: PageMessage) -> None:
        """Answer a message that only this kind of view knows."""

    def reply(self, kind: str, value: object) -> None:
        """Send an answer that is no part of the state."""
        self._post(kind, [msgspec.json.encode(value)], time.monotonic())

    # ---- the road out ----

    @property
    def was_reloaded(self) -> bool:
        """Whether a second page has drawn the view: an update of the display no longer reaches the first one's cell.

        Then leave the view open instead of closing it: it is all that the reader has.
        """
        return len(self._pages) > 1

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live view, and the frozen picture of now for whoever cannot draw it (GitHub, nbconvert, a diff)."""
        made = super()._repr_mimebundle_(**kwargs)
        data, metadata = made if isinstance(made, tuple) else (made or {}, {})
        return data | self._frozen_now(), metadata

    def _frozen_now(self) -> dict[str, str]:
        try:
            return frozen_bundle(self._source())
        except Exception:  # an error in a repr would mark the cell as failed
            logger.warning("a view's source failed; it is shown without a text form", exc_info=True)
            return {}

    def finish(self) -> None:
        """Send the last delta and close the books (`final_seq`, `status`).  Idempotent; the source is not asked again.

        Then the caller replaces the display by `frozen_bundle(...)`, and only then calls `close()`.
        """
        with self._lock:
            if self._finished:
                return
            self._finished = True
            self._update(time.monotonic())
            if not self._closed:
                self.final_seq = self._seq
                self.status = "reloaded" if self.was_reloaded else "final"

    def close(self) -> None:
        """Finish, then end the comm: the page's live view is gone, so replace the display first.  Idempotent."""
        with self._lock:
            if self._closed:
                return
            try:
                self.finish()
            finally:
                self._closed = True
                pump.remove(self)
                super().close()

    # ---- the pump's side ----

    def step(self, now: float) -> float | None:
        """Answer the page, send one message if something changed, and say when to come again."""
        with self._lock:
            if self._closed:
                return None
            self._read_inbox(now)
            if self._finished:
                if self._must_send_full and self._sent_picture is not None:
                    self._send_full(self._sent_picture, now)
                return None
            self._update(now)
            period = 1.0 / min(self._rate.hz(now), self.max_hz)
            return now + max(period, 10 * self._source_cost_s)

    def _update(self, now: float) -> None:
        new = self._ask()
        if new is None:
            return
        if self._must_send_full or self._sent_picture is None:
            self._send_full(new, now)
            return
        change = self.delta(self._sent_picture, new)
        if change is not None:
            self._seq += 1
            self._post("delta", change.buffers, now)
            self._sent_picture = new
        elif now - self._sent_at >= BEAT_S:
            self._post("beat", (), now)

    def _ask(self) -> Any:
        began = time.monotonic()
        try:
            new = self.picture()
        except Exception:
            if not self._source_failed:
                logger.warning("a view's source failed; its last picture stays", exc_info=True)
            self._source_failed, self._source_cost_s = True, 0.1
            return None
        self._source_failed, self._source_cost_s = False, time.monotonic() - began
        return new

    def _send_full(self, picture: Any, now: float) -> None:
        self._must_send_full = False
        self._sent_picture = picture
        self._seq += 1
        self._rate.reset()
        buffers = list(self.full(picture).buffers)
        if sum(map(len, buffers)) <= WHOLE_BYTES:
            self._post("full", buffers, now)
            return
        whole = b"".join(buffers)
        parts = [whole[i : i + PART_BYTES] for i in range(0, len(whole), PART_BYTES)]
        for i, part in enumerate(parts):
            self._post("part", (part,), now, i=i, n=len(parts), lengths=[len(b) for b in buffers])

    def _post(self, kind: str, buffers: Sequence[bytes], now: float, **more: Any) -> None:
        envelope = {"v": VERSION, "view": self.kind, "epoch": self.epoch, "seq": self._seq, "kind": kind}
        self.send(envelope | more, list(buffers))
        if kind not in ("full", "part", "delta", "beat"):
            return
        self._sent_at = now
        if kind != "beat":
            self._rate.sent(self._seq, now)

    # ---- the page's side ----

    def _answer_while_busy(self) -> None:
        """Let the page's messages run on the subshell Jupyter opened for them, while the showing cell still runs.

        Private API of ipykernel, hence the guard; without it a click is handled when the cell has ended.
        """
        comm = getattr(self, "comm", None)
        if comm is not None and hasattr(comm, "_reply_subshell_for"):
            comm._reply_subshell_for = lambda data, default: default

    def _on_page_message(self, _: object, content: object, buffers: object) -> None:
        # On the subshell's thread or the main one: take no lock that a cell may hold.
        message = decode_page_message(content)
        if message is not None and not self._closed:
            self._inbox.put(message)
            if not isinstance(message, Ack):
                pump.add(self)

    def _read_inbox(self, now: float) -> None:
        while True:
            try:
                message = self._inbox.get_nowait()
            except queue.Empty:
                return
            self.heard = True
            self._rate.heard_at = now
            self._take(message, now)

    def _take(self, message: PageMessage, now: float) -> None:
        match message:
            case Hello(epoch=epoch, have_seq=have_seq, page=page):
                if len(self._pages) < MAX_PAGES:
                    self._pages.add(page)
                if epoch != self.epoch or have_seq < 0:
                    self._must_send_full = True
                else:
                    self._post("beat", (), now)
            case Resync():
                self._must_send_full = True
            case Ack(seq=seq, visible=visible):
                self._rate.visible = visible
                self._rate.acked(seq, now)
            case Stop():
                self._stop()
            case _:
                self.answer(message)

    def _stop(self) -> None:
        if self._on_stop is None or (self._stopping is not None and self._stopping.is_alive()):
            return
        # a thread of its own: whatever it waits for, the views go on
        self._stopping = threading.Thread(target=self._on_stop, name="nbsgl-stop", daemon=True)
        self._stopping.start()
