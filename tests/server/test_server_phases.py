from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_sglang.record.values import PHASES
from pytest_sglang.server import log, phases, versions
from pytest_sglang.server.phases import Timeline

Recorded = Callable[[str], str]
GPU = ("arguments", "distributed", "weights", "kv_cache", "capture_decode", "port_open", "warmup", "ready")


def _read(text: str, **more: object) -> Timeline:
    return phases.timeline(log.starts(log.split(text))[-1], **more)  # type: ignore[arg-type]


# name, its phases, total of the log's own stamps, capture, autotune runs
RECORDED = [
    ("sglang-0.5.11-h200-plain", (*GPU[:5], "capture_prefill", *GPU[5:]), 75, 24.63, 0),
    ("sglang-0.5.11-h200-compile-cold", GPU, 213, 163.96, 10),
    ("sglang-0.5.11-h200-compile-warm", GPU, 79, 53.72, 0),
    ("sglang-0.5.23-cpu-plain", (*GPU[:4], *GPU[5:]), 11, None, 0),
    ("sglang-0.5.23-cpu-compile-cold", GPU, 77, 65.72, 0),
    ("sglang-0.5.23-cpu-compile-warm", GPU, 54, 34.56, 0),
]


@pytest.mark.parametrize(("name", "ids", "total_s", "capture_s", "autotune"), RECORDED)
def test_every_phase_of_a_recorded_start_is_found(
    recorded: Recorded, name: str, ids: tuple[str, ...], total_s: float, capture_s: float | None, autotune: int
) -> None:
    found = _read(recorded(name))
    assert tuple(phase.id for phase in found.phases) == ids
    assert found.ready_at is not None
    assert found.launched_at is not None
    assert found.launched_at_is == "first line"
    assert found.ready_at - found.launched_at == total_s
    assert found.capture_s == capture_s
    assert found.autotune_runs == autotune
    assert found.failure is None
    assert not [each for each in found.findings if each.severity == "fail"]
    assert sum((phase.end_s or 0) - phase.begin_s for phase in found.phases) == pytest.approx(total_s)
    assert [phase.end_s for phase in found.phases[:-1]] == [phase.begin_s for phase in found.phases[1:]]


# what a poller saw from the launch on (port open, recorded beside the logs): the first line comes 16 to 30 s after the launch
@pytest.mark.parametrize(
    ("name", "launch_before_first_line_s", "port_open_s"),
    [("sglang-0.5.11-h200-compile-cold", 30.1, 222.08), ("sglang-0.5.11-h200-compile-warm", 21.9, 99.97)],
)
def test_with_the_launch_known_the_phases_add_up_to_the_measured_total(
    recorded: Recorded, name: str, launch_before_first_line_s: float, port_open_s: float
) -> None:
    first = next(line.time for line in log.split(recorded(name)) if line.time is not None)
    assert first is not None
    found = _read(recorded(name), launched_at=first - launch_before_first_line_s)
    assert found.phases[0].id == "launch"
    assert found.launched_at_is == "launch"
    until_port = next(phase for phase in found.phases if phase.id == "warmup").begin_s
    assert until_port == pytest.approx(port_open_s, abs=max(2.0, 0.02 * port_open_s))


def test_phase_ids_are_those_of_the_record() -> None:
    assert {phase for _, ids, *_ in RECORDED for phase in ids} <= set(PHASES)


def test_the_version_is_recognised_by_the_forms(recorded: Recorded) -> None:
    assert _read(recorded("sglang-0.5.11-h200-plain")).versions == {"sglang": "0.5.10 to 0.5.13"}
    assert _read(recorded("sglang-0.5.23-cpu-plain")).versions == {"sglang": "0.5.21 to 0.5.23"}
    assert _read(recorded("sglang-0.5.11-h200-plain"), version="0.5.11").versions == {"sglang": "0.5.11"}


@pytest.mark.parametrize("version", ["0.4.6", "0.5.24", "0.6.0.dev1", "1.0.0"])
def test_an_unknown_version_gives_no_phases_but_no_failure(recorded: Recorded, version: str) -> None:
    found = _read(recorded("sglang-0.5.11-h200-compile-cold"), version=version)
    assert found.phases == ()
    assert [each.kind for each in found.findings if each.kind == "phases-unknown"] == ["phases-unknown"]
    assert not [each for each in found.findings if each.severity == "fail"]
    assert found.ready_at is not None
    assert found.autotune_runs == 10


def test_facts_come_from_both_forms_of_the_argument_echo(recorded: Recorded) -> None:
    old, new = _read(recorded("sglang-0.5.11-h200-compile-cold")).facts, _read(recorded("sglang-0.5.23-cpu-compile-cold")).facts
    assert (old["model_path"], old["tp_size"], old["enable_torch_compile"]) == ("/models/llama-8b", 1, True)
    assert (new["model_path"], new["device"], new["port"]) == ("/models/tiny-llama", "cpu", 30000)


def test_an_echo_that_is_cut_gives_what_stands_before_the_cut(recorded: Recorded) -> None:
    text = recorded("sglang-0.5.11-h200-plain")
    cut = text[: text.index("tokenizer_mode=")]
    assert _read(cut).facts == {"model_path": "/models/llama-8b"}


def test_engine_timings_are_read_where_the_version_prints_them(recorded: Recorded) -> None:
    found = _read(recorded("sglang-0.5.23-cpu-compile-cold"))
    assert (found.timings["decode"], found.timings["tokenizer_e2e"]) == (65.72, 73.63)
    assert found.timings["decode"] == found.capture_s
    assert found.weights_s == 0.02


def test_the_first_traceback_is_the_cause_of_a_death(recorded: Recorded) -> None:
    found = _read(recorded("sglang-0.5.23-cpu-compile-crash"))
    assert found.phase == "capture_decode"
    assert found.ready_at is None
    assert found.failure is not None
    assert found.failure.cause == "AttributeError: 'TorchNativeAttnBackend' object has no attribute 'init_cpu_graph_state'"
    assert found.failure.traceback.startswith("Traceback (most recent call last)")
    assert [(each.kind, each.severity) for each in found.findings][-1] == ("died", "fail")


def test_a_start_that_is_cut_at_any_line_never_breaks_the_parser(recorded: Recorded) -> None:
    lines = log.split(recorded("sglang-0.5.11-h200-compile-warm"))
    ids: list[str | None] = []
    for end in range(0, 220, 7):
        found = phases.timeline(lines[:end])
        ids.append(found.phase)
        assert found.phases[:-1] == tuple(phase for phase in found.phases[:-1] if phase.end_s is not None)
    known = [each for each in ids if each is not None]
    assert known == sorted(known, key=PHASES.index)
    assert known[-1] == "ready"


def test_progress_comes_from_the_bar_of_the_phase_that_runs(recorded: Recorded) -> None:
    text = recorded("sglang-0.5.23-cpu-compile-cold")
    running = _read(text[: text.index("Capturing batches (bs=2")])
    assert (running.phase, running.inside) == ("capture_decode", "2/4 (bs=3)")
    assert _read(text).inside == ""


def _stamped(second: int, text: str, ranks: str = "") -> str:
    return f"[2026-01-02 03:{second // 60:02d}:{second % 60:02d}{' ' + ranks if ranks else ''}] {text}\n"


def test_interleaved_ranks_count_from_the_first_to_the_slowest() -> None:
    text = _stamped(0, "server_args=ServerArgs(model_path='m', tp_size=2, enable_torch_compile=True)")
    for second, what in [
        (10, "Init torch distributed begin."),
        (12, "Load weight begin. avail mem=20 GB"),
        (30, "Load weight end. elapsed=18.0 s, type=X, avail mem=10 GB, mem usage=10 GB."),
        (32, "Memory pool end. avail mem=2 GB"),
        (33, "Capture cuda graph begin. This can take up to several minutes. avail mem=2 GB"),
    ]:
        text += _stamped(second, what, "TP1") + _stamped(second + 1, what, "TP0")
    text += _stamped(133, "Capture cuda graph end. Time elapsed: 99.5 s. mem usage=1 GB. avail mem=1 GB.", "TP0")
    text += _stamped(143, "Capture cuda graph end. Time elapsed: 109.5 s. mem usage=1 GB. avail mem=1 GB.", "TP1")
    text += _stamped(150, "INFO:     Uvicorn running on http://127.0.0.1:1 (Press CTRL+C to quit)")
    found = _read(text)
    assert [(phase.id, phase.begin_s) for phase in found.phases] == [
        ("arguments", 0),
        ("distributed", 10),
        ("weights", 12),
        ("kv_cache", 31),
        ("capture_decode", 33),
        ("port_open", 143),
        ("warmup", 150),
    ]
    assert found.capture_s == 109.5
    assert found.phase == "warmup"


def test_a_second_server_on_the_same_port_is_not_ready_whatever_its_log_says() -> None:
    text = (
        _stamped(0, "server_args=ServerArgs(model_path='m')")
        + _stamped(9, "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 8001): address already in use")
        + _stamped(10, "The server is fired up and ready to roll!")
    )
    found = _read(text)
    assert found.ready_at is None
    assert not found.bound
    assert [(each.kind, each.severity) for each in found.findings] == [("port-taken", "fail")]


DEGRADED = [
    ("custom-all-reduce-off", "info", "CustomAllReduceV2 is disabled because it's not supported on more than two PCIe-only GPUs."),
    (
        "custom-all-reduce-off",
        "warn",
        "Custom allreduce is disabled because your platform lacks GPU P2P capability or P2P test failed.",
    ),
    (
        "torch-compile-off",
        "fail",
        "The model is not torch.compile compatible (e.g. dynamic rope scaling). Disabling torch.compile.",
    ),
    (
        "kv-cache-full",
        "warn",
        "KV cache pool is full. Retract requests. #retracted_reqs: 1, #new_tokens_gained: 2, #new_token_ratio: 0.1 -> 0.2",
    ),
    ("compiled-after-ready", "warn", "Triton kernel 'fused' took 3.2 s to compile after serving started. x"),
    ("decode-graphs-off", "warn", "CUDA graph is disabled because of using torch native attention backend"),
]


@pytest.mark.parametrize(("kind", "severity", "line"), DEGRADED)
def test_a_silent_degradation_is_a_finding(kind: str, severity: str, line: str) -> None:
    found = _read(_stamped(0, "server_args=ServerArgs(model_path='m')") + _stamped(5, line, "TP1") + _stamped(5, line, "TP0"))
    assert [(each.kind, each.severity) for each in found.findings] == [(kind, severity)]


def test_compile_asked_for_without_decode_graphs_is_found(recorded: Recorded) -> None:
    text = recorded("sglang-0.5.11-h200-compile-warm")
    kept = "\n".join(line for line in text.split("\n") if "Capture cuda graph" not in line and "Capturing batches" not in line)
    assert [each.kind for each in _read(kept).findings if each.severity == "fail"] == ["torch-compile-off"]


def test_a_log_whose_beginning_is_missing_accuses_nobody(recorded: Recorded) -> None:
    text = recorded("sglang-0.5.11-h200-compile-warm")
    assert not [each for each in _read(text[text.index("max_total_num_tokens") - 30 :]).findings if each.severity == "fail"]


FAILED = [
    ("out-of-memory", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
    ("rank-died", "Rank 2 scheduler died during initialization (exit code: -9). x"),
    ("arguments", "launch_server.py: error: ambiguous option: --cuda-graph-max-bs could match x"),
    ("nccl", "[rank0]:[E102] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1)"),
    ("killed-itself", "Received sigquit from a child process. It usually means the child failed."),
]


@pytest.mark.parametrize(("kind", "line"), FAILED)
def test_a_failure_without_a_traceback_is_named(kind: str, line: str) -> None:
    found = _read(_stamped(0, "server_args=ServerArgs(model_path='m')") + line + "\n")
    assert found.failure is not None
    assert (found.failure.kind, found.failure.cause) == (kind, line)


def test_an_import_error_before_the_first_stamp_is_the_cause() -> None:
    text = (
        "Traceback (most recent call last):\n  File \"<frozen runpy>\", line 198\nModuleNotFoundError: No module named 'sglang'\n"
    )
    found = _read(text)
    assert found.failure is not None
    assert found.failure.cause == "ModuleNotFoundError: No module named 'sglang'"
    assert found.phases == ()


def test_a_traceback_that_torch_prints_with_a_warning_is_no_death() -> None:
    text = (
        _stamped(0, "server_args=ServerArgs(model_path='m')")
        + "W0101 fx graph cache unable to load compiled graph\nTraceback (most recent call last):\n  x\nKeyError: 'a'\n"
        + _stamped(9, "The server is fired up and ready to roll!")
    )
    found = _read(text)
    assert found.failure is None
    assert [each.kind for each in found.findings] == ["cache-entry-broken"]


def test_of_chained_exceptions_the_first_one_is_told() -> None:
    text = _stamped(0, "server_args=ServerArgs(model_path='m')") + _stamped(
        5,
        "Scheduler hit an exception: Traceback (most recent call last):\n  a\n"
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n"
        "\nDuring handling of the above exception, another exception occurred:\n\n"
        "Traceback (most recent call last):\n  b\nRuntimeError: later",
    )
    found = _read(text)
    assert found.failure is not None
    assert found.failure.cause.startswith("torch.OutOfMemoryError")
    assert found.failure.kind == "out-of-memory"


def test_secrets_stand_in_no_line_that_is_shown() -> None:
    text = _stamped(0, "server_args=ServerArgs(model_path='m', api_key='sesame', admin_api_key=\"open-sesame-2\")")
    found = _read(text)
    assert "sesame" not in repr(found)
    assert "sesame-2" not in repr(found)


def test_an_end_that_is_known_closes_the_last_phase(recorded: Recorded) -> None:
    text = recorded("sglang-0.5.23-cpu-compile-crash")
    first = next(line.time for line in log.split(text) if line.time is not None)
    assert first is not None
    assert _read(text, ended_at=first + 60).phases[-1].end_s == 60


def test_what_was_observed_beats_the_stamps(recorded: Recorded) -> None:
    text = recorded("sglang-0.5.11-h200-compile-warm")
    first = next(line.time for line in log.split(text) if line.time is not None)
    assert first is not None
    found = _read(text, launched_at=first - 20.5, ready_at=first + 79.4, port_open_at=first + 78.2)
    assert found.phases[-1].begin_s == pytest.approx(99.9)
    assert next(phase for phase in found.phases if phase.id == "warmup").begin_s == pytest.approx(98.7)


def test_prefill_graphs_before_decode_graphs_keep_the_phases_contiguous() -> None:
    text = _stamped(0, "server_args={'model_path': 'm', 'tp_size': 1}") + "".join(
        _stamped(second, what)
        for second, what in [
            (5, "Init parallel begin."),
            (8, "Load weight begin. avail mem=20 GB"),
            (9, "Load weight end. elapsed=1 s, type=X, avail mem=1 GB, mem usage=1 GB."),
            (10, "Memory pool end. avail mem=1 GB"),
            (11, "Capture target prefill CUDA graph begin. backend=breakable, num_tokens=[4, 8], avail mem=1 GB"),
            (20, "Capture target prefill CUDA graph end. elapsed=9.1 s, mem usage=1 GB, avail mem=1 GB."),
            (20, "Capture target decode CUDA graph begin. backend=full, num_tokens_per_req=1, avail mem=1 GB"),
            (30, "Capture target decode CUDA graph end. bs=[1, 2], elapsed=9.9 s, mem usage=1 GB, avail mem=1 GB."),
            (30, "Capture draft decode CUDA graph begin. backend=full, num_tokens_per_req=1, avail mem=1 GB"),
            (34, "Capture draft decode CUDA graph end. bs=[1, 2], elapsed=3.5 s, mem usage=1 GB, avail mem=1 GB."),
            (35, "INFO:     Uvicorn running on http://127.0.0.1:1 (Press CTRL+C to quit)"),
            (40, "The server is fired up and ready to roll!"),
        ]
    )
    found = _read(text)
    assert found.capture_s == pytest.approx(13.4)
    begins = {phase.id: phase.begin_s for phase in found.phases}
    assert (begins["capture_prefill"], begins["capture_decode"], begins["port_open"]) == (11, 20, 34)
    assert sum((phase.end_s or 0) - phase.begin_s for phase in found.phases) == 40


def test_an_empty_log_is_an_empty_time_line() -> None:
    found = phases.timeline([])
    assert (found.phases, found.ready_at, found.launched_at, found.phase) == ((), None, None, None)


@pytest.mark.parametrize(
    ("text", "version"),
    [("0.5.11", (0, 5, 11)), ("v0.5.23.post1", (0, 5, 23)), ("0.5.10rc0", (0, 5, 10)), ("main", None), (None, None)],
)
def test_versions_are_read(text: str | None, version: tuple[int, int, int] | None) -> None:
    assert versions.parse(text) == version


def test_each_version_has_one_form_of_each_stage() -> None:
    for patch in range(10, 24):
        marks = [form.mark for form, _ in versions.compiled((0, 5, patch))]
        doubled = {mark for mark in marks if marks.count(mark) > 1}
        # how the arguments are echoed between 0.5.12 and 0.5.20 was not looked up: both forms are read
        assert doubled <= ({"arguments"} if 12 <= patch <= 20 else set())
        assert {"arguments", "distributed", "weights", "decode", "port_open", "ready"} <= set(marks)
