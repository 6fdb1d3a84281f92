"""Do load generators measure what happened? Each in turn against a server whose send times are known, pinned to a core of its own.

    python benchmarks/load/run.py [--repeat 3] [--output benchmarks/results/load.json]

The server has core 0, the client core 1. What a client says stands beside what happened in the same run; CPU seconds are the whole
process's (wait4). ``other_load`` is how much of the client's core somebody else used: a figure from a run with much of it is noise.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from client import _figures
from peers import BARE, OURS, PYTHON, RUST, Load, Peer, peers
from tokenizer import write as write_tokenizer

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SERVER_CORE, CLIENT_CORE = 0, 1
TIMEOUT_S = 120.0

SCENARIOS: dict[str, dict[str, Any]] = {
    "start": {"server": ["--ttft-ms", "50", "--itl-ms", "1"], "load": (1, 1, 200), "peers": (OURS, BARE, RUST, PYTHON)},
    "grid": {"server": ["--grid"], "load": (256, 512, 200), "peers": (OURS, BARE, RUST, PYTHON)},
    "busy": {"server": ["--grid"], "load": (256, 512, 200), "peers": (OURS, BARE, RUST), "busy": True},
    "full": {
        "server": ["--ttft-ms", "0", "--itl-ms", "0", "--events-a-send", "8"],
        "load": (64, 1024, 256),
        "peers": (OURS, BARE, RUST, PYTHON),
    },
}
"""start: what a run costs before it begins. grid: 256 streams that emit together every 20 ms. busy: the same with half of the
client's core taken by another process. full: 64 streams as fast as the client takes them."""


class Server:
    """The truth server in a process of its own; ``stop`` gives what it did."""

    def __init__(self, arguments: list[str], tokenizer: Path) -> None:
        pinned = ["taskset", "-c", str(SERVER_CORE), sys.executable, str(HERE / "server.py"), "--tokenizer", str(tokenizer)]
        self.process = subprocess.Popen([*pinned, *arguments], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{self.process.stdout.readline().strip()}"

    def stop(self) -> dict[str, Any]:
        """End it; its record."""
        self.process.send_signal(signal.SIGTERM)
        told, _ = self.process.communicate(timeout=30)
        found: dict[str, Any] = json.loads(told)
        return found


def truth(record: dict[str, Any], load: Load) -> dict[str, Any]:
    """What happened: the newest ``load.requests`` requests of that length (clients send warm-ups of their own first)."""
    whole = [each for each in record["requests"] if each["tokens"] == load.tokens and each["sent_ns"]]
    asked = sorted(whole, key=lambda each: each["arrived_ns"])[-load.requests :]
    gaps = [(after - before) / 1e6 for each in asked for before, after in zip(each["sent_ns"], each["sent_ns"][1:], strict=False)]
    return {
        "requests": len(asked),
        "tokens": sum(len(each["sent_ns"]) for each in asked),
        "first_request_ns": min((each["arrived_ns"] for each in record["requests"]), default=0),
        "ttft_ms": _figures([(each["sent_ns"][0] - each["arrived_ns"]) / 1e6 for each in asked]),
        "itl_ms": _figures(gaps),
        "server_cpu_s": record["cpu_s"],
    }


def core_seconds() -> float:
    """Seconds that the client's core was busy since boot (proc(5): user, nice, system, irq, softirq)."""
    line = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{CLIENT_CORE} "))
    fields = [int(each) for each in line.split()[1:]]
    return (sum(fields[:3]) + sum(fields[5:7])) / os.sysconf("SC_CLK_TCK")


def run_one(peer: Peer, name: str, tokenizer: Path, folder: Path) -> dict[str, Any]:
    """One run of one client."""
    scenario = SCENARIOS[name]
    server = Server(scenario["server"], tokenizer)
    streams, requests, tokens = scenario["load"]
    load = Load(server.url, streams, requests, tokens, tokenizer)
    output = folder / "report.json"
    output.unlink(missing_ok=True)
    log = folder / "client.log"
    busy = _busy_loop() if scenario.get("busy") else None
    try:
        before_s, began_ns, began_s = core_seconds(), time.time_ns(), time.perf_counter()
        with log.open("w") as written:
            command = ["taskset", "-c", str(CLIENT_CORE), *peer.command(load, output)]
            process = subprocess.Popen(
                command, stdout=written, stderr=subprocess.STDOUT, env={**os.environ, **peer.environment}, cwd=folder
            )
        late = threading.Timer(TIMEOUT_S, process.kill)
        late.start()
        peaks: list[float] = []
        threading.Thread(target=_peak_mb, args=(process, peaks), daemon=True).start()
        _, status, used = os.wait4(process.pid, 0)
        late.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        took_s = time.perf_counter() - began_s
        cpu_s = used.ru_utime + used.ru_stime
        other = core_seconds() - before_s - cpu_s
    finally:
        if busy is not None:
            busy.kill()
            busy.wait()
        happened = truth(server.stop(), load)
    found = {
        "peer": peer.name,
        "scenario": name,
        "exit_code": process.returncode,
        "wall_s": took_s,
        "cpu_s": cpu_s,
        "true": happened,
    }
    found |= {"peak_mb": max(peaks, default=0.0), "other_load": max(0.0, other / took_s)}
    found["first_request_s"] = (happened["first_request_ns"] - began_ns) / 1e9
    if process.returncode == 0 and output.exists():
        found["said"] = peer.figures(output)
    else:
        found["error"] = (log.read_text().strip().splitlines() or ["no output"])[-1][-300:]  # a traceback names paths
    return found


def go_first() -> None:
    """This process and all that it starts get the cores before others do: a session of their own, whose group is preferred (sched(7))."""
    if os.getpid() != os.getsid(0):
        os.setsid()
    Path("/proc/self/autogroup").write_text("-20")


def _peak_mb(process: subprocess.Popen[bytes], found: list[float]) -> None:
    """Peak memory of the process alone, as long as it lives (the kernel's ru_maxrss begins with its parent's)."""
    status = Path(f"/proc/{process.pid}/status")
    while process.returncode is None:
        try:
            peak = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        except OSError:
            return
        found += [int(line.split()[1]) / 1024 for line in peak]
        time.sleep(0.1)


def _busy_loop() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["taskset", "-c", str(CLIENT_CORE), sys.executable, "-c", "while True: pass"])


def median_of(runs: list[dict[str, Any]], *path: str) -> float | None:
    """The median of one figure over the runs that have it."""
    values = []
    for each in runs:
        value: Any = each
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float):
            values.append(float(value))
    return statistics.median(values) if values else None


def difference(runs: list[dict[str, Any]], quantity: str, figure: str) -> float | None:
    """Median over the runs of |said - true| in ms: each run beside its own truth."""
    found = [
        abs(each["said"][quantity][figure] - each["true"][quantity][figure])
        for each in runs
        if each.get("said", {}).get(quantity) and each["true"][quantity]
    ]
    return statistics.median(found) if found else None


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a scenario and client."""
    rows = []
    for name in SCENARIOS:
        for peer in dict.fromkeys(each["peer"] for each in runs):
            mine = [each for each in runs if (each["scenario"], each["peer"]) == (name, peer)]
            if not mine:
                continue
            start = [each for each in runs if (each["scenario"], each["peer"]) == ("start", peer)]
            tokens, cpu_s, before_s = median_of(mine, "true", "tokens"), median_of(mine, "cpu_s"), median_of(start, "cpu_s")
            row: dict[str, Any] = {
                "scenario": name,
                "peer": peer,
                "runs": len(mine),
                "failed": sum("error" in each for each in mine),
            }
            row |= {"cpu_s": cpu_s, "peak_mb": median_of(mine, "peak_mb"), "first_request_s": median_of(mine, "first_request_s")}
            row["tok_s"] = median_of(mine, "said", "tok_s")
            if tokens and cpu_s is not None:
                row["cpu_us_a_token"] = 1e6 * cpu_s / tokens
                row["cpu_us_a_token_without_start"] = 1e6 * (cpu_s - (before_s or 0.0)) / tokens
            row["token_error"] = max(
                (abs(each["said"]["tokens"] - each["true"]["tokens"]) for each in mine if "said" in each), default=None
            )
            for quantity in ("ttft_ms", "itl_ms"):
                for figure in ("mean", "p99"):
                    row[f"{quantity[:-3]}_{figure}_said_ms"] = median_of(mine, "said", quantity, figure)
                    row[f"{quantity[:-3]}_{figure}_true_ms"] = median_of(mine, "true", quantity, figure)
                    row[f"{quantity[:-3]}_{figure}_off_ms"] = difference(mine, quantity, figure)
            row["merged_share"] = median_of(mine, "said", "merged_share")
            row["other_load"] = max(each["other_load"] for each in mine)
            rows.append(row)
    return rows


def targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was to be reached, what was measured (None: not run here), and whether it holds."""
    at = {(row["scenario"], row["peer"]): row for row in rows}

    def figure(scenario: str, name: str, peer: str = OURS) -> float | None:
        found: float | None = at.get((scenario, peer), {}).get(name)
        return found

    def ratio(scenario: str, name: str, peer: str) -> float | None:
        mine, theirs = figure(scenario, name), figure(scenario, name, peer)
        return mine / theirs if mine is not None and theirs else None

    wanted = [
        ("ITL mean off the truth, ms", figure("grid", "itl_mean_off_ms"), "<=", 0.01),
        ("ITL p99 off the truth, ms", figure("grid", "itl_p99_off_ms"), "<=", 0.1),
        ("TTFT p99 off the truth, ms", figure("grid", "ttft_p99_off_ms"), "<=", 2.0),
        ("tokens off the truth", figure("grid", "token_error"), "<=", 0),
        ("CPU a token, beside sglang's Rust client", ratio("grid", "cpu_us_a_token", RUST), "<=", 1.0),
        ("CPU a token, beside sglang's Python client", ratio("grid", "cpu_us_a_token", PYTHON), "<=", 0.25),
        ("memory, MB", figure("grid", "peak_mb"), "<=", 80),
        ("half of the core taken: ITL p99 off the truth, ms", figure("busy", "itl_p99_off_ms"), "<=", 0.3),
        ("at full speed, tokens/s", figure("full", "tok_s"), ">=", 120_000),
        ("at full speed, beside sglang's Python client", ratio("full", "tok_s", PYTHON), ">=", 1.0),
        ("start of the process to its first request, s", figure("start", "first_request_s"), "<=", 0.5),
    ]
    found = []
    for name, value, sign, limit in wanted:
        holds = None if value is None else (value <= limit if sign == "<=" else value >= limit)
        found.append({"target": name, "measured": value, "limit": f"{sign} {limit:g}", "holds": holds})
    return found


def main() -> None:
    """Run every client in every scenario, ``--repeat`` times, one after the other so that a disturbance hits all of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--peers-in", type=Path, default=Path(os.environ.get("BENCH_PEERS", ROOT / ".peers")))
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "load.json")
    parser.add_argument(
        "--first", action="store_true", help="server and client go before all other processes (needs root): no quiet machine"
    )
    options = parser.parse_args()
    if options.first:
        go_first()
    if (os.cpu_count() or 1) < 2:
        sys.exit("two cores are needed: one for the server, one for the client")
    here = peers(options.peers_in)
    missing = {RUST, PYTHON} - {each.name for each in here}
    if missing:
        print(
            f"skipped: {', '.join(sorted(missing))} (not in {options.peers_in}; bash benchmarks/load/peers.sh installs them, 2 GB)"
        )
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_tokenizer(folder / "tokenizer")
        for number in range(options.repeat):
            for name in options.scenarios.split(","):
                for peer in here:
                    if peer.name in SCENARIOS[name]["peers"]:
                        runs.append(run_one(peer, name, folder / "tokenizer", folder))
                        _tell(number, runs[-1])
    rows = summary(runs)
    found = {
        "made": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": {
            "python": platform.python_version(),
            "kernel": platform.release(),
            "cores": os.cpu_count(),
            "before_others": options.first,
        },
        "targets": targets(rows),
        "rows": rows,
        "runs": runs,
    }
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    for each in found["targets"]:
        value = "not run" if each["measured"] is None else f"{each['measured']:.4g}"
        print(
            f"{'-' if each['holds'] is None else 'holds' if each['holds'] else 'MISSED':7}{each['target']}: {value} ({each['limit']})"
        )


def _tell(number: int, run: dict[str, Any]) -> None:
    said, true = run.get("said", {}), run["true"]
    p99 = f"ITL p99 {said['itl_ms']['p99']:.2f} / {true['itl_ms']['p99']:.2f} ms, " if said.get("itl_ms") else ""
    error = f" FAILED: {run['error'][-200:]!r}" if "error" in run else ""
    rate = f"{said['tok_s']:,.0f} tok/s, " if said else ""
    print(
        f"{number + 1} {run['scenario']:6}{run['peer']:22} {rate}{p99}CPU {run['cpu_s']:.2f} s, {run['peak_mb']:.0f} MB, "
        f"first request {run['first_request_s']:.2f} s, others on its core {run['other_load']:.0%}{error}",
        flush=True,
    )


if __name__ == "__main__":
    main()
