"""What has changed since the last pass: on the page, in the terminal, in the job summary."""

from __future__ import annotations

import re

import msgspec
import pytest
import report_samples as samples

from pytest_sglang.report import github, since, standalone, summary, terminal

DIFFERENCES = [
    {"name": "power_levels_w", "before": [250.0], "after": [390.0]},
    {"name": "driver", "before": "580.95.05", "after": "580.159.03"},
    {"name": "flag --mem-fraction-static", "before": "0.65", "after": None},
    *({"name": f"gpu {number} enforced_power_limit_w", "before": 250.0, "after": 390.0} for number in range(6)),
    {"name": "gpu 3 pcie_width", "before": 16, "after": 8},
    {"name": "gpu 2 memory_bytes", "before": 25769803776, "after": 12884901888},
    {"name": "promise throughput 250 W, with NVLink.min_tok_s", "before": 38.0, "after": 42.0},
]
PASS = "2026-11-23T01-53-00Z-250W-simulated-ab12"


def after(run, differences=DIFFERENCES, **more):
    found = {
        "run_id": PASS,
        "started": "2026-11-23T01:53:00.000Z",
        "power_levels_w": list(run.power_levels_w),
        "differences": list(differences),
        "measured": {"power-limit at 390 W": {"value": 390.0, "unit": "W", "quantity": "enforced_power_limit_w"}},
    }
    return msgspec.structs.replace(run, since_pass={**found, **more})


def test_differences_read_as_a_person_would_say_them():
    assert [each.text("→") for each in since.changes(DIFFERENCES)] == [
        "power level 250 W → 390 W",
        "driver 580.95.05 → 580.159.03",
        "argument --mem-fraction-static 0.65 → not given",
        "GPU 0 to 5 power limit 250 W → 390 W",
        "GPU 3 PCIe width 16 → 8",
        "GPU 2 memory 24 GiB → 12 GiB",
        "promise throughput 250 W, with NVLink.min 38 tok/s → 42 tok/s",
    ]


@pytest.mark.parametrize(
    ("name", "before", "after", "text"),
    [
        ("faults", [], ["nvlink-dead"], "injected faults none -> nvlink-dead"),
        ("engine", "0.5.11", "0.5.23", "SGLang 0.5.11 -> 0.5.23"),
        ("package sgl_kernel", "0.3", "0.4", "sgl-kernel 0.3 -> 0.4"),
        ("argument enable_metrics", False, True, "argument --enable-metrics off -> on"),
        ("gpu 5", "RTX 3090", None, "GPU 5 RTX 3090 -> not there"),
        ("gpu 1 ecc", None, True, "GPU 1 ECC not known -> on"),
        ("promise start.warm_s", 90.0, 60.0, "promise start.warm 90 s -> 60 s"),
        ("promise nvlink.pairs", [[0, 1]], None, "promise nvlink.pairs 0, 1 -> not given"),
        ("kernel", None, "6.12", "kernel not known -> 6.12"),
        ("flag --chat-template", "a" * 100, "b", f"argument --chat-template {'a' * 29}…{'a' * 29} -> b"),
    ],
)
def test_each_kind_of_name(name, before, after, text):
    (told,) = since.changes([{"name": name, "before": before, "after": after}])
    assert told.text() == text


def test_cards_that_changed_alike_stand_together_and_others_alone():
    def moved(number, width):
        return {"name": f"gpu {number} pcie_width", "before": 16, "after": width}

    told = since.changes([moved(0, 8), moved(2, 8), moved(1, 4)])
    assert [each.text() for each in told] == ["GPU 0, 2 PCIe width 16 -> 8", "GPU 1 PCIe width 16 -> 4"]


def test_a_failing_run_tells_it_before_its_promises_and_a_passing_one_behind_them(tmp_path):
    (tmp_path / PASS).mkdir()
    (tmp_path / PASS / "report.html").touch()
    for run, first in ((samples.mixed_run(), "sg-since"), (samples.run(), "sg-promises")):
        page = "".join(summary.summary_html(after(run), folder=tmp_path / "mine")[1:])
        assert min(("sg-since", "sg-promises"), key=page.index) == first
        assert f'<a href="../{PASS}/report.html">' in page
        assert "23 Nov 2026" in page
        # a run that is not beside this one is named without a link
        assert f'{PASS}/report.html"' not in "".join(summary.summary_html(after(run), folder=tmp_path / "else" / "where"))
        assert re.search(r">GPU 3 PCIe width</th><td[^>]*>16</td><td[^>]*>8</td>", page)


def test_a_failing_promise_says_what_it_was_at_the_last_pass():
    page = standalone.render(after(samples.mixed_run()))
    assert "At the last pass: 390.0 W." in page or "At the last pass: 390 W." in page
    assert page.count("At the last pass") == 1


def test_nothing_changed_no_pass_and_not_looked_are_three_things():
    run = samples.mixed_run()
    assert "Nothing that is recorded has changed" in standalone.render(after(run, []))
    none = standalone.render(msgspec.structs.replace(run, since_pass={"looked_in": "reports"}))
    assert "no earlier pass of this rig in reports/" in none
    assert "Since the last pass" not in standalone.render(run)


def test_another_power_level_is_named():
    page = standalone.render(after(samples.run(), power_levels_w=[390.0]))
    assert "at 390 W: no earlier pass was at this power level" in page


def test_many_differences_are_folded_behind_the_first():
    many = [{"name": f"package p{number}", "before": 1, "after": 2} for number in range(30)]
    page = standalone.render(after(samples.run(), many))
    assert "<summary>18 more</summary>" in page


def test_the_terminal_tells_a_failing_run_in_at_most_three_lines():
    told = [text for text, _ in terminal.promise_table(after(samples.mixed_run()), 80, False)]
    first = next(place for place, text in enumerate(told) if text.startswith("since the last pass (23 Nov 2026, "))
    lines = [told[first], *(text for text in told[first + 1 : first + 3] if text.startswith("    "))]
    assert 2 <= len(lines) <= 3
    assert max(map(len, lines)) <= 80
    whole = " ".join(" ".join(lines).split())
    assert "driver 580.95.05 -> 580.159.03" in whole
    assert re.search(r"and \d more$", whole)


@pytest.mark.parametrize("width", [40, 60, 80, 110])
def test_it_never_takes_more_room_than_it_has(width):
    long = [{"name": "flag --x", "before": "v" * 500, "after": "w" * 500}, *DIFFERENCES]
    for differences in (DIFFERENCES, long, DIFFERENCES[:1], []):
        lines = since.lines(after(samples.mixed_run(), differences), width)
        assert 1 <= len(lines) <= 3
        assert max(map(len, lines)) <= width


def test_a_passing_run_and_one_without_a_pass_have_no_line():
    for run in (
        after(samples.run()),
        samples.mixed_run(),
        msgspec.structs.replace(samples.mixed_run(), since_pass={"looked_in": "r"}),
    ):
        assert not [text for text, _ in terminal.promise_table(run, 80, False) if "since the last pass" in text]
        assert "ince the last pass" not in github.summary(run)


def test_the_job_summary_tells_it_above_the_table():
    text = github.summary(after(samples.mixed_run(), [{"name": "driver", "before": "a|b", "after": "<c>"}]))
    assert text.index("Since the last pass (23 Nov 2026") < text.index("| promise |")
    assert "driver a\\|b → &lt;c>" in text


@pytest.mark.parametrize(
    "found",
    [{"run_id": 5}, {"run_id": "x", "differences": [{}]}, {"run_id": "a/../b", "started": "never", "power_levels_w": ["x"]}],
)
def test_a_strange_record_still_renders(found, tmp_path):
    run = msgspec.structs.replace(samples.mixed_run(), since_pass=found)
    page = standalone.render(run, tmp_path)
    assert "Since the last pass" in page
    assert 'href="../' not in page
