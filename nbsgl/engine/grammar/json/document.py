"""A schema's text as a document: its schemas by pointer, and what references in it lead to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urljoin

from nbsgl.engine.grammar.schema import bad, escape

ONE = frozenset(
    {
        *("not", "if", "then", "else", "items", "additionalItems", "additionalProperties", "contains"),
        *("propertyNames", "unevaluatedItems", "unevaluatedProperties", "contentSchema"),
    }
)
SEVERAL = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"})

_DRAFTS = re.compile(r"https?://json-schema\.org/(?:draft/(2020-12|2019-09)|draft-0([3467]))/schema#?")


@dataclass(frozen=True, eq=False, slots=True)
class Site:
    """A schema, its pointer from the document's root, the URI its references start from, and its draft (7, 2020)."""

    schema: Any
    pointer: str
    base: str
    draft: int


class Document:
    """The schemas of one text.  Raises `BadGrammar` where one is not a schema at all."""

    def __init__(self, schema: Any) -> None:
        self.sites: dict[str, Site] = {}
        self._order: dict[str, int] = {}
        self._resources: dict[str, Site] = {}
        self._anchors: dict[tuple[str, str], Site] = {}
        self._dynamic: dict[str, list[Site]] = {}
        self._targets: set[str] = set()  # of references by pointer
        self.root = self._enter(schema, "", "", 2020)
        self._resources.setdefault("", self.root)
        self._register(self.root)

    def child(self, site: Site, *keys: str | int) -> Site:
        """The schema below a schema, by keyword and name or place."""
        schema, pointer = site.schema, site.pointer
        for key in keys:
            schema, pointer = schema[key], f"{pointer}/{escape(str(key))}"
        return self._enter(schema, pointer, site.base, site.draft)

    def made(self, schema: Any, site: Site, name: str) -> Site:
        """A schema that stands nowhere in the text, as if it stood at this place."""
        pointer = f"{site.pointer}?{name}"
        if pointer not in self.sites:
            self.order(pointer)
            self.sites[pointer] = Site(schema, pointer, site.base, 2020)
        return self.sites[pointer]

    def order(self, pointer: str) -> int:
        """Schemas in the order in which they were met."""
        return self._order.setdefault(pointer, len(self._order))

    def _enter(self, schema: Any, pointer: str, base: str, draft: int) -> Site:
        if (known := self.sites.get(pointer)) is not None and known.base == base:
            return known
        if not isinstance(schema, (dict, bool)):
            raise bad(pointer, f"a schema is an object or a boolean, not {type(schema).__name__}")
        if isinstance(schema, dict):
            draft = self._draft(schema, pointer, draft)
            name = schema.get("$id", schema.get("id") if draft == 7 else None)
            if isinstance(name, str) and not name.startswith("#") and not (draft == 7 and "$ref" in schema):
                base = urljoin(base, name).removesuffix("#")
        self.order(pointer)
        return self.sites.setdefault(pointer, Site(schema, pointer, base, draft))

    def _draft(self, schema: dict[str, Any], pointer: str, draft: int) -> int:
        name = schema.get("$schema")
        if not isinstance(name, str):
            return draft
        if (match := _DRAFTS.fullmatch(name)) is None:
            if pointer:
                return draft
            raise bad("/$schema", f"{name!r} is not a draft that is known here; 2020-12 and 7 are")
        return 2020 if match[1] else 7

    def _register(self, root: Site) -> None:
        queue = [root]
        for site in queue:
            schema = site.schema
            if not isinstance(schema, dict):
                continue
            if isinstance(reference := schema.get("$ref"), str) and reference.startswith("#/"):
                self._targets.add(unquote(reference[1:]))
            parent_resource = self._resources.get(site.base)
            name = schema.get("$id")
            if parent_resource is None and (isinstance(name, str) or site is root):
                self._resources[site.base] = site
            if isinstance(name, str) and name.startswith("#"):
                self._anchors[site.base, name[1:]] = site
            for keyword in ("$anchor", "$dynamicAnchor"):
                if isinstance(schema.get(keyword), str):
                    self._anchors[site.base, schema[keyword]] = site
            if isinstance(schema.get("$dynamicAnchor"), str):
                self._dynamic.setdefault(schema["$dynamicAnchor"], []).append(site)
            if site.draft == 7 and "$ref" in schema:
                schema = {key: schema[key] for key in ("definitions", "$defs") if key in schema}
            queue += self._below(site, schema)

    def _below(self, site: Site, schema: dict[str, Any]) -> list[Site]:
        found = []
        for keyword, value in schema.items():
            if keyword in SEVERAL and isinstance(value, list):
                found += [self.child(site, keyword, place) for place, _ in enumerate(value)]
            elif keyword in NAMED and isinstance(value, dict):
                found += [
                    self.child(site, keyword, name) for name, inner in value.items() if isinstance(inner, (dict, bool))
                ]
            elif keyword in ONE and isinstance(value, (dict, bool)):
                found.append(self.child(site, keyword))
        return found

    def holds_targets(self, pointer: str) -> bool:
        """References of the text lead to something in there: a place for schemas, not something said of a value."""
        return any(target == pointer or target.startswith(f"{pointer}/") for target in self._targets)

    def resolve(self, site: Site, keyword: str) -> Site:
        """What `$ref` or `$dynamicRef` of a schema leads to; `BadGrammar` if that is not in this text."""
        reference, here = site.schema[keyword], f"{site.pointer}/{keyword}"
        if not isinstance(reference, str):
            raise bad(here, f"{reference!r}: a reference is a string")
        uri, _, fragment = reference.partition("#")
        base = urljoin(site.base, uri) if uri else site.base
        resource = self._resources.get(base)
        if resource is None:
            raise bad(here, f"{reference!r}: only references inside the schema (#...) are followed")
        fragment = unquote(fragment)
        if keyword == "$dynamicRef" and len(self._dynamic.get(fragment, [])) > 1:
            raise bad(here, f"the keyword '$dynamicRef' is not supported where {fragment!r} has several meanings")
        if not fragment:
            return resource
        if not fragment.startswith("/"):
            if (found := self._anchors.get((base, fragment))) is None:
                raise bad(here, f"{reference!r} leads to nothing")
            return found
        return self._follow(resource, fragment, reference, here)

    def _follow(self, site: Site, fragment: str, reference: str, here: str) -> Site:
        schema, pointer, base, draft = site.schema, site.pointer, site.base, site.draft
        for part in fragment.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            try:
                schema = schema[int(key)] if isinstance(schema, list) else schema[key]
            except (KeyError, IndexError, ValueError, TypeError):
                raise bad(here, f"{reference!r} leads to nothing") from None
            pointer = f"{pointer}/{escape(key)}"
            if isinstance(schema, dict) and isinstance(schema.get("$id"), str) and pointer in self.sites:
                base, draft = self.sites[pointer].base, self.sites[pointer].draft
        if not isinstance(schema, (dict, bool)):
            raise bad(here, f"{reference!r} leads to what is no schema")
        return self._enter(schema, pointer, base, draft)
