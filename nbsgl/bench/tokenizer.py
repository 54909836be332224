"""Make the tokenizer of 128,256 entries that the programs are measured with; seeded, about half a minute.

    python -m nbsgl.bench.tokenizer DIR      (writes tokenizer.json and tokenizer_config.json)

Byte-level BPE over the words of the programs and many pseudo-words, so that common words are one token each, as with a
tokenizer of that size.  Ids from 128,000 on are special tokens and text is split as in Llama 3.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from nbsgl.bench.programs import JSON_REGEX, WORDS
from nbsgl.errors import UsageError

SIZE, SPECIAL = 128_000, 256
PSEUDO_WORDS, COPIES = 400_000, 20_000  # each line of real words is repeated, so that each word becomes one token
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MORE_WORDS = (
    "Question Answer yes no maybe unknown Here is an essay A verdict on its clarity originality evidence style The "
    "four verdicts All in all You are an agent that answers by steps Thought Action search Observation the result is "
    "listed below Write register entry for measuring station called district Northern Harbour Old Town Riverside "
    "access Open Restricted Closed purpose weather traffic water level air quality seismic survey radio relay sensor "
    "maker series range condition Working Faulty keeper remark"
).split()
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def _pseudo_words(count: int) -> list[str]:
    rng = random.Random(0)
    onsets = "b br c ch d dr f g gr h k l m n p pl r s sh st t tr v w".split()
    nuclei, codas = "a e i o u ai ea ee ou".split(), ["", "n", "r", "s", "t", "l", "ck", "nd"]
    syllables = ["".join(parts) for parts in itertools.product(onsets, nuclei, codas)]
    return ["".join(rng.choice(syllables) for _ in range(rng.randint(1, 4))) for _ in range(count)]


def make(folder: Path, size: int = SIZE, pseudo: int = PSEUDO_WORDS, copies: int = COPIES) -> Any:
    """Train it, write its two files, and return it.  `size` is without the special tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    common, words = WORDS + MORE_WORDS, _pseudo_words(pseudo)
    lines = [" ".join(common), "\n".join(common), " ".join(word.capitalize() for word in common), JSON_REGEX] * copies
    lines += [" ".join(words[i : i + 50]) for i in range(0, len(words), 50)]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
    )
    tokenizer.train_from_iterator(lines, trainer)
    assert tokenizer.get_vocab_size() == size, tokenizer.get_vocab_size()
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    special += [f"<|reserved_special_token_{i}|>" for i in range(SPECIAL - len(special))]
    tokenizer.add_special_tokens(special)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": special[0],
        "eos_token": special[1],
        "model_max_length": 131_072,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    unfinished = folder / f"tokenizer.json.{os.getpid()}"
    tokenizer.save(str(unfinished))
    unfinished.replace(folder / "tokenizer.json")  # last and at once: its being there means that it is whole
    return tokenizer


def cached() -> Path:
    """The tokenizer's folder in the user's cache, made when it is not there yet."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "nbsgl" / f"bench-tokenizer-{SIZE + SPECIAL}"
    if not (folder / "tokenizer.json").is_file():
        sys.stderr.write(f"making the tokenizer of the programs in {folder} (half a minute, once)\n")
        make(folder)
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise UsageError("One argument: the folder to write to.")
    make(Path(sys.argv[1]))
