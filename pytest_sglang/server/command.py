"""A server that the run starts itself from a command, and that ends with the run, whatever ends the run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_sglang.record.clock import Clock
from pytest_sglang.record.values import Finding
from pytest_sglang.rig.model import StartPromise
from pytest_sglang.server import control, processes, reaper, redact
from pytest_sglang.server.control import ControlError, ControlState, Kind
from pytest_sglang.server.log import FileLog, LogSource

TRACKING = (
    "RUNNER_TRACKING_ID",
    "JENKINS_NODE_COOKIE",
    "JENKINS_SERVER_COOKIE",
    "BUILD_ID",
    "HUDSON_COOKIE",
    "HUDSON_SERVER_COOKIE",
)
"""By these variables CI runners find and kill what a job leaves behind: the reaper must outlive that to end the tree properly."""
ORPHAN_GRACE_S = 5.0
"""Seconds between SIGTERM and SIGKILL when the run is gone: nothing may be left 10 s after its death."""
_LAUNCH_S = 20.0


class Command:
    """``argv`` in a session of its own below a reaper; output appended to ``run_dir/server.log``."""

    kind: Kind = "command"
    run_owned = True

    def __init__(
        self,
        argv: Sequence[str],
        *,
        url: str,
        clock: Clock,
        run_dir: Path,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        log: str | None = None,
        described: bool = False,
    ) -> None:
        self._argv, self._env, self._cwd = tuple(argv), dict(env or {}), cwd
        self.subject = " ".join(redact.argv(self._argv))[:200]
        self.log_at_start: object | None = None
        self._url, self._port, self._clock, self._run_dir = url, control.port_of(url), clock, run_dir
        self._log = Path(log).expanduser() if log else run_dir / "server.log"
        self._status_path = run_dir / "server.status.json"
        self._reaper: subprocess.Popen[bytes] | None = None
        self._described = described

    def description(self) -> dict[str, object]:
        # its environment is left out: it may hold secrets, and nobody but this run starts the server again
        return {
            "kind": "command",
            "argv": list(redact.argv(self._argv)),
            "url": self._url,
            "log": str(self._log),
            "run_dir": str(self._run_dir),
        }

    def _status(self) -> dict[str, Any]:
        try:
            found = json.loads(self._status_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def state(self) -> ControlState:
        status = self._status()
        pid, started, code = status.get("pid"), status.get("started"), status.get("exit_status")
        if pid is None:
            return ControlState(active=False, detail="not started")
        started_at = self._clock.from_wall(started) if started is not None else None
        if code is None and self._runs(status):
            return ControlState(active=True, pid=pid, started_at=started_at, detail="running")
        if code is None:
            code = self._exit_status_soon()
        if code is None:
            return ControlState(
                active=False, started_at=started_at, detail="gone together with its reaper", result="signal", exit_code=-9
            )
        result = "timeout" if status.get("killed") else "success" if code == 0 else "signal" if code < 0 else "exit-code"
        return ControlState(active=False, started_at=started_at, detail=exit_text(code), result=result, exit_code=code)

    def _runs(self, status: dict[str, Any]) -> bool:
        created = processes.started_at_wall(status["pid"])
        # a pid may have been given to another process since
        return (
            created is not None and abs(created - float(status["started"] or created)) < 5.0 and bool(processes.tree(status["pid"]))
        )

    def _exit_status_soon(self) -> int | None:
        """The exit status that the reaper is about to write down; None where there is no reaper any more."""
        for _ in range(50):
            code = self._status().get("exit_status")
            if code is not None or self._living_reaper() is None:
                break
            time.sleep(0.02)
        return self._status().get("exit_status")

    def may_control(self) -> str | None:
        program = self._argv[0] if self._argv else ""
        path = self._environment().get("PATH")
        found = shutil.which(program, path=path) or (self._cwd and shutil.which(str(Path(self._cwd) / program)))
        return None if found else f"{program!r} is not a program here (server.command in the rig file: give its full path)"

    def _environment(self) -> dict[str, str]:
        return {name: value for name, value in {**os.environ, **self._env}.items() if name not in TRACKING}

    def start(self) -> None:
        if self._described:
            raise ControlError(f"{self.subject} belonged to a run that is over; it is not started again")
        if self.state().active:
            raise ControlError(f"{self.subject} is running already (pid {self.state().pid})")
        why = self.may_control()
        if why is not None:
            raise ControlError(why)
        holders = processes.listener(self._port)
        if holders or processes.port_is_taken(self._port):
            who = "; ".join(str(each) for each in holders) or "a process that is hidden from us"
            raise ControlError(f"port {self._port} is taken by {who}: the server could not bind it")
        if self._reaper is not None:
            # what the last start left behind is the run's own
            self._ask_to_stop(self._reaper, ORPHAN_GRACE_S)
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._status_path.unlink(missing_ok=True)
        self.log_at_start = self.log().end()
        self._launch()

    def _launch(self) -> None:
        order = {
            "argv": list(self._argv),
            "env": self._environment(),
            "cwd": str(Path(self._cwd).expanduser()) if self._cwd else None,
            "log": str(self._log.absolute()),
            "status": str(self._status_path.absolute()),
            "grace_s": ORPHAN_GRACE_S,
        }
        own = {name: value for name, value in os.environ.items() if name not in TRACKING}
        self._reaper = subprocess.Popen(
            [sys.executable, "-I", "-S", reaper.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            env=own,
        )
        pipe = self._reaper.stdin
        if pipe is None:
            raise ControlError("the reaper has no pipe to this run")
        pipe.write(json.dumps(order).encode() + b"\n")
        pipe.flush()
        deadline = time.monotonic() + _LAUNCH_S
        while self._status().get("pid") is None:
            if self._reaper.poll() is not None or time.monotonic() > deadline:
                raise ControlError(f"{self.subject} was not started: its reaper ended with {self._reaper.poll()} (see {self._log})")
            time.sleep(0.01)

    def stop(self, grace_s: float) -> None:
        status = self._status()
        keeper = status.get("reaper_pid")
        standing = control.Standing(self._living_reaper(), self._port)
        standing.tree = [each for each in standing.tree if each.pid != keeper]
        if self._reaper is not None:
            self._ask_to_stop(self._reaper, grace_s)
            self._reaper = None
        elif (living := self._living_reaper()) is not None:
            os.kill(living, signal.SIGTERM)
        standing.prove_gone(self.subject, grace_s + reaper.KILL_S + 5.0)

    def _ask_to_stop(self, keeper: subprocess.Popen[bytes], grace_s: float) -> None:
        try:
            if keeper.stdin is not None:
                keeper.stdin.write(f"stop {grace_s:g}\n".encode())
                keeper.stdin.close()
        except OSError:
            pass  # it has ended already
        try:
            keeper.wait(grace_s + reaper.KILL_S + 5.0)
        except subprocess.TimeoutExpired:
            keeper.kill()
            keeper.wait()

    def _living_reaper(self) -> int | None:
        """The reaper's pid, if that process still is it: a pid may have been given to another process since."""
        keeper, started = self._status().get("reaper_pid"), self._status().get("started")
        created = processes.started_at_wall(keeper) if keeper else None
        same = created is not None and started is not None and created - 1.0 <= started < created + _LAUNCH_S
        return keeper if same and processes.tree(keeper) else None

    def environment(self) -> dict[str, str]:
        return processes.environ(self.state().pid) or self._environment()

    def argv(self) -> tuple[str, ...]:
        return processes.cmdline(self.state().pid) or redact.argv(self._argv)

    def log(self) -> LogSource:
        return FileLog(self._log)

    def findings(self, start: StartPromise | None) -> list[Finding]:
        left = [pid for pid in self._status().get("left") or [] if processes.tree(pid)]
        if not left or self.state().active:
            return []
        names = ", ".join(f"pid {pid} ({' '.join(processes.cmdline(pid))[:80]})" for pid in left)
        return [
            Finding(
                "orphans", "fail", self.subject, f"the server ended, but left processes behind: {names} (they may hold GPU memory)"
            )
        ]


def exit_text(code: int) -> str:
    """``exit 1``, ``killed by SIGKILL``."""
    if code >= 0:
        return f"exit {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
