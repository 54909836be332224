"""What a worker says when it serves, for tests that need no worker."""

from __future__ import annotations

from nbsgl.engine.segments import Ready

READY = Ready(
    context_length=100,
    vocab_size=50,
    num_slots=100,
    device="cpu",
    device_reason="",
    dtype="float32",
    num_parameters=0,
    eos_ids=[],
    load_s=0.0,
)
