"""A user's own suite: markers as limits, what xfail absorbs, JUnit and pytest-benchmark; one run, looked at from all sides."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest
from suite import run_suite

SUITE = """
import pytest


@pytest.mark.min_throughput("30 tok/s", power=250)
def test_holds(sglang_server):
    sglang_server.measure()


@pytest.mark.xfail(reason="known to be slower", strict=True)
@pytest.mark.min_throughput("60 tok/s", power=250)
def test_known_to_be_slow(sglang_server):
    sglang_server.measure(output_tokens=32)


@pytest.mark.min_throughput("10 tok/s")
def test_taken_over(sglang_server, power_level_w):
    assert sglang_server.last_throughput(power_level_w)


@pytest.mark.min_throughput("10 tok/s")
def test_forgets_to_measure(sglang_server): ...


@pytest.mark.xfail(reason="cannot be excused")
@pytest.mark.min_throughput("10 tok/s")
def test_expects_to_fail_and_forgets(sglang_server): ...


@pytest.mark.at_power(390)
def test_at_another_level(gpu_power): ...


def test_its_own_assertion(gpu_power):
    assert len(gpu_power.gpus) == 6


@pytest.fixture
def puts_back(gpu_power):
    from pytest_sglang.session.errors import Inconclusive

    yield
    raise Inconclusive("what it has changed cannot be read back")


@pytest.mark.sglang_check("own-teardown")
def test_with_a_teardown_that_cannot_tell(puts_back, gpu_power): ...
"""


class Ran(NamedTuple):
    done: subprocess.CompletedProcess[str]
    run: dict[str, Any]
    cases: dict[str, ElementTree.Element]
    benchmarks: list[dict[str, Any]]
    folder: Path

    def check(self, check_id: str) -> dict[str, Any]:
        return next(each for each in self.run["checks"] if each["id"] == check_id)


def write(folder: Path, text: str) -> Path:
    suite = folder / "mine"
    suite.mkdir()
    (suite / "pytest.ini").write_text("[pytest]\n")
    (suite / "test_mine.py").write_text(text)
    return suite


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("own")
    junit, rounds = folder / "junit.xml", folder / "rounds.json"
    saved = (f"--benchmark-storage=file://{folder / 'saved'}", "--benchmark-save=one")
    options = ("--power=250", f"--junitxml={junit}", f"--benchmark-json={rounds}", *saved, "-p", "no:randomly")
    done, run = run_suite(folder, *options, tests=write(folder, SUITE))
    assert run, done.stdout + done.stderr
    cases = {str(case.get("name")).split("[")[0]: case for case in ElementTree.parse(junit).getroot().iter("testcase")}
    return Ran(done, run, cases, json.loads(rounds.read_text())["benchmarks"], folder)


def test_a_limit_that_holds_passes(ran: Ran) -> None:
    check = ran.check("holds")
    assert (check["verdict"], check["limit"]["value"]) == ("pass", 30.0)
    assert ran.check("its-own-assertion")["verdict"] == "pass"


def test_what_was_measured_on_one_process_says_so(ran: Ran) -> None:
    """Boot id, pid and start: runs that find the same server know that it is the same."""
    names = [each["process"] for each in ran.run["throughputs"]]
    assert len(names) >= 2
    (name,) = set(names)
    boot, pid, ticks = name.split("/")
    assert boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert int(pid) > 1
    assert int(ticks) > 0


def test_xfail_works_for_a_limit_that_was_measured(ran: Ran) -> None:
    check = ran.check("known-to-be-slow")
    assert (check["verdict"], check["expected_failure"]) == ("fail", True)
    assert 30 < check["measured"]["decode_tok_s"]["value"] < 60
    assert "1 xfailed" in ran.done.stdout
    assert ran.run["verdict"] != "fail"


@pytest.mark.parametrize("check_id", ["forgets-to-measure", "expects-to-fail-and-forgets"])
def test_what_was_not_measured_is_inconclusive_and_no_xfail_absorbs_it(ran: Ran, check_id: str) -> None:
    check = ran.check(check_id)
    assert check["verdict"] == "inconclusive"
    assert "no throughput of 1 stream(s) was measured in this test" in check["message"]
    assert ran.done.returncode == 6, ran.done.stdout[-3000:]
    assert ran.run["verdict"] == "inconclusive"
    assert "PASS " not in ran.done.stdout.splitlines()[-2]


def test_junit_calls_the_inconclusive_an_error_and_carries_the_numbers(ran: Ran) -> None:
    case = ran.cases["test_forgets_to_measure"]
    (error,) = case.iter("error")
    assert error.get("type") == "inconclusive"
    assert "no throughput" in str(error.get("message"))
    assert not list(case.iter("failure"))
    properties = {each.get("name"): each.get("value") for each in ran.cases["test_holds"].iter("property")}
    assert properties["sglang.verdict"] == "pass"
    assert float(properties["sglang.measured.decode_tok_s"] or 0) > 30


def test_a_teardown_that_cannot_tell_makes_its_check_inconclusive_and_no_error(ran: Ran) -> None:
    check = ran.check("own-teardown")
    assert check["verdict"] == "inconclusive"
    assert check["inconclusive_because"] == "its teardown: what it has changed cannot be read back"
    # 1 would say that the rig broke a promise
    assert ran.done.returncode == 6
    (error,) = ran.cases["test_with_a_teardown_that_cannot_tell"].iter("error")
    assert "what it has changed cannot be read back" in str(error.text)


def test_a_test_for_another_level_is_not_checked_and_says_why(ran: Ran) -> None:
    reasons = {each["id"]: each["reason"] for each in ran.run["not_checked"]}
    assert "390 W only" in reasons["at-another-level"]
    assert "--power=250" in reasons["at-another-level"]


def test_benchmark_json_has_the_rounds_of_the_checks_that_measured_and_of_no_other(ran: Ran) -> None:
    assert "benchmark 'sglang'" in ran.done.stdout
    measured = {each["fullname"].split("::")[1].split("[")[0]: each for each in ran.benchmarks}
    assert set(measured) == {"test_holds", "test_known_to_be_slow"}
    entry, check = measured["test_holds"], ran.check("holds")
    assert entry["group"] == "sglang"
    assert entry["stats"]["rounds"] >= 5
    rate = check["measured"]["decode_tok_s"]["value"]
    assert entry["extra_info"]["decode_tok_s"] == pytest.approx(rate, rel=1e-3)
    assert {"ttft_ms", "mean_w", "j_per_token"} <= set(entry["extra_info"])


def test_junit_counts_its_cases_and_carries_the_run(ran: Ran) -> None:
    (suite,) = ElementTree.parse(ran.folder / "junit.xml").getroot().iter("testsuite")
    count = {name: len(list(suite.iter(name))) for name in ("testcase", "failure", "error", "skipped")}
    told = {name: int(suite.get(name) or 0) for name in ("tests", "failures", "errors", "skipped")}
    assert told == {"tests": count["testcase"], "failures": 0, "errors": count["error"], "skipped": count["skipped"]}
    assert count["error"] == 3
    properties = {each.get("name"): each.get("value") for each in suite.findall("properties/property")}
    assert properties["sglang.run.verdict"] == "inconclusive"
    assert properties["sglang.run.simulated"] == "true"
    assert "at-another-level" in str(properties["sglang.run.not_checked"])


def test_pytest_benchmarks_own_compare_reads_what_was_saved(ran: Ran) -> None:
    storage = f"--storage=file://{ran.folder / 'saved'}"
    command = [sys.executable, "-m", "pytest_benchmark", storage, "compare"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "holds [250 W, 1 stream]" in done.stdout


def test_the_promises_come_last_below_the_tables_of_other_plugins(ran: Ran) -> None:
    told = ran.done.stdout
    assert told.index("benchmark 'sglang'") < told.index(" promises: ") < told.index("INCONCLUSIVE 3 of")
    table = told[told.index("benchmark 'sglang'") :].splitlines()
    assert max(map(len, table[1:6])) <= 80


def test_a_bad_marker_is_one_message_that_names_the_test(tmp_path: Path) -> None:
    suite = write(tmp_path, 'import pytest\n@pytest.mark.min_throughput("38 bananas")\ndef test_it(sglang_server): ...\n')
    done, run = run_suite(tmp_path, "--power=250", tests=suite)
    assert done.returncode == 4, done.stdout
    assert "test_mine.py::test_it" in done.stderr
    assert "min_throughput" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert run == {}
