"""Energy and sampler on a real card beside a real SGLang: changes nothing on the card, and reads its limits before and after.

usage: on_card.py [--url http://127.0.0.1:30000] [--api-key-env NAME] [--seconds 20] [--streams 1] [--gpus 0,1] [--out FILE]
       on_card.py --burn            (no server: matrix products by PyTorch instead, for a machine without SGLang)

Prints, for every card that worked: joules of a window by this project's code (energy counter), by trapezoids under instantaneous
power read in another process straight through pynvml at 100 Hz, and what whole counter steps and the averaged reading would have
said; then the sampler's samples, lost ones, intervals and CPU share at 20 Hz, idle and beside the load. Exit code 1 where counter
and independent integral are more than 3 % apart on a card, or a power limit is another one afterwards.

Needs pytest-sglang's own requirements (msgspec among them), httpx, psutil and nvidia-ml-py; nothing of it is simulated.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

from jitter import Cost, evenness, ticks  # noqa: E402

from pytest_sglang.gpu.card import Card  # noqa: E402
from pytest_sglang.gpu.energy import FAST_HZ, EnergyWindow  # noqa: E402
from pytest_sglang.gpu.nvml import Nvml  # noqa: E402
from pytest_sglang.gpu.readings import NoDriver  # noqa: E402
from pytest_sglang.gpu.samples import SampleFile  # noqa: E402

AGREE = 0.03
WORKED = 1.3
"""A card worked where it drew this many times its idle power."""


def independent(indices: list[int], path: str, stop: Any) -> None:
    """Instantaneous power of each card 100 times a second, by pynvml alone, into ``path``: [t, watts, ...] a line."""
    import pynvml

    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in indices]
    field = getattr(pynvml, "NVML_FI_DEV_POWER_INSTANT", 186)
    with open(path, "w", encoding="utf-8") as out:
        while not stop.is_set():
            watts = []
            for handle in handles:
                value = pynvml.nvmlDeviceGetFieldValues(handle, [field])[0]
                watts.append(value.value.uiVal / 1000 if value.nvmlReturn == 0 else None)
            out.write(json.dumps([time.time(), *watts]) + "\n")
            time.sleep(0.01)
    pynvml.nvmlShutdown()


def integral(rows: list[list[Any]], column: int, begin_s: float, end_s: float) -> float | None:
    """Joules between two times: trapezoids under [t, watts, ...] rows, the edges interpolated."""
    import numpy

    points = [(row[0], row[column]) for row in rows if row[column] is not None]
    if len(points) < 2 or points[0][0] > begin_s or points[-1][0] < end_s:
        return None
    times, watts = numpy.array([each[0] for each in points]), numpy.array([each[1] for each in points])
    inside = times[(times > begin_s) & (times < end_s)]
    grid = numpy.concatenate(([begin_s], inside, [end_s]))
    return float(numpy.trapezoid(numpy.interp(grid, times, watts), grid))


# --- load ----------------------------------------------------------------------------------------------------------------------


@contextmanager
def streams(url: str, count: int, key: str | None) -> Iterator[None]:
    """``count`` streams decode until the block ends."""
    import httpx

    stop, failed = threading.Event(), []
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    def decode(number: int) -> None:
        body = {
            "text": f"{number}: Tell the story of a lighthouse keeper, slowly and in full.",
            "sampling_params": {"max_new_tokens": 4096, "ignore_eos": True, "temperature": 0},
            "stream": True,
        }
        try:
            with httpx.Client(timeout=60.0, headers=headers) as client:
                while not stop.is_set():
                    with client.stream("POST", f"{url}/generate", json=body) as answer:
                        answer.raise_for_status()
                        for _ in answer.iter_lines():
                            if stop.is_set():
                                return
        except httpx.HTTPError as error:
            failed.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=decode, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(65.0)
        if failed:
            raise SystemExit(f"{len(failed)} of {count} streams failed: {failed[0]}")


@contextmanager
def burning() -> Iterator[None]:
    """Matrix products on the first card until the block ends, in this process's second thread."""
    import torch

    stop = threading.Event()

    def multiply() -> None:
        a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
        while not stop.is_set():
            for _ in range(50):
                a @ a
            torch.cuda.synchronize()

    thread = threading.Thread(target=multiply, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30.0)


# --- measurement -----------------------------------------------------------------------------------------------------------------


def measure(cards: list[Card], asked: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """An idle stretch and a loaded one, sampled by our code and by the independent reader."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    other = context.Process(target=independent, args=([card.index for card in cards], str(scratch / "other.jsonl"), stop))
    path = scratch / "samples.jsonl"
    load = burning() if asked.burn else streams(asked.url, asked.streams, os.environ.get(asked.api_key_env or ""))
    with EnergyWindow(cards, {"nvml": "real"}, path=path) as window:
        if window.pid is None:
            raise SystemExit(f"the sampler did not begin: {window.failure}")
        other.start()
        time.sleep(3.0)  # the reader's own start
        idle = (time.time(), time.time() + 5.0)
        with Cost(window.pid) as idle_cost:
            time.sleep(5.0)
        with load:
            # the window holds the beginning of the load: that is where the readings differ
            begin_s = time.time()
            with Cost(window.pid) as cost:
                time.sleep(asked.seconds)
            end_s = time.time()
            time.sleep(1.0)
        stop.set()
        other.join(20.0)
        energies = window.between(begin_s, end_s)
        resting = window.between(*idle)
        averages = window.average_w(begin_s, end_s)
        reasons = window.reason_shares(begin_s, end_s)
    rows = [json.loads(line) for line in (scratch / "other.jsonl").read_text(encoding="utf-8").splitlines()]
    file = SampleFile(path)
    file.update()
    seconds = end_s - begin_s
    table = []
    for position, card in enumerate(cards, 1):
        energy, rest = energies[card.uuid], resting[card.uuid]
        by_power = integral(rows, position, begin_s, end_s)
        counted = [each.energy_j for each in file.fast[card.uuid] if each.energy_j is not None and begin_s <= each.t_s <= end_s]
        table.append(
            {
                "gpu": card.label,
                "name": str(card.name),
                "seconds": round(seconds, 3),
                "source": energy.source,
                "joules": energy.joules,
                "error_j": energy.error_j,
                "invalid_because": energy.invalid_because,
                "mean_w": energy.mean_w,
                "idle_w": rest.mean_w,
                "independent_j": by_power,
                "apart_pct": None if by_power is None or energy.joules is None else 100 * (energy.joules / by_power - 1),
                "whole_steps_w": (counted[-1] - counted[0]) / seconds if len(counted) > 1 else None,
                "averaged_w": averages.get(card.uuid),
                "reasons": {name: share for name, share in reasons.get(card.uuid, {}).items() if share > 0},
            }
        )
    return {
        "cards": table,
        "sampler": {
            "hz": FAST_HZ,
            "idle": {**evenness(ticks(path, *idle), FAST_HZ), "cpu_share_of_a_core": round(idle_cost.share, 4)},
            "load": {**evenness(ticks(path, begin_s, end_s), FAST_HZ), "cpu_share_of_a_core": round(cost.share, 4)},
        },
    }


def limits(cards: list[Card]) -> dict[str, Any]:
    """Requested and enforced limit of every card, as text."""
    return {card.label: f"{card.limits().requested_w} / {card.limits().enforced_w}" for card in cards}


def show(found: dict[str, Any]) -> bool:
    """The tables; whether every card that worked agrees."""

    def number(value: Any, digits: int = 1) -> str:
        return "not read" if value is None else f"{value:.{digits}f}"

    good, worked = True, 0
    print(
        f"{'card':24} {'counter J':>10} {'+- J':>7} {'instant J':>10} {'apart':>8} {'mean W':>8} {'steps W':>8} {'averaged W':>11}"
    )
    for each in found["cards"]:
        busy = each["mean_w"] is not None and each["idle_w"] is not None and each["mean_w"] > WORKED * each["idle_w"]
        worked += busy
        fine = each["apart_pct"] is not None and abs(each["apart_pct"]) <= 100 * AGREE
        good = good and (fine or not busy)
        cells = [f"{each['gpu']:24}", f"{number(each['joules']):>10}", f"{number(each['error_j']):>7}"]
        cells += [f"{number(each['independent_j']):>10}", f"{number(each['apart_pct'], 2):>6} %"]
        cells += [f"{number(each['mean_w']):>8}", f"{number(each['whole_steps_w']):>8}", f"{number(each['averaged_w']):>11}"]
        print(*cells, each["invalid_because"] or ("" if busy else "idle"))
    print(f"\n{'sampler at 20 Hz':24} {'samples':>8} {'lost':>5} {'median':>10} {'p99':>10} {'max':>10} {'CPU of a core':>14}")
    for name in ("idle", "load"):
        each = found["sampler"][name]
        times = [f"{each['interval_ms'][what]:7.2f} ms" for what in ("median", "p99", "max")]
        print(f"{name:24} {each['samples']:>8} {each['lost']:>5}", *times, f"{100 * each['cpu_share_of_a_core']:12.2f} %")
    if not worked:
        print("no card worked: the load did not reach the cards that were looked at (--gpus)")
    return good and worked > 0


def main() -> int:
    """Run it; 0 = counter and independent integral agree on every card that worked, and no limit has changed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--api-key-env", help="name of the variable that holds the server's API key")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--gpus", help="indices, comma separated (default: all)")
    parser.add_argument("--burn", action="store_true", help="no server: matrix products by PyTorch")
    parser.add_argument("--out", type=Path, help="also write everything as JSON")
    asked = parser.parse_args()
    try:
        nvml = Nvml.open()
    except NoDriver as error:
        print(error, file=sys.stderr)
        return 4
    wanted = None if asked.gpus is None else {int(each) for each in asked.gpus.split(",")}
    cards = [card for card in nvml.cards() if wanted is None or card.index in wanted]
    if not cards:
        print("none of the asked GPUs is here", file=sys.stderr)
        return 4
    before = limits(cards)
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(cards, asked, Path(scratch))
    after = limits(cards)
    good = show(found)
    print(
        f"\ndriver {nvml.driver()}, limits (requested / enforced, W) before and after: {'equal' if before == after else 'CHANGED'} {after}"
    )
    found |= {"driver": nvml.driver(), "python": platform.python_version(), "limits_before": before, "limits_after": after}
    if asked.out is not None:
        asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    nvml.close()
    return 0 if good and before == after else 1


if __name__ == "__main__":
    raise SystemExit(main())
