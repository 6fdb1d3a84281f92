"""A power curve's conclusions: plateau, most efficient cap, the lowest cap that is nearly as fast."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_sglang.judge.curve import Point, analyse, merged, same

RTX_3090 = {200: 29.3, 230: 38.3, 250: 43.0, 270: 48.2, 300: 53.5, 330: 55.8, 350: 55.9, 370: 55.8, 390: 58.4}


def points(rates=None, **more) -> list[Point]:
    rates = rates or RTX_3090
    return [
        Point(power_w=watts, tok_s=rate, ci_low=rate * 0.99, ci_high=rate * 1.01, j_per_token=4 * watts / rate, **more)
        for watts, rate in rates.items()
    ]


def test_the_published_curve():
    curve = analyse(points())
    assert [each.power_w for each in curve.points] == sorted(RTX_3090)
    assert curve.plateaus == ((330, 370),)
    assert curve.fastest_w == 390
    assert (curve.efficient_w, curve.efficient_at_edge) == (270, False)
    assert (curve.suggested_w, curve.suggested_surely) == (330, False)
    assert analyse(points(), 10.0).suggested_w == 300
    assert analyse(points(), 1.0).suggested_w == 390
    assert analyse(points(), 1.0).suggested_surely


def test_the_suggestion_is_sure_where_its_whole_interval_is():
    rates = {250: 40.0, 300: 49.9, 350: 50.0}
    assert analyse(points(rates)).suggested_w == 300
    assert analyse(points(rates)).suggested_surely
    assert not analyse([Point(power_w=watts, tok_s=rate) for watts, rate in rates.items()]).suggested_surely


def test_flat_from_the_beginning_and_the_edge():
    curve = analyse(points({220: 50.0, 250: 50.1, 300: 50.2, 330: 50.15}))
    assert curve.plateaus == ((220, 330),)
    assert (curve.suggested_w, curve.efficient_w, curve.efficient_at_edge) == (220, 220, True)


def test_small_steps_that_add_up_are_no_plateau():
    rates = {200 + 10 * step: 40.0 * 1.006**step for step in range(6)}
    assert all(end - begin <= 10 for begin, end in analyse(points(rates)).plateaus)


def test_points_that_something_else_held_decide_nothing():
    hot = [each if each.power_w != 390 else Point(power_w=390, tok_s=70.0, faulty=True) for each in points()]
    curve = analyse(hot)
    assert (curve.fastest_w, len(curve.points)) == (350, 9)
    assert analyse(points({250: 40.0})).suggested_w is None
    assert analyse([]).plateaus == ()


def test_without_energy_there_is_no_most_efficient_cap():
    curve = analyse([Point(power_w=watts, tok_s=rate) for watts, rate in RTX_3090.items()])
    assert (curve.efficient_w, curve.suggested_w) == (None, 330)


def test_earlier_points_fill_gaps_and_never_replace_present_ones():
    now, old, older = (
        points({250: 43.0}, run_id="now"),
        points({250: 40.0, 300: 53.0}, run_id="old"),
        points({300: 1.0}, run_id="older"),
    )
    together = {each.power_w: (each.tok_s, each.run_id) for each in merged(now, [*older, *old])}
    assert together == {250: (43.0, "now"), 300: (53.0, "old")}


def test_keys_are_the_same_or_not():
    key = {"engine": "0.5.11", "model": "m", "nvlink": ["0-1: 4"]}
    assert same(key, dict(key))
    for name, value in {"engine": "0.5.12", "model": "n", "nvlink": []}.items():
        assert not same(key, {**key, name: value})


@given(st.dictionaries(st.integers(100, 450), st.floats(1.0, 500.0), min_size=2, max_size=12), st.floats(1.0, 50.0))
def test_whatever_was_measured_the_suggestion_keeps_its_word(rates, loss):
    curve = analyse([Point(power_w=watts, tok_s=rate) for watts, rate in rates.items()], loss)
    best = max(rates.values())
    assert rates[curve.suggested_w] >= (1 - loss / 100) * best
    assert all(rate < (1 - loss / 100) * best for watts, rate in rates.items() if watts < curve.suggested_w)
    assert rates[curve.fastest_w] == best
    assert all(begin < end for begin, end in curve.plateaus)
