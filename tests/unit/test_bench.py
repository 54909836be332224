"""`nbsgl bench` without an engine: the same work everywhere, bounds counted by hand, peers, comparisons, reports."""

from __future__ import annotations

import ctypes
import hashlib
import json
import struct
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from nbsgl.__main__ import main
from nbsgl.bench import cards, cli, latency, peers, plot, programs, report, rows, tokenizer
from nbsgl.bench.cards import Card, find_card
from nbsgl.bench.clocks import Clocks, Nvml
from nbsgl.bench.drive import BenchError, drive
from nbsgl.bench.engines import ENGINES, Setup, SGLang
from nbsgl.bench.floors import Ceilings, Cost, count, distinct, floor_s, program_floor_s
from nbsgl.bench.models import find_model, write_checkpoint
from nbsgl.bench.session import Plan, Session, expand
from nbsgl.bench.workloads import WORKLOADS, Ask, Workload, cut, make_workload
from nbsgl.errors import ParameterError
from tests.unit.tiny_tokenizers import byte_level

# sha256 over all rounds: (-requests), then (prompt tokens, ids ..., output tokens) of each, as little-endian int32
HASHES = {
    ("llama-3.1-8b", "single"): "61a6962ca53c301dfac1ead681e438badce79a7f47100103f292b62cc71d9510",
    ("llama-3.1-8b", "prefill"): "c33f60b7cc98121b0c037d71d3e16b3108a8e46b1d4619f55acf9af33e3952e7",
    ("llama-3.1-8b", "nano"): "3e6dcaaa02e596da83a1196d22b3826c3aa8ebf0a3a0b5983a1c278c0537e666",
    ("llama-3.1-8b", "prefix"): "2c18845385cd3b7cc36e6d49d01e8a0689b552d4b4fa47bccf5b89740dc0af35",
    ("llama-3.1-8b", "chat"): "7d6661f3e4898a61cfd44f30a43c89d39ca1be063fa9cbe4229c3c7cdf42acd6",
    ("llama-3.1-8b", "tree"): "6f9e3d83c1de7e77fcfed2b12c68f7465fc472f9a607158910fecb4273077ec2",
    ("qwen3-0.6b", "single"): "3e434405dcb693ae9668512091353edb7036cbed3b15a82866dd05f8f2d7550d",
    ("qwen3-0.6b", "prefill"): "7737a7c6d0802d89dcea4e336cd842f12e35ce0a93600d9862c5b438f90df125",
    ("qwen3-0.6b", "nano"): "0a055617842998388679df711bdfbb8a62c3eeeba125141c81c9e03f202cf804",
    ("qwen3-0.6b", "prefix"): "9f6d6378e7c319145904c65096182bdf770bfc9858ce1da4df07fc784afa2068",
    ("qwen3-0.6b", "chat"): "3a1178eec5a213b1359c67fbde9cb78e3014d578adc2fe5251e98f6fd4935e4d",
    ("qwen3-0.6b", "tree"): "35e60611d28c9bcc701705daf2c4fd3fe4b726e00d9ab8c9a2917fd97b7647e1",
}
PROGRAM_INPUTS = "2b783d29fc4d049acba8926c96672da4ea33192e5501bd8f8418b40caf9ac934"
PROGRAM_REGEX = "29e5f1f4b78d7d76bfdd93a79eea0dedeef047f5097ca6406b56c4de7fd43aba"

# the 8B on an H200, written down before this code was: (floor at 822 TFLOP/s, floor at 670) in seconds
FLOORS = {"prefill": (4.79, 5.88), "nano": (143_082 / 13_762, 143_082 / 12_623), "chat": (4.78, None)}
FLOORS |= {"prefix": (1.54, None), "tree": (2.70, None)}

TOP = Ceilings(bytes_s=1e12, flop_s=1e14, burst_flop_s=2e14, source="made up")


def digest(workload: Workload) -> str:
    found = hashlib.sha256()
    for asks in workload.rounds:
        found.update(struct.pack("<i", -len(asks)))
        for ask in asks:
            found.update(struct.pack(f"<{len(ask.ids) + 2}i", len(ask.ids), *ask.ids, ask.num_out))
    return found.hexdigest()


# ---- the same work everywhere ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "name"), HASHES)
def test_workloads_are_the_ones_the_peers_were_measured_with(model: str, name: str) -> None:
    workload = make_workload(name, find_model(model).config.vocab_size)
    assert digest(workload) == HASHES[model, name]
    assert workload.temperature == (0.6 if name == "nano" else 0.0)


def test_programs_have_the_inputs_and_the_grammar_the_peers_had() -> None:
    given = {name: programs.arguments(name) for name in programs.ARGUMENTS}
    assert hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest() == PROGRAM_INPUTS
    assert hashlib.sha256(programs.JSON_REGEX.encode()).hexdigest() == PROGRAM_REGEX


def test_a_conversation_goes_on_from_its_outputs_and_wrong_lengths_are_no_measurement() -> None:
    asked = []

    def generate(prompts: list[list[int]], lengths: list[int], temperature: float) -> list[list[int]]:
        asked.append(prompts)
        return [[7] * length for length in lengths]

    talk = Workload("talk", [[Ask("a", [1, 2], 2)], [Ask("a", [3], 1), Ask("b", [4], 1)]])
    outcome = drive(generate, talk)
    assert asked == [[[1, 2]], [[1, 2, 7, 7, 3], [4]]]
    assert (outcome.prompt_tokens, outcome.output_tokens) == (8, 4)
    with pytest.raises(BenchError, match="2 tokens were asked for, 1 came"):
        drive(lambda prompts, lengths, temperature: [[7] for _ in prompts], talk)


def test_a_warm_up_keeps_the_prompts_and_the_order_in_which_requests_end() -> None:
    short = cut(make_workload("nano", 1000))
    long = make_workload("nano", 1000)
    assert [ask.ids for ask in short.rounds[0]] == [ask.ids for ask in long.rounds[0]]
    assert [ask.num_out for ask in short.rounds[0]] == [ask.num_out // 8 for ask in long.rounds[0]]
    assert cut(make_workload("prefill", 1000, "tiny")).rounds[0][0].num_out == 1


# ---- lower bounds ----------------------------------------------------------------------------------------------------


def test_a_shared_prefix_is_counted_once() -> None:
    assert distinct([[1, 2, 3], [1, 2, 4], [5]]) == (5, (1 + 2 + 3) + 3 + 1)
    assert distinct([[1, 2], [1, 2, 3], [1]]) == (3, 6)


def test_work_of_a_round_by_hand() -> None:
    talk = Workload("talk", [[Ask("a", [1, 2], 3), Ask("b", [1, 9], 2)], [Ask("a", [3], 1)]])
    first, second = count(talk)
    assert (first.num_requests, first.new_tokens, first.new_pairs) == (2, 3, 1 + 2 + 2)
    assert first.steps == [(2, 3 + 2), (1, 2 + 2)]  # both draw a second token, then "a" alone a third
    # "a" has 2 + 2 tokens in the cache: its last output was drawn and never computed
    assert (second.new_tokens, second.new_pairs, second.steps) == (2, 5 + 6, [])


def test_the_bound_takes_the_longer_of_bytes_and_flop_and_adds_kv() -> None:
    cost = Cost(linear_weights=100, head_weights=10, attention_flop=1, weight_bytes=220, kv_bytes=4)
    (work,) = count(Workload("one", [[Ask(0, [1, 2], 2)]]))
    prefill = 2 * 100 * 2 + 2 * 10 + 3
    assert floor_s([work], cost, 1e3, 1e3) == pytest.approx(prefill / 1e3 + 220 / 1e3 + 3 * 4 / 1e3)
    assert floor_s([work], cost, 1e9, 1e3) == pytest.approx(prefill / 1e3 + 220 / 1e3, rel=1e-4)
    assert program_floor_s(2, 8, 4.0, cost, 1e3, 1e3) == pytest.approx(400 / 1e3 + 4 * max(220, 2 * 2 * 110) / 1e3)


@pytest.mark.parametrize("name", FLOORS)
def test_bounds_are_those_of_the_design(name: str) -> None:
    model = find_model("llama-3.1-8b").config
    cost, work = Cost.of(model, 2, 2), count(make_workload(name, model.vocab_size))
    assert (cost.weight_bytes, cost.kv_bytes) == (15_009_316_864, 131_072)
    top = cards.KNOWN["NVIDIA H200"]
    burst, sustained = FLOORS[name]
    assert floor_s(work, cost, top.bytes_s, top.burst_flop_s) == pytest.approx(burst, rel=2e-3)
    if sustained:
        assert floor_s(work, cost, top.bytes_s, top.flop_s) == pytest.approx(sustained, rel=2e-3)


# ---- cards and clocks ------------------------------------------------------------------------------------------------


class FakeNvml:
    """A driver with one card; property leant on: calls fill what they are given a reference to and return 0."""

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:
        return 0 if index == 0 else 6

    def nvmlDeviceGetName(self, handle: Any, text: Any, size: int) -> int:
        text.value = b"NVIDIA H200"
        return 0

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int, value: Any) -> int:
        value._obj.value = 1500
        return 0

    def nvmlDeviceGetPowerUsage(self, handle: Any, value: Any) -> int:
        value._obj.value = 690_000
        return 0

    def nvmlDeviceGetTemperature(self, handle: Any, kind: int, value: Any) -> int:
        value._obj.value = 61
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        memory._obj.total, memory._obj.used = 150_000_000_000, 9_000_000_000
        return 0


def test_clock_power_and_temperature_stand_beside_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Nvml.open("1", FakeNvml()) is None
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeNvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert find_card("auto") == Card("NVIDIA H200", "0", 150_000_000_000)
    assert find_card("cpu") == find_card("cuda:1") == Card("cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_card("auto") == Card("cpu")
    with Clocks(Nvml.open("0")) as clocks:
        pass
    assert clocks.summary() == {
        "sm_mhz": 1500,
        "watts": 690,
        "celsius_max": 61,
        "memory_peak_bytes": 9_000_000_000,
    }
    with Clocks(None) as none:
        pass
    assert none.summary() == {}


def test_known_ceilings_are_taken_and_others_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cards.ceilings(Card("NVIDIA H200", "0", 1), "auto", "bfloat16") == cards.KNOWN["NVIDIA H200"]
    commands = []

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command[2:])
        out = 'torch says hello\n{"bytes_s": 1.0, "flop_s": 2.0, "burst_flop_s": 3.0}\n'
        return types.SimpleNamespace(returncode=0, stdout=out, stderr="")

    monkeypatch.setattr(cards.subprocess, "run", run)
    top = cards.ceilings(Card("NVIDIA H200", "0", 1), "auto", "bfloat16", measure=True)
    assert (top.bytes_s, top.flop_s, top.burst_flop_s) == (1.0, 2.0, 3.0)
    cards.ceilings(Card("cpu"), "cpu", "float32")
    assert commands == [["nbsgl.bench.ceilings", "auto", "bfloat16"], ["nbsgl.bench.ceilings", "cpu", "float32"]]


# ---- engines and a whole run -----------------------------------------------------------------------------------------


class FakeEngine:
    """Generates in 2 ms; property leant on: as many ids as asked for, and calls are kept."""

    name = "nbsgl"
    calls: list[str] = []

    def __init__(self, setup: Setup) -> None:
        self.calls.append(f"start {setup.load_format} {setup.dtype}")

    def generate(self, prompts: list[list[int]], lengths: list[int], temperature: float) -> list[list[int]]:
        self.calls.append(f"generate {sum(lengths)}")
        time.sleep(0.002)
        return [[5] * length for length in lengths]

    def flush(self) -> None:
        self.calls.append("flush")

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
    monkeypatch.setitem(ENGINES, "nbsgl", FakeEngine)
    monkeypatch.setattr(FakeEngine, "calls", [])
    monkeypatch.setattr(cli, "ceilings", lambda *args: TOP)
    monkeypatch.setattr(cli, "find_card", lambda device: Card("cpu"))
    return FakeEngine


def test_a_run_warms_up_flushes_before_each_repeat_and_ends_the_engine(fake: type[FakeEngine]) -> None:
    plan = Plan(find_model("qwen3-0.6b"), Card("cpu"), TOP, "float32", ["single"], "tiny", repeat=2)
    (row,) = Session(plan, "nbsgl").rows()
    assert fake.calls == [
        "start dummy float32", "flush", "generate 4", "flush", "generate 32", "flush", "generate 32", "close",
    ]  # fmt: skip
    assert (row["workload"], row["unit"], row["prompt_tokens"], row["output_tokens"]) == ("single", "tok/s", 32, 32)
    assert row["figure"] == row["out_tok_s"]
    assert len(row["seconds"]) == 2
    assert row["floor_burst_s"] <= row["floor_s"]


def test_no_workload_begins_that_does_not_fit_the_budget(fake: type[FakeEngine]) -> None:
    said: list[str] = []
    model, names = find_model("llama-3.1-8b"), ["single", "prefill"]
    plan = Plan(model, Card("cpu"), TOP, "bfloat16", names, repeat=1, budget_s=90.0, say=said.append)
    assert [row["workload"] for row in Session(plan, "nbsgl").rows()] == ["single"]
    assert "prefill: left out" in said[-1]


def test_rows_are_on_disk_at_once_and_a_slower_run_ends_with_status_1(
    fake: type[FakeEngine], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, before, picture = tmp_path / "now.jsonl", tmp_path / "before.jsonl", tmp_path / "a.png"
    argv = ["bench", "prefill", "single", "--model", "qwen3-0.6b", "--repeat", "1", "--json", str(now)]
    assert main([*argv, "--plot", str(picture)]) == 0
    found = rows.read(now)
    assert [row["workload"] for row in found] == ["single", "prefill"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    for factor, status, word in ((1.0, 0, "same"), (0.5, 1, "slower"), (2.0, 0, "faster")):
        before.unlink(missing_ok=True)
        for row in found:
            is_rate = row["unit"] == "tok/s"
            rows.append(before, {**row, "figure": row["figure"] / factor if is_rate else row["figure"] * factor})
        capsys.readouterr()
        assert main(["bench", "--report", str(now), "--baseline", str(before)]) == status
        out = capsys.readouterr().out
        assert out.count(f"\n{word}") == 2
        assert "| single | nbsgl |" in out


def test_a_line_that_is_no_row_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"format": 99}\n')
    assert main(["bench", "--report", str(path)]) == 1
    assert "line 2" in capsys.readouterr().err


def test_sglang_runs_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Engine:
        def __init__(self, **given: Any) -> None:
            calls.append(given)

        def generate(self, input_ids: list[list[int]], sampling_params: list[dict[str, Any]]) -> list[dict[str, Any]]:
            calls.append(sampling_params[0])
            return [{"output_ids": [1] * one["max_new_tokens"]} for one in sampling_params]

        def flush_cache(self) -> None:
            calls.append("flush")

        def shutdown(self) -> None:
            calls.append("shutdown")

    monkeypatch.setitem(sys.modules, "sglang", types.SimpleNamespace(Engine=Engine))
    plan = Plan(find_model("qwen3-0.6b"), Card("cpu"), TOP, "bfloat16", ["single", "json"], "tiny", repeat=1)
    (row,) = Session(plan, "sglang").rows()  # programs are left to nbsgl
    assert (row["engine"], row["output_tokens"]) == ("sglang", 32)
    assert calls[0]["skip_tokenizer_init"]
    assert calls[0]["load_format"] == "dummy"
    assert calls[2] == {"max_new_tokens": 4, "ignore_eos": True, "temperature": 0.0}
    assert calls[-1] == "shutdown"


def test_vllm_runs_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class LLM:
        def __init__(self, **given: Any) -> None:
            calls.append(given)
            core = types.SimpleNamespace(shutdown=lambda: calls.append("shutdown"))
            self.llm_engine = types.SimpleNamespace(engine_core=core)

        def generate(self, prompts: list[Any], params: list[Any], use_tqdm: bool) -> list[Any]:
            calls.append(prompts[0])
            assert len(prompts) == len(params)
            return [
                types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=(3,) * one.max_tokens)])
                for one in params
            ]

        def reset_prefix_cache(self) -> None:
            calls.append("flush")

    vllm = types.SimpleNamespace(LLM=LLM, SamplingParams=types.SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    plan = Plan(find_model("qwen3-0.6b"), Card("cpu"), TOP, "bfloat16", ["chat"], "tiny", repeat=1)
    (row,) = Session(plan, "vllm").rows()
    assert (row["engine"], row["output_tokens"]) == ("vllm", 96)
    assert calls[0]["enable_prefix_caching"]
    assert len(calls[2]["prompt_token_ids"]) == 12
    assert calls[-1] == "shutdown"


def test_a_peer_that_is_not_installed_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sglang", None)
    with pytest.raises(BenchError, match="sglang is not installed here"):
        SGLang(Setup(Path("x")))


# ---- what is shown ---------------------------------------------------------------------------------------------------


def row(**more: Any) -> rows.Row:
    base = {"format": 1, "engine": "nbsgl", "model": "llama-3.1-8b", "load_format": "dummy", "card": "NVIDIA H200"}
    base |= {"scale": "full", "workload": "prefill", "figure": 6.0, "unit": "s", "floor_s": 5.88, "output_tokens": 64}
    return {**base, "peers": peers.figures("NVIDIA H200", "llama-3.1-8b", "prefill", "full", "dummy"), **more}


def test_peers_figures_stand_only_beside_the_same_thing() -> None:
    assert peers.figures("NVIDIA H200", "qwen3-0.6b", "nano", "full", "dummy") == {"sglang": 21859.0, "vllm": 21301.0}
    assert peers.figures("NVIDIA A100", "qwen3-0.6b", "nano", "full", "dummy") == {}
    assert peers.figures("NVIDIA H200", "qwen3-0.6b", "nano", "tiny", "dummy") == {}
    assert {name for _, name in peers.FIGURES} == {*WORKLOADS, *programs.ARGUMENTS, "start"}


def test_rates_and_times_are_both_shown_as_a_share_of_the_bound() -> None:
    assert report.share(row()) == pytest.approx(0.98)
    rate = row(workload="single", figure=250.0, unit="tok/s", floor_s=1.814, output_tokens=512)
    assert report.share(rate) == pytest.approx(250 / (512 / 1.814))
    assert plot.bars([row(), rate])["sglang"] == {
        "llama-3.1-8b prefill": pytest.approx(5.88 / 6.404),
        "llama-3.1-8b single": pytest.approx(250 / (512 / 1.814) * 6.404 / 250),
    }
    text = report.markdown([row(figure=7.0), row(sm_mhz=1500, watts=690, celsius_max=60)])
    assert "| prefill | nbsgl | 6.000 s | 5.880 s | 98% | 6.404 | 6.433 | 1500 | 690 | 60 |" in text
    assert "7.000" not in text  # the later row of a key counts
    assert report.line(row(workload="mixed", figure=None, unit="share", floor_s=None)).startswith("mixed")


def test_gaps_beside_a_long_prompt_are_told_from_those_alone() -> None:
    gaps = [(float(t), 0.01) for t in range(40)] + [(40.5, 0.05), (41.0, 0.06), (50.0, 0.01)]
    found = latency._summary(gaps, [(40.0, 41.5)])
    assert (found["alone_p50_ms"], found["beside_p99_ms"], found["figure"]) == (10.0, 60.0, 6.0)
    assert found["gaps"] == [30, 2]


def test_groups_and_names_of_workloads() -> None:
    assert expand(["tokens"]) == list(WORKLOADS)
    assert expand(["json", "single"]) == ["single", "json"]
    assert "mixed" not in expand(["all"])
    with pytest.raises(ParameterError, match="'nanno'"):
        expand(["nanno"])


def test_the_list_explains_every_workload(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list"]) == 0
    said = capsys.readouterr().out
    assert all(f"{name} " in said for name in expand(["all", "mixed"]))


def test_the_loop_in_this_process_keeps_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "steps", "--help"])
    assert "--batch" in capsys.readouterr().out


def test_grammars_are_measured_on_every_engine_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nbsgl.bench import grammars

    monkeypatch.setattr(grammars, "REGEXES", grammars.REGEXES[:3])
    monkeypatch.setattr(grammars, "SCHEMAS", grammars.SCHEMAS[:2])
    folder, file = byte_level(tmp_path / "tokenizer"), tmp_path / "rows.jsonl"
    arguments = ["--vocab", "380", "--tokenizer", str(folder), "--engine", "fsm", "llguidance", "--json", str(file)]
    assert cli.main(["grammar", *arguments]) == 0
    found = json.loads(file.read_text())
    assert [(row["set"], row["engine"], row["refused"]) for row in found["rows"]] == [
        (name, engine, 0) for name in ("regexes", "schemas") for engine in ("fsm", "llguidance")
    ]
    assert all(0 < row["compile_ms"]["p50"] <= row["compile_ms"]["p99"] for row in found["rows"])
    (first,) = found["first"]
    assert first["grammars"] == 5
    assert 0 < first["cached_us"]["p50"] < 100
    assert capsys.readouterr().out.splitlines()[-1] == json.dumps(found)


def test_settings_of_the_engine_are_json_or_text() -> None:
    assert cli._settings(["page_size=16", "policy=lpm", "overlap=false"]) == {
        "page_size": 16,
        "policy": "lpm",
        "overlap": False,
    }
    with pytest.raises(ParameterError, match="NAME=VALUE"):
        cli._settings(["page_size"])


# ---- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family", [("LlamaForCausalLM", False), ("Qwen3ForCausalLM", True), ("Qwen2ForCausalLM", True)]
)
def test_a_random_checkpoint_loads_as_the_model_it_is_of(tmp_path: Path, family: tuple[str, bool]) -> None:
    from nbsgl.engine.config import EngineConfig
    from nbsgl.engine.loader import load

    shape = {
        "architectures": [family[0]], "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": family[1],
    }  # fmt: skip
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape" / "config.json").write_text(json.dumps(shape))
    model = find_model(str(tmp_path / "shape"), "dummy")
    size = write_checkpoint(model, tmp_path / "full", shard_bytes=20_000)
    files = sorted((tmp_path / "full").glob("*.safetensors"))
    assert len(files) > 2
    assert 0 < sum(path.stat().st_size for path in files) - size < 2_000 * len(files)
    loaded = load(EngineConfig.of(model_path=str(tmp_path / "full"), device="cpu", num_slots=64, num_threads=1))
    assert loaded.num_parameters * 2 == size


def test_shapes_of_the_package_have_no_weights_to_load() -> None:
    with pytest.raises(ParameterError, match="--make-checkpoint"):
        find_model("qwen3-0.6b", "auto")


def test_a_small_tokenizer_of_the_same_make_spells_what_it_read(tmp_path: Path) -> None:
    made = tokenizer.make(tmp_path, size=600, pseudo=2_000, copies=20)
    text = "Question: time people government\nAnswer: yes"
    assert made.decode(made.encode(text).ids) == text
    assert made.token_to_id("<|begin_of_text|>") == 600
    assert made.get_vocab_size() == 600 + tokenizer.SPECIAL
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == "<|end_of_text|>"
