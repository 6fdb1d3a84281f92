"""Attached only: nothing is started or stopped whatever is allowed, and everything that cannot be claimed is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from suite import ROOT
from test_acceptance_partial import last_line

from pytest_sglang.server.http import ControlPlane
from pytest_sglang.simulator.rig import free_port

FAKE = ROOT / "tests" / "server" / "fake_sglang.py"
RIG = """
schema = 1
[rig]
name = "house"
[server]
url = "http://127.0.0.1:{port}"
model = "/models/tiny"
tp = 1
[start]
warm = "60 s"
cold = "25 min"
[[throughput]]
min = "20 tok/s"
"""


def test_an_attached_server_gives_a_partial_pass_that_names_the_rest(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "rig.toml").write_text(RIG.format(port=port))
    environment = {**os.environ, "HOME": str(tmp_path), "PYTEST_SGLANG_STATE_DIR": str(tmp_path / "state"), "COLUMNS": "80"}
    with subprocess.Popen(
        [sys.executable, "-S", str(FAKE), "--port", str(port)], env=environment, stderr=subprocess.DEVNULL
    ) as server:
        try:
            with ControlPlane(f"http://127.0.0.1:{port}") as plane:
                deadline = time.monotonic() + 30
                while plane.health() != 200:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            command = [sys.executable, "-m", "pytest", "-p", "no:randomly", "-p", "no:cacheprovider", str(ROOT / "acceptance")]
            options = [f"--rig={tmp_path / 'rig.toml'}", f"--sglang-report-dir={tmp_path / 'reports'}", "--sglang-level=1"]
            done = subprocess.run(
                [*command, *options, "--sglang-allow-cold"],
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert server.poll() is None, "it was stopped"
        finally:
            server.kill()
    assert done.returncode == 0, done.stdout
    assert last_line(done.stdout).startswith("PASS 3 of 7, 4 not checked")
    (path,) = tmp_path.glob("reports/*/run.json")
    run = json.loads(path.read_text())
    assert {each["id"]: each["verdict"] for each in run["checks"]} == dict.fromkeys(
        ("server-identity", "ready", "findings"), "pass"
    )
    reasons = {each["id"]: each["reason"] for each in run["not_checked"]}
    for check in ("warm-restart", "cold-start"):
        assert "none can be made: the rig file names no way to start it again" in reasons[check]
        assert "cannot be told from its log" in reasons[check]
    assert "the rig file names no log" in reasons["server-log"]
    checks = {each["id"]: each for each in run["checks"]}
    assert "whose process that is, is not checked" in checks["server-identity"]["message"]
    assert "attach-only" in {each["kind"] for each in checks["findings"]["findings"]}
    assert run["as_left"]["server"]["pid"] == run["as_found"]["server"]["pid"] == server.pid
    assert run["topology"] == {}
    assert "This run looked at no cards." in (path.parent / "report.html").read_text()
