"""Rows of token ids for training, made by worker processes while the model trains on earlier ones."""

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
from tokenizers import Tokenizer

from tools.train_tiny import corpus
from tools.train_tiny.chat import END_OF_TEXT

SHORT_LEN, LONG_LEN = 512, 4096


@dataclass(frozen=True)
class ShardSpec:
    """One worker's job: `short_batches` of rows of 512 tokens and `long_batches` of rows of 4096."""

    tokenizer_file: str
    seed: int
    batch_tokens: int
    short_batches: int = 8
    long_batches: int = 2


def pack(tokenizer: Tokenizer, seed: int, kinds: dict, rows: int, row_len: int) -> np.ndarray:
    """`rows` rows of `row_len + 1` ids, uint16. A row starts with a document; its last document is cut.

    One row in ten starts with the end-of-text mark, as prompts that carry a bos token do.
    """
    end = tokenizer.token_to_id(END_OF_TEXT)
    stream, out = corpus.documents(seed, kinds), np.empty((rows, row_len + 1), dtype=np.uint16)
    ids: list[int] = []
    row = 0
    while row < rows:
        for encoded in tokenizer.encode_batch_fast([next(stream) for _ in range(64)]):
            ids += encoded.ids
            ids.append(end)
            if len(ids) > row_len and row < rows:
                out[row] = ids[: row_len + 1]
                row += 1
                ids = [end] if row % 10 == 0 else []
    return out


def make_shard(spec: ShardSpec) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The short and the long batches of one shard; the same spec gives the same rows."""
    tokenizer = Tokenizer.from_file(spec.tokenizer_file)
    short_rows = max(1, spec.batch_tokens // SHORT_LEN)
    long_rows = max(1, spec.batch_tokens // LONG_LEN)
    short = pack(tokenizer, spec.seed * 2, corpus.SHORT, short_rows * spec.short_batches, SHORT_LEN)
    long = pack(tokenizer, spec.seed * 2 + 1, corpus.LONG, long_rows * spec.long_batches, LONG_LEN)
    return np.split(short, spec.short_batches), np.split(long, spec.long_batches)


def _start_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process per core already


def batches(tokenizer_file: str, seed: int, batch_tokens: int, workers: int) -> Iterator[np.ndarray]:
    """An endless, seeded stream of batches: after every four short ones comes a long one.

    Starts `workers` processes at the first `next` and ends them when the generator is closed. Shards are taken in
    order, so the stream does not depend on the number of workers.
    """
    pool = get_context("spawn").Pool(workers, initializer=_start_worker)
    try:
        waiting: deque = deque()
        index = 0
        while True:
            while len(waiting) < 2 * workers:
                spec = ShardSpec(tokenizer_file, seed * 1_000_003 + index, batch_tokens)
                waiting.append(pool.apply_async(make_shard, (spec,)))
                index += 1
            short, long = waiting.popleft().get()
            for i, batch in enumerate(long):
                yield from short[i * 4 : i * 4 + 4]
                yield batch
    finally:
        pool.terminate()
        pool.join()
