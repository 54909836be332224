"""Which attention backend is taken, and what is said about it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nbsgl.engine import loader
from nbsgl.engine.attention import choice as choice_module
from nbsgl.engine.attention.choice import AttentionChoice, Circumstances, choose_attention, decide
from nbsgl.engine.config import EngineConfig
from nbsgl.errors import EngineStartFailed, ParameterError

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
        (here(head_dim=32), "triton", "the model has 32"),
        (here(head_dim=80), "torch", "the model has 80"),
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
        ("triton", here(head_dim=16), "the model has 16", "'torch'"),
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


def paged(monkeypatch: pytest.MonkeyPatch, asked: str) -> AttentionChoice:
    """What a loader ends with when FlashInfer turns out to have no kernels."""

    def create(name, config, cache, dtype):
        if name == "flashinfer":
            raise EngineStartFailed(stage="attention", reason="FlashInfer has no kernels for this")
        return name

    monkeypatch.setattr(loader, "create_paged_attention", create)
    monkeypatch.setattr(choice_module, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    model = SimpleNamespace(config=SimpleNamespace(head_dim=64), device=torch.device("cuda"), dtype=torch.bfloat16)
    config = EngineConfig.of(attention_backend=asked)
    cache = SimpleNamespace(k=[torch.zeros(1, dtype=torch.bfloat16)])
    made, choice = loader._paged_attention(model, config, cache, AttentionChoice("flashinfer", "flashinfer: installed"))
    assert made == choice.name
    return choice


def test_a_library_without_kernels_is_passed_over_unless_asked_for(monkeypatch):
    choice = paged(monkeypatch, "auto")
    assert choice == AttentionChoice("triton", "triton: FlashInfer has no kernels for this")
    with pytest.raises(EngineStartFailed, match="no kernels"):
        paged(monkeypatch, "flashinfer")
