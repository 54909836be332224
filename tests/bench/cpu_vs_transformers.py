"""Tokens per second on a CPU: nbsgl's scheduler and runner against `transformers.generate`, in one run.

    python -m tests.bench.cpu_vs_transformers [--model FOLDER] [--no-large] [--repeat 2]

Two models: the embedded one (or FOLDER) and a random one of Qwen2.5-0.5B's shape.  Three loads: one request; sixteen of
different prompt and output lengths, submitted at once; and a queue of more, of which sixteen run at a time.
Greedy, end tokens ignored; only tokens asked for count.  transformers takes the requests sixteen by sixteen in their
order, pads on the left and runs to the longest output.  Sides alternate; the best of the repeats counts.
Lengths are spread evenly on a log scale: prompts 16..400 and outputs 8..128 tokens for the small model, 8..64 and 4..48
for the large one.
Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nbsgl.engine.bench import Work, load_average, make_work, run_work
from nbsgl.engine.config import EngineConfig
from nbsgl.engine.folders import resolve_model
from nbsgl.engine.loader import LoadedModel, load

Load = tuple[int, Work]  # how many requests at a time, and all of them

QWEN_HALF_B = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4_864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4_096,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "eos_token_id": 151_643,
}


def run_transformers(model: Any, work: Work, batch: int) -> float:
    """Seconds of left-padded `generate` calls for `batch` requests each, that run to their longest output."""
    return sum(_generate(model, work[i : i + batch]) for i in range(0, len(work), batch))


def _generate(model: Any, work: Work) -> float:
    width, most = max(len(p) for p, _ in work), max(n for _, n in work)
    ids = torch.tensor([[0] * (width - len(p)) + p for p, _ in work])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p, _ in work])
    begin = time.perf_counter()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=most,
            do_sample=False,
            pad_token_id=0,
        )
    assert out.shape[1] == width + most
    return time.perf_counter() - begin


def load_peer(loaded: LoadedModel) -> Any:
    """transformers' model with the same weights, in the same dtype."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(loaded.folder)
    peer = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    ours = loaded.runner.model
    missing = peer.load_state_dict(dict(ours.parameters()), strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}, missing
    peer.tie_weights()
    peer.generation_config.eos_token_id = None  # quicker than min_new_tokens, which masks the scores of every step
    return peer


def compare(name: str, loaded: LoadedModel, loads: list[Load], repeat: int) -> list[dict[str, Any]]:
    peer = load_peer(loaded)
    rows = []
    for batch, work in loads:
        sides: dict[str, Callable[[Work], float]] = {
            "nbsgl": lambda work, batch=batch: run_work(loaded, work, batch).seconds,
            "transformers": lambda work, batch=batch: run_transformers(peer, work, batch),
        }
        short = [(prompt[:8], 2) for prompt, _ in work[:batch]]
        for side in sides.values():
            side(short)
        best = dict.fromkeys(sides, float("inf"))
        for _ in range(repeat):
            for side, function in sides.items():
                best[side] = min(best[side], function(work))
        tokens = sum(num for _, num in work)
        row = {"model": name, "batch": batch, "requests": len(work), "prompt_tokens": sum(len(p) for p, _ in work)}
        row |= {"output_tokens": tokens}
        row |= {f"{side}_tok_s": round(tokens / seconds, 2) for side, seconds in best.items()}
        row |= {"ratio": round(best["transformers"] / best["nbsgl"], 2), "load_average": load_average()}
        print("{model:14s} {batch:5d} {requests:8d} {prompt_tokens:7d} {output_tokens:7d} {nbsgl_tok_s:9.1f} "
              "{transformers_tok_s:13.1f} {ratio:6.2f}x {load_average}".format(**row), flush=True)  # fmt: skip
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--no-large", action="store_true", help="only the small model")
    parser.add_argument("--no-small", action="store_true", help="only the model of 0.5B")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--num-threads", type=int, default=None)
    args = parser.parse_args()
    print(f"{'model':14s} batch requests  prompt  output     nbsgl  transformers   ratio load   (tokens/s)")
    rows = []
    common = {"device": "cpu", "dtype": "float32", "num_threads": args.num_threads}
    if not args.no_small:
        folder = str(resolve_model(args.model))
        loaded = load(EngineConfig.of(model_path=folder, num_slots=16_384, **common))
        vocab = loaded.vocab_size
        loads = [(1, make_work(1, vocab, (200, 200), (128, 128)))]
        loads += [(16, make_work(num, vocab, (16, 400), (8, 128))) for num in (16, 64)]
        rows += compare(Path(folder).name, loaded, loads, args.repeat)
    if not args.no_large:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(QWEN_HALF_B))
            loaded = load(EngineConfig.of(model_path=folder, load_format="dummy", num_slots=4_096, **common))
            vocab = loaded.vocab_size
            loads = [(1, make_work(1, vocab, (64, 64), (24, 24)))]
            loads += [(16, make_work(num, vocab, (8, 64), (4, 48))) for num in (16, 32)]
            rows += compare("random-0.5B", loaded, loads, args.repeat)
    print(json.dumps({"bench": "cpu_vs_transformers", "threads": torch.get_num_threads(), "rows": rows}))


if __name__ == "__main__":
    main()
