"""The guard: a small process outside the run that undoes everything when the run dies, ``kill -9`` included.

It is in a session of its own, its parent is not the run (a runner that kills by process tree does not find it), and it carries
none of the variables by which CI runners find what a job left behind. It learns of the run's death twice over: its socket ends, and
the run's pidfd becomes readable (the socket alone would stay open as long as a forked child of the run lives). The journal is the
second line of defence: what kills the guard as well (power loss, the end of a container or of a Slurm step's cgroup) is undone by
the next run, or by ``pytest-sglang undo``.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pytest_sglang.session.errors import SessionError
from pytest_sglang.session.state import not_in_forks, started_ticks

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from pytest_sglang.session.everybody import Kept
    from pytest_sglang.session.undo import Outcome

TRACKING_VARIABLES = (
    "RUNNER_TRACKING_ID",  # GitHub Actions ends every process that has it when the job is over
    "JENKINS_NODE_COOKIE",  # Jenkins' ProcessTreeKiller, this and the next four
    "JENKINS_SERVER_COOKIE",
    "BUILD_ID",
    "HUDSON_COOKIE",
    "HUDSON_SERVER_COOKIE",
    "VSTS_PROCESS_LOOKUP_ID",  # Azure Pipelines
    "PROCESS_SPAWN_ID",
    "_JENKINS_NODE_COOKIE",
)
SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGPIPE,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
)
"""What a cancelled job sends before SIGKILL, and what else would end a process by default."""
READY_WAIT_S = 20.0
CLOSE_WAIT_S = 10.0
RETRY_AFTER_S = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Pauses before a change that could not be undone is tried again: a service manager may be busy."""
OTHERS_LOOK_S = 15.0
"""Pause between two looks whether another run, which holds the dead run's rig, has ended."""
PR_SET_CHILD_SUBREAPER = 36
"""Source: prctl(2)."""


class GuardError(SessionError):
    """No guard could be started; nothing has been changed."""


class Guard:
    """The run's side. ``start`` before the first change, ``close`` after the last one is undone."""

    def __init__(self, state_dir: Path, run_id: str, log: Path) -> None:
        self._state_dir, self._run_id, self._log = state_dir, run_id, log
        self._socket: socket.socket | None = None
        self.pid = 0
        not_in_forks(self)

    @classmethod
    def start(cls, state_dir: Path, run_id: str, log: Path) -> Guard:
        """A guard over the run of this process, armed when this returns. ``log``: where it writes what it undid.

        Raises GuardError. Source of the start's cost: 40 ms, most of it a second interpreter.
        """
        guard = cls(state_dir.absolute(), run_id, log.absolute())
        guard._launch()
        return guard

    def ensure(self) -> None:
        """Start another guard if this one has been killed; cheap, for the moment before a change. Raises GuardError."""
        if not self.alive():
            self.forget()
            self._launch()

    def alive(self) -> bool:
        """Whether the guard still stands at its end of the socket."""
        if self._socket is None:
            return False
        # the guard says nothing unasked, so something to read is its end of the line, closed
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> int:
        """Let the guard go, and wait for its end.

        Gives the number of changes that still stand: for those it stays, and undoes them when this process has ended.
        """
        if self._socket is None:
            return 0
        try:
            self._socket.sendall(b"done\n")
            self._socket.settimeout(CLOSE_WAIT_S)
            answer = _line(self._socket)
        except OSError:
            answer = ""
        word, _, number = answer.partition(" ")
        if word == "left":
            return int(number)
        self.forget()
        self._drop_empty_log()
        return 0

    def _drop_empty_log(self) -> None:
        try:
            if self._log.stat().st_size == 0:
                self._log.unlink()
        except OSError:
            pass

    def forget(self) -> None:
        """Close this end of the socket; in a forked child this leaves the parent's end open."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _launch(self) -> None:
        import subprocess

        ours, theirs = socket.socketpair()
        self._socket = ours
        command = [
            sys.executable,
            "-P",
            "-m",
            "pytest_sglang.session.guard",
            "--state",
            str(self._state_dir),
            "--run",
            self._run_id,
        ]
        command += ["--owner", f"{os.getpid()}:{started_ticks(os.getpid())}", "--fd", str(theirs.fileno())]
        try:
            with self._open_log() as log:
                # blocked signals stay blocked across fork and exec: the guard is deaf to them from its first instruction on,
                # and none that is meant for this process is lost
                before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
                try:
                    launcher = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        cwd="/",
                        env=_environment(),
                        start_new_session=True,
                        pass_fds=[theirs.fileno()],
                    )
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except OSError as error:
            self.forget()
            raise GuardError(f"the guard could not be started, so nothing is changed: {error}") from None
        finally:
            theirs.close()
        self._await_ready(launcher)

    def _open_log(self) -> BinaryIO:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        return open(self._log, "ab")

    def _await_ready(self, launcher: subprocess.Popen[bytes]) -> None:
        """The launcher ends as soon as it has forked the guard, which then says its pid."""
        assert self._socket is not None
        self._socket.settimeout(READY_WAIT_S)
        try:
            word, _, number = _line(self._socket).partition(" ")
        except OSError:
            word = ""
        if word != "ready":
            self.forget()
            launcher.kill()
            launcher.wait()
            said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise GuardError(
                f"the guard did not start, so nothing is changed: {said[-1] if said else 'no word from it'} (its log: {self._log})"
            )
        launcher.wait()
        self.pid = int(number)


def _environment() -> dict[str, str]:
    """This process's environment without the runners' variables, in which the guard finds the package that runs here."""
    environment = {name: value for name, value in os.environ.items() if name not in TRACKING_VARIABLES}
    package = Path(__file__).resolve().parents[2]
    paths = [str(Path(each).absolute()) for each in environment.get("PYTHONPATH", "").split(os.pathsep) if each]
    # an installed package is found anyway, and site-packages before the standard library could shadow that
    if package.name not in ("site-packages", "dist-packages"):
        paths.append(str(package))
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    return environment


def _line(source: socket.socket) -> str:
    """The next line; shorter where the other end has closed. Raises OSError."""
    data = b""
    while not data.endswith(b"\n"):
        byte = source.recv(1)
        if not byte:
            break
        data += byte
    return data.decode("ascii", "replace").strip()


# --- the guard's side --------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """What runs as ``python -m pytest_sglang.session.guard``: forks the guard away from this process, which ends at once."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m pytest_sglang.session.guard", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--state", type=Path, required=True, help="state directory")
    parser.add_argument("--run", required=True, help="run id")
    parser.add_argument("--owner", required=True, help="PID:START of the run's process, START in clock ticks as in /proc/PID/stat")
    parser.add_argument("--fd", type=int, required=True, help="descriptor of the socket to the run")
    arguments = parser.parse_args(argv)
    if os.fork() != 0:
        os._exit(0)
    pid, _, ticks = arguments.owner.partition(":")
    watch = Watch(socket.socket(fileno=arguments.fd), int(pid), int(ticks), arguments.state, arguments.run)
    try:
        _settle_in(watch)
        if not watch.until_death():
            undo_all(arguments.state, arguments.run)
    except Exception as error:
        say(
            arguments.state,
            f"the guard of run {arguments.run} failed: {type(error).__name__}: {error}; by hand: pytest-sglang undo",
        )
    sys.stderr.flush()
    # a thread that is stuck in the driver must not keep the guard from ending
    os._exit(0)


def _settle_in(watch: Watch) -> None:
    for number in SIGNALS:
        # a handler and not SIG_IGN: what the guard starts (systemctl, nvidia-smi) must not inherit its deafness
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    watch.hello()
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # imported now: the virtual environment may lie in a workspace that the runner wipes as soon as the job is dead
    import pytest_sglang.session.undo
    import pytest_sglang.session.undoers  # noqa: F401


class Watch:
    """The wait for "done" or for the run's death."""

    def __init__(self, line: socket.socket, pid: int, ticks: int, state_dir: Path, run_id: str) -> None:
        self._socket, self._pid, self._ticks = line, pid, ticks
        self._state_dir, self._run_id = state_dir, run_id
        os.set_inheritable(line.fileno(), False)
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError:
            self._pidfd = -1

    def hello(self) -> None:
        """Tell the run that the guard is armed; it may be dead already."""
        try:
            self._socket.sendall(f"ready {os.getpid()}\n".encode())
        except OSError:
            pass

    def until_death(self) -> bool:
        """True = let go: the run has put everything back itself. False = it is dead."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if self._pidfd >= 0:
            poll.register(self._pidfd, select.POLLIN)
        listening = True
        while self._lives():
            # without a pidfd (old kernels, some sandboxes), or with a pid that was never ours to watch, look at /proc now and then
            ready = dict(poll.poll(500 if self._pidfd < 0 or not listening else None))
            if listening and self._socket.fileno() in ready:
                word = self._word()
                if word == "done" and self._let_go():
                    return True
                if not word:
                    # the end of the socket comes a moment before the end of the process, or the run has lost it: only death counts
                    poll.unregister(self._socket)
                    listening = False
        return False

    def _lives(self) -> bool:
        return started_ticks(self._pid) == self._ticks

    def _word(self) -> str:
        try:
            return _line(self._socket)
        except OSError:
            return ""

    def _let_go(self) -> bool:
        from pytest_sglang.session.journal import open_entries

        left = sum(len(file.open) for file in open_entries(self._state_dir, self._run_id))
        if left:
            try:
                self._socket.sendall(f"left {left}\n".encode())
            except OSError:
                pass
        return left == 0


def undo_all(state_dir: Path, run_id: str) -> None:
    """Undo every change of a dead run, trying again what fails, and write down what came of it.

    While it does, it holds the locks that all users share. A rig that another living run has taken meanwhile is waited for.
    """
    from pytest_sglang.session.everybody import Kept

    told: set[object] = set()

    def tell(outcome: Outcome) -> None:
        waits = outcome.action == "owner alive"
        line = f"{outcome.action}: {outcome.detail}" + (" (this guard waits for its end)" if waits else "")
        # the age of whoever is waited for grows: the line is another each time
        subject = (outcome.entry.id, outcome.action) if waits else line
        if subject not in told:
            told.add(subject)
            say(state_dir, f"run {run_id} is dead: {line}")

    kept = Kept()
    try:
        if not _undone(state_dir, run_id, kept, tell):
            say(state_dir, f"run {run_id} is dead: not everything could be undone; by hand: pytest-sglang undo")
    finally:
        kept.release()


def _undone(state_dir: Path, run_id: str, kept: Kept, tell: Callable[[Outcome], None]) -> bool:
    """Try until nothing is open (True), or until it has failed too often. Waiting for another run's end is no failure."""
    from pytest_sglang.session.journal import open_entries
    from pytest_sglang.session.undo import undo

    pauses = iter(RETRY_AFTER_S)
    while True:
        kept.take(name for file in open_entries(state_dir, run_id) if file.open and not file.simulated for name in file.locks)
        actions = {outcome.action for outcome in undo(state_dir, run_id=run_id, tell=tell, held=kept.names)}
        if "owner alive" in actions:
            pause_s: float | None = OTHERS_LOOK_S
        elif "failed" in actions:
            pause_s = next(pauses, None)
        else:
            return True
        if pause_s is None:
            return False
        time.sleep(pause_s)


def say(state_dir: Path, text: str) -> None:
    """One line with its time (UTC) into the run's log, and into the state directory's, which outlives a wiped workspace."""
    line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n"
    try:
        sys.stderr.write(line)
        sys.stderr.flush()
    except OSError:
        pass
    try:
        with open(state_dir / "guard.log", "a", encoding="utf-8") as file:
            file.write(line)
    except OSError:
        pass


if __name__ == "__main__":
    sys.exit(main())
