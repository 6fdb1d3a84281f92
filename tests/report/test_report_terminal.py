"""The table of promises at the end of a run, and the last two lines."""

from __future__ import annotations

import msgspec
import pytest
import report_samples as samples

from pytest_sglang.record.run import NotChecked
from pytest_sglang.record.values import Finding
from pytest_sglang.report import cells, state, terminal


def lines(run, width=80, colours=False):
    return [text for text, _ in terminal.promise_table(run, width, colours)]


def test_what_was_not_checked_stands_first_with_its_reason():
    told = lines(samples.partial_run())
    assert told[1:4] == [
        "not checked:",
        "  warm-restart: restarts the server: not without --sglang-allow-restart",
        "  cold-start: sets the caches aside: not without --sglang-allow-cold",
    ]


def test_a_full_pass_has_a_line_for_each_check_and_nothing_else():
    told = lines(samples.run())
    assert len(told) == 2 + 9
    assert told[8] == "decode-throughput at 250 W   43.4 tok/s  >= 42 tok/s  pass"


def test_failing_first_with_one_cause_each():
    told = lines(samples.mixed_run())
    first = told.index(next(each for each in told if each.startswith("power-limit at 390 W")))
    assert told[first].endswith("FAIL")
    assert told[first + 1].startswith("    the limit of GPU 3 fell back")
    assert any(each.endswith("pass (marginal)") for each in told)
    assert any(each.startswith("warning: sglang.service: restarted by itself") for each in told)


def test_a_failing_finding_is_told_only_where_no_check_told_it():
    owned = Finding("k", "fail", "GPU 3", "owned", check_id="power-limit")
    loose = Finding("k", "fail", "GPU 4", "loose", "reseat it")
    told = lines(samples.run(findings=(owned, loose)))
    assert "failure: GPU 4: loose (reseat it)" in told
    assert not any("owned" in each for each in told)


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize("run", [samples.run(), samples.partial_run(), samples.mixed_run()])
def test_it_fits_the_terminal(run, width):
    assert max(map(len, lines(run, width))) <= min(width, terminal.WIDEST)


def test_ids_give_way_where_the_terminal_is_narrow():
    told = lines(samples.run(), 60)
    assert max(map(len, told)) <= 60
    assert any(each.startswith("decode-throughput") and "…" in each and each.endswith("pass") for each in told)


def test_simulated_is_in_the_heading():
    assert "SIMULATED" in lines(samples.run())[0]
    assert "SIMULATED" not in lines(samples.partial_run())[0]


def test_markup_follows_the_verdict_and_is_empty_without_colours():
    coloured = terminal.promise_table(samples.mixed_run(), 80, True)
    assert next(markup for text, markup in coloured if text.endswith("FAIL")) == {"red": True, "bold": True}
    assert next(markup for text, markup in coloured if text.endswith("INCONCLUSIVE")) == {"yellow": True, "bold": True}
    assert all(markup == {} for _, markup in terminal.promise_table(samples.mixed_run(), 80, False))


def test_no_check_at_all_is_said():
    assert "no check was made" in lines(samples.run(()))


def test_last_line_is_the_headline():
    assert terminal.last_line(samples.partial_run()) == "PASS 7 of 9, 2 not checked"


def test_rig_as_left():
    assert (
        terminal.as_left_line(samples.partial_run())
        == "rig as left: limits 250 W x 6, sglang.service active (pid 4711), caches in place"
    )
    assert terminal.as_left_line(samples.run()).endswith("caches in place (SIMULATED)")
    assert terminal.as_left_line(samples.run(as_left={}, simulated=False)) == "rig as left: not read back"
    assert terminal.as_left_line(samples.run(as_left={}, finished=None, simulated=False)).startswith(
        "rig as left: not read back yet"
    )


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"0": 250.0, "1": 250.0}, "limits 250 W x 2"),
        ({"0": 250.0, "1": 350.0, "2": 250.0}, "limits 250 W x 2, 350 W (GPU 1)"),
        ({"0": 250.0, "1": 250.0, "2": 350.0, "3": 350.0}, "limits 250 W x 2, 350 W (GPU 2, 3)"),
        ({"0": "no permission", "1": 250.0}, "limits 250 W x 1, unreadable: no permission (GPU 0)"),
        ({"0": None}, "limits unreadable: None (GPU 0)"),
    ],
)
def test_limits_are_told_together_where_they_are_equal(limits, text):
    assert state.limits_text(limits) == text


@pytest.mark.parametrize(
    ("server", "text"),
    [
        ({"subject": "u.service", "active": True, "pid": 7, "health": 200}, "u.service active (pid 7)"),
        ({"subject": "u.service", "active": True, "pid": 7, "health": 503}, "u.service active (pid 7, health 503)"),
        ({"subject": "u.service", "active": True, "pid": None, "health": None}, "u.service active (pid unknown, does not answer)"),
        ({"subject": "u.service", "active": False, "detail": "failed"}, "u.service not active (failed)"),
        ({"active": False}, "server not active"),
        ({"subject": "command", "active": False, "run_owned": True}, "command stopped (it was this run's own)"),
        ({"subject": "u.service", "unreadable": "OSError: x"}, "u.service unreadable: OSError: x"),
    ],
)
def test_server_as_left(server, text):
    assert state.server_text(server) == text


def test_caches_still_aside_are_named():
    assert state.line({"caches_aside": ["/c/triton"]}, "-") == "caches still set aside: /c/triton"


def test_what_was_left_out_for_one_reason_stands_in_one_place():
    missing = tuple(NotChecked(each, "deselected") for each in ("ready", "power-limit at 250 W", "nvlink"))
    told = lines(samples.run(not_checked=missing))
    assert told[2] == "  deselected: ready, power-limit at 250 W, nvlink"


def test_quieter_counts_what_passes_and_silent_has_no_table():
    run = samples.mixed_run()
    told = [text for text, _ in terminal.promise_table(run, 80, False, -1)]
    assert "5 pass" in told
    assert not any(each.startswith("gpu-identity") for each in told)
    assert any(each.startswith("warm-restart") and each.endswith("FAIL") for each in told)
    assert [text for text, _ in terminal.promise_table(samples.run(), 80, False, -1)][-1] == "9 pass"
    assert terminal.promise_table(run, 80, False, -2) == []


def test_verbose_says_what_else_was_measured():
    told = [text for text, _ in terminal.promise_table(samples.run(), 80, False, 1)]
    assert "interval 43.1 to 43.7" in " ".join(" ".join(told).split())
    assert "    A cache-warm restart is ready within its budget without recompiling." in told
    assert max(map(len, told)) <= 80


def test_columns_hold_with_characters_of_two_cells():
    run = samples.run(rig={"name": "屋根裏の計算機" * 8})
    wide = samples.check("日本語の約束", "fail", cause="電源制限が元に戻りました" * 12)
    told = lines(msgspec.structs.replace(run, checks=(wide, *run.checks), verdict="fail"))
    assert max(map(cells.width, told)) <= 80
    row = next(each for each in told if each.startswith("日本語"))
    head = next(each for each in told if each.endswith("verdict"))
    assert cells.width(row[: row.index("FAIL")]) == head.index("verdict")


def test_a_number_and_its_unit_stay_in_one_line():
    assert cells.wrapped("limits of 250 W hold", 14) == ["limits of", "250 W hold"]
