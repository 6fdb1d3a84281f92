"""Distributions: what the samples earn is told, what they do not is told too."""

from __future__ import annotations

import random

from pytest_sglang.report import latency


def item(ttft, itl):
    return {"label": "250 W, 1 stream", "throughput": {"rounds": [{"ttft_s": ttft, "itl_s": itl, "invalid_because": None}]}}


def test_a_panel_for_each_latency_with_earned_percentiles():
    rng = random.Random(4)
    found = latency.panels("x", item([0.1, 0.11] * 6, [0.02 + rng.random() / 1000 for _ in range(2000)]))
    assert [each.heading for each in found] == [
        "250 W, 1 stream, TTFT (time to first token)",
        "250 W, 1 stream, ITL (between tokens)",
    ]
    assert found[0].note == "12 samples, median 105 ms, p90 not earned (44 samples needed)"
    assert "p99" in found[1].note
    assert all(each.svg is not None and len(each.svg) < 40_000 for each in found)


def test_a_few_samples_are_no_distribution_and_bad_rounds_do_not_count():
    few, many = latency.panels("x", item([0.1] * 9, [0.02, 0.03] * 5))
    assert (few.svg, few.missing) == (None, "Median 100 ms of 9 samples: a distribution needs 10.")
    assert many.svg is not None
    (one,) = latency.panels("x", item([0.1], []))
    assert one.missing == "Median 100 ms of 1 sample: a distribution needs 10."
    bad = item([0.1, 0.1], [0.02] * 9)
    bad["throughput"]["rounds"][0]["invalid_because"] = "someone else's traffic"
    assert latency.panels("x", bad) == []


def test_a_slow_tail_is_told_and_not_drawn():
    found = latency.panels("x", item([], [0.02] * 3000 + [5.0]))
    assert found[0].note.endswith("1 slower than drawn, slowest 5e+03 ms")
