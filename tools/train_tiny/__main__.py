"""`python -m tools.train_tiny`: tokenizer, corpus, training, evaluation and model card in one seeded command."""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The settings of the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.train_tiny", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the model's files, made if missing")
    parser.add_argument("--steps", type=int, default=40_000, help="most training steps")
    parser.add_argument("--minutes", type=float, default=8.0, help="most minutes of training (wall clock)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", choices=("tiny", "smoke"), default="tiny", help="smoke: a toy to try the tool with")
    parser.add_argument("--batch-tokens", type=int, default=65_536, help="tokens of one step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="corpus processes")
    parser.add_argument("--init-from", type=Path, help="go on from the tokenizer and weights in this folder")
    parser.add_argument("--compile", action="store_true", help="torch.compile the loss")
    parser.add_argument(
        "--tokenizer-docs", type=int, default=60_000, help="documents that the tokenizer is learned from"
    )
    parser.add_argument("--no-eval", action="store_true", help="train only; measure later with --eval-only")
    parser.add_argument("--eval-only", action="store_true", help="measure the model in --out; train nothing")
    parser.add_argument("--eval-scale", type=float, default=1.0, help="share of the evaluation's prompts")
    return parser.parse_args(argv)


def make_tokenizer(args: argparse.Namespace):
    """Learn the tokenizer from the first documents of the corpus, save it, and return it."""
    from tools.train_tiny import corpus
    from tools.train_tiny.model import MAX_POSITIONS, SIZES
    from tools.train_tiny.tokenizer import save_tokenizer, train_tokenizer

    texts = islice(corpus.documents(args.seed), args.tokenizer_docs)
    tokenizer = train_tokenizer(texts, SIZES[args.size]["vocab_size"])
    save_tokenizer(tokenizer, args.out, MAX_POSITIONS)
    return tokenizer


def copy_tokenizer(args: argparse.Namespace):
    """Take over the tokenizer of `--init-from`, so that the weights keep their meaning."""
    from tokenizers import Tokenizer

    from tools.train_tiny.model import MAX_POSITIONS
    from tools.train_tiny.tokenizer import save_tokenizer

    tokenizer = Tokenizer.from_file(str(args.init_from / "tokenizer.json"))
    save_tokenizer(tokenizer, args.out, MAX_POSITIONS)
    return tokenizer


def make_model(args: argparse.Namespace, device: str) -> None:
    """Train tokenizer and model; write their files and `run.json` to the folder."""
    import torch
    from transformers import LlamaForCausalLM

    from tools.train_tiny.card import Run
    from tools.train_tiny.model import new_model, save_model
    from tools.train_tiny.train import TrainSettings, train

    start = time.monotonic()
    tokenizer = copy_tokenizer(args) if args.init_from else make_tokenizer(args)
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens in {time.monotonic() - start:.0f} s", flush=True)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    if args.init_from:
        model = LlamaForCausalLM.from_pretrained(args.init_from, dtype=torch.float32)
    else:
        model = new_model(args.size, tokenizer)
    settings = TrainSettings(
        tokenizer_file=str(args.out / "tokenizer.json"), out=args.out, steps=args.steps, minutes=args.minutes,
        device=device, seed=args.seed, batch_tokens=args.batch_tokens, workers=args.workers, lr=args.lr,
        compile=args.compile,
    )  # fmt: skip
    result = train(model, settings)
    save_model(model, args.out)
    hardware = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores"
    command = "python -m tools.train_tiny " + " ".join(_shown_arguments())
    run = Run(
        steps=result.steps, tokens=result.tokens, wall_s=result.wall_s, loss=result.loss,
        batch_tokens=args.batch_tokens, lr=args.lr, seed=args.seed, hardware=hardware, command=command,
        earlier=_earlier_run(args),
    )  # fmt: skip
    (args.out / "run.json").write_text(json.dumps(asdict(run), indent=1) + "\n", encoding="utf-8")


def _earlier_run(args: argparse.Namespace) -> dict | None:
    """What `--init-from` says about its own run."""
    if args.init_from is None or not (file := args.init_from / "run.json").exists():
        return None
    return json.loads(file.read_text(encoding="utf-8"))


def _shown_arguments() -> list[str]:
    """The command line with the folders' own paths left out."""
    argv, names = sys.argv[1:], {"--out": "DIR", "--init-from": "EARLIER_DIR"}
    return [names.get(argv[i - 1], a) if i else a for i, a in enumerate(argv)]


def measure(args: argparse.Namespace, device: str) -> None:
    """Evaluate the folder's model; write `eval.json`, and the card when the run is known."""
    from tools.train_tiny.card import figures, write_card
    from tools.train_tiny.evaluate import evaluate, write_report

    report = evaluate(args.out, device, scale=args.eval_scale)
    write_report(report, args.out)
    print(figures(report), f"\nevaluated in {report['seconds']} s", flush=True)
    if (args.out / "run.json").exists():
        write_card(args.out)


def main() -> None:
    """Run the command."""
    args = arguments()
    import torch

    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.eval_only:
        make_model(args, device)
    if not args.no_eval:
        measure(args, device)


if __name__ == "__main__":
    main()
