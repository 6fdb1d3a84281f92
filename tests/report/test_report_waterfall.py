"""The last start behind this one's phases: where it stands, what it says, and when there is none."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import msgspec
import pytest
import report_samples as samples

from pytest_sglang.record.run import plain
from pytest_sglang.report import charts, waterfall

SPACE = "{http://www.w3.org/2000/svg}"


def item(start, label="warm restart"):
    return {"label": label, "startup": plain(start), "budget_s": 90.0}


def drawn(run):
    (panel,) = charts.startup_chart(run).panels
    return panel


def texts(panel):
    return [element.text for element in ElementTree.fromstring(panel.svg).iter(f"{SPACE}text")]


def described(panel):
    return ElementTree.fromstring(panel.svg).find(f"{SPACE}desc").text


def outlines(panel):
    """Faint strokes: one for each phase of the start behind, and the tick of its readiness."""
    return len(re.findall(r"stroke-opacity: 0\.6|opacity: 0\.6", panel.svg))


def test_the_last_start_of_the_kind_stands_behind_and_is_named():
    panel = drawn(samples.run(startups=(item(samples.startup()),)))
    told = "outline: 23 Nov 2026 (run 20261123T010000Z-simulated), ready after 73.6 s"
    assert panel.note == f"warm start, ready after 75.1 s, budget 90 s; {told}"
    assert f"{told[0].upper()}{told[1:]}. Phases:" in described(panel)
    assert "weights 21.7 s (was 21.3 s)" in described(panel)
    bare = drawn(samples.run(startups=(item(samples.startup()),), earlier_starts={}))
    assert outlines(panel) > 10
    assert outlines(bare) == 0
    assert "outline" not in bare.note
    assert "Outlines" not in charts.startup_chart(samples.run(earlier_starts={})).note
    assert "without injected faults" in charts.startup_chart(samples.run()).note


def test_a_phase_that_grew_has_the_difference_at_its_right():
    grown = msgspec.structs.replace(
        samples.startup(),
        phases=tuple(
            each if each.id != "weights" else msgspec.structs.replace(each, end_s=each.end_s + 12.3)
            for each in samples.startup().phases
        ),
    )
    panel = drawn(samples.run(startups=(item(grown),), earlier_starts={"warm": samples.earlier("warm", scale=1.0)}))
    assert [each for each in texts(panel) if each.startswith(("+", "−"))] == ["+12 s"]
    assert "--sg-warn" in panel.svg
    assert "weights 34.0 s (was 21.7 s, +12 s)" in described(panel)


def test_what_boots_differ_by_is_not_told():
    panel = drawn(samples.run(startups=(item(samples.startup()),), earlier_starts={"warm": samples.earlier("warm", scale=1.08)}))
    assert not [each for each in texts(panel) if each.startswith(("+", "−"))]


def test_a_warm_restart_that_compiled_stands_before_the_last_true_warm_one():
    panel = drawn(samples.run(startups=(item(samples.startup("cold")),)))
    assert "ready after 73.6 s" in panel.note
    assert "+13 min" in texts(panel)


@pytest.mark.parametrize(("kind", "found"), [("warm", 73.598), ("partial", 73.598), ("cold", 1282.036), ("unknown", None)])
def test_a_start_that_was_judged_as_nothing_goes_by_its_kind(kind, found):
    start = msgspec.structs.replace(samples.startup(), kind=kind)
    earlier = waterfall.earlier_of(samples.run(), item(start, "start with a hang"))
    assert (earlier and pytest.approx(earlier["ready_s"])) == found


def test_seconds_from_a_first_line_do_not_stand_beside_seconds_from_a_launch():
    start = msgspec.structs.replace(samples.startup(), launched_at_is="first line")
    assert waterfall.earlier_of(samples.run(), item(start)) is None


def test_another_engine_or_model_is_named():
    past = {**samples.earlier("warm"), "version": "0.5.11", "model": "/models/other"}
    panel = drawn(samples.run(startups=(item(samples.startup()),), earlier_starts={"warm": past}))
    assert panel.note.endswith("ready after 73.6 s, SGLang 0.5.11, model /models/other")


def test_a_far_longer_start_behind_does_not_squeeze_this_one():
    panel = drawn(samples.run(startups=(item(samples.startup()),), earlier_starts={"warm": samples.earlier("cold")}))
    marks = [each.removesuffix(" min") for each in texts(panel)]
    assert max(int(each) for each in marks if each.isdigit()) <= 2, "minutes at the axis"
    assert "ready after 21 min 22 s" in panel.note


def test_a_phase_that_never_ended_has_no_difference():
    panel = drawn(samples.run(startups=(item(samples.startup(hang=True), "start with a hang"),)))
    assert "not ended" in texts(panel)
    assert not [each for each in texts(panel) if each.startswith(("+", "−"))]


@pytest.mark.parametrize(
    "odd", [7, {"phases": 7}, {"phases": [{"odd": 1}], "ready_s": 3}, {"phases": [{"id": "x"}], "ready_s": "soon"}]
)
def test_an_outline_that_cannot_be_understood_costs_only_itself(odd):
    panel = drawn(samples.run(startups=(item(samples.startup()),), earlier_starts={"warm": odd}))
    assert panel.note == "warm start, ready after 75.1 s, budget 90 s"
    assert outlines(panel) == 0
