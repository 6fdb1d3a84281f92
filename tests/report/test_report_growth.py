"""What a start added to the caches: bars, words, nothing new, unreadable, and records that kept no sizes."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
import report_samples as samples

from pytest_sglang.report import charts, growth

SPACE = "{http://www.w3.org/2000/svg}"


def texts(panel):
    return [element.text for element in ElementTree.fromstring(panel.svg).iter(f"{SPACE}text")]


def described(panel):
    return ElementTree.fromstring(panel.svg).find(f"{SPACE}desc").text


def one(diff, **start):
    return growth.panel("x", {"label": "warm restart", "startup": {"kind": "warm", "cache_diff": diff, **start}})


def test_each_start_tells_what_it_added_to_which_cache():
    warm, cold, *_ = charts.cache_chart(samples.run()).panels
    assert warm.note == "warm start, 118 → 147 entries, +285 kB, no new kernel name"
    assert cold.note == "cold start, 0 → 118 entries, +1.1 MB, 30 new kernel names"
    assert {"+285 kB", "29 new variants of 2 kernels", "nothing new", "44.5 kB", "FX graphs"} <= set(texts(warm))
    assert {"30 new kernel names in 110 entries", "27 tuning results", "8 graphs", "+16.7 kB"} <= set(texts(cold))
    assert (
        "triton 1.1 MB before, 29 new variants of 2 kernels, +285 kB in 232 files; inductor 44.5 kB before, nothing new"
        in described(warm)
    )


def test_a_start_that_added_nothing():
    before = [{"cache": "triton", "path": "/c", "entries": 5, "files": 40, "bytes": 2_000_000}]
    panel = one({"caches": [], "before": before, "before_entries": 5})
    assert panel.note == "warm start, nothing new"
    assert "nothing new" in texts(panel)
    assert "2.0 MB" in texts(panel)


def test_what_cannot_be_read_is_never_nothing_new():
    before = [{"cache": name, "path": f"/c/{name}", "entries": 5, "files": 40, "bytes": 2_000} for name in ("triton", "inductor")]
    why = "triton cache /c/triton/ABC: Permission denied"
    panel = one({"caches": [], "before": before, "before_entries": 5, "unreadable": [why]})
    assert panel.note == f"warm start, not readable: {why}, nothing new where it could be read"
    assert {"not readable", "Permission denied", "nothing new"} <= set(texts(panel))
    assert "triton not readable (Permission denied)" in described(panel)
    nothing = one({"caches": [], "before": [], "before_entries": 0, "unreadable": [why]})
    assert nothing.missing == "Nothing can be told."


def test_a_cache_inside_another_is_the_unreadable_one():
    paths = ("/c/inductor", "/c/inductor/triton")
    before = [{"cache": path.rpartition("/")[2], "path": path, "bytes": 7} for path in paths]
    panel = one({"caches": [], "before": before, "unreadable": ["inductor_triton cache /c/inductor/triton/0: Permission denied"]})
    assert described(panel).count("not readable (Permission denied)") == 1
    assert "triton not readable" in described(panel)


def test_a_record_without_sizes_says_so():
    diff = {"caches": [{"cache": "triton", "path": "/c", "files": 8, "bytes": 900, "new_variants": {"k": 1}}], "before_entries": 9}
    panel = one({**diff, "bytes": 900})
    assert panel.note == "warm start, 9 → 10 entries, +900 B, no new kernel name, sizes before are not in this record"
    assert "1 new variant of 1 kernel" in texts(panel)
    assert "before," not in described(panel)


def test_kernels_that_came_after_readiness_are_told():
    diff = {"caches": [{"cache": "triton", "path": "/c", "files": 8, "bytes": 900, "new_kernels": {"k": 1}}], "new_kernels": ["k"]}
    panel = one(diff, after_ready={"new_kernels": ["k"]})
    assert panel.note.endswith("1 new kernel name, 1 of them after it was ready")


@pytest.mark.parametrize(
    ("diff", "missing"),
    [
        (None, "The caches were not looked at around this start."),
        ({"caches": []}, "No cache was found where one was looked for."),
    ],
)
def test_without_caches_the_reason_stands_in_place(diff, missing):
    assert one(diff).missing == missing


def test_size_over_the_runs_before():
    *_, warm, cold = charts.cache_chart(samples.run()).panels
    assert warm.heading == "warm starts of 3 runs"
    assert texts(warm) == ["1.0 MB", "1.4 MB"]
    assert described(warm) == "2026-11-21 1.0 MB, 2026-11-23 1.2 MB, 2026-11-24 1.4 MB."
    assert cold.heading == "cold starts of 3 runs"
    assert len(charts.cache_chart(samples.run(earlier_starts={})).panels) == 2


@pytest.mark.parametrize(
    ("size", "told"), [(0, "0 B"), (999, "999 B"), (201_000, "201 kB"), (9_903_289, "9.9 MB"), (1.6e11, "160 GB")]
)
def test_amounts(size, told):
    assert growth.amount(size) == told
