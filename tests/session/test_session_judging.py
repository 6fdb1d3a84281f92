"""What a run observed becomes a judgement: what could not be read, or not be measured soundly, is never a pass."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from pytest_sglang.judge.sequential import Sequential
from pytest_sglang.record.clock import SystemClock
from pytest_sglang.record.run import Check, Run, verdict_of
from pytest_sglang.record.values import Finding, NewEntries, Round, Startup, Throughput
from pytest_sglang.rig.model import NvlinkPromise, Rig, ServerPromise, StartPromise, ThroughputRow
from pytest_sglang.session import checks, judging, starting
from pytest_sglang.session.errors import NotChecked
from pytest_sglang.session.recorder import Recorder
from pytest_sglang.session.scope import CheckScope
from pytest_sglang.session.wanted import MinThroughput, ReadyWithin


def row(**given: Any) -> ThroughputRow:
    return ThroughputRow(**{"power_w": 250.0, "nvlink": None, "streams": 1, "quantity": "decode", "min_tok_s": 38.0, **given})


def rounds(*rates: float, end_to_end: float = 0.9) -> tuple[Round, ...]:
    return tuple(
        Round(
            index=number,
            begin_s=number * 4.0,
            end_s=number * 4.0 + 3.0,
            decode_tok_s=rate,
            end_to_end_tok_s=rate * end_to_end,
            aggregate_tok_s=rate,
            ttft_s=(0.05,),
            itl_s=(0.025,) * 10,
            output_tokens=128,
            joules=2500.0,
        )
        for number, rate in enumerate(rates, 1)
    )


def throughput(*rates: float, failed: int = 0, failures: dict[str, int] | None = None) -> Throughput:
    made = rounds(*rates)
    median = sorted(rates)[len(rates) // 2]
    return Throughput(
        streams=1,
        rounds=made,
        decode_tok_s=median,
        ci_low=median * 0.99,
        ci_high=median * 1.01,
        confidence=0.99,
        failed=failed,
        failures=failures or {},
        end_to_end_tok_s=median * 0.9,
    )


def scope(
    rig: Rig, check_id: str = "decode-throughput", power_w: float | None = 250.0, levels: tuple[float, ...] = (250.0,)
) -> CheckScope:
    deployment: Any = SimpleNamespace(rig=rig, options=SimpleNamespace(strict=False, power_levels_w=levels), last_reasons=None)
    return CheckScope(deployment, checks.STANDARD[check_id], (), power_w)


def rig(*rows: ThroughputRow, **more: Any) -> Rig:
    return Rig(name="r", path=Path("rig.toml"), server=ServerPromise(url="http://127.0.0.1:1"), throughput=rows, **more)


def test_every_promised_row_of_a_level_is_judged_by_its_own_quantity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "slow_decode", lambda *_: "a cause")
    here = scope(rig(row(), row(quantity="end_to_end", min_tok_s=38.0), row(streams=8), row(power_w=390.0)))
    assert here.promised_streams() == (1, 8)
    here.judge_rows(throughput(40.0, 40.1, 39.9, 40.0, 40.05))
    assert [(each.quantity, each.verdict) for each in here.judgements] == [("decode_tok_s", "pass"), ("end_to_end_tok_s", "fail")]


def test_a_look_at_one_quantity_is_no_interval_of_the_other() -> None:
    here = scope(rig(row()))
    sequential = Sequential(38.0)
    for rate in (40.0, 40.1, 39.9, 40.0, 40.05):
        sequential.add(rate)
    here.decision = sequential.current()
    assert here.interval([40.0, 40.1, 39.9, 40.0, 40.05], 0.99).median == pytest.approx(40.0)
    assert here.interval([36.0, 36.1, 35.9, 36.0, 36.05], 0.99).median == pytest.approx(36.0)


def test_what_was_unsettled_stays_so_whatever_is_measured_or_taken_over_afterwards() -> None:
    drifting = msgspec.structs.replace(throughput(40.0, 40.0, 40.0), unsettled="the rate drifts: -3 % over the rounds")
    settled = Sequential(38.0)
    for rate in (40.0, 40.1, 39.9, 40.0, 40.05):
        settled.add(rate)
    wanted = MinThroughput(min_tok_s=38.0)
    here = CheckScope(scope(rig(row())).deployment, checks.STANDARD["decode-throughput"], (wanted,), 250.0)
    here.throughputs.append(drifting)
    here.decision = settled.current()
    judged = judging.rate(wanted, here)
    assert judged is not None
    assert (judged.verdict, judged.inconclusive_because) == ("inconclusive", drifting.unsettled)


def test_a_level_without_a_row_is_inconclusive_and_says_what_was_measured() -> None:
    here = scope(rig(row(power_w=390.0)))
    here.judge_rows(throughput(40.0, 40.0, 40.0))
    assert here.judgements[0].verdict == "inconclusive"
    assert "no promise at 250 W: measured 40.0 tok/s" in here.judgements[0].message


def test_in_a_sweep_a_level_without_a_row_is_not_checked_and_says_what_was_measured() -> None:
    swept = scope(rig(row(power_w=390.0, max_j_per_token=30.0)), levels=(250.0, 390.0))
    with pytest.raises(NotChecked, match=r"^no promise at 250 W: measured 40\.0 tok/s$"):
        swept.judge_rows(throughput(40.0, 40.0, 40.0))
    with pytest.raises(NotChecked, match=r"^no promise at 250 W: measured 19\.5 J/token$"):
        swept.judge_energy(throughput(40.0, 40.0, 40.0))
    nothing_promised = scope(rig(row(power_w=300.0)), levels=(250.0, 390.0))
    nothing_promised.judge_rows(throughput(40.0, 40.0, 40.0))
    assert nothing_promised.judgements[0].verdict == "inconclusive"


def test_too_much_energy_names_watts_and_rate_and_what_held_the_cards() -> None:
    here = scope(rig(row(max_j_per_token=10.0)))
    here.deployment.last_reasons = {"GPU 1": {"hw_power_brake_slowdown": 0.9, "hw_slowdown": 0.9, "sw_power_cap": 0.1}}
    here.judge_energy(throughput(40.0, 40.0, 40.0))
    assert here.judgements[0].verdict == "fail"
    assert here.judgements[0].cause == (
        "GPU 1 was held by an outside power brake for 90 % of the time; 833.3 W of board power (not the wall) at 40.0 tok/s a stream"
    )


def test_an_energy_that_is_missing_says_of_which_round_and_why() -> None:
    measured = throughput(40.0, 40.0, 40.0)
    broken = msgspec.structs.replace(measured.rounds[1], joules=None, joules_missing="GPU 0: counter reset: it went backwards")
    measured = msgspec.structs.replace(measured, rounds=(measured.rounds[0], broken, measured.rounds[2]))
    judged = judging.energy(measured, row(max_j_per_token=30.0), 250.0)
    assert judged.verdict == "inconclusive"
    assert "energy of round 2: GPU 0: counter reset" in judged.message


@pytest.mark.parametrize("measured", [throughput(40.0, 40.0, 40.0, failed=1), throughput(40.0)])
def test_latency_and_energy_of_an_unsound_measurement_are_inconclusive(measured: Throughput) -> None:
    promised = row(max_ttft_s=1.0, max_itl_p99_s=1.0, max_j_per_token=100.0)
    assert {each.verdict for each in judging.latency(measured, promised)} == {"inconclusive"}
    assert judging.energy(measured, promised, 250.0).verdict == "inconclusive"


def test_latency_and_energy_of_a_sound_one_are_judged() -> None:
    measured = throughput(*[40.0] * 60)
    judged = judging.latency(measured, row(max_ttft_s=0.04, max_itl_p99_s=0.03))
    assert [each.verdict for each in judged] == ["fail", "pass"]
    assert judging.energy(measured, row(max_j_per_token=19.0), 250.0).verdict == "fail"
    assert judging.energy(measured, row(max_j_per_token=20.0), 250.0).verdict == "pass"


def test_a_promise_that_the_server_does_not_tell_is_inconclusive() -> None:
    found: Any = SimpleNamespace(
        findings=(),
        model="m",
        tp=None,
        torch_compile=True,
        pid=1,
        unproved="",
        unreadable=("/server_info: HTTP 401: an API key is needed",),
    )
    told = judging.identity(found, ServerPromise(url="http://127.0.0.1:1", model="m", tp=4, torch_compile=True), None)  # type: ignore[arg-type]
    assert told.verdict == "inconclusive"
    assert "tp" in told.message
    assert "401" in told.message


def test_who_answers_is_no_pass_while_it_is_not_proved() -> None:
    found: Any = SimpleNamespace(
        findings=(), model="m", tp=4, torch_compile=True, pid=1, unproved="that x answers is not proved", unreadable=()
    )
    told = judging.identity(found, ServerPromise(url="http://127.0.0.1:1", model="m", systemd="x"), None)  # type: ignore[arg-type]
    assert (told.verdict, told.message) == ("inconclusive", "that x answers is not proved")


def test_a_start_that_compiled_new_names_is_cold_whatever_its_log_says() -> None:
    from pytest_sglang.record.values import CacheDiff

    diff = CacheDiff(caches=(NewEntries(cache="inductor", path="/c"),), new_kernels=("a", "b"), before_entries=0)
    start = Startup(kind="warm", launched_at=0.0, autotune_runs=0, cache_diff=diff)
    assert starting.classified(start).kind == "cold"
    warm = Startup(kind="cold", launched_at=0.0, autotune_runs=0, cache_diff=CacheDiff(new_variants=("a",), before_entries=9))
    assert starting.classified(warm).kind == "warm"


def test_unwatched_starts_and_unread_caches_never_satisfy_a_kernel_limit() -> None:
    from pytest_sglang.record.values import CacheDiff

    promise = StartPromise(max_new_kernels=0, max_autotune_runs=0)
    blind = Startup(kind="warm", launched_at=0.0, autotune_runs=None, cache_diff=None)
    assert {each.verdict for each in starting.compiled(blind, promise, cold=False, server=None)} == {"inconclusive"}
    unread = Startup(kind="warm", launched_at=0.0, autotune_runs=0, cache_diff=CacheDiff(unreadable=("/c: Permission denied",)))
    # autotuning is in the log; names, kernels compiled again and graphs are in the caches
    judged = [each.verdict for each in starting.compiled(unread, promise, cold=False, server=None)]
    assert judged == ["pass", "inconclusive", "inconclusive", "inconclusive"]


def test_rows_of_the_level_hide_general_ones_and_follow_the_declared_nvlink() -> None:
    general, here, bridged = row(power_w=None, min_tok_s=1.0), row(min_tok_s=2.0), row(nvlink=True, min_tok_s=3.0)
    assert [each.min_tok_s for each in rig(general, here, bridged).rows(250.0)] == [2.0]
    assert [each.min_tok_s for each in rig(general, here).rows(300.0)] == [1.0]
    declared = rig(general, row(nvlink=False), bridged, nvlink=NvlinkPromise(pairs=((0, 1),), links=4))
    assert [each.min_tok_s for each in declared.rows(250.0)] == [3.0]


@pytest.mark.parametrize(
    ("kind", "verdict"), [("not-put-back", "inconclusive"), ("did-not-come-back", "inconclusive"), ("note", "pass")]
)
def test_a_rig_that_is_not_as_it_was_found_is_no_pass(tmp_path: Path, kind: str, verdict: str) -> None:
    recorder = Recorder(tmp_path, Run(run_id="r", started="now", simulated=False), SystemClock())
    recorder.add(Check(id="ready", promise="p", verdict="pass"))
    recorder.findings((Finding(kind, "warn", "server", "it is not running"),))
    assert recorder.verdict(require_all=False) == verdict


def test_expected_failures_alone_are_no_pass() -> None:
    assert verdict_of((Check(id="a", promise="p", verdict="fail", expected_failure=True),)) == "inconclusive"


def test_a_served_name_that_is_not_told_is_no_pass() -> None:
    """/v1/models wants a key that we were not given: another name may be served, and every client would get 404."""
    promise = ServerPromise(url="http://127.0.0.1:1", served_name="home-70b")
    found: Any = SimpleNamespace(model="/models/m", served_name=None, tp=None, torch_compile=None, pid=1, findings=(), unproved="")
    found.unreadable = ("/v1/models: HTTP 401",)
    judged = judging.identity(found, promise, SimpleNamespace())  # type: ignore[arg-type]
    assert judged.verdict == "inconclusive"
    assert judged.message == "promised, but not readable: served_name (/v1/models: HTTP 401)"
    found.served_name = "home-70b"
    assert judging.identity(found, promise, SimpleNamespace()).verdict == "pass"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("now", "saved", "why"),
    [
        ({"failed": 2}, {}, "this run's measurement is no sample: 2 failed request"),
        ({"unsettled": "the rate still rises"}, {}, "this run's measurement is no sample: the rate still rises"),
        ({}, {"failed": 1}, "is no sample: 1 failed request"),
        ({}, {"unsettled": "it drifts"}, "is no sample: it drifts"),
        ({}, {}, None),
    ],
)
def test_a_gain_over_or_from_a_measurement_that_is_no_sample_is_inconclusive(
    monkeypatch: pytest.MonkeyPatch, now: dict[str, Any], saved: dict[str, Any], why: str | None
) -> None:
    measured = msgspec.structs.replace(throughput(46.0, 46.1, 46.0, 45.9), **now)
    before = {**msgspec.to_builtins(throughput(38.0, 38.1, 38.0, 37.9)), **saved}
    run = SimpleNamespace(throughputs=[{"power_w": 250.0, "throughput": before}], simulated=False)
    monkeypatch.setattr(judging.records, "read", lambda path: run)
    monkeypatch.setattr(judging.judge_gain, "key_of", lambda run: {})
    monkeypatch.setattr(judging.judge_gain, "comparable", lambda *_: [])
    deployment: Any = SimpleNamespace(
        options=SimpleNamespace(rootdir=Path(), simulated=False),
        current=SimpleNamespace(power_w=250.0),
        recorder=SimpleNamespace(run=run),
        rig=SimpleNamespace(workload=SimpleNamespace(confidence=0.99)),
    )
    judged = judging._one_gain("compile_gain", 15.0, "reports/x", measured, deployment)
    assert judged.verdict == ("inconclusive" if why else "pass")
    assert why is None or why in judged.message


@pytest.mark.parametrize(("kind", "verdict"), [("cold", "pass"), ("partial", "inconclusive"), ("warm", "inconclusive")])
def test_only_a_cold_start_says_anything_about_the_cold_budget(kind: Any, verdict: str) -> None:
    """Half of the kernels in a cache that nobody set aside: ready in half of the time, and no promise of a cold start is kept by it."""
    deployment: Any = SimpleNamespace(rig=Rig(name="r", path=Path("rig.toml"), start=StartPromise(cold_s=1500.0)))
    scope = CheckScope(deployment, checks.STANDARD["cold-start"])
    scope.startups.append(Startup(kind=kind, launched_at=0.0, ready_s=600.0, observed=True))
    assert starting.ready_within(ReadyWithin(start="cold"), scope).verdict == verdict


def test_a_start_whose_clock_was_set_says_so_and_not_that_its_log_is_silent() -> None:
    deployment: Any = SimpleNamespace(rig=Rig(name="r", path=Path("rig.toml"), start=StartPromise(warm_s=90.0)))
    scope = CheckScope(deployment, checks.STANDARD["warm-restart"])
    told = Finding("clock-set", "warn", "clock", "the machine's clock was set by -30.0 s during the start: it was not timed")
    scope.startups.append(Startup(kind="warm", launched_at=0.0, observed=True, findings=(told,)))
    judged = starting.ready_within(ReadyWithin(start="warm"), scope)
    assert (judged.verdict, told.detail in judged.message) == ("inconclusive", True)
