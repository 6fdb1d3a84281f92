"""A restart in the middle of other people's work, and a server that does not go: each told by the restart's own check."""

from __future__ import annotations

import http.client
import json
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from faults import CAUSES
from suite import run_suite
from test_acceptance_kill import owned

from pytest_sglang.simulator.rig import SimulatedRig

ONLY = ("-k", "warm_restart", "--power=250", "-p", "no:randomly")
Ran = tuple[subprocess.CompletedProcess[str], dict[str, Any]]


def restart(run: dict[str, Any]) -> dict[str, Any]:
    (check,) = run["checks"]
    assert check["id"] == "warm-restart"
    return check


def somebody(rig: SimulatedRig, tokens: int, ended: list[str]) -> threading.Thread:
    """Another user's generation, begun when this returns; how it ended is put into ``ended``."""

    def generate() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=120)
        body = {"prompt": "mine", "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
        try:
            connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
            answer = json.loads(connection.getresponse().read())
            ended.append(str(answer["usage"]["completion_tokens"]))
        except (OSError, http.client.HTTPException, ValueError) as error:
            ended.append(repr(error))
        finally:
            connection.close()

    thread = threading.Thread(target=generate)
    thread.start()
    time.sleep(0.5)
    return thread


def with_a_guest(folder: Path, tokens: int, *arguments: str) -> tuple[Ran, list[str], bool]:
    """The suite's restart while somebody generates; how that generation ended, and whether the server's process is the same."""
    folder.mkdir()
    ended: list[str] = []
    with owned(folder) as rig:
        before = rig.state()["main_pid"]
        guest = somebody(rig, tokens, ended)
        ran = run_suite(folder, f"--sglang-simulated-dir={rig.directory}", *ONLY, *arguments)
        same = rig.state()["main_pid"] == before
    guest.join()
    return ran, ended, same


def test_other_people_s_requests_and_servers_that_do_not_go(tmp_path: Path) -> None:
    """Side by side: each has a rig of its own and mostly waits."""
    cases: dict[str, Callable[[], Any]] = {
        "busy": lambda: with_a_guest(tmp_path / "busy", 4000),
        "drained": lambda: with_a_guest(tmp_path / "drained", 500, "--sglang-drain=2m"),
        "sigterm-ignored": lambda: run_suite(tmp_path / "deaf", *ONLY, "--sglang-fault=sigterm-ignored"),
        "orphaned-scheduler": lambda: run_suite(tmp_path / "orphan", *ONLY, "--sglang-fault=orphaned-scheduler"),
    }
    with ThreadPoolExecutor(3) as pool:
        futures = {name: pool.submit(case) for name, case in cases.items()}
        found = {name: each.result() for name, each in futures.items()}

    (done, run), ended, same = found["busy"]
    assert done.returncode == 6, done.stdout
    assert restart(run)["verdict"] == "inconclusive"
    assert "1 running, 0 waiting; it is not stopped under them (--sglang-drain=10m waits for them)" in restart(run)["message"]
    assert same, "the server was left alone"

    (done, run), ended, same = found["drained"]
    assert done.returncode == 0, done.stdout
    assert restart(run)["verdict"] == "pass"
    assert ended == ["500"], "the other's answer came whole"
    assert not same

    done, run = found["sigterm-ignored"]
    assert done.returncode == 1, done.stdout
    assert CAUSES["sigterm-ignored"]["warm-restart"] in restart(run)["message"]
    assert "the stop took" in restart(run)["message"]

    done, run = found["orphaned-scheduler"]
    assert done.returncode == 1, done.stdout
    message = restart(run)["message"]
    assert CAUSES["orphaned-scheduler"]["warm-restart"] in message
    assert "holds 21.2 GiB each on GPU 0, 1, 2, 3" in message


def test_a_drain_that_is_no_time_is_told(tmp_path: Path) -> None:
    done, run = run_suite(tmp_path, "--sglang-drain=soon")
    assert done.returncode == 4
    assert "--sglang-drain=soon: not a time (write e.g. --sglang-drain=10m)" in done.stderr + done.stdout
    assert run == {}
