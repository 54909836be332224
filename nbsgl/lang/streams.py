"""Reading a state while it grows: a cursor of its own for every iterator, so nobody steals another's chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbsgl.lang.branch import Binding, Link, Sampled, Slot, Thought, failure, is_ready
from nbsgl.lang.meta import meta_info, triples

if TYPE_CHECKING:
    import asyncio

    from nbsgl.lang.state import ProgramState


class Cursor:
    """A place in the text of a state, or of one of its variables.  All methods: with the executor's lock held."""

    def __init__(self, state: ProgramState, name: str | None, *, whole: bool) -> None:
        self._state, self._name, self._whole = state, name, whole
        self._item = 0  # of the branch
        self._chars = 0  # of the item, or of the variable's value
        self._chunks = 0  # of the slot
        self._logprobs = 0
        self._binding: Binding | None = None
        self.is_at_end = False
        self.error: BaseException | None = None

    def read(self) -> str:
        """The text that has come since; "" if there is none yet (see `is_at_end`)."""
        return self._read_state() if self._whole else self._read_variable()

    def has_news(self, found: list[str]) -> bool:
        """Put what has come into the empty list `found`; True if something has, or nothing can come any more."""
        if not found and not self.is_at_end and (text := self.read()):
            found.append(text)
        return bool(found) or self.is_at_end

    def _read_state(self) -> str:
        branch = self._state.branch
        out: list[str] = []
        while self._item < len(branch.items):
            item = branch.items[self._item]
            if isinstance(item, Slot):
                out.append(self._read_slot(item))
                if item.error is not None:
                    self._finish(item.error)
                    return "".join(out)
                if not item.is_final:
                    return "".join(out)
            elif isinstance(item, Link) and item.slot.status != "done":
                if item.slot.error is not None:
                    self._finish(item.slot.error)
                return "".join(out)
            else:
                out.append(item.text)
            self._item += 1
            self._chars = self._chunks = 0
        if branch.error is not None:
            self._finish(branch.error)
        elif not self._state.is_growing():
            self._finish()
        return "".join(out)

    def _read_variable(self) -> str:
        if self._binding is None:
            self._binding = self._state.branch.bindings.get(self._name)
            if self._binding is None:
                if not self._state.is_growing():
                    self._finish(self._state.branch.error or self._state.unknown(self._name))
                return ""
        binding = self._binding
        if isinstance(binding, Sampled):
            text = self._read_slot(binding.slot, of_thinking=isinstance(binding, Thought))
            if binding.slot.is_final:
                self._finish(binding.slot.error)
            return text
        error = failure(binding)
        if error is not None or not is_ready(binding):
            if error is not None:
                self._finish(error)
            return ""
        self._finish()
        value = binding.value()
        return value if isinstance(value, str) else str(value)

    def _read_slot(self, slot: Slot, of_thinking: bool = False) -> str:
        chunks = slot.thoughts if of_thinking else slot.chunks
        if slot.is_final and slot.error is None:
            whole = slot.reasoning if of_thinking else slot.text
            text = (whole if isinstance(whole, str) else whole[0])[self._chars :]
        else:
            text = "".join(chunks[self._chunks :])
            self._chunks = len(chunks)
        self._chars += len(text)
        return text

    def _finish(self, error: BaseException | None = None) -> None:
        self.is_at_end, self.error = True, error

    def meta(self) -> dict[str, Any]:
        """What is known with this chunk: new log-probabilities, tokens so far; at the end everything."""
        if not isinstance(self._binding, Sampled):
            return {}
        slot = self._binding.slot
        info: dict[str, Any] = {"completion_tokens": slot.num_tokens}
        if slot.status == "done":
            whole = meta_info(self._state.executor.id, slot, self._state.executor.info.model)
            info |= whole[0] if isinstance(whole, list) else whole
        logprobs = info.get("output_token_logprobs", triples(slot.chunk_logprobs, slot.with_text))
        if logprobs:
            info["output_token_logprobs"] = logprobs[self._logprobs :]
            self._logprobs = len(logprobs)
        return info


class AsyncWaiter:
    """Wakes a coroutine from the backend's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
        self._loop, self._event = loop, event

    def release(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._event.set)
