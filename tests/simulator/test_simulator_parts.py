"""Small parts: faults, tokens, bars, metrics, arguments, requests, ports."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_sglang.simulator import faults, procs, tokens, wire
from pytest_sglang.simulator.answers import Answer
from pytest_sglang.simulator.caches import Caches
from pytest_sglang.simulator.clock import RigClock
from pytest_sglang.simulator.config import Config
from pytest_sglang.simulator.engine import Request
from pytest_sglang.simulator.faults import FAULTS
from pytest_sglang.simulator.log import Log, autotune_block
from pytest_sglang.simulator.metrics import Histogram, Metrics
from pytest_sglang.simulator.rig import SimulatedRig, free_port
from pytest_sglang.simulator.server import server_args
from pytest_sglang.simulator.startup import CONTEXT


@pytest.fixture(autouse=True)
def _no_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand files that no test here looks at."""
    monkeypatch.setattr(Caches, "fill", lambda _: None)


def _config(tmp_path: Path, *names: str, at_once: bool = False) -> Config:
    return Config(tmp_path, "six-3090", ("GPU-0",), names, at_once, 100.0, 30000, 0, None, True, "boot")


# --- faults -------------------------------------------------------------------------------------------------------------------


def test_every_fault_has_a_summary_and_its_own_name() -> None:
    assert [name for name, fault in FAULTS.items() if fault.name != name or len(fault.summary) < 20] == []
    assert set(FAULTS) >= {
        "slow-decode",
        "power-limit-lost",
        "nvlink-dead",
        "cache-cold",
        "never-ready",
        "dies-loading",
        "wrong-model",
        "early-stop",
    }


def test_an_unknown_fault_is_refused_with_the_nearest_known() -> None:
    with pytest.raises(ValueError, match=r"no fault 'slow-decod', did you mean slow-decode\? \(known: .*slow-decode, "):
        faults.check(["nvlink-dead", "slow-decod"])
    with pytest.raises(ValueError, match=r"no fault 'xyz' \(known"):
        faults.check(["xyz"])


@pytest.mark.parametrize(
    ("name", "first"), [("never-ready", False), ("dies-loading", False), ("cache-cold", False), ("wrong-model", True)]
)
def test_faults_of_a_start_act_from_the_second_start_on(tmp_path: Path, name: str, first: bool) -> None:
    config = _config(tmp_path, name)
    assert (config.acts(name, 1), config.acts(name, 2)) == (first, True)
    assert _config(tmp_path, name, at_once=True).acts(name, 1)
    assert not _config(tmp_path).acts(name, 2)


def test_faults_show_in_what_the_rig_is(tmp_path: Path) -> None:
    assert _config(tmp_path, "wrong-model").model != _config(tmp_path).model
    assert _config(tmp_path, "nvlink-dead").ailments.links(2) == (False,) * 4
    assert _config(tmp_path, "power-limit-lost").lost_limit == (2,)
    assert _config(tmp_path).lost_limit == ()
    assert _config(tmp_path).ailments.links(2) == (True,) * 4


# --- tokens -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "def main", "the power of the rig!", "größer — 日本\n\t{}", "  double  spaces"])
def test_decoding_gives_the_text_back(text: str) -> None:
    assert tokens.decode(tokens.encode(text)) == text


def test_frequent_words_are_one_token() -> None:
    assert len(tokens.encode("the power of the rig")) == 5


def test_ids_beyond_the_vocabulary_are_words_and_control_tokens_nothing() -> None:
    assert tokens.decode([100_000, 100_001]).strip()
    assert tokens.decode([0, tokens.BOS, tokens.EOS]) == ""


def test_the_same_prompt_has_the_same_answer() -> None:
    first, again, other = Answer([1, 2]), Answer([1, 2]), Answer([1, 3])
    made = [first.next().token for _ in range(20)]
    assert made == [again.next().token for _ in range(20)] != [other.next().token for _ in range(20)]
    assert len(tokens.decode(made).split()) == 20


# --- requests -----------------------------------------------------------------------------------------------------------------


def _parse(kind: wire.Kind, **body: Any) -> wire.Asked:
    return wire.parse(kind, json.dumps(body).encode(), "default")


def test_defaults_of_the_three_routes() -> None:
    assert _parse("completions", prompt="the").request.max_tokens == 16
    assert _parse("generate", text="the").request.max_tokens == 128
    assert _parse("chat", messages=[{"role": "user", "content": "the"}]).request.max_tokens == CONTEXT - 3 - 2
    assert _parse("completions", prompt="the").model == "default"


def test_max_completion_tokens_wins() -> None:
    messages = [{"role": "user", "content": "the"}]
    assert _parse("chat", messages=messages, max_tokens=5, max_completion_tokens=7).request.max_tokens == 7


def test_ids_are_taken_as_they_are() -> None:
    asked = _parse("generate", input_ids=[5, 6, 7], rid="mine", sampling_params={"max_new_tokens": 2, "ignore_eos": True})
    assert (asked.request.prompt, asked.request.rid, asked.request.ignore_eos) == ([5, 6, 7], "mine", True)


@pytest.mark.parametrize(
    ("kind", "body", "told"),
    [
        ("generate", {}, "Either text, input_ids or input_embeds should be provided."),
        ("chat", {"model": "x"}, "'loc': ('body', 'messages'), 'msg': 'Field required'"),
        ("completions", {"prompt": ["a", "b"]}, "one prompt a request"),
        ("completions", {"prompt": "a", "max_tokens": "9"}, "Input should be a valid integer"),
        ("generate", {"text": "a", "sampling_params": {"max_new_tokens": -1}}, "max_new_tokens must be at least 0, got -1."),
        ("completions", {"prompt": [5] * CONTEXT}, f"The input ({CONTEXT} tokens) is longer than the model's context length"),
        ("completions", {"prompt": "the", "max_tokens": CONTEXT}, f"You requested a total of {CONTEXT + 1} tokens: 1 tokens from"),
        ("completions", [1], "Input should be a valid dictionary"),
    ],
)
def test_a_bad_request_is_refused_as_sglang_does(kind: wire.Kind, body: Any, told: str) -> None:
    with pytest.raises(wire.Refused) as refused:
        wire.parse(kind, json.dumps(body).encode(), "default")
    assert told in str(refused.value)
    error = wire.error(kind, refused.value)
    assert told in json.dumps(error, ensure_ascii=False).replace('\\"', '"')
    assert (list(error) == ["error"]) == (kind == "generate" and refused.value.error_type == "BadRequestError")


# --- log, metrics, arguments --------------------------------------------------------------------------------------------------


def test_bars_are_tqdms(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = Log(RigClock.create(tmp_path, 100.0), 4)
    log.bar("", 0, 4, 0, 0)
    log.bar("Capturing batches (bs=8 avail_mem=83.26 GB)", 1, 4, 28.59, 28.59)
    log.bar("Capturing batches (bs=1 avail_mem=83.22 GB)", 4, 4, 3752, 0.25)
    log.bar("Loading safetensors checkpoint shards", 1, 4, 3.01, 3.01, "Completed")
    assert capfd.readouterr().err.split("\r")[1:] == [
        "  0%|          | 0/4 [00:00<?, ?it/s]",
        "Capturing batches (bs=8 avail_mem=83.26 GB):  25%|██▌       | 1/4 [00:29<01:26, 28.59s/it]",
        "Capturing batches (bs=1 avail_mem=83.22 GB): 100%|██████████| 4/4 [1:02:32<00:00,  4.00it/s]",
        "Loading safetensors checkpoint shards:  25% Completed | 1/4 [00:03<00:09,  3.01s/it]",
    ]


def test_lines_have_ranks_only_where_there_are_several(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    clock = RigClock.create(tmp_path, 100.0)
    many, one = Log(clock, 2), Log(clock, 1)
    many.at = one.at = 0.0
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(0))
    many.line("main")
    many.all_ranks("both")
    one.all_ranks("only")
    assert capfd.readouterr().err.splitlines() == [
        f"[{stamp}] main",
        f"[{stamp} TP0] both",
        f"[{stamp} TP1] both",
        f"[{stamp}] only",
    ]


def test_an_autotune_block_ends_with_the_line_that_counts() -> None:
    lines = autotune_block("mm(4x8192, 8192x2560)", ["triton_mm_8", "mm"], 4.2, 0.31).splitlines()
    assert lines[2:4] == ["AUTOTUNE mm(4x8192, 8192x2560)", "strides: [8192, 1], [1, 8192]"]
    assert lines[-1] == "SingleProcess AUTOTUNE benchmarking takes 4.2000 seconds and 0.3100 seconds precompiling for 19 choices"
    assert json.loads(lines[1])["best_kernel"] == "triton_mm_8"


def test_a_histogram_is_cumulative() -> None:
    histogram = Histogram()
    for seconds in (0.004, 0.025, 0.025, 999.0):
        histogram.add(seconds)
    lines = histogram.lines("x", 'a="b"')
    assert 'x_bucket{le="0.02",a="b"} 1.0' in lines
    assert 'x_bucket{le="0.03",a="b"} 3.0' in lines
    assert lines[-2:] == ['x_bucket{le="+Inf",a="b"} 4.0', 'x_count{a="b"} 4.0']


def test_metrics_have_the_recorded_names() -> None:
    metrics = Metrics()
    metrics.passes["decode_cuda_graph"] = 40
    metrics.realtime["decode"] = 40
    metrics.responses["/health", "GET", 503] = 2
    text = metrics.text("/m", {"num_running_reqs": 1})
    assert '# TYPE sglang:cuda_graph_passes_total counter\nsglang:cuda_graph_passes_total{engine_type="unified",' in text
    assert 'mode="decode_cuda_graph"} 40.0' in text
    assert 'sglang:http_responses_total{endpoint="/health",method="GET",status_code="503"} 2.0' in text
    for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds", "queue_time_seconds"):
        assert f"# TYPE sglang:{name} histogram" in text


def test_flags_go_into_the_argument_echo() -> None:
    args = server_args(
        ["--model-path", "/m", "--tp", "2", "--mem-fraction-static", "0.7", "--enable-metrics", "--api-key", "k"], 1234
    )
    assert (args["model_path"], args["tokenizer_path"], args["tp_size"], args["port"]) == ("/m", "/m", 2, 1234)
    assert (args["mem_fraction_static"], args["enable_metrics"], args["api_key"]) == (0.7, True, "k")
    assert len(args) == 368


# --- making and opening -------------------------------------------------------------------------------------------------------


def test_a_free_port_lies_outside_the_range_for_outgoing_connections() -> None:
    port = free_port()
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert 1024 < port < 65536
    assert not first <= port <= last or not 20_000 <= port < 32_000
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))


def test_the_dead_and_the_reborn_are_not_alive() -> None:
    import os

    own = os.getpid()
    assert procs.alive(own, procs.start_ticks(own))
    assert not procs.alive(own, 12345)
    assert not procs.alive(0, 1)
    assert procs.start_ticks(2**22 + 5) == 0
    assert procs.end(2**22 + 5, 7)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"power_w": 400.0}, "power_w=400: the simulated cards take 100 to 390 W"),
        ({"speed": 10.0}, "speed=10: give at least 60"),
        ({"hardware": "none"}, "no simulated hardware 'none'"),
        ({"faults": ["none"]}, "no fault 'none'"),
    ],
)
def test_a_rig_that_cannot_be_is_refused(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SimulatedRig.create(tmp_path / "rig", **options)
    assert not (tmp_path / "rig").exists()


def test_a_rig_is_made_once(tmp_path: Path) -> None:
    rig = SimulatedRig.create(tmp_path, power_w=300.0)
    with pytest.raises(FileExistsError, match="holds a simulated rig already"):
        SimulatedRig.create(tmp_path)
    assert {card["limit_w"] for card in rig.state()["cards"]} == {300.0}
    assert SimulatedRig.open(tmp_path).url == rig.url == f"http://127.0.0.1:{rig.port}"
    assert not rig.serving()
    rig.destroy()
    assert not tmp_path.exists()
    rig.destroy()


def test_two_rigs_share_no_card_and_no_port(tmp_path: Path) -> None:
    one, two = SimulatedRig.create(tmp_path / "1"), SimulatedRig.create(tmp_path / "2")
    assert not set(one.config.uuids) & set(two.config.uuids)
    assert one.port != two.port


def test_a_half_made_rig_can_be_removed_and_a_foreign_directory_cannot(tmp_path: Path) -> None:
    half, foreign = tmp_path / "half", tmp_path / "foreign"
    half.mkdir()
    (half / "rig.json").write_text("{")
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("precious")
    SimulatedRig.open(half).destroy()
    SimulatedRig.open(foreign).destroy()
    assert not half.exists()
    assert (foreign / "thesis.txt").exists()


def test_a_directory_that_is_not_there_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no simulated rig at"):
        SimulatedRig.open(tmp_path / "gone")


def test_a_rig_of_an_earlier_boot_is_refused(tmp_path: Path) -> None:
    SimulatedRig.create(tmp_path)
    raw = json.loads((tmp_path / "rig.json").read_text())
    (tmp_path / "rig.json").write_text(json.dumps(raw | {"boot_id": "another"}))
    with pytest.raises(ValueError, match="made before the last reboot"):
        _ = SimulatedRig.open(tmp_path).port


def test_the_log_of_a_new_rig_holds_an_earlier_cold_start(tmp_path: Path) -> None:
    rig = SimulatedRig.create(tmp_path)
    text = rig.log.read_text()
    assert (
        text.count("server_args=ServerArgs(") == text.count("The server is fired up") == text.count("SingleProcess AUTOTUNE") == 1
    )
    first = time.mktime(time.strptime(text[1:20], "%Y-%m-%d %H:%M:%S"))
    assert time.time() - first == pytest.approx(2 * 86400 + 1320, abs=60)


def test_request_reads_as_unfinished_until_it_is() -> None:
    request = Request(prompt=[1], max_tokens=3)
    assert (request.finish_reason, request.matched_stop) == (None, None)
    request.finish = {"type": "stop", "matched": 2}
    assert (request.finish_reason, request.matched_stop) == ("stop", 2)
