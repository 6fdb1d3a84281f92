"""A change that can be made and undone without a rig: a dial is a file that holds a JSON value. And a run to be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pytest_sglang.session.changes import Change
from pytest_sglang.session.guard import Guard
from pytest_sglang.session.journal import Entry, Journal
from pytest_sglang.session.locks import RigLocks
from pytest_sglang.session.state import Owner, boot_id

DIAL = "session_fakes:Dial"
HERE = Path(__file__).resolve().parent


def set_dial(path: Path, value: Any) -> None:
    """Write atomically, so that no reader sees half a value."""
    scratch = path.with_name(path.name + ".new")
    scratch.write_text(json.dumps(value))
    scratch.replace(path)


def read_dial(path: Path) -> Any:
    return json.loads(path.read_text())


class Dial(Change):
    """``target``: the file. ``broken`` in the context names a file that makes undoing fail while it exists."""

    def __init__(self, context: Mapping[str, Any]) -> None:
        super().__init__(context)
        self.limit_s = float(context.get("limit_s", 5.0))
        self.lost_by_reboot = bool(context.get("lost_by_reboot", False))

    def settle_s(self, entry: Entry) -> float:
        return float(self._context.get("settle_s", 0.0))

    def present(self, entry: Entry) -> Any:
        time.sleep(float(self._context.get("hang_s", 0.0)))
        return read_dial(Path(entry.target))

    def undo(self, entry: Entry) -> None:
        broken = self._context.get("broken")
        if broken and Path(broken).exists():
            raise OSError(5, "the dial is stuck")
        if self._context.get("deaf"):
            return
        with open(f"{Path(entry.target).parent}/order", "a") as file:
            file.write(f"{entry.id}\n")
        set_dial(Path(entry.target), entry.before)


def dead_owner(run_id: str = "dead-run") -> Owner:
    """An owner whose pid lives but whose start time is another's: the pid was given anew."""
    return Owner(os.getpid(), 1, "pytest acceptance/ --power=250", run_id, boot_id(), os.geteuid())


def dead_journal(state: Path, run_id: str = "dead-run") -> DeadJournal:
    return DeadJournal(state, dead_owner(run_id))


class DeadJournal(Journal):
    """The journal of a run that died: written as that run wrote it."""

    def close(self) -> tuple[Entry, ...]:
        os.close(self._file)
        self._file = -1
        return self.open


def until(condition: Callable[[], object], limit_s: float = 30.0) -> float:
    """Wait until ``condition()`` is true; the seconds that it took. Fails the test when it takes longer."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < limit_s, f"not within {limit_s} s"
        time.sleep(0.02)
    return time.monotonic() - begin


def environment(state: Path, **more: str) -> dict[str, str]:
    paths = [str(HERE), str(HERE.parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(each for each in paths if each),
        "PYTEST_SGLANG_STATE_DIR": str(state),
        **more,
    }


class Victim:
    """A run in a process of its own (``victim_main``), to be killed."""

    def __init__(self, state: Path, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import session_fakes; session_fakes.victim_main()", str(state), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(state, **(env or {})),
            start_new_session=True,
        )
        self.guard_pid = 0

    def wait_changed(self) -> Victim:
        """Until every dial is turned."""
        assert self.process.stdout is not None
        word, number = self.process.stdout.readline().split()
        assert word == "changed"
        self.guard_pid = int(number)
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def tell(self, word: str) -> str:
        """Say a word, get its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


def victim_main() -> None:
    """STATE RUN_ID DIAL...: lock each dial, start the guard, turn each dial to 250, then do as told."""
    state, run_id, *dials = sys.argv[1:]
    context = json.loads(os.environ.get("VICTIM_CONTEXT", "{}"))
    owner = Owner.me(run_id)
    locks = RigLocks(Path(state), [f"dial {each}" for each in dials]).acquire(owner)
    journal = Journal(Path(state), owner)
    guard = Guard.start(Path(state), run_id, Path(os.environ["VICTIM_LOG"]))
    journal.covers(locks.names)
    for each in dials:
        before = read_dial(Path(each))
        journal.record(DIAL, each, before, 250, context)
        set_dial(Path(each), 250)
    if os.environ.get("VICTIM_FORKS") and os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    print("changed", guard.pid, flush=True)
    for line in sys.stdin:
        match line.strip():
            case "close":
                print("closed", len(journal.close()), guard.close(), flush=True)
            case "resolve":
                for entry in reversed(journal.open):
                    set_dial(Path(entry.target), entry.before)
                    journal.resolve(entry.id, "put back")
                print("resolved", flush=True)
            case "end":
                return
