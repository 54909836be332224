"""API speculation: a service writes past a gen, and what the program adds next is matched against that.

Pure functions of texts.  A completion service's surplus serves later gens; a chat service writes a whole message, which
must follow the one the program has written around its gens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from nbsgl.errors import Unsupported
from nbsgl.protocol import AnyNode, Finish, Fork, Gen, GenResult, Role, SamplingParams, Text

Term = str | Gen


def can_go_ahead(gen: Gen) -> bool:
    params = gen.params
    return params.n == 1 and not params.return_logprob and params.max_tokens != "fit" and gen.markers is None


def asked_ahead(node: Gen) -> Gen:
    """The gen to ask for: at least `lookahead` tokens, past its stops, told token by token."""
    tokens = max(node.lookahead, int(node.params.max_tokens))
    params = msgspec.structs.replace(node.params, max_tokens=tokens, stop=(), return_logprob=True)
    return msgspec.structs.replace(node, params=params, stream=False)


@dataclass(slots=True)
class Surplus:
    """What a completion service wrote at once, and how far it is used up."""

    tokens: tuple[str, ...]
    finish: Finish
    params: SamplingParams
    at: int = 0

    @classmethod
    def of(cls, result: GenResult, asked: SamplingParams) -> Surplus | None:
        """None if the service does not tell the tokens, so that no limit can be kept."""
        found = result.output_logprobs
        tokens = tuple(token or "" for _, _, token in found.tokens) if found is not None else ()
        if "".join(tokens) != result.text:
            return None
        return cls(tokens, result.finish, asked)

    @property
    def rest(self) -> str:
        return "".join(self.tokens)[self.at :]

    def follow(self, text: str) -> bool:
        """Whether the surplus goes on with this text, which is then used up."""
        if not self.rest.startswith(text):
            return False
        self.at += len(text)
        return True

    def take(self, params: SamplingParams) -> GenResult | None:
        """The gen's result, cut at its own stops and limit, at no cost; None if the surplus does not reach its end."""
        if _drawn(params) != _drawn(self.params):
            return None
        limit = int(params.max_tokens)
        ends = self._token_ends()
        reach = ends[limit - 1] if len(ends) >= limit else None
        rest = self.rest
        met = first_of(rest, params.stop)
        if met is not None and (reach is None or met[0] <= reach):
            text, finish = rest[: met[0]], Finish(type="stop", matched=met[1])
        elif reach is not None:
            text, finish = rest[:reach], Finish(type="length", length=limit)
        elif self.finish.type == "stop":
            text, finish = rest, self.finish
        else:
            return None
        self.at += len(text)
        return GenResult(text=text, ids=b"", finish=finish, prompt_tokens=0, cached_tokens=0, completion_tokens=0)

    def _token_ends(self) -> list[int]:
        """Where the tokens of the rest end; a token that is used up in part counts."""
        ends, end = [], -self.at
        for token in self.tokens:
            end += len(token)
            if end > 0:
                ends.append(end)
        return ends


def _drawn(params: SamplingParams) -> SamplingParams:
    """What the tokens themselves depend on."""
    return msgspec.structs.replace(params, max_tokens=0, stop=(), seed=None, return_logprob=False)


def first_of(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """Where the first of the stops begins, and which it is."""
    found = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    return min(found) if found else None


def is_drawn_alike(one: Gen, other: Gen) -> bool:
    return _drawn(one.params) == _drawn(other.params) and one.grammar is None and other.grammar is None


def terms(begun: str, gen: Gen, ahead: Sequence[AnyNode]) -> list[Term]:
    """The texts and gens of a message, from its beginning to its end.  `Unsupported` for anything else in it."""
    found: list[Term] = [begun, gen]
    for node in ahead:
        if isinstance(node, Role):
            break
        if isinstance(node, Text):
            last = found[-1]
            found[-1:] = [last + node.text] if isinstance(last, str) else [last, node.text]
        elif isinstance(node, Gen):
            found.append(node)
        elif not isinstance(node, Fork):
            raise Unsupported(
                "With num_api_spec_tokens only text and gens may stand in a chat service's message.",
                hint="End the message before it.",
            )
    return [term for term in found if term != ""]


def fit_message(terms: Sequence[Term], answer: str) -> list[str] | None:
    """The texts of the message's gens in an answer that follows it; None if it does not.

    A gen ends before its stop, or before the text that follows it.  White space before the whole answer, and known text
    after the last gen, may be missing.
    """
    rest = answer if not terms or isinstance(terms[0], Gen) or terms[0][:1].isspace() else answer.lstrip()
    found: list[str] = []
    met = ""
    for i, term in enumerate(terms):
        later = terms[i + 1 :]
        if isinstance(term, str):
            if not rest.startswith(term) and rest.startswith(met + term):
                rest = rest[len(met) :]
            if not rest.removeprefix(met) and not any(isinstance(t, Gen) for t in later) and found:
                return found
            if not rest.startswith(term):
                return None
            rest, met = rest[len(term) :], ""
            continue
        rest = rest.removeprefix(met) if met else rest
        following = (later[0],) if later and isinstance(later[0], str) else ()
        end = first_of(rest, term.params.stop or following)
        if end is None and any(isinstance(t, Gen) for t in later):
            return None
        at, stop = end or (len(rest), "")
        found.append(rest[:at])
        rest, met = rest[at:], stop if term.params.stop else ""
    return found
