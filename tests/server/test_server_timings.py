from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_sglang.record.clock import SystemClock
from pytest_sglang.server import http, log, phases, ready, start, timings
from pytest_sglang.server.command import Command
from pytest_sglang.server.log import TextLog
from pytest_sglang.server.phases import Timeline

Recorded = Callable[[str], str]
KEYS = {
    *("load_weight", "kv_cache_allocation", "scheduler_e2e", "tokenizer_e2e"),
    *("prefill", "decode", "target_verify", "draft_prefill", "draft_decode", "draft_extend"),
}


@pytest.fixture
def answers() -> dict[str, Any]:
    """Recorded on a real 0.5.23: the start-up times in /server_info and in the metrics."""
    path = Path(__file__).parent.parent / "data" / "answers" / "sglang-0.5.23-startup-times.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _read(text: str) -> Timeline:
    return phases.timeline(log.split(text))


def _samples(text: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    plane = http.ControlPlane("http://127.0.0.1:1")
    monkeypatch.setattr(plane, "request", lambda *_, **__: http.Answer(200, text, 0.0))
    found = plane.metrics()
    assert found is not None
    return found


def test_both_places_tell_the_same_seconds(answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    told = timings.from_info(answers["/server_info"])
    assert told.keys() == KEYS
    assert told["tokenizer_e2e"] == pytest.approx(7.934, abs=0.001)
    assert timings.from_metrics(_samples(answers["/metrics"], monkeypatch)) == told


def test_a_version_without_them_tells_nothing() -> None:
    assert timings.from_info({"version": "0.5.11"}) == {}
    assert timings.from_info(http.Unreadable("HTTP 401")) == {}  # type: ignore[arg-type]
    assert timings.from_info({"startup_time": None}) == {}
    assert timings.from_metrics(None) == {}
    assert timings.from_metrics({"sglang:engine_startup_time": 0.0}) == {}


@pytest.mark.parametrize("name", ["plain", "compile-cold", "compile-warm"])
def test_the_logs_own_account_agrees_with_its_phases(recorded: Recorded, name: str) -> None:
    found = _read(recorded(f"sglang-0.5.23-cpu-{name}"))
    assert found.timings.keys() == KEYS
    assert timings.disagreements(found.timings, found, "the log's own line") == ()


def test_answers_of_the_same_kind_of_start_agree(recorded: Recorded, answers: dict[str, Any]) -> None:
    # recorded on another plain start of the same server, within a tenth of a second
    told = timings.from_info(answers["/server_info"])
    assert timings.disagreements(told, _read(recorded("sglang-0.5.23-cpu-plain")), "/server_info") == ()


def test_the_log_of_another_start_is_a_finding(recorded: Recorded, answers: dict[str, Any]) -> None:
    told = timings.from_info(answers["/server_info"])
    found = timings.disagreements(told, _read(recorded("sglang-0.5.23-cpu-compile-cold")), "/server_info")
    assert [(each.kind, each.severity) for each in found] == [("startup-times-disagree", "warn")]
    assert "decode 0.00 s, by the log 65.7 s" in found[0].detail
    assert "tokenizer_e2e 7.93 s, by the log 73.0 s" in found[0].detail
    assert found[0].remedy


@pytest.mark.parametrize(
    ("key", "by_s", "wrong"),
    [
        ("scheduler_e2e", 3.0, False),
        ("scheduler_e2e", 5.0, True),
        ("decode", 3.0, False),
        ("decode", -5.0, True),
        ("load_weight", 0.6, True),
    ],
)
def test_a_difference_beyond_what_stamps_explain_is_found(recorded: Recorded, key: str, by_s: float, wrong: bool) -> None:
    found = _read(recorded("sglang-0.5.23-cpu-compile-cold"))
    told = found.timings | {key: found.timings[key] + by_s}
    assert bool(timings.disagreements(told, found, "/server_info")) is wrong


def test_an_empty_log_agrees_with_everything(answers: dict[str, Any]) -> None:
    assert timings.disagreements(timings.from_info(answers["/server_info"]), _read(""), "/server_info") == ()


def test_the_start_of_a_running_server_carries_the_finding(
    recorded: Recorded, fake: Callable[..., Command], answers: dict[str, Any]
) -> None:
    for name, kinds in (("plain", []), ("compile-cold", ["startup-times-disagree"])):
        startup = start.read_start(
            controller=fake(),
            log=TextLog(recorded(f"sglang-0.5.23-cpu-{name}")),
            clock=SystemClock(),
            version="0.5.23",
            info=answers["/server_info"],
        )
        assert startup.timings.keys() == KEYS
        assert [each.kind for each in startup.findings if each.severity == "warn"] == kinds
        assert "timings" in msgspec.to_builtins(startup)


def test_a_start_that_was_watched_carries_the_finding_too(
    fake: Callable[..., Command], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = http.ControlPlane.server_info
    for told_s, kinds in ((0.01, []), (99.0, ["startup-times-disagree"])):
        monkeypatch.setattr(
            http.ControlPlane, "server_info", lambda plane, told_s=told_s: {**plain(plane), "startup_time": {"load_weight": told_s}}
        )
        command = fake()
        launched_at = time.time()
        command.start()
        with http.ControlPlane(f"http://127.0.0.1:{port}") as plane:
            startup = ready.wait_ready(
                controller=command,
                plane=plane,
                log=command.log(),
                clock=SystemClock(),
                launched_at=launched_at,
                budget_s=60.0,
                silence_s=30.0,
            )
        command.stop(1.0)
        assert startup.timings == {"load_weight": told_s}
        assert [each.kind for each in startup.findings if each.kind == timings.KIND] == kinds


def test_the_last_line_that_is_shown_holds_no_secret() -> None:
    text = "[2026-01-02 03:04:05] server_args=ServerArgs(model_path='m', " + "x=1, " * 2000 + "api_key='sesame', y=2)"
    watch = start.LogWatch(TextLog(text), None, 0.0)
    watch.poll()
    assert watch.last_line.startswith("server_args=ServerArgs(model_path='m'")
    short = start.LogWatch(TextLog("[2026-01-02 03:04:05] server_args=ServerArgs(api_key='sesame')"), None, 0.0)
    short.poll()
    assert "sesame" not in short.last_line
