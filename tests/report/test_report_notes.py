"""What stands beside the numbers of a row that passes, and findings that are told as one."""

from __future__ import annotations

import msgspec
import report_samples as samples

from pytest_sglang.judge.links import UNPROMISED
from pytest_sglang.record.run import Limit, Measurement
from pytest_sglang.record.values import Finding
from pytest_sglang.report import alike, growth, notes, state, summary, terminal, view

TMP = "it lies in /tmp, which many systems empty at boot: the start after that is a cold one"


def cache(name, path, severity="warn", why=TMP):
    return Finding("cache-in-tmp", severity, path, f"{name} cache: {why}", f"Environment={name.upper()}_DIR=/var/lib/sglang/{name}")


def test_findings_count_contradictions_and_say_their_warnings():
    check = samples.check(
        "findings",
        quantity="findings",
        measured={"findings": Measurement(0, "count")},
        limit=Limit("<=", 0, "count"),
        findings=(cache("triton", "/a"), cache("inductor", "/b")),
    )
    row = view.row(check)
    assert (row.measured, row.limit, row.note) == ("0 contradictions", "0", "2 warnings, listed below")
    told = [text.strip() for text, _ in terminal.promise_table(samples.run((check,)), 80, False)]
    assert "2 warnings, listed below" in told


def links(count, wanted, message):
    limit = Limit(">=", wanted, "count")
    measured = {"nvlink_links": Measurement(count, "count")}
    return view.row(samples.check("nvlink", quantity="nvlink_links", measured=measured, limit=limit, message=message))


def test_links_without_a_promised_number_have_no_margin():
    row = links(18, 1, f"1 NVLink pairs are up; {UNPROMISED}; 18 seen")
    assert (row.margin, row.note) == ("", "link count not promised: any link up is enough; 18 seen")
    assert (links(1, 1, "1 NVLink pairs are up with 1 links each").note) == ""
    row = links(5, 4, "3 NVLink pairs are up with 4 links each")
    assert (row.margin, row.note) == ("+1", "")


def test_a_load_that_nothing_held_says_none():
    def note(*, heat=0.0, limit=0.0, found=()):
        measured = {"throttled_pct": Measurement(heat, "%"), "power_cap_pct": Measurement(limit, "%")}
        return view.row(samples.check("throttling", quantity="throttled_pct", measured=measured, findings=found)).note

    assert note() == "clocks event reasons: none"
    assert note(limit=92.0) == note(heat=0.4) == note(found=(Finding("clocks", "warn", "GPU 0", "sync_boost", ""),)) == ""


def test_missing_energy_says_why():
    item = samples.throughput_item(250.0, 43.4, 42.0, None)
    for each in item["throughput"]["rounds"]:
        each.update(joules=None, joules_missing="GPU 0: window too short")
    rate = item["throughput"]["decode_tok_s"]
    measured = {"decode_tok_s": Measurement(float(f"{rate:.6g}"), "tok/s"), "ttft_ms": Measurement(80.0, "ms")}
    check = samples.check("decode-throughput", quantity="decode_tok_s", measured=measured, power_w=250.0)
    (row,) = view.rows(samples.run((check,), throughputs=(item,)))
    assert row.note == "no power and energy: GPU 0: window too short"
    known = {**measured, "mean_w": Measurement(900.0, "W")}
    (row,) = view.rows(samples.run((msgspec.structs.replace(check, measured=known),), throughputs=(item,)))
    assert row.note == ""


def test_energy_and_interval_are_one_number_each():
    measured = {"joules": Measurement(8960.2, "J"), "error_j": Measurement(452.4, "J"), "sm_mhz": Measurement(1980.0, "MHz")}
    check = samples.check("x", measured=measured)
    assert view.row(check).numbers == (("energy of the boards", "8,960 ± 452 J"), ("SM clock", "1,980 MHz"))
    assert notes.interval_name(samples.run()) == "99 % interval"
    page = " ".join(summary.summary_html(samples.run()))
    assert "the 99 % interval of the median of this boot only; boots differ." in page


def test_numbers_of_one_load_are_told_once():
    numbers = {name: Measurement(float(place), "ms") for place, name in enumerate("abcdef")}
    first = samples.check("decode-throughput", measured=numbers, power_w=250.0)
    second = samples.check("throttling", measured={**numbers, "own": Measurement(1.0, "%")}, power_w=250.0)
    other = samples.check("throttling", measured=numbers, power_w=390.0)
    told = [text.strip() for text, _ in terminal.promise_table(samples.run((first, second, other)), 80, False, 1)]
    assert "own 1.00 %, the rest as decode-throughput" in told
    assert sum(each.startswith("a 0.00 ms, b 1.00 ms") for each in told) == 2


def test_caches_alike_are_one_finding_with_their_paths_below():
    some = [cache("triton", "/a"), Finding("x", "warn", "s", "d", ""), cache("inductor", "/b"), cache("cuda", "/c", "fail")]
    both, other, failed = alike.told(some)
    assert both.text == f"2 caches: each {TMP.removeprefix('it ')}"
    assert both.members == (
        ("triton: /a", "Environment=TRITON_DIR=/var/lib/sglang/triton"),
        ("inductor: /b", "Environment=INDUCTOR_DIR=/var/lib/sglang/inductor"),
    )
    assert (other.text, other.members) == ("s: d", ())
    assert (failed.severity, failed.text) == ("fail", f"/c: cuda cache: {TMP}")
    lines = [text for text, _ in terminal.promise_table(samples.run(findings=tuple(some[:3])), 80, False)]
    place = next(place for place, text in enumerate(lines) if text.startswith("warning: 2 caches: each lies in /tmp"))
    assert any("triton: /a (Environment=TRITON_DIR=" in text for text in lines[place:])


def test_alike_keeps_other_remedies_apart():
    mend = [Finding("k", "warn", "/a", "triton cache: r", "chown -R u /a"), Finding("k", "warn", "/b", "cuda cache: r", "mount x")]
    assert len(alike.told(mend)) == 2


def test_what_the_run_starts_itself_was_not_there_before():
    own = {"server": {"subject": "command", "active": False, "run_owned": True}, "caches_aside": []}
    assert state.found_line(own, "-") == "no server running (this run starts its own), caches in place"
    unit = {"server": {"subject": "u.service", "active": True, "pid": 7, "health": 200}}
    assert state.found_line(unit, "-") == state.line(unit, "-")
    assert state.found_line({}, "not recorded") == "not recorded"


def test_sizes_of_one_day_are_told_by_the_time():
    points = [("2026-11-27T20:02:00.000Z", 1000), ("2026-11-27T21:40:00.000Z", 2000)]
    assert growth.sizes("x", {"label": "warm", "points": points}).note.endswith("2026-11-27, 20:02 to 21:40 UTC")
    points[0] = ("2026-11-26T20:02:00.000Z", 1000)
    assert growth.sizes("x", {"label": "warm", "points": points}).note.endswith("2026-11-26 to 2026-11-27")
