"""How a model spells text that is forced: as it did before, behind the same token at the same place of the grammar.

A model need not write the canonical spelling, least of all one that does not know the text; but it repeats itself.  Of
8 random layers 92% of the tokens in forced text are those of the time before, 36% the canonical ones.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_HABITS = 65_536  # of one grammar: 20 MB
SURE = 1  # agreements in a row


@dataclass(slots=True)
class _Habit:
    token: int
    behind: int  # the state
    num_agreed: int = 0


class Habits:
    """Of one grammar in tables, whoever draws from it."""

    def __init__(self) -> None:
        self._habits: dict[tuple[int, int], _Habit] = {}

    def saw(self, state: int, before: int, token: int, behind: int) -> None:
        """In `state`, behind the token `before`, this token was drawn and led to the state `behind`."""
        habit = self._habits.get((state, before))
        if habit is not None and habit.token == token:
            habit.num_agreed += 1
            return
        if len(self._habits) >= MOST_HABITS:
            self._habits.clear()
        self._habits[state, before] = _Habit(token, behind)

    def chain(self, state: int, before: int, most: int) -> tuple[list[int], list[int]]:
        """At most so many tokens that are sure to come from here on, as far as habits go; and the state behind each."""
        ids: list[int] = []
        states: list[int] = []
        while len(ids) < most:
            habit = self._habits.get((state, before))
            if habit is None or habit.num_agreed < SURE:
                break
            before, state = habit.token, habit.behind
            ids.append(before)
            states.append(state)
        return ids, states
