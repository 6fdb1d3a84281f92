"""Energy out of samples: the recorded decode, its edges, and every reason for which a window has no energy."""

from __future__ import annotations

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nvml_fakes import DATA

from pytest_sglang.gpu.integral import (
    STANDS_S,
    Sample,
    SlowSample,
    average_w,
    integrate,
    nearest,
    reason_shares,
    reasons_held,
    series,
    slow_series,
)

T0 = 1795472734.990


@pytest.fixture(scope="module")
def recorded():
    with (DATA / "h200-power-decode-20hz.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [Sample(float(r["t"]), float(r["power_w"]), float(r["instant_w"]), int(r["energy_mj"]) / 1000) for r in rows]


def steady(watts=300.0, seconds=10.0, *, counter=True, instant=True, hz=20.0, at=1000.0):
    """A card at constant power whose counter moves every 100 ms."""
    samples = []
    for tick in range(int(seconds * hz)):
        t = tick / hz
        energy = watts * int(t * 10 + 1e-6) / 10 + 5000 if counter else None
        samples.append(Sample(at + t, watts, watts if instant else None, energy))
    return samples


def test_recorded_decode_is_507_w_by_the_counter_where_the_average_says_a_sixth_less(recorded):
    begin = T0 + 2.27
    energy = integrate(recorded, begin, begin + 3, gpu="GPU-h200")
    assert energy.source == "energy counter"
    assert energy.invalid_because is None
    assert energy.mean_w == pytest.approx(507, rel=0.02)
    assert energy.joules == pytest.approx(energy.mean_w * 3)
    assert abs(energy.joules - 507 * 3) <= energy.error_j <= 0.05 * energy.joules
    assert energy.peak_w == pytest.approx(630.9, abs=0.1)
    average = average_w(recorded, begin, begin + 3)
    assert average == pytest.approx(434, abs=2)
    assert average < 0.87 * energy.mean_w


def test_recorded_first_two_seconds_show_how_low_the_average_reads(recorded):
    begin = T0 + 2.27
    energy = integrate(recorded, begin, begin + 2)
    assert 0.68 < average_w(recorded, begin, begin + 2) / energy.mean_w < 0.76


def test_instant_power_agrees_with_the_counter_over_the_recorded_decode(recorded):
    begin, end = T0 + 2.0, T0 + 7.0
    counter = integrate(recorded, begin, end)
    power = integrate([each._replace(energy_j=None) for each in recorded], begin, end)
    assert power.source == "instant power"
    assert power.joules == pytest.approx(counter.joules, rel=0.03)
    assert power.error_j > 0


def test_interpolated_edges_are_right_where_whole_steps_read_low(recorded):
    """The same energy from edges moved into steady power, which is known there: whole steps are half a step of the load too low."""

    def whole(begin, end):
        return next(s.energy_j for s in reversed(recorded) if s.t_s <= end) - next(
            s.energy_j for s in reversed(recorded) if s.t_s <= begin
        )

    begin, end = T0 + 2.27, T0 + 5.27
    idle_w, load_w = integrate(recorded, T0 + 0.3, T0 + 2.2).mean_w, integrate(recorded, T0 + 4.4, T0 + 6.2).mean_w
    by_steps, by_edges = [], []
    for early in range(20):
        for late in range(30):
            first, last = T0 + 1.2 + early * 0.05, T0 + 4.6 + late * 0.05
            steady = idle_w * (begin - first) + load_w * (last - end)
            by_edges.append((integrate(recorded, first, last).joules - steady) / 3)
            by_steps.append((whole(first, last) - steady) / 3)
    edges, steps = sum(by_edges) / len(by_edges), sum(by_steps) / len(by_steps)
    assert edges == pytest.approx(514.8, abs=1.5)
    assert edges - steps == pytest.approx(0.05 * (load_w - idle_w) / 3, abs=1.5)
    assert integrate(recorded, begin, end).mean_w == pytest.approx(edges, abs=2)


def test_both_methods_are_exact_at_constant_power():
    for samples, source in ((steady(), "energy counter"), (steady(counter=False), "instant power")):
        energy = integrate(samples, 1002.03, 1005.27)
        assert energy.source == source
        assert energy.mean_w == pytest.approx(300, rel=0.005)
    assert integrate(steady(counter=False), 1002, 1005).error_j == 0


@given(begin=st.floats(0.2, 4.0), length=st.floats(1.0, 5.0), watts=st.floats(20, 700))
def test_the_stated_error_covers_the_truth_for_any_window(begin, length, watts):
    energy = integrate(steady(watts), 1000 + begin, 1000 + begin + length)
    assert abs(energy.joules - watts * length) <= energy.error_j


@given(step=st.floats(2.0, 4.0), before=st.floats(20, 700), after=st.floats(20, 700))
def test_the_stated_error_covers_a_load_that_begins_inside_the_window(step, before, after):
    def truth(t):
        return before * min(t, step) + after * max(t - step, 0.0)

    samples = [Sample(1000 + n / 20, None, None, truth(int(n / 2) / 10) + 7) for n in range(160)]
    energy = integrate(samples, 1001.5, 1006.0)
    assert abs(energy.joules - (truth(6.0) - truth(1.5))) <= energy.error_j + 1e-6


def test_no_sample_beyond_the_last_step_carries_its_power_on():
    samples = [each for each in steady() if each.t_s <= 1005.06]
    energy = integrate(samples, 1002.0, 1005.04)
    assert energy.joules == pytest.approx(912, rel=0.002)


@pytest.mark.parametrize(("begin", "end"), [(1002.0, 1002.9), (1003.0, 1002.0)])
def test_window_too_short(begin, end):
    energy = integrate(steady(), begin, end)
    assert energy.joules is None
    assert energy.mean_w is None
    assert energy.source == "none"
    assert energy.invalid_because.startswith("window too short: ")


def test_gap_inside_the_window_and_outside_of_it():
    holed = [each for each in steady() if not 1003 < each.t_s < 1004.5]
    assert integrate(holed, 1002, 1006).invalid_because.startswith("sampling gap: 1.5")
    assert integrate(holed, 1005, 1007).invalid_because is None
    short = [each for each in steady() if not 1003 < each.t_s < 1003.8]
    assert integrate(short, 1002, 1006).mean_w == pytest.approx(300, rel=0.005)


@pytest.mark.parametrize(("begin", "end", "where"), [(998, 1002, "before"), (1008, 1012, "after"), (2000, 2002, "before")])
def test_window_that_samples_do_not_reach_around(begin, end, where):
    assert integrate(steady(), begin, end).invalid_because == f"sampling gap: no sample within 1 s {where} the window"


def test_no_samples_at_all():
    assert integrate([], 1000, 1002).invalid_because.startswith("sampling gap")


def test_clock_set_back():
    samples = steady(seconds=3) + [each._replace(t_s=each.t_s + 2.0) for each in steady(seconds=3)]
    assert "the clock was set back" in integrate(samples, 1000.5, 1004).invalid_because


def test_counter_reset():
    samples = [each._replace(energy_j=each.energy_j - 5000 if each.t_s > 1004 else each.energy_j) for each in steady()]
    assert integrate(samples, 1002, 1006).invalid_because.startswith("counter reset")
    assert integrate(samples, 1006, 1008).invalid_because is None


def test_lost_card():
    assert integrate(steady(), 1002, 1006, lost_at_s=1005).invalid_because.startswith("GPU count changed")
    assert integrate(steady(), 1002, 1006, lost_at_s=1009).invalid_because is None


def test_not_supported_names_what_the_driver_said():
    only_average = steady(counter=False, instant=False)
    energy = integrate(only_average, 1002, 1006, gpu="GPU-x", why_missing="energy_j: Not Supported")
    assert energy.gpu == "GPU-x"
    assert energy.invalid_because == "not supported: neither energy counter nor instantaneous power (energy_j: Not Supported)"


def test_counter_that_stands_still_gives_way_to_instant_power():
    frozen = [each._replace(energy_j=5000.0) for each in steady()]
    assert integrate(frozen, 1002, 1006).source == "instant power"


def test_average_needs_two_readings():
    assert average_w(steady()[:1], 1000, 1002) is None


# --- slow readings --------------------------------------------------------------------------------------------------------


def slow(*masks, every=0.5, at=1000.0):
    return [SlowSample(at + n * every, 40 + n, 1400, 9501, mask, 4, 16) for n, mask in enumerate(masks)]


def test_reason_shares_are_shares_of_time():
    shares = reason_shares(slow(4, 4, 4 | 0x40, 0), 1000.0, 1002.0)
    assert shares["sw_power_cap"] == pytest.approx(0.75)
    assert shares["hw_thermal_slowdown"] == pytest.approx(0.25)
    assert shares["hw_power_brake_slowdown"] == 0.0


def test_reason_shares_cut_samples_at_the_window_and_leave_out_what_was_not_read():
    shares = reason_shares(slow(1, 4, None, 4), 1000.25, 1002.0)
    assert shares["gpu_idle"] == pytest.approx(0.25 / 1.25)
    assert shares["sw_power_cap"] == pytest.approx(1.0 / 1.25)
    assert reason_shares(slow(0x800), 1000, 1001)["bit_0x800"] == 1.0


def test_a_sample_does_not_speak_for_a_time_that_nobody_saw():
    """A sampler that stops: its last reading must not stand for all the rest of the window."""
    held = reasons_held(slow(4, 4), 1000.0, 1030.0)
    assert held.known_s == 0.5 + STANDS_S
    assert held.held_s["sw_power_cap"] == held.known_s
    assert reason_shares(slow(4, 4), 1000.0, 1030.0)["sw_power_cap"] == 1.0


def test_reason_shares_are_empty_where_nothing_was_readable():
    assert reason_shares(slow(None, None), 1000, 1001) == {}
    assert reason_shares([], 1000, 1001) == {}


def test_nearest_slow_sample_is_near_or_none():
    samples = slow(0, 0, 0)
    assert nearest(samples, 1000.6).temperature_c == 41
    assert nearest(samples, 1010) is None
    assert nearest([], 1000) is None


# --- the chart's series ---------------------------------------------------------------------------------------------------


def test_series_has_at_most_the_asked_points_and_keeps_the_mean():
    times, watts = series({"a": steady(seconds=60)}, 1000, 1060, points=100)
    assert len(times) == len(watts["a"]) == 100
    assert times == sorted(times)
    assert set(watts["a"]) == {300.0}


def test_series_of_few_samples_keeps_each_and_holes_are_none():
    holed = [each for each in steady(seconds=3) if not 1001 < each.t_s < 1001.9]
    times, watts = series({"a": holed, "b": []}, 1000, 1003)
    assert len(times) <= len(holed)
    assert watts["a"][0] == 300.0
    assert None in watts["a"]
    assert set(watts["b"]) == {None}


def test_series_takes_the_average_where_a_card_has_no_instant_power_and_none_where_it_has_neither():
    plain = steady(seconds=2, counter=False, instant=False)
    _, watts = series({"a": plain}, 1000, 1002)
    assert set(watts["a"]) == {300.0}
    nothing = [each._replace(average_w=None) for each in plain]
    assert set(series({"a": nothing}, 1000, 1002)[1]["a"]) == {None}
    assert series({"a": plain}, 1002, 1002) == ([], {"a": []})


def test_slow_readings_stand_at_the_moments_of_the_chart():
    samples = slow(4, 4 | 0x20, 1, 0x88)
    found = slow_series(
        [*samples, samples[-1]._replace(t_s=1010.0, reasons=None)], [999.0, 1000.1, 1000.6, 1001.1, 1001.6, 1005.0, 1010.0]
    )
    assert found["held"] == [
        "sw_power_cap",
        "sw_power_cap",
        "sw_thermal_slowdown",
        "gpu_idle",
        "hw_power_brake_slowdown",
        None,
        None,
    ]
    assert found["c"] == [40, 40, 41, 42, 43, None, 43]
    assert found["mhz"][0] == 1400
    assert slow_series([], [1.0]) == {"c": [None], "mhz": [None], "held": [None]}
    assert slow_series(slow(0), [1000.0])["held"] == [""]


def stuck(samples, since):
    """The counter stands still from a moment on, as of a driver that has stopped counting."""
    held = max(each.energy_j for each in samples if each.t_s <= since)
    return [each if each.t_s <= since else each._replace(energy_j=held) for each in samples]


@pytest.mark.parametrize("since", [1003.0, 1007.5])
def test_a_counter_that_stops_inside_the_window_is_not_carried_on(since):
    """Carried on from its last step it would tell joules that nobody has counted: of a card at 100 W that then draws 300 W, a third."""
    quiet = [each._replace(instant_w=None) for each in steady(100.0)]
    energy = integrate(stuck(quiet, since), 1001.0, 1009.0)
    assert energy.joules is None
    assert energy.invalid_because.startswith("counter stuck: the energy counter stood still for more than 1 s")
    # with instantaneous power there is another source
    other = integrate(stuck(steady(300.0), since), 1001.0, 1009.0)
    assert (other.source, other.joules) == ("instant power", pytest.approx(2400, rel=0.01))


def test_a_counter_that_stands_still_for_a_moment_is_one(recorded):
    assert integrate(steady(300.0), 1001.0, 1009.0).source == "energy counter"
    # a sampler that was held up for almost a second saw no counter that stood still
    held_up = [each for each in steady(300.0) if not 1003.0 < each.t_s < 1003.95]
    assert integrate(held_up, 1001.0, 1009.0).source == "energy counter"
    slow = [each._replace(energy_j=300.0 * int((each.t_s - 1000.0) / 0.9) * 0.9) for each in steady(300.0)]
    assert integrate(slow, 1001.0, 1008.0).source == "energy counter"
