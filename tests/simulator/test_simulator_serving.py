"""The simulated server over the wire, beside recorded answers of a real 0.5.11; speed, power and what runs."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from simulated_rigs import FAST, RECORDED, ask, capture_s, events, form, last_start, shape, systemctl, up, wait

from pytest_sglang.simulator.caches import Caches
from pytest_sglang.simulator.rig import SimulatedRig

ANSWERS = {each["name"]: each for each in json.loads(RECORDED.read_text(encoding="utf-8"))}
MODEL = "/models/home-70b-awq"


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SimulatedRig, float]]:
    """A rig that made a cold start, and how long that took in rig seconds."""
    made = SimulatedRig.create(tmp_path_factory.mktemp("rig"), speed=FAST, seed=7, faults=["cache-cold"], faults_at_once=True)
    try:
        begin_s = made.clock.time()
        made.start()
        up(made)
        yield made, made.clock.time() - begin_s
    finally:
        made.destroy()


@pytest.fixture(scope="module")
def rig(started: tuple[SimulatedRig, float]) -> SimulatedRig:
    return started[0]


@pytest.fixture(autouse=True)
def _idle(rig: SimulatedRig) -> Iterator[None]:
    yield
    wait(lambda: loads(rig)["num_running_reqs"] == 0, 5.0)


def loads(rig: SimulatedRig) -> Any:
    return json.loads(ask(rig, "/v1/loads")[2])["loads"][0]


def generate(rig: SimulatedRig, tokens: int, **more: Any) -> Any:
    body = {"input_ids": [100, 101, 102], "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True}, **more}
    return json.loads(ask(rig, "/generate", body)[2])


def timed_stream(rig: SimulatedRig, tokens: int) -> list[tuple[float, int]]:
    """Arrival time and cumulative token count of each chunk."""
    connection = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=60)
    body = {"input_ids": [9, 8, 7], "stream": True, "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True}}
    connection.request("POST", "/generate", json.dumps(body))
    answer, seen = connection.getresponse(), []
    while line := answer.readline():
        now = time.perf_counter()
        if line.startswith(b"data: {"):
            seen.append((now, json.loads(line[6:])["meta_info"]["completion_tokens"]))
    connection.close()
    return seen


# --- the cold start ------------------------------------------------------------------------------------------------------------

# lines that the single recorded card cannot have, in the forms of SGLang's source, and those whose values differ by model and flags
_FROM_SOURCE = (
    "[] sglang is using nccl==",
    "[] CustomAllreduce is disabled because",
    "[] KV Cache is allocated",
    "[] Load weight end.",
    "[] Using KV cache dtype",
    "[] max_total_num_tokens=",
    "[] Capture cuda graph bs [0",
)


def test_a_cold_start_takes_its_time_and_compiles_everything(started: tuple[SimulatedRig, float]) -> None:
    rig, took_s = started
    log, caches = last_start(rig), Caches(rig.config.triton_dir, rig.config.inductor_dir, rig.config.model)
    assert 1320 * 0.965 < took_s < 1320 * 1.035
    assert 1200 < capture_s(log) < 1330
    assert log.count("SingleProcess AUTOTUNE") == 40
    assert (caches.missing(), caches.untuned()) == ([], [])


def test_every_stamped_line_of_a_start_has_a_recorded_form(rig: SimulatedRig) -> None:
    recorded = {form(line) for line in RECORDED.with_name("lines-0.5.11-cold.txt").read_text(encoding="utf-8").splitlines()}
    lines = re.split(r"[\r\n]+", last_start(rig).partition(" and ready to roll!")[0] + " and ready to roll!")
    known = [line for line in lines if line.startswith("[2") and not form(line).startswith(_FROM_SOURCE)]
    assert len(known) > 20
    assert {form(line) for line in known} - recorded == set()


# --- forms, beside the recorded ones -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "/v1/models",
        "/model_info",
        "/get_model_info",
        "/get_load",
        "/version",
        "/get_internal_state",
        "notfound",
        "flush",
        "flush_get",
    ],
)
def test_answers_have_the_recorded_form(rig: SimulatedRig, name: str) -> None:
    recorded = ANSWERS[name]
    status, headers, body = ask(rig, recorded["path"], recorded["request"])
    assert status == recorded["status"]
    assert headers["server"] == recorded["headers"]["server"] == "uvicorn"
    assert headers["content-type"] == recorded["headers"].get("content-type")
    if headers["content-type"] == "application/json":
        assert shape(json.loads(body)) == shape(json.loads(recorded["body"]))
    else:
        assert body.decode() == recorded["body"]


@pytest.mark.parametrize(
    "name", ["chat", "completions", "generate", "generate_logprob", "bad_model", "missing", "neg_tokens", "bad_json"]
)
def test_whole_generations_and_errors_have_the_recorded_form(rig: SimulatedRig, name: str) -> None:
    recorded = ANSWERS[name]
    request = recorded["request"].encode() if isinstance(recorded["request"], str) else recorded["request"]
    status, _, body = ask(rig, recorded["path"], request)
    ours, theirs = json.loads(body), json.loads(recorded["body"])
    assert status == recorded["status"]
    if name == "completions":
        theirs["choices"][0]["logprobs"] = None  # asked for there, not simulated
    if name.startswith("generate"):
        # a field that the facts call unusable, and prompts whose prefix happened to be cached there
        del theirs["meta_info"]["inference_time"]
        theirs["meta_info"]["cached_tokens_details"] = ours["meta_info"]["cached_tokens_details"]
    assert shape(ours) == shape(theirs)
    assert list(ours) == list(theirs)
    if status == 400 and name != "missing":
        assert ours == theirs


@pytest.mark.parametrize("name", ["chat_stream", "completions_stream"])
def test_streams_have_the_recorded_events(rig: SimulatedRig, name: str) -> None:
    recorded = ANSWERS[name]
    _, headers, body = ask(rig, recorded["path"], recorded["request"])
    ours, theirs = events(body), events(recorded["body"].encode())
    assert headers["content-type"] == recorded["headers"]["content-type"]
    assert ours[-1] == theirs[-1] == "[DONE]"
    # first, last and usage event exactly; between them one form each
    for place in (0, 1, -3):
        assert shape(ours[place]) == shape(theirs[place])
    assert {key: each for key, each in ours[-2]["usage"].items() if key.endswith("_tokens") and key != "reasoning_tokens"}
    assert ours[-2]["choices"] == theirs[-2]["choices"] == []
    assert ours[-2]["usage"]["completion_tokens"] == theirs[-2]["usage"]["completion_tokens"] == 6
    assert ours[-3]["choices"][0]["finish_reason"] == theirs[-3]["choices"][0]["finish_reason"] == "length"
    if name == "completions_stream":
        counts = [each["usage"]["completion_tokens"] for each in ours[:-2]]
        assert counts == sorted(set(counts))
        assert counts[-1] == 6


def test_native_streams_are_cumulative_as_recorded(rig: SimulatedRig) -> None:
    recorded = ANSWERS["generate_ids_stream"]
    ours = events(ask(rig, recorded["path"], recorded["request"])[2])
    theirs = events(recorded["body"].encode())
    ids = [each["output_ids"] for each in ours[:-1]]
    assert all(later[: len(earlier)] == earlier for earlier, later in itertools.pairwise(ids))
    assert len(ids[-1]) == 6
    assert ours[-2]["meta_info"]["finish_reason"] == theirs[-2]["meta_info"]["finish_reason"] == {"type": "length", "length": 6}
    assert ours[-2]["text"].startswith(ours[0]["text"])
    known = set(theirs[-2]["meta_info"]) - {"inference_time"}
    assert set(ours[-2]["meta_info"]) == known
    assert set(ours[1]["meta_info"]) == set(theirs[1]["meta_info"])


def test_server_info_holds_the_arguments_and_the_state(rig: SimulatedRig) -> None:
    info = json.loads(ask(rig, "/server_info")[2])
    assert (info["model_path"], info["tp_size"], info["enable_torch_compile"], info["version"]) == (MODEL, 4, True, "0.5.11")
    assert info["internal_states"][0]["memory_usage"]["token_capacity"] == info["max_total_num_tokens"]
    assert (info["api_key"], info["port"], info["status"]) == (None, rig.port, "ready")


def test_loads_have_the_recorded_fields(rig: SimulatedRig) -> None:
    recorded, ours = json.loads(ANSWERS["/v1/loads"]["body"]), json.loads(ask(rig, "/v1/loads")[2])
    assert set(ours) == set(recorded)
    assert set(ours["aggregate"]) == set(recorded["aggregate"])
    assert set(recorded["loads"][0]) - set(ours["loads"][0]) == {"disaggregation"}


def test_the_old_spellings_log_that_they_are_old(rig: SimulatedRig) -> None:
    ask(rig, "/get_server_info")
    assert "Endpoint '/get_server_info' is deprecated" in rig.log.read_text()


def test_readiness_by_flag_does_not_exist_yet(rig: SimulatedRig) -> None:
    assert ask(rig, "/ready")[0] == 404
    assert ask(rig, "/generate")[0] == 405


@pytest.mark.parametrize("path", ["/health", "/health_generate"])
def test_a_health_check_costs_a_second(rig: SimulatedRig, path: str) -> None:
    begin = time.monotonic()
    status, _, body = ask(rig, path)
    assert (status, body) == (200, b"")
    assert 1.0 <= time.monotonic() - begin < 1.5


def test_tokenize_and_detokenize(rig: SimulatedRig) -> None:
    answer = json.loads(ask(rig, "/tokenize", {"model": MODEL, "prompt": "import the rig"})[2])
    assert list(answer) == ["tokens", "count", "max_model_len"]
    assert json.loads(ask(rig, "/detokenize", {"tokens": answer["tokens"]})[2])["text"] == "import the rig"
    assert json.loads(ask(rig, "/tokenize", b"{")[2])["count"] == 0


# --- generation ----------------------------------------------------------------------------------------------------------------


def test_exact_lengths_with_ignore_eos_and_natural_ends_without(rig: SimulatedRig) -> None:
    for tokens in (1, 2, 9):
        made = generate(rig, tokens)
        assert len(made["output_ids"]) == made["meta_info"]["completion_tokens"] == tokens
        assert made["meta_info"]["finish_reason"] == {"type": "length", "length": tokens}
    body = {"prompt": [4711], "max_tokens": 10}
    assert json.loads(ask(rig, "/v1/completions", body)[2])["choices"][0]["finish_reason"] == "length"


def test_decoding_runs_at_the_speed_of_the_power_limit(rig: SimulatedRig) -> None:
    seen = timed_stream(rig, 40)
    speed = (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])
    assert seen[0][1] == 1
    assert speed == pytest.approx(43.3, rel=0.035)


def test_the_lowest_limit_among_the_serving_cards_decides(rig: SimulatedRig) -> None:
    nvml = rig.nvml()
    nvml.nvmlInit()
    cards = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(6)]
    try:
        for card in cards:
            nvml.nvmlDeviceSetPowerManagementLimit(card, 390_000)
        nvml.nvmlDeviceSetPowerManagementLimit(cards[5], 100_000)  # does not serve
        assert runs_at(rig, 40, 58.3)
        nvml.nvmlDeviceSetPowerManagementLimit(cards[3], 200_000)
        assert runs_at(rig, 20, 26.3 * 1.11)
    finally:
        for card in cards:
            nvml.nvmlDeviceSetPowerManagementLimit(card, 250_000)


def runs_at(rig: SimulatedRig, tokens: int, tok_s: float) -> bool:
    """Whether a stream has this speed; on a busy machine several tokens may be read at once, so it has a few attempts."""
    for _ in range(5):
        seen = timed_stream(rig, tokens)
        if (tokens - 1) / (seen[-1][0] - seen[0][0]) == pytest.approx(tok_s, rel=0.035):
            return True
    return False


def test_several_streams_make_more_together_and_less_each(rig: SimulatedRig) -> None:
    runs: list[list[tuple[float, int]]] = []
    threads = [threading.Thread(target=lambda: runs.append(timed_stream(rig, 25))) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait(lambda: loads(rig)["num_running_reqs"] == 4, 3.0)
    for thread in threads:
        thread.join()
    each = [24 / (run[-1][0] - run[0][0]) for run in runs]
    assert all(30 < speed < 41 for speed in each)
    assert sum(each) > 2.5 * 43.3


def test_a_load_draws_power_near_the_limit_and_energy_adds_up(rig: SimulatedRig) -> None:
    nvml = rig.nvml()
    nvml.nvmlInit()
    card, idle = nvml.nvmlDeviceGetHandleByIndex(0), nvml.nvmlDeviceGetHandleByIndex(5)
    (process,) = nvml.nvmlDeviceGetComputeRunningProcesses(card)
    assert process.pid == rig.state()["main_pid"]
    wait(lambda: nvml.nvmlDeviceGetPowerUsage(card) < 27_000, 5.0)  # what earlier tests asked for has worn off
    before, begin = nvml.nvmlDeviceGetTotalEnergyConsumption(card), time.monotonic()
    worker = threading.Thread(target=generate, args=(rig, 36))
    worker.start()
    time.sleep(0.7)
    assert 215_000 < nvml.nvmlDeviceGetFieldValues(card, [186])[0].value.uiVal <= 250_000
    assert nvml.nvmlDeviceGetPowerUsage(idle) < 30_000
    worker.join()
    elapsed = time.monotonic() - begin
    joules = (nvml.nvmlDeviceGetTotalEnergyConsumption(card) - before) / 1000
    assert joules == pytest.approx(246 * elapsed - 0.3 * 220, rel=0.12)


def test_a_cached_prefix_is_reported_and_forgotten_by_a_flush(rig: SimulatedRig) -> None:
    prompt = list(range(500, 560))
    first, again = generate(rig, 1, input_ids=prompt), generate(rig, 1, input_ids=prompt)
    assert (first["meta_info"]["cached_tokens"], again["meta_info"]["cached_tokens"]) == (0, 59)
    assert ask(rig, "/flush_cache", method="POST")[0] == 200
    assert generate(rig, 1, input_ids=prompt)["meta_info"]["cached_tokens"] == 0


def test_a_flush_is_refused_while_something_runs(rig: SimulatedRig) -> None:
    worker = threading.Thread(target=generate, args=(rig, 12))
    worker.start()
    wait(lambda: loads(rig)["num_running_reqs"] == 1)
    assert ask(rig, "/flush_cache", method="POST")[0] == 400
    worker.join()


def test_an_aborted_request_ends_with_abort(rig: SimulatedRig) -> None:
    answers: list[Any] = []
    worker = threading.Thread(target=lambda: answers.append(generate(rig, 2000, rid="mine")))
    worker.start()
    wait(lambda: loads(rig)["num_running_reqs"] == 1)
    assert ask(rig, "/abort_request", {"rid": "unknown"})[0] == 200
    assert loads(rig)["num_running_reqs"] == 1
    assert ask(rig, "/abort_request", {"rid": "mine"})[0] == 200
    worker.join(3.0)
    assert answers[0]["meta_info"]["finish_reason"]["type"] == "abort"


def test_a_closed_connection_is_noticed_two_seconds_later(rig: SimulatedRig) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=10)
    body = {"text": "x", "stream": True, "sampling_params": {"max_new_tokens": 5000, "ignore_eos": True}}
    connection.request("POST", "/generate", json.dumps(body))
    connection.getresponse().read(10)
    connection.sock.close()
    connection.close()
    time.sleep(1.2)
    assert loads(rig)["num_running_reqs"] == 1
    wait(lambda: loads(rig)["num_running_reqs"] == 0, 4.0)


def test_metrics_count_what_ran(rig: SimulatedRig) -> None:
    def total(name: str) -> float:
        lines = ask(rig, "/metrics")[2].decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"sglang:{name}{{"))

    tokens, requests = total("generation_tokens_total"), total("num_requests_total")
    generate(rig, 11)
    assert (total("generation_tokens_total") - tokens, total("num_requests_total") - requests) == (11, 1)
    assert total("num_running_reqs") == 0


def test_statistics_lines_appear_in_the_log(rig: SimulatedRig) -> None:
    mark = rig.log.stat().st_size
    generate(rig, 2)
    text = rig.log.read_bytes()[mark:].decode()
    assert "TP0] Prefill batch, #new-seq: 1, #new-token: " in text
    assert "INFO:     127.0.0.1:" in text
    assert '"POST /generate HTTP/1.1" 200 OK' in text


def test_the_systemctl_of_a_running_unit(rig: SimulatedRig) -> None:
    assert systemctl(rig, "is-active", "sglang.service").stdout == "active\n"
    started = systemctl(rig, "start", "sglang.service")
    assert (started.returncode, started.stdout, started.stderr) == (0, "", "")
    assert rig.state()["starts"] == 1


def test_the_start_was_stamped_in_rig_time(started: tuple[SimulatedRig, float]) -> None:
    rig, took_s = started
    shown = systemctl(rig, "show", "sglang.service", "-p", "ExecMainStartTimestampMonotonic", "--value").stdout
    launched = rig.clock.from_monotonic(int(shown) / 1e6)
    ready = next(line for line in last_start(rig).splitlines() if "The server is fired up" in line)
    assert time.mktime(time.strptime(ready[1:20], "%Y-%m-%d %H:%M:%S")) - launched == pytest.approx(took_s, abs=1.3)
