"""Carries batches out on CUDA.  Everything is queued behind what is queued already; only `Launched.result` waits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from nbsgl.engine.attention.paged import Layout, PagedAttention
from nbsgl.engine.attention.shared_prefix import worth_sharing
from nbsgl.engine.batch import Batch, Row, SharedPrefix
from nbsgl.engine.cuda.dense import is_there
from nbsgl.engine.cuda.draws import Draws, DrawTable
from nbsgl.engine.cuda.forward import Buffers, Forward, Hidden, Way
from nbsgl.engine.cuda.grammars import DeviceGrammars
from nbsgl.engine.cuda.graphs import (
    MAX_BUCKET,
    PIECES_STEP,
    SIZES,
    GraphKey,
    Graphs,
    NoRoomForGraph,
    bucket_of,
    pieces_bucket_of,
    way_of,
)
from nbsgl.engine.cuda.inputs import DeviceInputs, InputBlock, Singles, StepTokens, lay_out
from nbsgl.engine.cuda.matmul import Matmul
from nbsgl.engine.cuda.parts import joined
from nbsgl.engine.kernels.decode_attention import DecodeScratch
from nbsgl.engine.kernels.draw import DrawScratch, draw
from nbsgl.engine.kv_cache import KVCache
from nbsgl.engine.launched import LaunchedStep, Scored, memory_errors
from nbsgl.engine.layers.rope import Rope
from nbsgl.engine.models.decoder import Decoder
from nbsgl.engine.sampler import Drawn, Sampler, logprobs_of
from nbsgl.engine.transfer import index_of

log = logging.getLogger("nbsgl")

# An extend goes token by token through a graph if the step reads no more positions than this: about 6 ms of attention
# on an 8B, as long as the host takes to launch a step in pieces.
MAX_SMALL_READS = 200_000
MANY_ROWS = 32  # from here on attention begins with the longest, so that no long one is left alone at the end
NOTHING = (None, None)  # of a step that draws no token


class CudaRunner:
    """Implements `batch.Runner`.  With `use_graphs` False the host launches every kernel: the tests' slow path."""

    has_device_grammars = True  # rows may come with tables, and with a state that the host does not know yet

    def __init__(
        self,
        model: Decoder,
        cache: KVCache,
        attention: PagedAttention,
        rope: Rope,
        *,
        max_running: int,
        max_tokens: int,
        deterministic: bool = False,
    ) -> None:
        self.model, self.cache, self.attention, self.rope = model, cache, attention, rope
        self.device = cache.device
        is_cuda = self.device.type == "cuda"
        self.max_running = max_running
        self.max_drawn = max(max_running, MAX_BUCKET)
        self._generation = attention.generation
        self.max_tokens = max(max_tokens, MAX_BUCKET)
        self.deterministic = deterministic
        self.use_graphs = is_cuda and not deterministic
        self.has_dense = is_there(self.device, model.dtype)
        # the token drawn last for each row of the page table: the next step's input before the host has seen it
        self.last_tokens = torch.zeros(max_running + 1, dtype=torch.int32, device=self.device)
        self.logits = torch.empty((self.max_drawn, model.config.vocab_size), dtype=model.dtype, device=self.device)
        self.drawn = torch.zeros(2 * self.max_drawn, dtype=torch.int32, device=self.device)
        self.draw_scratch = DrawScratch(self.max_drawn, self.device)
        self.block = InputBlock(self.max_tokens, self.max_tokens + self.max_drawn, cache.padding_row, self.device)
        self.draws = DrawTable(max_running)
        self.grammars = DeviceGrammars(self.device, model.config.vocab_size, max_running, self.last_tokens)
        self.sampler = Sampler(model.config.vocab_size, self.device, self.last_tokens, invariant=deterministic)
        if self.sampler.kernels is not None:
            self.sampler.kernels.grammars = self.grammars
        self.forward = Forward(
            model,
            cache,
            attention,
            rope,
            DecodeScratch(model.config, self.device),
            self.last_tokens,
            Matmul(self.device, model.dtype),
            pdl=is_cuda and torch.cuda.get_device_capability(self.device)[0] >= 9,
            deterministic=deterministic,
        )
        self.graphs = Graphs()
        self.buffers = self._make_buffers()
        self._is_told = False  # that there is no room for graphs

    @torch.inference_mode()
    def launch(self, batch: Batch) -> LaunchedStep:
        """Queue the batch on the device.

        Writes the rows' new slots to the page table, K and V of all its tokens, and the drawn tokens to `last_tokens`.
        Raises StepOutOfMemory; the page table keeps the new slots then, sending them again is harmless.
        """
        with memory_errors(self.device):
            self.cache.write_table([(row.row, row.slots_from, row.slots) for row in batch.rows if len(row.slots)])
            shared = self._shared(batch)
            step = self._lay_out(batch.rows, keeps_order=bool(shared))
            lines = step.lines(batch.rows)
            draws = self.draws.note(lines)
            if draws is not Draws.PLAIN and (placed := self.grammars.place(lines)) is not lines:
                lines, draws = placed, self.draws.note(placed)
            launched = self._launch(batch, step, lines, draws, shared)
            self.grammars.keep()
            return launched

    def forget(self) -> None:
        """All rows were taken away: drop what is held per row, and zero the pool (a fault may have left NaN)."""
        with torch.inference_mode():
            self.sampler.forget()
            self.grammars.forget()
            self.last_tokens.zero_()
            self.cache.clear()

    # ---- how to go -------------------------------------------------------------------------------------------------

    def _launch(
        self, batch: Batch, step: StepTokens, lines: list[Row], draws: Draws, shared: Sequence[SharedPrefix]
    ) -> LaunchedStep:
        if self.use_graphs and not (shared or step.dense or max(step.num_tokens, step.num_wanted) > MAX_BUCKET):
            launch = self._launch_pieces if step.extends else self._launch_graph
            try:
                return launch(batch, step, lines, draws)
            except NoRoomForGraph as error:
                level = logging.DEBUG if self._is_told else logging.WARNING
                log.log(level, "steps of a new size go without a graph, and slower: %s", error)
                self._is_told = True
                torch.cuda.empty_cache()
        return self._launch_eagerly(batch, step, lines, draws, shared)

    def _shared(self, batch: Batch) -> Sequence[SharedPrefix]:
        """The rows' shared prefixes, if attending to them once is worth leaving the graphs for."""
        if not batch.shared or self.deterministic:
            return ()
        kv_lens = np.fromiter((row.start + 1 for row in batch.rows), np.int32, len(batch.rows))
        return batch.shared if worth_sharing(kv_lens, batch.shared) else ()

    def _lay_out(self, rows: list[Row], *, keeps_order: bool) -> StepTokens:
        if self.deterministic:
            return lay_out(rows, Singles.NONE)
        total = sum(row.num_tokens for row in rows)
        if total == len(rows) or total > MAX_BUCKET or not self.use_graphs:
            return lay_out(
                rows, Singles.ONES, has_dense=self.has_dense, longest_first=total >= MANY_ROWS and not keeps_order
            )
        reads = sum(row.num_tokens * (row.start + row.num_tokens) for row in rows)
        return lay_out(rows, Singles.ALL if reads <= MAX_SMALL_READS else Singles.ONES)

    def _make_buffers(self) -> Buffers:
        c, size = self.model.config, MAX_BUCKET if self.use_graphs else 0
        residual = torch.zeros((size, c.hidden_size), dtype=self.model.dtype, device=self.device)
        q, mixed = torch.zeros((2, size, c.num_heads, c.head_dim), dtype=self.model.dtype, device=self.device).unbind(0)
        return Buffers(residual, q, mixed)

    # ---- kernel by kernel ------------------------------------------------------------------------------------------

    def _launch_eagerly(
        self, batch: Batch, step: StepTokens, lines: list[Row], draws: Draws, shared: Sequence[SharedPrefix]
    ) -> LaunchedStep:
        inputs = self._send(step, lines, draws, step.num_tokens, step.num_wanted)
        self.attention.plan(_layout(step, inputs, step.num_singles, shared), is_graph=False)
        hidden = self.forward.hidden(Way.ANY, inputs, step.dense)
        parts = []
        for begin in range(0, len(lines), self.max_drawn):  # one, but for many drafts
            end = min(begin + self.max_drawn, len(lines))
            self.forward.logits(hidden, begin, end, self.logits[: end - begin])
            ids, drawn = self._draw(inputs, lines, begin, end, draws)
            parts.append((ids if len(lines) <= self.max_drawn else ids.clone(), drawn))
        scored = self._score_hidden(batch.rows, step, hidden)
        return LaunchedStep(batch.rows, step.drawing, *(joined(parts) if parts else NOTHING), scored, self.device)

    def _score_hidden(self, rows: list[Row], step: StepTokens, hidden: Hidden) -> list[list[Scored]]:
        """Log-probabilities of `history[p + 1]` for the scored positions p, a bounded part of the logits at a time."""
        scored = []
        begin = len(step.drawing)
        for i in step.scoring:
            parts = []
            for first in range(rows[i].score.start, rows[i].score.stop, self.max_drawn):
                stop = min(first + self.max_drawn, rows[i].score.stop)
                logits, end = self.logits[: stop - first], begin + stop - first
                self.forward.logits(hidden, begin, end, logits)
                parts.append(self._scored(rows[i], range(first, stop), logits))
                begin = end
            scored.append(parts)
        return scored

    # ---- through a graph -------------------------------------------------------------------------------------------

    def _launch_graph(self, batch: Batch, step: StepTokens, lines: list[Row], draws: Draws) -> LaunchedStep:
        bucket = bucket_of(max(step.num_tokens, step.num_wanted))
        way = way_of(bucket, is_decode=step.num_tokens == len(batch.rows))
        key = GraphKey(way, bucket, draws=draws is Draws.PLAIN)
        (graph,), inputs = self._ready_graph(key, step, lines, draws)
        graph.replay()
        drawn = (self._drawn_ids(bucket), None) if key.draws and lines else self._drawn(inputs, lines, draws)
        return LaunchedStep(batch.rows, step.drawing, *drawn, self._score_logits(batch.rows, step), self.device)

    def _ready_graph(
        self, key: GraphKey, step: StepTokens, lines: list[Row], draws: Draws
    ) -> tuple[list[torch.cuda.CUDAGraph], DeviceInputs]:
        """Send and plan the step; the graph of that key, captured first if it is new or if what it reads has moved."""
        while True:
            inputs = self._send(step, lines, draws, key.num_tokens, key.num_tokens)
            if key.way is Way.ANY:
                self.attention.plan(_layout(step, inputs, key.num_tokens), is_graph=True)
                if self.attention.generation != self._generation:
                    self._generation = self.attention.generation
                    self.graphs.forget()
            graphs = self.graphs.find(key)
            if graphs is not None:
                return graphs, inputs
            self._capture(key)

    def _launch_pieces(self, batch: Batch, step: StepTokens, lines: list[Row], draws: Draws) -> LaunchedStep:
        """Through a graph from each attention to the next; the host launches these, planned for this step alone."""
        bucket = pieces_bucket_of(max(step.num_tokens, step.num_wanted))
        key = GraphKey(Way.PIECES, bucket, draws=False)
        graphs = self.graphs.find(key) or self._capture(key)
        inputs = self._send(step, lines, draws, bucket, bucket)
        self.attention.plan(_layout(step, inputs, step.num_singles), is_graph=False)
        q, mixed = self.buffers.q[: step.num_tokens], self.buffers.mixed[: step.num_tokens]
        for idx, graph in enumerate(graphs[:-1]):
            graph.replay()
            self.attention.attend(idx, q, mixed)
        graphs[-1].replay()
        drawn = self._drawn(inputs, lines, draws)
        return LaunchedStep(batch.rows, step.drawing, *drawn, self._score_logits(batch.rows, step), self.device)

    def _capture(self, key: GraphKey) -> list[torch.cuda.CUDAGraph]:
        if key.way is not Way.ONE:
            self.forward.tune(key.num_tokens)
        inputs = self.block.send_padding(key.num_tokens, key.num_tokens)
        if key.way is Way.ANY:
            self.attention.plan(_padding_layout(inputs), is_graph=True)
        if key.way is Way.PIECES:
            layers = range(len(self.model.layers))
            parts = [partial(self.forward.piece, idx, inputs, self.buffers.of(key.num_tokens)) for idx in layers]
        else:
            parts = []
        return self.graphs.capture(key, [*parts, partial(self._end, key, inputs)])

    def _end(self, key: GraphKey, inputs: DeviceInputs) -> None:
        """The step, or its last piece, to the logits or the draw."""
        if key.way is Way.PIECES:
            hidden = self.forward.last_piece(inputs, self.buffers.of(key.num_tokens))
        else:
            hidden = self.forward.hidden(key.way, inputs)
        self.forward.logits(hidden, 0, key.num_tokens, self.logits[: key.num_tokens])
        if key.draws:
            self._draw_plain(inputs, 0, key.num_tokens)

    def _score_logits(self, rows: list[Row], step: StepTokens) -> list[list[Scored]]:
        """The same as `_score_hidden`, of logits that a graph has left behind those of the drawing rows."""
        scored = []
        begin = len(step.drawing)
        for i in step.scoring:
            end = begin + len(rows[i].score)
            scored.append([self._scored(rows[i], rows[i].score, self.logits[begin:end])])
            begin = end
        return scored

    def prepare_next(self) -> bool:
        """For idle moments: capture what is missing, decoding first, smallest first; False when all is there.

        Steps whose draws are masked end their graphs with the logits: these are wanted once a grammar was met.
        """
        if not self.use_graphs:
            return False
        most = bucket_of(min(self.max_running, MAX_BUCKET))
        sizes = [size for size in SIZES if size <= most]
        keys = [GraphKey(way_of(size, is_decode=True), size, draws=True) for size in sizes]
        if self.grammars.arena is not None:
            keys += [GraphKey(way_of(size, is_decode=True), size, draws=False) for size in sizes]
        keys += [GraphKey(Way.PIECES, size, draws=False) for size in range(PIECES_STEP, MAX_BUCKET + 1, PIECES_STEP)]
        missing = next((key for key in keys if self.graphs.find(key) is None), None)
        if missing is None:
            return False
        try:
            with torch.inference_mode():
                self._capture(missing)
        except NoRoomForGraph:
            return False
        return True

    # ---- drawing and scoring ---------------------------------------------------------------------------------------

    def _send(self, step: StepTokens, lines: list[Row], draws: Draws, num_tokens: int, num_wanted: int) -> DeviceInputs:
        masks = self.grammars.columns(lines) if draws is Draws.MASKED else None
        return self.block.send(step, lines, self.draws, num_tokens, num_wanted, masks)

    def _drawn(
        self, inputs: DeviceInputs, lines: list[Row], draws: Draws
    ) -> tuple[Tensor, Drawn | None] | tuple[None, None]:
        """Draw for all lines; their logits lie before those of the scored positions."""
        return self._draw(inputs, lines, 0, len(lines), draws) if lines else NOTHING

    def _draw(
        self, inputs: DeviceInputs, lines: list[Row], begin: int, end: int, draws: Draws
    ) -> tuple[Tensor, Drawn | None]:
        """Draw for the lines [begin, end), whose logits are the first: tokens, whether they are good (int32 `[2, n]`).

        What is drawn goes to `last_tokens` too, states behind it to the grammars'.
        """
        if draws is not Draws.OTHER:
            self._draw_plain(inputs, begin, end)
            return self._drawn_ids(end - begin), None
        lines = lines[begin:end]
        drawn = self.sampler.draw(self.logits[: len(lines)], lines)
        tokens = drawn.tokens.to(torch.int32)
        self.last_tokens.index_copy_(0, index_of([line.row for line in lines], self.device), tokens)
        return torch.stack((tokens, drawn.is_finite.to(torch.int32))), drawn

    def _draw_plain(self, inputs: DeviceInputs, begin: int, end: int) -> None:
        """Draw for the wanted tokens [begin, end), masked if `inputs` says so; to `last_tokens` and `drawn`."""
        masks = inputs.masks
        draw(
            self.logits[: end - begin],
            inputs.temperatures[begin:end],
            inputs.keys[begin:end],
            inputs.wanted_rows[begin:end],
            inputs.flags[begin:end],
            self.last_tokens,
            self._drawn_ids(end - begin),
            self.draw_scratch,
            lines=None if masks is None else self.grammars.lines_on(masks[0, begin:end], masks[1, begin:end]),
            pdl=self.forward.pdl,
        )

    def _drawn_ids(self, num: int) -> Tensor:
        return self.drawn[: 2 * num].view(2, num)

    def _scored(self, row: Row, positions: range, logits: Tensor) -> Scored:
        nexts = index_of([row.history[p + 1] for p in positions], self.device)
        is_finite = logits.sum(-1, dtype=torch.float32).isfinite().all()
        return Scored(is_finite, *logprobs_of(logits, nexts, row.score_top))


def _layout(step: StepTokens, inputs: DeviceInputs, num_singles: int, shared: Sequence[SharedPrefix] = ()) -> Layout:
    """The step's tokens for the attention backend; more singles than the step has are padding."""
    return Layout(
        rows=inputs.rows_on_host[:num_singles],
        kv_lens=inputs.kv_lens_on_host[:num_singles],
        rows_on=inputs.rows[:num_singles],
        kv_lens_on=inputs.kv_lens[:num_singles],
        extends=step.extends,
        shared=shared,
    )


def _padding_layout(inputs: DeviceInputs) -> Layout:
    return Layout(inputs.rows_on_host, inputs.kv_lens_on_host, inputs.rows, inputs.kv_lens)
