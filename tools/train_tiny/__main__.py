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
    parser.add_argument("--compile", action="store_true", help="torch.compile the loss")
    parser.add_argument(
        "--tokenizer-docs", type=int, default=60_000, help="documents that the tokenizer is learned from"
    )
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


def make_model(args: argparse.Namespace, device: str) -> None:
    """Train tokenizer and model; write their files and `run.json` to the folder."""
    import torch

    from tools.train_tiny.card import Run
    from tools.train_tiny.model import new_model, save_model
    from tools.train_tiny.train import TrainSettings, train

    start = time.monotonic()
    tokenizer = make_tokenizer(args)
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens in {time.monotonic() - start:.0f} s", flush=True)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
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
        result.steps,
        result.tokens,
        result.wall_s,
        result.loss,
        args.batch_tokens,
        args.lr,
        args.seed,
        hardware,
        command,
    )
    (args.out / "run.json").write_text(json.dumps(asdict(run), indent=1) + "\n", encoding="utf-8")


def _shown_arguments() -> list[str]:
    """The command line with the folder's own path left out."""
    argv = sys.argv[1:]
    return ["DIR" if i and argv[i - 1] == "--out" else a for i, a in enumerate(argv)]


def measure(args: argparse.Namespace, device: str) -> None:
    """Evaluate the folder's model; write `eval.json`, and the card when the run is known."""
    from safetensors import safe_open

    from tools.train_tiny.card import Run, figures, write_card
    from tools.train_tiny.evaluate import evaluate, write_report

    report = evaluate(args.out, device, scale=args.eval_scale)
    write_report(report, args.out)
    print(figures(report), f"\nevaluated in {report['seconds']} s", flush=True)
    run_file = args.out / "run.json"
    if run_file.exists():
        with safe_open(args.out / "model.safetensors", "np") as file:
            params = sum(_size(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        config = json.loads((args.out / "config.json").read_text(encoding="utf-8"))
        write_card(args.out, config, params, Run(**json.loads(run_file.read_text(encoding="utf-8"))), report)


def _size(shape: list[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def main() -> None:
    """Run the command."""
    args = arguments()
    import torch

    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    args.out.mkdir(parents=True, exist_ok=True)
    if not args.eval_only:
        make_model(args, device)
    measure(args, device)


if __name__ == "__main__":
    main()
