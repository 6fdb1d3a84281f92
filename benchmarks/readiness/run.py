"""How far off is the moment of readiness? ``wait_ready`` beside a poller that asks every 10 s, on starts of the simulated server.

The truth is the simulator's own: the moment at which its status changes to Up, which it logs at once (SGLANG_LOG_MS=1, thousandths).
Both watch the same start. SGLang's test harness asks /health_generate right after the launch and then every 10 s; a simulated start is
shorter than a real one, so the poller's first question comes at a random moment within its period, as if the start had any length.
The requests that either causes are counted on the server's side, in its access log.

    python benchmarks/readiness/run.py --starts 50 --output benchmarks/results/readiness.json
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import random
import re
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from pytest_sglang.server import control, log, ready
from pytest_sglang.server.http import ControlPlane
from pytest_sglang.session import promise, simulated
from pytest_sglang.session.options import SIMULATED, RunOptions
from pytest_sglang.simulator.rig import SimulatedRig

PERIOD_S = 10.0
ACCESS = re.compile(r'"[A-Z]+ (?P<path>/\S*) HTTP/[\d.]+" (?P<status>\d{3})')
POLLERS = "/health_generate"
READY = "The server is fired up and ready to roll!"
# what the server asks of itself while it warms up
WARM_UP = {("/model_info", 200): 1, ("/generate", 200): 1}


class Poller(threading.Thread):
    """Asks /health_generate every 10 s until it answers 200; ``found_at``: when that answer was there, machine's epoch seconds."""

    def __init__(self, port: int, offset_s: float) -> None:
        super().__init__(daemon=True)
        self._port, self._offset_s = port, offset_s
        self.found_at: float | None = None

    def run(self) -> None:
        time.sleep(self._offset_s)
        while not self._asks():
            time.sleep(PERIOD_S)
        self.found_at = time.time()

    def _asks(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30.0)
        try:
            connection.request("GET", POLLERS)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def one(rig: Any, server: Any, folder: Path, *, offset_s: float | None) -> dict[str, Any]:
    """One start: errors in seconds (found minus true) and the requests that each way of looking caused."""
    controller = control.make(server, clock=rig.clock, run_dir=folder, systemctl=rig.systemctl)
    launched_at = rig.clock.time()
    controller.start()
    poller = Poller(rig.port, offset_s) if offset_s is not None else None
    if poller is not None:
        poller.start()
    with ControlPlane(server.url) as plane:
        startup = ready.wait_ready(
            controller=controller,
            plane=plane,
            log=controller.log(),
            clock=rig.clock,
            launched_at=launched_at,
            budget_s=600.0,
            silence_s=300.0,
        )
    if poller is not None:
        poller.join(60.0)
    counts = requests(rig.log)
    true_at = truth(rig.log)
    assert startup.ready_s is not None
    row = {
        "true_s": true_at - launched_at,
        "error_s": launched_at + startup.ready_s - true_at,
        "requests": {f"{path} {status}": n for (path, status), n in counts.items() if path != POLLERS},
    }
    if poller is not None:
        row["poller_offset_s"] = offset_s
        row["poller_error_s"] = None if poller.found_at is None else rig.clock.from_wall(poller.found_at) - true_at
        row["poller_requests"] = {f"{path} {status}": n for (path, status), n in counts.items() if path == POLLERS}
    controller.stop(20.0)
    return row


def truth(path: Path) -> float:
    """When the newest start's status became Up, epoch seconds of the rig."""
    found = [line.time for line in log.split(path.read_text(encoding="utf-8")) if line.text.startswith(READY)]
    assert found
    assert found[-1] is not None
    return found[-1]


def requests(path: Path) -> dict[tuple[str, int], int]:
    """Answers by path and status in the newest start's access lines, without those that the server gave itself."""
    start = log.starts(log.split(path.read_text(encoding="utf-8")))[-1]
    found: dict[tuple[str, int], int] = {}
    for line in start:
        match = ACCESS.search(line.text)
        if match is not None:
            key = (match["path"], int(match["status"]))
            found[key] = found.get(key, 0) + 1
    for key, number in WARM_UP.items():
        found[key] = found.get(key, 0) - number
    return {key: number for key, number in found.items() if number}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and worst of the absolute errors, and requests a start."""

    def of(errors: list[float], counted: str) -> dict[str, Any]:
        absolute = sorted(abs(each) for each in errors)
        totals = [sum(row[counted].values()) for row in rows if counted in row]
        return {
            "starts": len(errors),
            "median_s": statistics.median(absolute),
            "worst_s": absolute[-1],
            "earliest_s": min(errors),
            "latest_s": max(errors),
            "requests_median": statistics.median(totals),
            "requests_most": max(totals),
        }

    found = {"wait_ready": of([row["error_s"] for row in rows], "requests")}
    polled = [row["poller_error_s"] for row in rows if row.get("poller_error_s") is not None]
    if polled:
        found["poller_10s"] = of(polled, "poller_requests")
    return found


def table(found: dict[str, Any]) -> str:
    """The summary as a Markdown table."""
    lines = [
        "| | starts | median error | worst error | earliest, latest | requests a start (median, most) |",
        "|---|---|---|---|---|---|",
    ]
    names = {"wait_ready": "`wait_ready`", "poller_10s": "`/health_generate` every 10 s"}
    for name, each in found.items():
        lines.append(
            f"| {names[name]} | {each['starts']} | {each['median_s']:.3f} s | {each['worst_s']:.3f} s "
            f"| {each['earliest_s']:+.3f} s, {each['latest_s']:+.3f} s | {each['requests_median']:g}, {each['requests_most']} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run, print the table, write the raw rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--no-poller", action="store_true", help="without the 10 s poller, which makes a start 10 s longer")
    parser.add_argument("--seed", type=int, default=1, help="of the poller's first moments")
    parser.add_argument("--output", type=Path, default=None, help="raw results as JSON")
    arguments = parser.parse_args()
    os.environ["SGLANG_LOG_MS"] = "1"
    noise, rows = random.Random(arguments.seed), []
    with tempfile.TemporaryDirectory(prefix="pytest-sglang-readiness-") as scratch:
        rig = SimulatedRig.create(Path(scratch) / "rig", speed=simulated.SPEED)
        try:
            resolved = promise.resolve(RunOptions(rootdir=Path.cwd(), rig=SIMULATED))
            server = simulated.promised(resolved, simulated.Simulation(rig, owned=False)).server
            for number in range(arguments.starts):
                offset_s = None if arguments.no_poller else noise.uniform(0.0, PERIOD_S)
                rows.append(one(rig, server, Path(scratch), offset_s=offset_s))
                print(f"{number + 1:>3}  {json.dumps(rows[-1])}", file=sys.stderr, flush=True)
        finally:
            rig.destroy()
    found = summary(rows)
    print(table(found))
    if arguments.output is not None:
        machine = {"python": platform.python_version(), "system": platform.platform(), "cores": os.cpu_count()}
        record = {
            "benchmark": "readiness",
            "simulated": True,
            "machine": machine,
            "seed": arguments.seed,
            "summary": found,
            "rows": rows,
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
