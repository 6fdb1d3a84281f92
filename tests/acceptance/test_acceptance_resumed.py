"""A start that was interrupted while it compiled, and resumed: what a run says that finds such a server."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from faults import verdicts
from suite import run_suite

from pytest_sglang.simulator.caches import Caches
from pytest_sglang.simulator.rig import SimulatedRig


def test_a_server_that_resumed_an_interrupted_start_is_recognised_and_a_restart_of_it_is_a_warm_one(tmp_path: Path) -> None:
    rig = SimulatedRig.create(tmp_path / "rig", power_w=250.0, speed=200.0)
    try:
        caches = Caches(rig.config.triton_dir, rig.config.inductor_dir, rig.config.model)
        caches.empty()
        whole, deadline = len(caches.missing()), time.monotonic() + 60
        rig.start()
        while len(caches.missing()) > 0.7 * whole:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(rig.state()["main_pid"], signal.SIGKILL)
        while rig.state()["main_pid"]:
            time.sleep(0.02)
        rig.start()
        arguments = ("--power=250", f"--sglang-simulated-dir={rig.directory}", "-k", "findings or warm_restart")
        done, run = run_suite(tmp_path, *arguments)
        assert verdicts(run) == {"findings": "pass", "warm-restart": "pass"}, done.stdout[-6000:]
        told = [each["detail"] for check in run["checks"] for each in check["findings"] if each["kind"] == "resumed-start"]
        assert told == [
            "the start before this one was interrupted in capture_decode: this one found its caches partly there, and compiled the rest"
        ]
        start = next(each["startup"] for each in run["startups"] if each["label"] == "warm restart")
        assert (start["kind"], start["resumes"]) == ("warm", None)
    finally:
        rig.destroy()
