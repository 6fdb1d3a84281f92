"""The first requests after readiness, phases with budgets, starts that resume one: what is told and what is judged."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_sglang.record.values import CacheDiff, Finding, Phase, Startup
from pytest_sglang.rig.model import Rig, ServerPromise, StartPromise
from pytest_sglang.server.log import TextLog
from pytest_sglang.session import checks, first, starting
from pytest_sglang.session.errors import NotChecked
from pytest_sglang.session.scope import CheckScope
from pytest_sglang.session.server import SglangServer

LOGS = Path(__file__).parent.parent / "data" / "logs"


def start(**given: Any) -> Startup:
    return Startup(**{"kind": "warm", "launched_at": 0.0, "ready_s": 60.0, "observed": True, "request_tokens": 16, **given})


# --- the first requests -----------------------------------------------------------------------------------------------------------


def test_a_first_request_as_fast_as_later_ones_is_no_finding() -> None:
    done = first.compared(start(first_request_s=0.5), [0.42, 0.41, 0.42, 0.43])
    assert done.first_request_ratio == pytest.approx(0.5 / 0.42)
    assert done.steady_request_s == 0.42
    assert done.findings == ()
    assert starting.first_request(done, 5.0).verdict == "pass"


def test_first_requests_that_are_slow_are_told_with_their_number_and_speed() -> None:
    done = first.compared(start(first_request_s=5.0), [5.5, 5.2, 0.42, 0.42, 0.42])
    (told,) = done.findings
    assert (told.kind, told.severity) == ("slow-first-requests", "warn")
    assert told.detail.startswith("ready, but the first 3 requests ran at 8 % of speed")
    judged = starting.first_request(done, 5.0)
    assert (judged.verdict, judged.quantity) == ("fail", "first_request_ratio")
    assert judged.cause == told.detail
    assert starting.first_request(done, 20.0).verdict == "pass"


def test_a_ratio_that_is_not_known_is_inconclusive_with_the_reason() -> None:
    judged = starting.first_request(start(first_request_why="a request after the first one is no sample: cut"), 5.0)
    assert judged.verdict == "inconclusive"
    assert "cut" in judged.message


@pytest.mark.parametrize(
    ("later", "known", "steady"),
    [
        ([0.42, 0.42, 0.42], None, False),
        ([0.42, 0.42, 0.42, 0.42], None, True),
        ([5.0, 0.42, 0.42, 0.42], None, True),
        ([5.0, 3.0, 0.7, 0.42], None, False),
        ([0.3, 5.0, 5.0, 5.0], None, False),
        # equally slow, but earlier starts of this run were faster
        ([5.0, 5.0, 5.0, 5.0], None, True),
        ([5.0, 5.0, 5.0, 5.0], 0.42, False),
    ],
)
def test_steady_is_what_stays_the_same(later: list[float], known: float | None, steady: bool) -> None:
    assert first.settled(later, known) is steady


@pytest.mark.parametrize(("seconds", "ratio"), [(0.4, 12.5), (5.0, None)])
def test_requests_that_stay_slow_are_no_steady_state(monkeypatch: pytest.MonkeyPatch, seconds: float, ratio: float | None) -> None:
    """A server that compiles on and on: all of its requests are as slow as the first one, and the ratio would be 1."""
    made = SimpleNamespace(invalid_because=None, begin_s=0.0, end_s=seconds)
    monkeypatch.setattr("pytest_sglang.load.client.run_round", lambda *_, **__: made)
    server = SimpleNamespace(url="http://127.0.0.1:1", model="m", history=[start(steady_request_s=0.42)])
    plane = SimpleNamespace(api_key=None, running_requests=lambda: 1)
    deployment: Any = SimpleNamespace(server=server, plane=plane, progress=lambda text: None)
    done = first.measured(start(first_request_s=5.0), deployment)
    assert (done.first_request_ratio, starting.first_request(done, 5.0).verdict) == (ratio, "fail" if ratio else "inconclusive")
    assert ("0.42 s in an earlier start of this run" in (done.first_request_why or "")) is (ratio is None)


def deployment_beside(running: Callable[[], int]) -> Any:
    """A deployment whose server says that it has so many requests."""
    server = SimpleNamespace(url="http://127.0.0.1:1", model="m", history=[])
    plane = SimpleNamespace(api_key=None, running_requests=running)
    return SimpleNamespace(server=server, plane=plane, progress=lambda text: None)


def test_later_requests_beside_somebody_else_s_give_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their traffic makes later requests slow, and the ratio one that a server which still compiles would have, or the other way round."""

    def slowly(*_: Any, **__: Any) -> Any:
        time.sleep(0.4)
        return SimpleNamespace(invalid_because=None, begin_s=0.0, end_s=0.4)

    monkeypatch.setattr(first, "LOOK_S", 0.05)
    monkeypatch.setattr("pytest_sglang.load.client.run_round", slowly)
    done = first.measured(start(first_request_s=5.0), deployment_beside(lambda: 2))
    assert done.first_request_ratio is None
    assert done.first_request_why == "someone else's traffic: 5 of the 5 requests after the first one ran beside it"
    assert starting.first_request(done, 5.0).verdict == "inconclusive"
    alone = first.measured(start(first_request_s=5.0), deployment_beside(lambda: 1))
    assert alone.first_request_ratio == pytest.approx(12.5)


def test_a_single_disturbed_request_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[float] = []

    def slowly(*_: Any, **__: Any) -> Any:
        sent.append(0.0)
        time.sleep(0.4)
        return SimpleNamespace(invalid_because=None, begin_s=0.0, end_s=9.0 if len(sent) == 1 else 0.4)

    monkeypatch.setattr(first, "LOOK_S", 0.05)
    monkeypatch.setattr("pytest_sglang.load.client.run_round", slowly)
    done = first.measured(start(first_request_s=0.8), deployment_beside(lambda: 2 if len(sent) <= 1 else 1))
    assert (len(sent), done.first_request_ratio) == (5, pytest.approx(2.0))


def test_a_first_request_that_ran_beside_somebody_else_s_keeps_its_reason() -> None:
    done = first.measured(start(first_request_why="somebody else's requests were on the server"), deployment_beside(lambda: 0))
    assert done.first_request_why == "somebody else's requests were on the server"
    assert starting.first_request(done, 5.0).verdict == "inconclusive"


def test_a_log_or_a_unit_that_cannot_be_read_is_among_what_was_not_checked() -> None:
    """Nothing in it contradicts the promises, because nothing of it was seen."""
    unit = Finding("unit-unreadable", "warn", "sglang.service", "could not ask systemctl: no bus")
    lost = Finding("log-unreadable", "warn", "journal of sglang.service", "no entries: nothing is known of its phases")
    owner = SimpleNamespace(kind="systemd", findings=lambda start: [unit])
    seen: Any = SimpleNamespace(controller=owner, rig=SimpleNamespace(start=None), environment_findings=list)
    seen.scope = CheckScope(seen, checks.STANDARD["findings"])
    server = SglangServer(seen, ServerPromise(url="http://127.0.0.1:1"))
    server._last_start, server._identity = start(findings=(lost,)), SimpleNamespace(findings=())  # type: ignore[assignment]
    assert server.judge_findings().verdict == "pass"
    assert seen.scope.left_out == {"server-log": lost.detail, "server-unit": unit.detail}


def test_a_start_that_nobody_watched_has_no_first_request_and_says_so_among_what_was_not_checked() -> None:
    promise = StartPromise(warm_s=90.0, first_request_ratio=5.0)
    deployment: Any = SimpleNamespace(
        rig=Rig(name="r", path=Path("rig.toml"), server=ServerPromise(url="http://127.0.0.1:1"), start=promise), server=None
    )
    scope = CheckScope(deployment, checks.STANDARD["warm-restart"])
    scope.judge_start(start(observed=False, request_tokens=None))
    assert scope.judgements == []
    assert "--sglang-allow-restart" in scope.left_out["first-request"]
    made = CheckScope(deployment, checks.STANDARD["warm-restart"])
    made.judge_start(start(first_request_s=9.0, first_request_ratio=20.0))
    assert [each.verdict for each in made.judgements] == ["fail"]
    assert made.left_out == {}


# --- phases -----------------------------------------------------------------------------------------------------------------------

PHASES = (
    Phase("launch", 0.0, 10.0),
    Phase("weights", 10.0, 40.0),
    Phase("capture_decode", 40.0, 55.0),
    Phase("warmup", 55.0, 60.0),
    Phase("ready", 60.0, 60.0),
)


def test_a_phase_over_its_budget_fails_naming_phase_measured_and_limit() -> None:
    judged = starting.phase_budget(start(phases=PHASES), "weights", 20.0)
    assert judged.verdict == "fail"
    assert judged.message == "phase weights: 30.0 s, budget 20.0 s"
    assert judged.cause == "phase weights took 30.0 s, budget 20.0 s"
    assert judged.limit is not None
    assert (judged.limit.value, judged.measured["phase_weights_s"].value) == (20.0, 30.0)
    assert starting.phase_budget(start(phases=PHASES), "weights", 40.0).verdict == "pass"


def test_a_phase_that_a_start_had_not_took_no_time_but_one_that_is_not_in_the_log_is_inconclusive() -> None:
    assert starting.phase_budget(start(phases=PHASES), "capture_prefill", 10.0).verdict == "pass"
    assert starting.phase_budget(start(phases=()), "weights", 10.0).verdict == "inconclusive"
    cut = start(phases=(Phase("launch", 0.0, 5.0), Phase("weights", 5.0, None)))
    assert starting.phase_budget(cut, "weights", 10.0).verdict == "inconclusive"


def test_budgets_of_phases_hold_for_cold_starts_too() -> None:
    promise = StartPromise(cold_s=1500.0, phases_s={"weights": 20.0, "warmup": 20.0})
    judged = starting.compiled(start(kind="cold", phases=PHASES), promise, cold=True, server=None)
    assert [(each.quantity, each.verdict) for each in judged] == [("phase_weights_s", "fail"), ("phase_warmup_s", "pass")]


# --- resumed starts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("new", "before", "tuned", "kind"),
    [
        (5, 0, 0, "cold"),
        (60, 40, 3, "partial"),
        (5, 40, 0, "partial"),
        (0, 40, 2, "partial"),
        (90, 9, 0, "cold"),
        (0, 40, 0, "warm"),
    ],
)
def test_a_start_is_partial_where_its_caches_held_something_of_what_it_needed(new: int, before: int, tuned: int, kind: str) -> None:
    diff = CacheDiff(new_kernels=tuple(map(str, range(new))), before_entries=before)
    assert starting.classified(start(autotune_runs=tuned, cache_diff=diff)).kind == kind


def logs() -> tuple[str, str, float]:
    """A recorded cold start cut off inside its capture, the whole one after it, and when that one was launched."""
    cold = (LOGS / "sglang-0.5.11-h200-compile-cold.log").read_text(encoding="utf-8")
    warm = (LOGS / "sglang-0.5.11-h200-compile-warm.log").read_text(encoding="utf-8")
    cut = cold[: cold.index("Capture cuda graph bs")]
    from pytest_sglang.server.log import split

    launched = next(line.time for line in split(warm) if line.time is not None)
    return cut, warm, launched - 10.0


def test_a_start_after_an_interrupted_one_says_what_it_resumed() -> None:
    cut, warm, launched = logs()
    partial = start(kind="partial", launched_at=launched)
    found = starting.resumed(partial, TextLog(cut + warm))
    assert found.resumes == "capture_decode"
    assert found.findings[0].detail.startswith("the start before this one was interrupted in capture_decode")
    # the one before was whole, or there is none, or nothing was compiled
    whole = (LOGS / "sglang-0.5.11-h200-compile-cold.log").read_text(encoding="utf-8")
    assert starting.resumed(partial, TextLog(whole + warm)).resumes is None
    assert starting.resumed(partial, TextLog(warm)).resumes is None
    assert starting.resumed(start(launched_at=launched), TextLog(cut + warm)).resumes is None


def server(*made: Startup, last: Startup, may_restart: bool) -> SglangServer:
    """A server whose restarts are these."""
    options = SimpleNamespace(may_restart=may_restart, may_go_cold=False)
    deployment: Any = SimpleNamespace(
        options=options, controller=SimpleNamespace(kind="systemd"), cache_faulty=False, scope=None, rig=SimpleNamespace(start=None)
    )
    deployment.recorder = SimpleNamespace(startup=lambda *_: None)
    found = SglangServer(deployment, ServerPromise(url="http://127.0.0.1:1"))
    restarts = iter(made)
    found.identity = lambda **_: None  # type: ignore[method-assign, assignment, return-value]
    found.restart = lambda: next(restarts)  # type: ignore[method-assign]
    found._last_start = last
    return found


def test_a_resumed_start_is_no_warm_restart_but_the_next_one_is() -> None:
    resumed, warm = start(kind="partial", resumes="capture_decode"), start()
    assert server(resumed, warm, last=start(), may_restart=True).restart_or_last("warm") is warm
    assert server(warm, last=resumed, may_restart=True).restart_or_last("warm") is warm
    with pytest.raises(NotChecked, match="resumed one that was interrupted in capture_decode"):
        server(last=resumed, may_restart=False).restart_or_last("warm")
    # a start that compiled although nobody had interrupted the one before it is what the promise is about
    again = start(kind="partial")
    assert server(again, last=start(), may_restart=True).restart_or_last("warm") is again
