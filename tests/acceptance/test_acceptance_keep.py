"""``--sglang-keep-cold-cache``: the new caches stay, the old ones are kept beside them and named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from suite import ROOT

from pytest_sglang.simulator.rig import SimulatedRig


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_new_caches_stay_and_the_old_ones_are_named(tmp_path: Path) -> None:
    rig = SimulatedRig.create(tmp_path / "rig", power_w=300)
    try:
        rig.start()
        triton = rig.config.triton_dir
        old, reports = files(triton), tmp_path / "reports"
        arguments = ["-k", "cold_start", "--sglang-keep-cold-cache", f"--sglang-simulated-dir={rig.directory}"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "acceptance", "--rig=simulated", f"--sglang-report-dir={reports}", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTEST_SGLANG_STATE_DIR": str(tmp_path / "state"), "COLUMNS": "100"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        run = json.loads(next(reports.glob("*/run.json")).read_text())
        kept = {each["subject"]: each for each in run["findings"] if each["kind"] == "caches-kept"}
        # a cache inside another one goes with it
        outer = next(each for each in kept if str(triton).startswith(each))
        (aside,) = Path(outer).parent.glob(f"{Path(outer).name}.aside-*")
        assert kept[outer]["detail"] == f"the old cache is kept at {aside}"
        assert kept[outer]["remedy"] == f"rm -r {aside}"
        assert old <= files(aside / triton.relative_to(outer))
        assert files(triton)
        assert rig.serving()
        # nothing is left to undo: what was kept was asked for
        assert not list((tmp_path / "state" / "journal").glob("*.jsonl"))
    finally:
        rig.destroy()
