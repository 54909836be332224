"""A schema with the documents that it refers to put into it, each under its URI (JSON Schema Core, 9.3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urldefrag, urljoin

import jsonschema_specifications

METASCHEMAS = {uri: jsonschema_specifications.REGISTRY[uri].contents for uri in jsonschema_specifications.REGISTRY}


def bundled(schema: Any, documents: dict[str, Any], keyword: str) -> Any:
    """The schema with what it needs of `documents` and the standard's metaschemas below `keyword` (`$defs`)."""
    found = _needed(schema, METASCHEMAS | documents)
    return {**schema, keyword: {**schema.get(keyword, {}), **found}} if found else schema


def _needed(schema: Any, documents: dict[str, Any]) -> dict[str, Any]:
    own = {urldefrag(uri)[0] for uri in _ids(schema, "")}
    found: dict[str, Any] = {}
    queue = [("", schema)]
    for base, document in queue:
        for uri in dict.fromkeys(urldefrag(target)[0] for target in _targets(document, base)):
            if uri in documents and uri not in own and uri not in found:
                found |= _named(documents[uri], uri)
                queue.append((uri, documents[uri]))
    return found


def _named(document: Any, uri: str) -> dict[str, Any]:
    """A document by the URI that it was asked for under, and by its own if that is another one."""
    name = urldefrag(document.get("$id", uri))[0]
    if name == uri:
        return {uri: {"$id": uri, **document}}
    return {uri: {"$id": uri, "$ref": name}, name: document}


def _ids(value: Any, base: str) -> Iterator[str]:
    for inner, at in _below(value, base):
        if isinstance(inner, dict) and isinstance(inner.get("$id"), str):
            yield at


def _targets(value: Any, base: str) -> Iterator[str]:
    for inner, at in _below(value, base):
        if isinstance(inner, dict):
            for keyword in ("$ref", "$dynamicRef"):
                if isinstance(inner.get(keyword), str):
                    yield urljoin(at, inner[keyword])
            if isinstance(name := inner.get("$schema"), str) and urldefrag(name)[0] not in METASCHEMAS:
                yield name


def _below(value: Any, base: str) -> Iterator[tuple[Any, str]]:
    """Every value inside, with the URI that references start from there."""
    if isinstance(value, dict) and isinstance(value.get("$id"), str):
        base = urljoin(base, value["$id"])
    yield value, base
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _below(inner, base)
