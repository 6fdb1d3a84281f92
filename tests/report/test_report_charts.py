"""The charts as inline SVG: what they show, what they say to who cannot see them, and what happens without data or matplotlib."""

from __future__ import annotations

import itertools
import re
import sys
from xml.etree import ElementTree

import msgspec
import pytest
import report_samples as samples

from pytest_sglang.record.run import plain
from pytest_sglang.report import charts, svg

SPACE = "{http://www.w3.org/2000/svg}"


def texts(picture):
    return [element.text for element in ElementTree.fromstring(picture).iter(f"{SPACE}text")]


def panels(chart):
    drawn = [panel for panel in chart.panels if not panel.missing.startswith("Median ")]
    assert all(panel.svg for panel in drawn), [panel.missing for panel in drawn]
    return [panel.svg for panel in drawn]


def test_every_start_has_a_panel_of_its_own_scale():
    chart = charts.startup_chart(samples.run())
    warm, cold = panels(chart)
    assert "budget 90 s" in texts(warm)
    assert any(each.endswith(" s") and each[0].isdigit() for each in texts(warm))
    assert "budget 25 min" in texts(cold)
    assert any(each.endswith(" min") for each in texts(cold))
    assert {"launch", "KV cache", "capture, decode", "first token"} <= set(texts(cold))
    assert "rig time" in chart.note
    assert "rig time" not in charts.startup_chart(samples.partial_run()).note


def test_a_missed_budget_is_drawn_in_the_colour_of_failure():
    missed, hang = panels(charts.startup_chart(samples.mixed_run()))
    kept, _ = panels(charts.startup_chart(samples.run()))
    assert "--sg-fail" in missed
    assert "--sg-fail" not in kept
    assert "not ended" in texts(hang)


def test_notes_tell_kind_readiness_budget_and_source():
    warm, cold = charts.startup_chart(samples.run(earlier_starts={})).panels
    assert warm.note == "warm start, ready after 75.1 s, budget 90 s"
    assert cold.note == "cold start, ready after 21 min 48 s, budget 25 min, read from its log"
    unknown = {"label": "l", "startup": {"kind": "unknown", "phases": []}, "budget_s": None}
    (panel,) = charts.startup_chart(samples.run(startups=(unknown,))).panels
    assert (panel.note, panel.svg, panel.missing) == (
        "start of unknown kind, never ready",
        None,
        "The log of this start gave no phases.",
    )


def test_a_budget_far_beyond_the_start_does_not_squeeze_it():
    item = {"label": "l", "startup": plain(samples.startup("warm")), "budget_s": 7200.0}
    (picture,) = panels(charts.startup_chart(samples.run(startups=(item,))))
    assert any(each.endswith(" s") and each[:-2].isdigit() for each in texts(picture))
    assert not any(each.startswith("budget") for each in texts(picture)), "its line would lie outside"
    assert "dashed" not in charts.startup_chart(samples.run(startups=(item,))).note
    assert "the dashed line is the promised budget." in charts.startup_chart(samples.run()).note


def test_rates_with_limit_target_median_and_hollow_rounds():
    (panel,) = charts.throughput_chart(samples.run()).panels
    found = samples.throughput(250.0, 43.4)
    assert {"promised 42 tok/s", "target 45 tok/s", f"median {found.decode_tok_s:.1f} tok/s"} <= set(texts(panel.svg))
    assert panel.note.endswith("8 rounds, 1 not counted (someone else's traffic)")
    assert "fill-opacity: 0" in panel.svg


def test_rates_without_limit_interval_or_hollow_rounds():
    found = msgspec.structs.replace(samples.throughput(250.0, 43.4, rounds=1, discarded=0), ci_low=None, ci_high=None)
    item = {"label": "free", "quantity": "end_to_end", "throughput": plain(found)}
    (panel,) = charts.throughput_chart(samples.run(throughputs=(item,))).panels
    assert panel.heading == "free, end to end"
    assert panel.note == f"median {found.end_to_end_tok_s:.1f} tok/s, 1 round"
    assert not any(each.startswith("promised") for each in texts(panel.svg))
    assert "fill-opacity: 0" not in panel.svg


def test_no_rate_at_all_is_said_in_place_of_the_chart():
    empty = samples.throughput_item(250.0, 43.4, 42.0, None)
    empty["throughput"].update(rounds=[], discarded=[], decode_tok_s=None, ci_low=None)
    (panel,) = charts.throughput_chart(samples.run(throughputs=(empty,))).panels
    assert (panel.svg, panel.missing) == (None, "No round gave a rate.")
    assert panel.note == "no median, promised 42 tok/s, 0 rounds"


def test_a_limit_is_red_once_the_whole_interval_misses_it():
    def red(limit):
        (picture,) = panels(charts.throughput_chart(samples.run(throughputs=(samples.throughput_item(250.0, 43.4, limit, None),))))
        return "--sg-fail" in picture

    high = samples.throughput(250.0, 43.4).ci_high
    assert red(high + 0.01)
    assert not red(high - 0.01)


def test_labels_of_close_lines_are_pushed_apart():
    (panel,) = charts.throughput_chart(samples.run(throughputs=(samples.throughput_item(250.0, 42.0, 42.0, 42.1),))).panels
    root = ElementTree.fromstring(panel.svg)
    heights = sorted(
        float(each.get("y")) for each in root.iter(f"{SPACE}text") if each.text.startswith(("promised", "target", "median"))
    )
    assert len(heights) == 3
    assert all(after - before > 11 for before, after in itertools.pairwise(heights))


def test_each_gpu_has_a_panel_on_common_axes_with_its_limit():
    chart = charts.power_chart(samples.run())
    assert [panel.heading for panel in chart.panels] == [f"GPU {index}" for index in range(6)]
    assert all("limit 250 W" in texts(picture) for picture in panels(chart))
    axis = [[each for each in texts(picture) if each.isdigit()] for picture in panels(chart)]
    assert axis[0] == axis[5]


def test_a_card_without_readings_or_limit_says_so():
    series = samples.power_series(gpus=2)
    first, second = series["gpus"].values()
    first["w"], second["limit_w"] = [None] * len(series["t"]), None
    silent, unlimited = charts.power_chart(samples.run(power_series=series)).panels
    assert (silent.svg, silent.missing) == (None, "This card gave no power reading.")
    assert unlimited.note.endswith("limit not read")


def test_the_limit_may_change_during_a_run():
    series = samples.power_series(gpus=1)
    (gpu,) = series["gpus"].values()
    half = len(series["t"]) // 2
    gpu["limit_w"] = [250.0] * half + [390.0] * (len(series["t"]) - half)
    (panel,) = charts.power_chart(samples.run(power_series=series)).panels
    assert panel.note.endswith("limit 250, 390 W")


def test_a_pause_between_readings_is_a_gap_in_the_line():
    from pytest_sglang.report.watts import _with_gaps

    times, values = _with_gaps([0.0, 1.0, 2.0, 60.0, 61.0, 5.0], [1, None, 3, 4, 5, 6])
    assert times == [0.0, 1.0, 2.0, 60.0, 60.0, 61.0, 5.0, 5.0]
    assert [value != value for value in values] == [False, True, False, True, False, False, True, False]
    assert _with_gaps([0.0], [1]) == ([0.0], [1.0])


def test_the_mean_is_that_of_the_rounds():
    (panel, *_) = charts.power_chart(samples.run()).panels
    series = samples.power_series()
    assert re.match(r"mean 24\d W in the rounds, highest 25\d W, limit 250 W", panel.note)
    series["windows"] = []
    (panel, *_) = charts.power_chart(samples.run(power_series=series)).panels
    assert re.match(r"mean 21\d W, highest", panel.note)


@pytest.mark.parametrize("fields", [{"startups": ()}, {"throughputs": ()}, {"power_series": {}}])
def test_without_data_the_reason_stands_in_place_of_the_chart(fields):
    empty = [chart for chart in charts.charts(samples.run(**fields)) if not chart.panels]
    assert len(empty) == (1 if "power_series" in fields else 2)
    assert all(each.empty.endswith("in this run.") for each in empty)


@pytest.mark.parametrize(
    "fields",
    [
        {"startups": ({"label": "odd"},)},
        {"startups": ("odd",)},
        {"startups": ({"startup": {"phases": [{"id": "x"}]}},)},
        {"throughputs": ({"throughput": {"rounds": [{"index": "x", "decode_tok_s": 1}]}},)},
        {"power_series": {"t": [0, 1], "gpus": {"u": {"w": [1, 2]}}, "windows": [["a", "b", "c"]]}},
        {"power_series": {"t": [0, 1], "gpus": {"u": {}}}},
        {"topology": {"cards": [{"odd": 1}]}},
        {"startups": ({"label": "l", "startup": {"cache_diff": {"caches": [{"odd": 1}]}}},)},
    ],
)
def test_a_foreign_record_costs_a_chart_and_never_the_page(fields):
    told = " ".join(
        [
            *(panel.missing for chart in charts.charts(samples.run(**fields)) for panel in chart.panels),
            *(chart.empty for chart in charts.charts(samples.run(**fields))),
        ]
    )
    assert "does not hold what the chart needs" in told or "could not be understood" in told


def test_without_matplotlib_the_page_says_so(monkeypatch):
    for name in [each for each in sys.modules if each.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    told = [panel for chart in charts.charts(samples.run()) for panel in chart.panels]
    assert len(told) == 14
    told = [panel for panel in told if not panel.missing.startswith("Median ")]
    assert charts.topology_chart(samples.run()).empty.startswith("Not drawn: matplotlib is missing")
    assert all(panel.svg is None and "matplotlib is missing" in panel.missing for panel in told)


def test_pictures_are_self_contained_and_follow_the_page():
    pictures = [panel.svg for chart in charts.charts(samples.mixed_run()) for panel in chart.panels if panel.svg is not None]
    assert len(pictures) > 12
    for picture in pictures:
        assert "<style" not in picture
        assert "#0101" not in picture
        assert "DejaVu" not in picture
        assert not re.search(r"#[0-9a-f]{6}\b", re.sub(r"var\([^)]*\)", "", picture)), "a colour that does not follow the page"
        assert "http://" not in picture.replace('xmlns="http://www.w3.org/2000/svg"', "")
        root = ElementTree.fromstring(picture)
        assert root.get("role") == "img"
        named = {element.get("id"): element.text for element in root if element.tag in (f"{SPACE}title", f"{SPACE}desc")}
        assert list(named) == root.get("aria-labelledby").split()
        assert all(named.values())


def test_ids_are_unique_over_all_charts_and_every_reference_has_its_target():
    page = "".join(panel.svg or "" for chart in charts.charts(samples.mixed_run()) for panel in chart.panels)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page)) <= {(name, "") for name in ids} | {("", name) for name in ids}


def test_the_same_run_gives_the_same_bytes():
    assert charts.charts(samples.run()) == charts.charts(samples.run())


def test_hostile_labels_stay_text():
    hostile = 'a $x_1$ <script>alert("1")</script> & \x07 #010105'
    item = samples.throughput_item(250.0, 43.4, 42.0, 45.0)
    item["label"] = hostile
    series = samples.power_series(gpus=1)
    next(iter(series["gpus"].values()))["label"] = hostile
    start = {
        "label": hostile,
        "startup": {**plain(samples.startup()), "phases": [{"id": hostile, "begin_s": 0.0, "end_s": 1.0}]},
        "budget_s": 1,
    }
    found = samples.topology({}, count=1, serving=(0,), tp=1, promised=(), name=hostile)
    found["cards"][0]["lost"] = hostile
    start["startup"]["cache_diff"] = {
        "caches": [],
        "before": [{"cache": hostile, "path": hostile, "bytes": 7}, {"cache": "x", "path": "/x", "bytes": 7}],
        "unreadable": [f"x cache /x: {hostile}"],
    }
    past = {**samples.earlier("warm"), "run_id": hostile, "started": hostile}
    earlier = {"cold": past, "warm": past}
    made = samples.run(
        startups=({**start, "label": f"warm {hostile}"},),
        throughputs=(item,),
        power_series=series,
        topology=found,
        earlier_starts=earlier,
    )
    for chart in charts.charts(made):
        for picture in panels(chart):
            assert "<script" not in picture
            ElementTree.fromstring(picture)
    assert svg.clean("a\x00b\nc\ud800") == "a�b c�"
