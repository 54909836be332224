"""Greedy answers of the saved checkpoint against what is right, in batches, on any device."""

import json
import time
from collections import defaultdict
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from tools.train_tiny.cases import Case, every_case
from tools.train_tiny.chat import render, system, user
from tools.train_tiny.styles import dump

MAX_NEW_TOKENS = 320  # the longest story of the corpus has about 260 tokens
SHOWN_MISSES = 40


def load(folder: Path, device: str) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The saved bf16 weights; on a CPU they are computed with in fp32, which is faster there."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    return model, tokenizer


@torch.inference_mode()
def generate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompts: list[str], max_new: int, batch_size: int
) -> list[tuple[str, bool]]:
    """Greedy continuations, each with whether it stopped at an end token. Prompts of like length share a batch."""
    ids = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in prompts]
    stops = set(model.generation_config.eos_token_id)
    results: list[tuple[str, bool]] = [("", False)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(ids[i]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = max(len(ids[i]) for i in rows)
        padded = torch.tensor([[tokenizer.pad_token_id] * (width - len(ids[i])) + ids[i] for i in rows])
        mask = torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in rows])
        out = model.generate(
            input_ids=padded.to(model.device), attention_mask=mask.to(model.device), max_new_tokens=max_new,
            do_sample=False,
        )  # fmt: skip
        for row, i in enumerate(rows):
            new = out[row, width:].tolist()
            end = next((k for k, token in enumerate(new) if token in stops), None)
            results[i] = (tokenizer.decode(new if end is None else new[:end]), end is not None)
    return results


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def is_right(case: Case, output: str, stopped: bool) -> bool:
    """Whether an output passes the check of its case."""
    match case.check:
        case "exact" | "json_exact":
            return output == case.expected
        case "contains":
            words = f" {output.lower().replace('.', ' ').replace(',', ' ')} "
            return f" {case.expected.lower()} " in words
        case "first_line":
            return output.strip().split("\n")[0] == case.expected
        case "json":
            return _parsed(output) is not None
        case "stops":
            return stopped
    raise ValueError(f"unknown check {case.check!r}: use exact, contains, first_line, json, json_exact or stops")


def evaluate(folder: Path, device: str, seed: int = 0, scale: float = 1.0) -> dict[str, object]:
    """Measure the checkpoint in `folder`: percentages by suite, and some misses. Writes nothing."""
    start = time.monotonic()
    model, tokenizer = load(folder, device)
    cases = every_case(seed, scale)
    quick = [c for c in cases if c.check != "stops" and not c.suite.startswith("json")]
    slow = [c for c in cases if c not in quick]
    size = 512 if device == "cuda" else 64
    outputs = generate(model, tokenizer, [c.prompt for c in quick], 96, size)
    outputs += generate(model, tokenizer, [c.prompt for c in slow], MAX_NEW_TOKENS, size)
    tally: dict[str, list[bool]] = defaultdict(list)
    misses = []
    for case, (output, stopped) in zip(quick + slow, outputs, strict=True):
        right = is_right(case, output, stopped)
        tally[case.suite].append(right)
        if case.suite.startswith("held_out"):
            tally["held_out_phrasings"].append(right)
        if case.suite.startswith("json"):
            tally["json_valid_without_grammar"].append(_parsed(output) is not None)
        if case.suite != "plain_few_shot":
            tally["stops_at_end_token"].append(stopped)
        if not right:
            misses.append(
                {"suite": case.suite, "prompt": case.prompt[-300:], "expected": case.expected, "output": output[:200]}
            )
    percent = {suite: round(100 * sum(hits) / len(hits), 1) for suite, hits in sorted(tally.items())}
    counts = {suite: len(hits) for suite, hits in sorted(tally.items())}
    return {
        "percent_right": percent, "prompts": counts, "seed": seed, "device": device,
        "seconds": round(time.monotonic() - start, 1), "misses": _spread(misses),
    }  # fmt: skip


def _spread(misses: list[dict[str, str]]) -> list[dict[str, str]]:
    """At most six misses of a suite, and a limited number in all."""
    seen: dict[str, int] = defaultdict(int)
    kept = []
    for miss in misses:
        seen[miss["suite"]] += 1
        if seen[miss["suite"]] <= 6:
            kept.append(miss)
    return kept[:SHOWN_MISSES]


def write_report(report: dict[str, object], folder: Path) -> None:
    """Write `eval.json`."""
    (folder / "eval.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def samples(folder: Path, device: str, prompts: list[tuple[str, str]], max_new: int = 200) -> str:
    """Greedy outputs for (system, user) pairs, as text to read. An empty system text means none."""
    model, tokenizer = load(folder, device)
    rendered = [render([*([system(s)] if s else []), user(u)], add_generation_prompt=True) for s, u in prompts]
    outputs = generate(model, tokenizer, rendered, max_new, 32)
    return "\n".join(
        dump({"system": s, "user": u, "output": o}) for (s, u), (o, _) in zip(prompts, outputs, strict=True)
    )
