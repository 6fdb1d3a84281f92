"""What limited the cards: the power limit is expected, heat and brakes break the promise, unreadable is never a pass."""

from __future__ import annotations

import pytest

from pytest_sglang.judge.throttling import HOLDING, Worked, throttling

CAPPED = {"sw_power_cap": 0.99, "gpu_idle": 0.01, "hw_slowdown": 0.0, "sw_thermal_slowdown": 0.0}


def worked(label: str = "GPU 0", seconds: float = 15.0, **given) -> Worked:
    return Worked(**{"label": label, "seconds": seconds, "reasons": CAPPED, "sm_mhz": 975.0, "mem_mhz": 9501.0, **given})


def kinds(judged) -> list[tuple[str, str, str]]:
    return [(each.kind, each.severity, each.subject) for each in judged.findings]


def test_the_power_cap_is_the_normal_state_of_a_capped_card():
    judged = throttling([worked(start_c=40, middle_c=41, end_c=42), worked("GPU 1", reasons={**CAPPED, "sw_power_cap": 0.95})])
    assert (judged.verdict, judged.findings) == ("pass", ())
    assert judged.message == "clocks event reasons of 2 GPUs: the power limit for 95 to 99 % of the time, nothing else"
    assert {name: each.value for name, each in judged.measured.items()} == {
        "throttled_pct": 0.0,
        "power_cap_pct": 95.0,
        "sm_mhz": 975.0,
        "mem_mhz": 9501.0,
        "start_temperature_c": 40,
        "end_temperature_c": 42,
    }
    assert (judged.limit.op, judged.limit.value, judged.limit.unit) == ("<=", 5.0, "%")


@pytest.mark.parametrize("reason", sorted(HOLDING))
def test_heat_slowdown_and_power_brake_fail_and_name_the_card(reason):
    judged = throttling([worked(), worked("GPU 1", reasons={**CAPPED, reason: 0.2})])
    assert judged.verdict == "fail"
    assert kinds(judged) == [("clocks", "fail", "GPU 1")]
    assert f"GPU 1 {reason} held the clocks for 20 % of the time" in judged.message
    assert judged.cause.endswith(HOLDING[reason])
    assert judged.measured["throttled_pct"].value == 20.0


def test_the_special_reason_speaks_where_the_general_one_comes_with_it():
    judged = throttling([worked(reasons={"hw_slowdown": 0.5, "hw_power_brake_slowdown": 0.5})])
    assert len(judged.findings) == 1
    assert "hw_power_brake_slowdown" in judged.findings[0].detail


@pytest.mark.parametrize(("share", "seconds"), [(0.04, 100.0), (0.06, 10.0), (0.3, 2.0)])
def test_a_little_is_a_warning(share, seconds):
    judged = throttling([worked(seconds=seconds, reasons={**CAPPED, "hw_thermal_slowdown": share})])
    assert judged.verdict == "pass"
    assert kinds(judged) == [("clocks", "warn", "GPU 0")]


@pytest.mark.parametrize("reason", ["sync_boost", "board_limit", "reliability", "bit_0x800"])
def test_unusual_and_unknown_reasons_are_told_and_fail_nobody(reason):
    judged = throttling([worked(reasons={**CAPPED, reason: 0.9})])
    assert judged.verdict == "pass"
    assert kinds(judged) == [("clocks", "warn", "GPU 0")]


def test_a_cap_that_never_bound_is_a_plateau_and_no_fault():
    judged = throttling([worked(reasons=dict.fromkeys(CAPPED, 0.0), mean_w=341.0, limit_w=370.0)])
    assert judged.verdict == "pass"
    assert kinds(judged) == [("cap-not-binding", "info", "GPU 0")]
    assert "draws 341 W of 370 W" in judged.findings[0].detail
    judged = throttling([worked(reasons=dict.fromkeys(CAPPED, 0.0), streams=1)])
    told = "power limit not reached in this workload (1 stream): a higher limit would not help it"
    assert judged.findings[0].detail == told
    assert judged.message == "clocks event reasons of 1 GPUs: none (power limit not reached, a plateau)"


def test_unreadable_reasons_are_inconclusive_and_can_be_waived():
    silent = worked("GPU 2", reasons={}, why_unreadable="Not Supported")
    judged = throttling([worked(), silent])
    assert judged.verdict == "inconclusive"
    assert "GPU 2 what limits the clocks not readable: Not Supported" in judged.inconclusive_because
    assert 'unavailable = ["clocks_event_reasons"]' in judged.cause
    assert throttling([silent], unavailable=frozenset({"clocks_event_reasons"})).verdict == "pass"
    assert throttling([]).verdict == "inconclusive"


def test_a_card_that_was_idle_says_nothing_about_a_load():
    judged = throttling([worked(), worked("GPU 3", reasons={"gpu_idle": 1.0, "sw_power_cap": 0.0})])
    assert judged.verdict == "inconclusive"
    assert "GPU 3" in judged.message
    assert "idle for 100 % of the measured time" in judged.message


STILL = {"gpu_idle": 1.0, "sw_power_cap": 0.0}


def test_a_rank_that_idled_while_the_others_worked_fails():
    judged = throttling([worked(), worked("GPU 2", reasons=STILL)], all_work=True)
    assert (judged.verdict, judged.message) == ("fail", "GPU 2 idled while the server worked (GPU 0 did not)")
    # a card that was idle now and then is none, and where nobody worked the load was elsewhere
    half = {**STILL, "gpu_idle": 0.8}
    assert throttling([worked(), worked("GPU 2", reasons=half)], all_work=True).verdict == "inconclusive"
    assert throttling([worked(reasons=STILL), worked("GPU 2", reasons=STILL)], all_work=True).verdict == "inconclusive"
    waived = throttling([worked(), worked("GPU 2", reasons=STILL)], all_work=True, unavailable=frozenset({"clocks_event_reasons"}))
    assert waived.verdict == "pass"


def test_what_was_read_for_less_than_half_of_the_time_is_inconclusive():
    judged = throttling([worked(), worked("GPU 1", known_s=7.4)])
    assert judged.verdict == "inconclusive"
    assert "GPU 1 what limits the clocks not readable: it was read for 7.4 s of 15.0 s only" in judged.message
    assert throttling([worked(known_s=7.6)]).verdict == "pass"
    assert throttling([worked(known_s=7.4)], unavailable=frozenset({"clocks_event_reasons"})).verdict == "pass"
    # what was seen long enough is a fault all the same, and one reading alone is not
    hot = {**CAPPED, "hw_thermal_slowdown": 1.0}
    assert throttling([worked(known_s=3.0, reasons=hot)]).verdict == "fail"
    assert throttling([worked(known_s=0.5, reasons=hot)]).verdict == "inconclusive"


def test_the_violation_counter_sees_heat_between_the_samples():
    judged = throttling([worked(violations_s={"thermal": 3.0, "power": 14.0})])
    assert judged.verdict == "fail"
    assert "heat held the clocks for 3.0 s of 15.0 s" in judged.message
    assert judged.measured["throttled_pct"].value == 20.0
    assert throttling([worked(violations_s={"thermal": 3.0})], unavailable=frozenset({"violation"})).verdict == "pass"
    warned = throttling([worked(violations_s={"board_limit": 3.0})])
    assert (warned.verdict, warned.findings[0].severity) == ("pass", "warn")
    assert throttling([worked(violations_s={"thermal": 0.1, "power": 15.0})]).findings == ()
    twice = throttling([worked(reasons={**CAPPED, "sw_thermal_slowdown": 0.3}, violations_s={"thermal": 4.5})])
    assert len(twice.findings) == 1


def test_cards_that_still_warm_up_are_told():
    judged = throttling([worked(start_c=40, middle_c=50, end_c=56), worked("GPU 1", start_c=50, middle_c=51, end_c=52)])
    assert judged.verdict == "pass"
    assert kinds(judged) == [("not-heat-soaked", "info", "GPU 0")]
    assert "40 to 56 °C" in judged.findings[0].detail
