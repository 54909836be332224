"""Which attention backend is taken, and what is said about it."""

from __future__ import annotations

import pytest
import torch

from nbsgl.engine.attention.choice import Circumstances, choose_attention, decide
from nbsgl.errors import ParameterError

BOTH = frozenset({"flashinfer", "triton"})


def here(
    capability: tuple[int, int] | None = (9, 0),
    dtype: torch.dtype = torch.bfloat16,
    head_dim: int = 128,
    installed: frozenset[str] = BOTH,
    kv_dtype: torch.dtype | None = None,
) -> Circumstances:
    return Circumstances(capability, dtype, kv_dtype or dtype, head_dim, installed)


@pytest.mark.parametrize(
    ("circumstances", "name", "because"),
    [
        (here(), "flashinfer", "compute capability 9.0"),
        (here((8, 0), torch.float16, 64), "flashinfer", "compute capability 8.0"),
        (here(installed=frozenset({"triton"})), "triton", "flashinfer: it is not installed"),
        (here(head_dim=80), "triton", "the model has 80"),
        (here(installed=frozenset()), "torch", "triton: it is not installed"),
        (here((7, 5)), "torch", "needs compute capability 8.0, the card has 7.5"),
        (here(dtype=torch.float32), "torch", "triton: slower in float32"),
        (here(None), "torch", "no CUDA device"),
        (here(kv_dtype=torch.float8_e4m3fn), "flashinfer", "9.0"),
        (here(kv_dtype=torch.float8_e4m3fn, installed=frozenset({"triton"})), "triton", "not installed"),
        (here(dtype=torch.float32, kv_dtype=torch.float8_e4m3fn), "torch", "16 bits"),
        (here(None, kv_dtype=torch.float8_e4m3fn), "torch", "no CUDA device"),
    ],
)
def test_auto_takes_the_best_that_can_be_had_and_says_why(circumstances, name, because):
    choice = decide("auto", circumstances)
    assert choice.name == name
    assert choice.reason.startswith(f"{name}: ")
    assert because in choice.reason


def test_what_is_asked_for_is_taken_where_it_works():
    assert decide("triton", here()).name == "triton"
    assert decide("torch", here()).name == "torch"
    assert decide("triton", here(dtype=torch.float32)).name == "triton", "slower is not impossible"


@pytest.mark.parametrize(
    ("asked", "circumstances", "because", "instead"),
    [
        ("flashinfer", here(None), "there is no CUDA device", "'torch'"),
        ("flashinfer", here(dtype=torch.float32), "the model runs in float32", "'triton'"),
        ("flashinfer", here(installed=frozenset({"triton"})), "pip install 'nbsgl[flashinfer]'", "'triton'"),
        ("triton", here((7, 0)), "the card has 7.0", "'torch'"),
        (
            "triton",
            here((8, 0), kv_dtype=torch.float8_e4m3fn, installed=frozenset({"triton"})),
            "e4m3 cache needs compute capability 8.9",
            "'torch'",
        ),
    ],
)
def test_the_impossible_is_refused_with_what_to_type(asked, circumstances, because, instead):
    with pytest.raises(ParameterError) as caught:
        decide(asked, circumstances)
    assert because in str(caught.value)
    assert instead in caught.value.hint
    assert repr(asked) not in caught.value.allowed


def test_an_unknown_name_names_those_that_work_here():
    with pytest.raises(ParameterError, match="'auto' | 'torch'") as caught:
        decide("xformers", here(None))
    assert caught.value.allowed == "'auto' | 'torch'"


def test_a_cpu_runs_torch():
    assert choose_attention("auto", torch.device("cpu"), torch.float32, 64).name == "torch"
