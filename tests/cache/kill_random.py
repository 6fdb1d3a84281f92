"""Kill -9 at random points of a set-aside, cold start and restore, journalled as a run does it, and let the next run put things back.

usage: python kill_random.py FOLDER NUMBER [SEED]      (prints one line for each kill: where it struck, what was found; exit 1 on any loss)

A point is one of the interpreter's audit events: every open, rename, mkdir, listing, import and the like, of the journal's as of the
caches', between the first and the last instruction of the cycle. Every other undo is killed at a random point too, and then repeated.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from kill_points import cold_start, digest, make

from pytest_sglang.cache import aside
from pytest_sglang.cache.locate import CachePlace
from pytest_sglang.session.journal import Journal
from pytest_sglang.session.state import Owner
from pytest_sglang.session.undo import undo

countdown = 0
events = 0
last = ""


def hook(event: str, arguments: tuple[object, ...]) -> None:
    """Count the events, and die in front of the one at which the countdown ends."""
    global countdown, events, last
    events += 1
    if countdown:
        last = event
        countdown -= 1
        if countdown == 0:
            os.write(2, f"{event}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)


def cycle(root: Path, state: Path) -> None:
    """What a run does around its cold start."""
    places = places_of(root)
    journal = Journal(state, Owner.me("run-1"))
    entries = []
    for planned in aside.plan_aside(places, token="run-1"):
        entry = journal.record(
            "cache_aside", str(planned.original), str(planned.original), str(planned.aside), aside.describe(planned)
        )
        aside.move(planned)
        entries.append((entry, planned))
    cold_start(root)
    for entry, planned in reversed(entries):
        aside.restore([planned])
        journal.resolve(entry.id, "put back")
    journal.close()


def places_of(root: Path) -> list[CachePlace]:
    return [CachePlace(name, root / name, "test") for name in ("base", "base/triton", "base/inductor", "other", "absent")]


def in_child(work: Callable[[], object], point: int) -> tuple[bool, str]:
    """Do ``work`` in a child that dies at ``point``: whether it died, and in front of what."""
    global countdown
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 2)
        countdown = point
        work()
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = pipe.read().decode().strip()
    return os.waitpid(child, 0)[1] == signal.SIGKILL, told


def count(folder: Path) -> int:
    """Number of events in one whole cycle."""
    global events
    for name in ("first", "counted"):  # what is imported on the way is imported in the first
        make(folder / name)
        events = 0
        cycle(folder / name, folder / f"{name}-state")
    return events


def main(folder: Path, number: int, seed: int) -> int:
    """So many kills; 1 when any cache was not byte for byte what it had been."""
    sys.addaudithook(hook)
    noise = random.Random(seed)
    cycle_events = count(folder)
    lost = died = 0
    for turn in range(number):
        root, state = folder / f"{turn}", folder / f"{turn}-state"
        make(root)
        before = digest(root)
        point = noise.randint(1, cycle_events)
        killed, where = in_child(lambda root=root, state=state: cycle(root, state), point)  # type: ignore[misc]
        died += killed
        again = noise.randint(1, cycle_events) if turn % 2 else 0
        killed_again = again > 0 and in_child(lambda state=state: undo(state), again)[0]  # type: ignore[misc]
        outcomes = undo(state)
        left = "identical" if digest(root) == before else "DIFFERS: " + " ".join(sorted(str(path) for path in root.rglob("*")))
        lost += left != "identical"
        done = ", ".join(dict.fromkeys(each.action for each in outcomes)) or "nothing left to do"
        print(
            f"{turn + 1:3} event {point:4} of {cycle_events} {where or 'ended before':24} "
            f"{'undo killed too, ' if killed_again else ''}undo: {done}: {left}",
            flush=True,
        )
    print(f"{died} of {number} killed, {lost} caches not identical afterwards (seed {seed})")
    return 1 if lost or not died else 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else random.randrange(10**6)))
