"""The model card, `README.md`, from the run and its evaluation."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

LABELS = {
    "held_out_phrasings": "facts of the world, phrasings held out of training",
    "held_out_sentence": "- answered in a sentence (contains the answer)",
    "held_out_one_word": "- answered in one word (exact)",
    "styles_exact": "known phrasings under seven kinds of system prompt (exact)",
    "dialogue": "last reply of a dialogue that refers back (exact)",
    "yes_no": "yes/no questions (exact)",
    "multiple_choice": "multiple choice (exact)",
    "compare": "who is older, which number is larger (exact)",
    "in_context": "invented facts in the prompt (exact)",
    "in_context_long": "one invented fact in a long text of stories (exact)",
    "copy": "repeat a text (exact)",
    "json_record_exact": "JSON record of the world (exact text)",
    "json_extract": "JSON from an invented text (exact text)",
    "json_valid": "JSON of made-up characters and lists (valid)",
    "json_valid_without_grammar": "all JSON prompts: output parses, without a grammar",
    "sums_unseen": "sums of two numbers below 100, pairs held out of training (exact)",
    "unknown": 'strangers: "I do not know." (exact)',
    "plain_few_shot": "`Q:`/`A:` lists without a chat (exact)",
    "free_text": "stories, poems, tips: end within 320 tokens",
    "stops_at_end_token": "all chats: the reply ends at an end token",
}

CARD = """# nbsgl's tiny model

A Llama-shaped language model of {params:.1f} million parameters that ships with nbsgl, so that every example runs on a
laptop without a download. Made from nothing by `python -m tools.train_tiny`; no text or weights of others went into it.

## What it is

It knows a small closed world, and answers about it in the form that the system prompt asks for: 67 countries (capital,
continent, language, currency), 60 invented people (age, job, home, pet, favourite colour and food, best friend), 46
animals, 24 jobs, opposites, plurals, past tenses, colours of things, days, months, numbers, and small sums. It reads
short texts in the prompt, writes JSON records, lists, tips and little stories, goes on with few-shot lists, and says
"I do not know." to what lies outside.

## What it is not

It is not an assistant and knows nothing of the real world beyond those tables. The people are invented. Facts are
simplified (one language and one currency for each country). It understands phrasings near those it was trained on; one
far from them can bring a wrong fact in a sure voice. Do not use it for anything but trying the engine out.

## Data

Synthetic documents from the generators in `tools/train_tiny/documents`: chats of one and many turns with and without
system prompts, texts with questions, few-shot lists, JSON, stories. It saw {tokens:,.0f} million tokens, each row
fresh, in rows of 512 tokens and one batch in five of rows of 4096. Some phrasings of each question, some system
prompts and one pair of numbers in twenty never occur in training; the evaluation uses them. (The phrasings of training
were widened once after a first look at those figures, without taking the held-out ones in.)

## Sizes

| | |
| --- | --- |
| parameters | {params_exact:,} (embeddings tied) |
| shape | {layers} layers, hidden {hidden}, {heads} heads, {kv_heads} kv heads, head_dim {head_dim}, mlp {mlp} |
| vocabulary | {vocab:,}, byte-level BPE, one digit a token |
| context | {context:,} positions |
| `model.safetensors` | {megabytes:.1f} MB, bf16 |

## Training

AdamW, warm-up and cosine, bf16 autocast. The corpus depends on the seed alone; the learning rate follows the clock, so
a second run gives a model like this one, not the same bytes.

{stages}

## Figures

Greedy decoding of the saved bf16 weights, by the evaluation of the same tool (`--eval-only`, device
{device}). Percent right:

| | % | prompts |
| --- | ---: | ---: |
{figures}

## Chat format

    <|im_start|>system
    You answer in one word.<|im_end|>
    <|im_start|>user
    What is the capital of France?<|im_end|>
    <|im_start|>assistant
    Paris<|im_end|>

A turn ends with `<|im_end|>`, a document with `<|endoftext|>`. The template adds no system prompt of its own.
"""


@dataclass(frozen=True)
class Run:
    """How the model was made, as the card tells it and `run.json` keeps it."""

    steps: int
    tokens: int
    wall_s: float
    loss: float
    batch_tokens: int
    lr: float
    seed: int
    hardware: str
    command: str
    earlier: dict | None = None  # the run that this one went on from
    note: str = ""

    def stages(self) -> list["Run"]:
        """All runs behind the model, the first one first."""
        return [*(Run(**self.earlier).stages() if self.earlier else []), self]


def _stage(number: int, run: Run) -> str:
    note = f" {run.note}" if run.note else ""
    return (
        f"{number}. {run.steps:,} steps of {run.batch_tokens:,} tokens in {run.wall_s / 60:.1f} minutes on "
        f"{run.hardware}, seed {run.seed}, peak\n   learning rate {run.lr}, final loss {run.loss:.3f}.{note}\n\n"
        f"       {run.command}"
    )


def figures(report: dict) -> str:
    """Rows of the table of figures, in the order of `LABELS`."""
    percent, counts = report["percent_right"], report["prompts"]
    return "\n".join(f"| {label} | {percent[k]:.1f} | {counts[k]:,} |" for k, label in LABELS.items() if k in percent)


def count_parameters(weights: Path) -> int:
    """Numbers in a safetensors file; a tied head is not in it and not counted."""
    with safe_open(weights, "np") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def write_card(folder: Path) -> None:
    """Write `README.md` from the folder's `config.json`, `run.json` and `eval.json`."""
    config, run, report = (
        json.loads((folder / f"{n}.json").read_text(encoding="utf-8")) for n in ("config", "run", "eval")
    )
    params, stages = count_parameters(folder / "model.safetensors"), Run(**run).stages()
    text = CARD.format(
        params=params / 1e6, params_exact=params, tokens=sum(s.tokens for s in stages) / 1e6,
        layers=config["num_hidden_layers"], hidden=config["hidden_size"], heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"], head_dim=config["head_dim"], mlp=config["intermediate_size"],
        vocab=config["vocab_size"], context=config["max_position_embeddings"],
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6, device=report["device"], figures=figures(report),
        stages="\n\n".join(_stage(i, s) for i, s in enumerate(stages, 1)),
    )  # fmt: skip
    (folder / "README.md").write_text(text, encoding="utf-8")
