"""The power sampler beside many streams: CPU share and jitter at 20 Hz, on the simulated rig.

usage: bench.py [--seconds 12] [--streams 0,64,256] [--out results/simulated.json]

The streams run in this process, as they do in a measurement; the sampler is its own process, as it is there. The simulated cards
are Python, so the CPU share here is an upper bound: what it is on a real card says on_card.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

from jitter import Cost, evenness, ticks

from pytest_sglang.gpu.energy import FAST_HZ, EnergyWindow
from pytest_sglang.gpu.nvml import Nvml
from pytest_sglang.load import client, prompts
from pytest_sglang.simulator.rig import SimulatedRig

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Measure each number of streams, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--streams", default="0,64,256")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "simulated.json")
    asked = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        rig = SimulatedRig.create(Path(scratch, "rig"))
        try:
            rig.start()
            while not rig.serving():
                time.sleep(0.1)
            print(
                f"{'streams':>8} {'samples':>8} {'lost':>5} {'median':>9} {'p99':>9} {'max':>9} {'CPU':>7}   tok/s of all",
                flush=True,
            )
            for streams in [int(each) for each in asked.streams.split(",")]:
                found.append(one(rig, streams, asked.seconds, Path(scratch)))
                show(found[-1])
        finally:
            rig.destroy()
    machine = {"cores": os.cpu_count(), "load_average": os.getloadavg()[0], "python": platform.python_version()}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({"simulated": True, "machine": machine, "hz": FAST_HZ, "runs": found}, indent=1) + "\n")
    print(f"written: {asked.out}")
    return 0


def one(rig: SimulatedRig, streams: int, seconds: float, scratch: Path) -> dict[str, Any]:
    """One window of about ``seconds`` with so many streams decoding in it."""
    nvml = Nvml.open(rig.nvml())
    cards = nvml.cards()
    path = scratch / f"samples-{streams}.jsonl"
    context = {"nvml": "pytest_sglang.session.simulated:open_nvml", "argument": str(rig.directory)}
    rate = None
    with EnergyWindow(cards, context, path=path) as window:
        assert window.pid is not None, window.failure
        with Cost(window.pid) as cost:
            begin_s = time.time()
            if streams:
                rate = load(rig, streams, seconds)
            else:
                time.sleep(seconds)
            end_s = time.time()
    invalid = window.between(begin_s, end_s)[cards[0].uuid].invalid_because if streams else None
    nvml.close()
    return {
        "streams": streams,
        "cards": len(cards),
        "seconds": round(end_s - begin_s, 2),
        **evenness(ticks(path, begin_s, end_s), FAST_HZ),
        "cpu_share_of_a_core": round(cost.share, 4),
        "aggregate_tok_s": rate,
        "energy_invalid_because": invalid,
    }


def load(rig: SimulatedRig, streams: int, seconds: float) -> float | None:
    """One round of ``streams`` requests that lasts about ``seconds``; tokens per second of all of them."""
    # the simulated engine: 43 tok/s of one stream, every further one makes a step 5.5 % longer
    tokens = max(8, round(seconds * 43 / (1 + 0.055 * (streams - 1))))
    target = client.Target(url=rig.url, api="completions", model=rig.config.model, api_key=None)
    texts = prompts.make_prompts(streams, 64, seed=streams)
    done = client.run_round(target, texts, tokens, index=1, timeout_s=120.0)
    if done.failures:
        raise SystemExit(f"{len(done.failures)} of {streams} requests failed: {done.failures[0]}")
    return done.aggregate_tok_s


def show(run: dict[str, Any]) -> None:
    """A line of the table."""
    interval = run["interval_ms"]
    rate = "" if run["aggregate_tok_s"] is None else f"{run['aggregate_tok_s']:.0f}"
    cells = [f"{run['streams']:8d}", f"{run['samples']:8d}", f"{run['lost']:5d}"]
    cells += [f"{interval[name]:6.1f} ms" for name in ("median", "p99", "max")]
    print(*cells, f"{100 * run['cpu_share_of_a_core']:5.1f} %", f"  {rate}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
