"""Kernels run by Triton's interpreter on the CPU: a pytest process of their own, `python -m pytest tests/kernels`.

Triton reads TRITON_INTERPRET when a kernel's module is imported, so it is set here, before any test imports one.
The interpreter is silently wrong in bfloat16: tests use float32 and float16, and `tests/gpu` has bfloat16.
"""

from __future__ import annotations

import os
import sys

import pytest

_COMPILED = [name for name in sys.modules if name.startswith("nbsgl.engine.kernels.")]
if _COMPILED and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.exit(
        f"{_COMPILED[0]} was imported for a GPU before tests/kernels could ask for the interpreter: "
        "run them apart, `python -m pytest tests/kernels`",
        returncode=4,
    )
os.environ["TRITON_INTERPRET"] = "1"
