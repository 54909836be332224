"""A model folder's tokenizer files, read once: size-limited, parsed, and with the ids that end and start a text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbsgl.errors import BadConfig, ModelNotFound, ModelUnsupported

MAX_TOKENIZER_BYTES = 64 << 20
MAX_CONFIG_BYTES = 1 << 20
MAX_TOKENIZER_CONFIG_BYTES = 16 << 20  # holds the added tokens again, and the chat template
MAX_VOCAB = 2_097_152


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that stands beside the model's own vocabulary; how it matches is the tokenizer file's word."""

    id: int
    text: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class TokenizerFiles:
    """`tokenizer.json`, and what the small files beside it say.  A file that is not there reads as {}."""

    folder: Path
    tokenizer: dict[str, Any]
    config: dict[str, Any]
    generation: dict[str, Any]
    model: dict[str, Any]
    added: tuple[AddedToken, ...]

    @classmethod
    def load(cls, folder: Path) -> TokenizerFiles:
        """Read the files; `ModelNotFound` without a `tokenizer.json`, `BadConfig` for one that makes no sense."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelNotFound(
                f"{path} does not exist; nbsgl reads tokenizers in this format only.",
                file=str(path),
                hint="Make it with transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder).",
            )
        tokenizer = read_json(path, MAX_TOKENIZER_BYTES)
        kind = (tokenizer.get("model") or {}).get("type", "BPE")
        if kind not in ("BPE", "Unigram"):
            raise ModelUnsupported(file=str(path), field="model.type", value=kind, allowed="BPE or Unigram")
        return cls(
            folder=folder,
            tokenizer=tokenizer,
            config=read_json(folder / "tokenizer_config.json", MAX_TOKENIZER_CONFIG_BYTES, optional=True),
            generation=read_json(folder / "generation_config.json", MAX_CONFIG_BYTES, optional=True),
            model=read_json(folder / "config.json", MAX_CONFIG_BYTES, optional=True),
            added=_added_tokens(path, tokenizer),
        )

    @property
    def vocab(self) -> dict[str, int]:
        """The model's own pieces, without the added ones."""
        vocab = (self.tokenizer.get("model") or {}).get("vocab", {})
        if isinstance(vocab, list):  # Unigram: [piece, score], the place is the id
            return {piece: token for token, (piece, _) in enumerate(vocab)}
        return vocab

    def token_id(self, text: str) -> int | None:
        """The id of a whole token by its text; an added token wins over a piece of the model."""
        for token in self.added:
            if token.text == text:
                return token.id
        return self.vocab.get(text)

    def named(self, name: str) -> str | None:
        """The text of a token the config names (`bos_token`, `eos_token`)."""
        value = self.config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        return value if isinstance(value, str) and value else None

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a text: of the generation config, the model's config, the tokenizer's `eos_token`."""
        found: set[int] = set()
        for source in (self.generation, self.model, self.model.get("text_config") or {}):
            ids = source.get("eos_token_id")
            found.update(i for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int) and i >= 0)
        text = self.named("eos_token")
        token = self.token_id(text) if text else None
        if token is not None:
            found.add(token)
        return tuple(sorted(found))

    @property
    def bos_id(self) -> int | None:
        """The id of the token that starts a text, whether or not the tokenizer adds it by itself."""
        text = self.named("bos_token")
        token = self.token_id(text) if text else None
        if token is None:
            token = next(iter(self._template_head), None)
        return token

    @property
    def unk_id(self) -> int | None:
        """The id that stands for text the vocabulary cannot spell."""
        model = self.tokenizer.get("model") or {}
        text = model.get("unk_token")
        return self.token_id(text) if text else model.get("unk_id")

    @property
    def start_ids(self) -> tuple[int, ...]:
        """What the tokenizer puts before a text: `add_bos_token` if it is set, else its post-processor's template."""
        wanted = self.config.get("add_bos_token")
        if wanted is False:
            return ()
        if wanted is True:
            return () if self.bos_id is None else (self.bos_id,)
        return self._template_head

    @property
    def _template_head(self) -> tuple[int, ...]:
        ids: list[int] = []
        for step in parts(self.tokenizer.get("post_processor"), "processors"):
            if step.get("type") != "TemplateProcessing":
                continue
            for item in step.get("single", []):
                if "Sequence" in item:
                    break
                name = item.get("SpecialToken", {}).get("id")
                ids += step.get("special_tokens", {}).get(name, {}).get("ids", [])
        return tuple(ids)


def parts(step: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer, post-processor or decoder: a Sequence is its parts, None is none."""
    if not step:
        return []
    if step.get("type") == "Sequence":
        return [part for child in step.get(name, []) for part in parts(child, name)]
    return [step]


def read_json(path: Path, limit: int, *, optional: bool = False) -> dict[str, Any]:
    """Parse a JSON object from a file of at most `limit` bytes; `BadConfig` says what is wrong with it."""
    if optional and not path.is_file():
        return {}
    size = path.stat().st_size
    if size > limit:
        raise BadConfig(file=str(path), field="size", value=size, allowed=f"at most {limit:,} bytes")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadConfig(f"{path} is not valid JSON: {error}.", file=str(path)) from error
    if not isinstance(data, dict):
        raise BadConfig(file=str(path), field="(whole file)", value=type(data).__name__, allowed="a JSON object")
    return data


def _added_tokens(path: Path, tokenizer: dict[str, Any]) -> tuple[AddedToken, ...]:
    found = []
    for entry in tokenizer.get("added_tokens") or []:
        token, text = entry.get("id"), entry.get("content")
        if not isinstance(token, int) or not 0 <= token < MAX_VOCAB or not isinstance(text, str) or not text:
            raise BadConfig(
                file=str(path), field="added_tokens", value=entry, allowed=f"an id < {MAX_VOCAB:,} and a text"
            )
        flags = {name: bool(entry.get(name)) for name in ("special", "lstrip", "rstrip", "single_word", "normalized")}
        found.append(AddedToken(id=token, text=text, **flags))
    return tuple(found)
