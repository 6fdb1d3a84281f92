"""A part is never a PASS: whatever leaves checks out, the last line, the record and the exit code say so."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import CHECKS
from suite import run_suite

QUICK = "--sglang-level=1"


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    assert lines[-1].startswith("rig as left:"), lines[-3:]
    return lines[-2]


def test_level_1_puts_no_load_and_says_what_it_left_out(tmp_path: Path) -> None:
    done, run = run_suite(tmp_path, "--power=250", QUICK, "-k", "not restart and not cold")
    assert done.returncode == 0, done.stdout[-3000:]
    assert last_line(done.stdout).startswith(f"PASS {len(CHECKS) - 7} of {len(CHECKS)}, 7 not checked")
    assert not list(tmp_path.glob("reports/*/rounds.jsonl"))
    left_out = {each["id"]: each["reason"] for each in run["not_checked"]}
    assert "level 1" in left_out["decode-throughput at 250 W"]
    assert "level 1" in left_out["links-under-load"]
    assert "level 1" in left_out["throttling at 250 W"]
    assert "level 1" in left_out["answers"]
    assert left_out["warm-restart"] == "deselected"
    assert done.stdout.index("not checked") < done.stdout.index("gpu-identity ", done.stdout.index("not checked"))


def test_require_all_turns_a_pass_over_one_file_into_6(tmp_path: Path) -> None:
    done, run = run_suite(tmp_path, "--power=250", "--sglang-require-all", "-k", "power_limit")
    assert done.returncode == 6, done.stdout[-3000:]
    assert run["verdict"] == "inconclusive"
    assert [check["verdict"] for check in run["checks"]] == ["pass"]
    assert len(run["not_checked"]) == len(CHECKS) - 1
    assert not last_line(done.stdout).startswith("PASS")


@pytest.mark.parametrize("arguments", [("--benchmark-only",), ("-k", "nothing_matches_this")])
def test_a_run_in_which_nothing_was_checked_is_not_green(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done, _ = run_suite(tmp_path, "--power=250", *arguments)
    assert done.returncode not in (0, 1), done.stdout[-2000:]
    assert "PASS" not in done.stdout.replace("PASSED", "")


def test_without_power_the_power_dependent_checks_are_not_checked(tmp_path: Path) -> None:
    done, run = run_suite(tmp_path, QUICK, "-k", "not restart and not cold")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "no --power given" in next(each["reason"] for each in run["not_checked"] if each["id"] == "power-limit")


def test_a_level_outside_the_cards_range_is_refused_before_anything_runs(tmp_path: Path) -> None:
    done, run = run_suite(tmp_path, "--power=500")
    assert done.returncode == 4
    assert "390 W" in done.stderr + done.stdout
    assert "GPU 0" in done.stderr + done.stdout
    assert run == {}


def test_the_plan_touches_nothing(tmp_path: Path) -> None:
    done, run = run_suite(tmp_path, "--power=250", "--sglang-plan")
    assert done.returncode == 0, done.stdout + done.stderr
    assert run == {}
    assert "restarts: 3" in done.stdout
    assert "SIMULATED" in done.stdout
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("-n", "2"), "leave -n away"),
        (("--reruns", "2"), "not rerun until it passes"),
        (("--power=soon",), "not a power in watts"),
        (("--sglang-level=7",), "must be one of 1, 2, 3"),
        (("--power=250", "--sglang-fault=slow-decod"), "did you mean slow-decode?"),
    ],
)
def test_wrong_usage_is_one_clear_message_and_exit_4(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    done, run = run_suite(tmp_path, *arguments)
    assert done.returncode == 4, done.stdout + done.stderr
    assert told in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    assert run == {}


def test_without_a_terminal_reporter_the_verdict_is_the_same_and_is_told(tmp_path: Path) -> None:
    """``-p no:terminal``: a test of the user's that fails is counted by nobody but pytest itself, and fails the run all the same."""
    suite = tmp_path / "mine"
    suite.mkdir()
    (suite / "pytest.ini").write_text("[pytest]\n")
    (suite / "test_mine.py").write_text("def test_other(): assert 0\ndef test_ours(gpu_power): assert len(gpu_power.gpus) == 6\n")
    done, run = run_suite(tmp_path, "--power=250", "-p", "no:terminal", tests=suite)
    assert done.returncode == 1, done.stdout + done.stderr
    assert run["exit_code"] == 1
    told = done.stdout.splitlines()
    assert told[0].startswith("FAIL: outside the checks, 1 of 1 pass (SIMULATED)")
    assert told[1].startswith("rig as left: ")
