"""A grammar for the oracle: at most `size` tokens out of the first eight; every third place accepts.

Tests lean on its EOS rule (allowed where it accepts) and on its end (`is_finished` at `size`).
"""

from __future__ import annotations

from tests.sim.oracle import EOS


class ToyMatcher:
    def __init__(self, text: str, place: int = 0) -> None:
        self.text, self.size, self.place = text, int(text), place

    def allowed(self) -> set[int]:
        """Token ids; EOS where the place accepts."""
        found = set(range(8)) if self.place < self.size else set()
        return found | {EOS} if self.is_accepting() else found

    def advance(self, token: int) -> bool:
        if token == EOS or token not in self.allowed():
            return False
        self.place += 1
        return True

    def is_accepting(self) -> bool:
        return self.place % 3 == 0 or self.place >= self.size

    def is_finished(self) -> bool:
        return self.place >= self.size

    def rollback(self, num_tokens: int) -> None:
        self.place -= num_tokens

    def fork(self) -> ToyMatcher:
        return ToyMatcher(self.text, self.place)


class ToyGrammar:
    """Compiled from a spec whose text is the size; "bad" does not compile."""

    def __init__(self, text: str) -> None:
        self.text = text
        int(text)

    def matcher(self) -> ToyMatcher:
        return ToyMatcher(self.text)
