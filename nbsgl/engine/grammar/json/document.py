"""A schema's text as a document: its schemas by pointer, and what references in it lead to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urljoin

from nbsgl.engine.grammar.json import dialects
from nbsgl.engine.grammar.json.dialects import Dialect
from nbsgl.engine.grammar.schema import bad, escape

ONE = frozenset(
    {
        *("not", "if", "then", "else", "items", "additionalItems", "additionalProperties", "contains"),
        *("propertyNames", "unevaluatedItems", "unevaluatedProperties", "contentSchema"),
    }
)
MADE = "~?"  # between a pointer and the name of what stands nowhere: no part of a pointer holds it, escaped
SEVERAL = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"})


@dataclass(frozen=True, eq=False, slots=True)
class Site:
    """A schema, its pointer from the document's root, the URI its references start from, and its dialect.

    What means nothing in the dialect is not in `schema`.
    """

    schema: Any
    pointer: str
    base: str
    dialect: Dialect

    @property
    def draft(self) -> int:
        return self.dialect.draft


class Document:
    """The schemas of one text.  Raises `BadGrammar` where one is not a schema at all."""

    def __init__(self, schema: Any) -> None:
        self.sites: dict[str, Site] = {}
        self.notes: list[str] = []
        self._order: dict[str, int] = {}
        self._resources: dict[str, Site] = {}
        self._anchors: dict[tuple[str, str], Site] = {}
        self._dynamic: dict[str, list[Site]] = {}
        self._targets: set[str] = set()  # of references by pointer
        self.root = self._enter(schema, "", "", dialects.LATEST)
        self._resources.setdefault("", self.root)
        self._register(self.root)

    def child(self, site: Site, *keys: str | int) -> Site:
        """The schema below a schema, by keyword and name or place."""
        schema, pointer = site.schema, site.pointer
        for key in keys:
            schema, pointer = schema[key], f"{pointer}/{escape(str(key))}"
        return self._enter(schema, pointer, site.base, site.dialect)

    def made(self, schema: Any, site: Site, name: str) -> Site:
        """A schema that stands nowhere in the text, as if it stood at this place."""
        pointer = f"{site.pointer}{MADE}{name}"
        if pointer not in self.sites:
            self.order(pointer)
            self.sites[pointer] = Site(schema, pointer, site.base, dialects.LATEST)
        return self.sites[pointer]

    def order(self, pointer: str) -> int:
        """Schemas in the order in which they were met."""
        return self._order.setdefault(pointer, len(self._order))

    def _enter(self, schema: Any, pointer: str, base: str, dialect: Dialect) -> Site:
        if (known := self.sites.get(pointer)) is not None and known.base == base:
            return known
        if not isinstance(schema, (dict, bool)):
            raise bad(pointer, f"a schema is an object or a boolean, not {type(schema).__name__}")
        if isinstance(schema, dict):
            dialect = dialects.of_schema(schema, pointer, dialect)
            is_old = dialect.draft == 7
            name = schema.get("$id", schema.get("id") if is_old else None)
            if isinstance(name, str) and not name.startswith("#") and not (is_old and "$ref" in schema):
                base = urljoin(base, name).removesuffix("#")
            schema = self._meant(schema, pointer, dialect)
        self.order(pointer)
        return self.sites.setdefault(pointer, Site(schema, pointer, base, dialect))

    def _meant(self, schema: dict[str, Any], pointer: str, dialect: Dialect) -> dict[str, Any]:
        """Without the keywords that mean nothing in the dialect, which are noted."""
        left_out = [keyword for keyword in schema if keyword in dialect.without]
        self.notes += [f"#{pointer}/{keyword}: an annotation in the dialect that $schema names" for keyword in left_out]
        return {key: schema[key] for key in schema if key not in dialect.without} if left_out else schema

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
        schema, pointer, base, dialect = site.schema, site.pointer, site.base, site.dialect
        for part in fragment.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            try:
                schema = schema[_place(key)] if isinstance(schema, list) else schema[key]
            except (KeyError, IndexError, ValueError, TypeError):
                raise bad(here, f"{reference!r} leads to nothing") from None
            pointer = f"{pointer}/{escape(key)}"
            if isinstance(schema, dict) and isinstance(schema.get("$id"), str) and pointer in self.sites:
                base, dialect = self.sites[pointer].base, self.sites[pointer].dialect
        if not isinstance(schema, (dict, bool)):
            raise bad(here, f"{reference!r} leads to what is no schema")
        return self._enter(schema, pointer, base, dialect)


def _place(key: str) -> int:
    """A place in a list; `ValueError` for what only Python takes for one."""
    if not (key.isascii() and key.isdecimal()):
        raise ValueError(key)
    return int(key)
