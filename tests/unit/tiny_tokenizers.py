"""Small real tokenizers for tests, written to a folder as a model would have them."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    'The quick brown fox jumps over the lazy dog. {"name": "Ada", "age": 36, "tags": ["a", "b"]}',
    "naïve café über straße — 日本語のテキスト, русский текст, עברית 🙂🙃 1234567890 true false null",
    "system user assistant yes no maybe 2024-05-17 12:30:45 3.14159 -17 def f(x): return x + 1\n\n",
] * 8
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level(
    folder: Path, *, vocab_size: int = 400, bos: bool = False, added: tuple[str, ...] = ("<think>",)
) -> Path:
    """Byte-level BPE as GPT-2 and its children have it; `added` are added, but not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(list(added))
    if bos:
        tokenizer.add_special_tokens(["<s>"])
        start = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", start)]
        )
    config = {"eos_token": "<|im_end|>", "chat_template": CHATML, "bos_token": "<s>" if bos else None}
    return save(folder, tokenizer, config, {"eos_token_id": [0, 2]})


def sentence_piece(folder: Path, *, scheme: str = "first") -> Path:
    """BPE over whole text with U+2581 for spaces and byte fallback, as Llama 2 has it; `<s>` is put in front."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=pieces, show_progress=False, max_token_length=12)
    tokenizer.train_from_iterator([text[i : i + 40] for text in CORPUS for i in range(0, len(text), 40)], trainer)
    data = json.loads(tokenizer.to_str())
    data["model"] |= {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    data["added_tokens"] = data["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    if scheme == "normalizer":  # the older way: the normalizer does it all
        tokenizer.pre_tokenizer = None  # type: ignore[assignment]
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return save(folder, tokenizer, {"eos_token": "</s>", "bos_token": {"content": "<s>"}}, {})


def unigram(folder: Path) -> Path:
    """SentencePiece's other model; the control symbols are pieces of the vocabulary itself."""
    letters = sorted(set("▁" + "".join(CORPUS)) - {" ", "\n"})
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256))]
    pieces += [(letter, -8.0) for letter in letters] + [("▁the", -3.0), ("quick", -3.0), ("<s>x", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return save(folder, tokenizer, {"eos_token": "</s>", "bos_token": "<s>"}, {})


def save(folder: Path, tokenizer: Tokenizer, config: dict[str, object], generation: dict[str, object]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder
