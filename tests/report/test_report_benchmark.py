"""Rounds in pytest-benchmark: its table, its JSON, its comparison; nothing where it is missing or switched off."""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace

import msgspec
import pytest
import report_samples as samples

from pytest_sglang.report import benchmark

CONFTEST = """
import pytest
import report_samples as samples
from pytest_sglang.report import benchmark

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item):
    found = samples.throughput(250.0, float(item.config.getoption("--rate")))
    item.config.fed = benchmark.feed(
        getattr(item.config, "_benchmarksession", None),
        name="decode-throughput[250 W]",
        fullname=item.nodeid,
        group="250 W, 1 stream",
        rounds=(*found.rounds, *found.discarded),
        extra_info=benchmark.extra_info(found),
    )

def pytest_addoption(parser):
    parser.addoption("--rate", default="43.4")

def pytest_unconfigure(config):
    print("FED", getattr(config, "fed", None))
"""


@pytest.fixture
def session(pytester, monkeypatch):
    """Runs pytest in a process of its own, with pytest-benchmark and without any other plugin."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)]))
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile("def test_decode_throughput(): pass")

    def run(*arguments, plugins=("-p", "pytest_benchmark.plugin")):
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *plugins, *arguments)

    return run


def test_rounds_are_in_the_table_and_in_the_json(session, pytester):
    result = session("--benchmark-json=out.json")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*benchmark '250 W, 1 stream'*", "*decode-throughput?250 W?*", "FED True"])
    (entry,) = json.loads((pytester.path / "out.json").read_text())["benchmarks"]
    found = samples.throughput(250.0, 43.4)
    assert entry["fullname"] == "test_rounds_are_in_the_table_and_in_the_json.py::test_decode_throughput"
    assert entry["stats"]["rounds"] == 8
    assert entry["stats"]["data"] == pytest.approx([256 / each.end_to_end_tok_s for each in found.rounds])
    assert entry["extra_info"]["decode_tok_s"] == pytest.approx(found.decode_tok_s, abs=1e-3)
    assert {"ttft_ms", "mean_w", "j_per_token", "streams"} <= set(entry["extra_info"])


def test_a_saved_run_can_be_compared(session):
    session("--benchmark-save=before").assert_outcomes(passed=1)
    session("--benchmark-compare", "--benchmark-compare-fail=median:5%").assert_outcomes(passed=1)
    slower = session("--benchmark-compare", "--benchmark-compare-fail=median:5%", "--rate=38")
    slower.stdout.fnmatch_lines(["*(NOW)*"])
    slower.stderr.fnmatch_lines(["*Performance has regressed*"])


@pytest.mark.parametrize("arguments", ["--benchmark-disable", "--benchmark-skip"])
def test_switched_off_it_changes_nothing(session, arguments):
    result = session(arguments)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["FED False"])
    result.stdout.no_fnmatch_line("*benchmark '250 W*")


def test_missing_it_changes_nothing(session):
    result = session(plugins=())
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["FED False"])


def feed(target, rounds):
    return benchmark.feed(target, name="n", fullname="f", group=None, rounds=rounds, extra_info={})


def test_an_entry_carries_samples_and_numbers():
    target = SimpleNamespace(disabled=False, skip=False, benchmarks=[])
    found = samples.throughput(250.0, 43.4)
    assert benchmark.feed(target, name="n", fullname="f", group="g", rounds=found.rounds, extra_info={"mean_w": 970.0})
    (entry,) = target.benchmarks
    told = entry.as_dict()
    assert (told["name"], told["fullname"], told["group"], told["extra_info"]) == ("n", "f", "g", {"mean_w": 970.0})
    assert told["stats"]["rounds"] == 8
    assert not entry.has_error


def test_without_a_valid_round_nothing_is_fed():
    target = SimpleNamespace(disabled=False, skip=False, benchmarks=[])
    assert not feed(target, samples.throughput(250.0, 43.4).discarded)
    assert not feed(target, ())
    assert target.benchmarks == []


def test_uninstalled_it_changes_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytest_benchmark.stats", None)
    target = SimpleNamespace(disabled=False, skip=False, benchmarks=[])
    assert not feed(target, samples.throughput(250.0, 43.4).rounds)


def test_seconds_of_a_request():
    (first, *_) = samples.throughput(250.0, 43.4).rounds
    assert benchmark.seconds_per_request(first) == pytest.approx(first.end_s - first.begin_s)
    four = msgspec.structs.replace(first, output_tokens=1024, ttft_s=(0.1,) * 4)
    assert benchmark.seconds_per_request(four) == pytest.approx(256 / first.end_to_end_tok_s)
    assert benchmark.seconds_per_request(msgspec.structs.replace(first, end_to_end_tok_s=None)) == pytest.approx(
        first.end_s - first.begin_s
    )
    assert benchmark.seconds_per_request(msgspec.structs.replace(first, end_to_end_tok_s=None, end_s=first.begin_s)) is None
    assert benchmark.seconds_per_request(msgspec.structs.replace(first, invalid_because="traffic")) is None


def test_numbers_that_were_not_read_are_left_out():
    found = samples.throughput(250.0, 43.4)
    blind = msgspec.structs.replace(
        found, rounds=tuple(msgspec.structs.replace(each, joules=None, ttft_s=()) for each in found.rounds), ci_low=None
    )
    told = benchmark.extra_info(blind)
    assert not {"mean_w", "j_per_token", "ttft_ms", "ci_low_tok_s"} & set(told)
    assert told["ci_high_tok_s"] == pytest.approx(found.ci_high, abs=1e-3)
    assert benchmark.extra_info(found)["mean_w"] == pytest.approx(970, abs=1)
