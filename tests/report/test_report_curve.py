"""The power curve as table and drawing, and the lower part of the power chart: clock, temperature, what held the clocks."""

from __future__ import annotations

import re
from typing import Any

import pytest
import report_samples as samples

from pytest_sglang.record.run import Run
from pytest_sglang.report import charts, curve, terminal, watts


def point(power_w: float, tok_s: float, **more: Any) -> dict[str, Any]:
    plain = {
        "power_w": power_w, "tok_s": tok_s, "ci_low": tok_s * 0.99, "ci_high": tok_s * 1.01, "j_per_token": 4 * power_w / tok_s,
        "mean_w": 3.9 * power_w, "held_by": "power cap", "faulty": False, "min_tok_s": None, "target_tok_s": None,
        "run_id": samples.run().run_id,
    }  # fmt: skip
    return plain | more


def swept(*points: dict[str, Any], **more: Any) -> Run:
    found = points or (
        point(250, 43.0, min_tok_s=42.0, target_tok_s=45.0),
        point(300, 53.5),
        point(350, 55.9, held_by="nothing"),
        point(370, 55.8, held_by="nothing"),
        point(390, 58.4, min_tok_s=60.0),
    )
    key = {"streams": 1, "nvlink": ["0-1: 4", "2-3: 4"], "engine": "0.5.11", "model": "/models/home-70b-awq"}
    conclusions = {"plateaus": [[350, 370]], "efficient_w": 300, "suggested_w": 350, "fastest_w": 390, "suggested_surely": True}
    return samples.run(power_curve={"key": key, "points": list(found), "max_slowdown_pct": 5.0, **conclusions, **more})


def test_the_table_of_a_sweep_fits_into_80_columns() -> None:
    lines = [text for text, _ in terminal.promise_table(swept(), 80, False)]
    begin = next(number for number, line in enumerate(lines) if line.startswith("power curve:"))
    assert lines[begin] == "power curve: decode of 1 stream, NVLink 0-1 and 2-3, SGLang 0.5.11, home-70b-awq"
    assert lines[begin + 1].split() == ["cap", "tok/s", "interval", "promise", "power", "J/token", "of", "top", "held", "by"]
    assert lines[begin + 2].split() == [
        "250",
        "W",
        "43.0",
        "42.6-43.4",
        ">=",
        "42",
        "975",
        "W",
        "23.3",
        "74",
        "%",
        "power",
        "limit",
    ]
    assert lines[begin + 3].split()[4] == "none"
    text = " ".join(" ".join(line.split()) for line in lines[begin:])
    assert "plateau: 350 to 370 W is no faster (the power limit is not reached)" in text
    assert "most efficient: 300 W, 22.4 J/token" in text
    assert "suggested cap: 350 W, the lowest within 5 % of full speed (58.4 tok/s at 390 W): 96 %" in text
    assert "by its median" not in text
    assert "board power of the serving GPUs, not the wall" in text
    assert max(len(line) for line in lines[begin:]) <= 80


def test_one_level_alone_has_no_table() -> None:
    assert curve.lines(swept(point(250, 43.0))) == []
    assert curve.lines(samples.run()) == []
    now_and_then = swept(point(250, 43.0), point(300, 53.5, run_id="earlier"), plateaus=[], efficient_w=250, suggested_w=300)
    assert curve.lines(now_and_then) == []
    assert "300 W*" in [row[0] for row in curve.rows(now_and_then)]


def test_what_is_not_known_is_said() -> None:
    run = swept(
        point(250, 43.0, j_per_token=None, mean_w=None, ci_low=None, held_by=""),
        point(300, 33.0, faulty=True, held_by="sw thermal (GPU 2, 80 %)"),
        plateaus=[], efficient_w=None, suggested_w=None, fastest_w=None,
    )  # fmt: skip
    text = "\n".join(curve.lines(run))
    assert text.count("not read") == 3
    assert "not the speed of their caps, since something else held the cards: 300 W" in text
    speed, energy = curve.panels("x", run)
    assert speed.svg is not None
    assert energy.missing == "The energy of these levels could not be measured."


def test_the_edge_and_the_fastest_are_told() -> None:
    told = " ".join(curve.conclusions(swept(efficient_w=250, efficient_at_edge=True, suggested_w=390)))
    assert "the lowest level measured: a lower one may be cheaper still" in told
    assert "suggested cap: 390 W, since no lower one is within 5 % of full speed" in told


def test_the_drawing_shows_points_promises_and_conclusions() -> None:
    chart = next(each for each in charts.charts(swept()) if each.id == "curve")
    speed, energy = chart.panels
    assert "Suggested cap: 350 W" in chart.note
    for text in ("&gt;= 42", "&gt;= 60", "suggested 350 W", "390"):
        assert text in (speed.svg or "")
    assert "most efficient 300 W" in (energy.svg or "")
    assert re.search(r"<desc[^>]*>decode of 1 stream.*250 W 43\.0 tok/s", speed.svg or "")
    assert "var(--sg-fail" in (speed.svg or ""), "a broken promise stands out"
    assert "curve" not in [each.id for each in charts.charts(samples.run())]


@pytest.mark.parametrize(
    "broken",
    [
        {"points": "many"},
        {"points": [1, {}, {"power_w": "x", "tok_s": 1}, None]},
        {"points": [{"power_w": 250, "tok_s": 1.0}, {"power_w": 300, "tok_s": 0.0}], "suggested_w": 999},
        {"points": [{"power_w": 250, "tok_s": 1.0}, {"power_w": 300, "tok_s": 2.0}], "key": 7},
    ],
)
def test_a_broken_curve_breaks_no_page(broken: dict[str, Any]) -> None:
    for chart in charts.charts(samples.run(power_curve=broken)):
        assert chart.panels or chart.empty


# --- below the watts -------------------------------------------------------------------------------------------------------


def panel(**more: Any):
    times = [float(each) for each in range(20)]
    gpu = {"label": "GPU 1", "limit_w": 250.0, "w": [240.0] * 20, **more}
    (item,) = watts.split({"t": times, "gpus": {"u": gpu}, "windows": [[2.0, 18.0, "round 1"]]})
    return watts.panel("x", item)


def test_clock_temperature_and_what_held_the_clocks_stand_below_the_watts() -> None:
    held = ["sw_power_cap"] * 12 + ["hw_power_brake_slowdown"] * 8
    drawn = panel(c=[40 + each for each in range(20)], mhz=[975] * 20, held=held)
    assert drawn.note.endswith("; SM 975 MHz; 42 to 58 °C; clocks event reasons: power limit 59 %, power brake 41 %")
    assert "var(--sg-fail" in drawn.svg
    assert ">clocks event reasons</text>" in drawn.svg
    nothing = panel(held=[""] * 20, mhz=[1980] * 20)
    assert nothing.note.endswith("; SM 1,980 MHz; clocks event reasons: none")
    assert ">clocks event reasons: none</text>" in nothing.svg
    assert ">2,400</text>" in nothing.svg, "a tick above the clock"
    assert panel(held=["gpu_idle"] * 20).note.endswith("; idle")
    assert "°C" not in panel(c=[None] * 20, mhz=[None] * 20, held=[None] * 20).note


def test_a_record_without_them_is_drawn_as_before() -> None:
    drawn = panel()
    assert drawn.note == "mean 240 W in the rounds, highest 240 W, limit 250 W"
    assert "clocks event reasons" not in drawn.svg


def test_many_levels_are_told_as_a_span() -> None:
    assert panel(limit_w=[200.0] * 5 + [250.0] * 5 + [300.0] * 5 + [390.0] * 5).note.endswith("limit 200 to 390 W")
