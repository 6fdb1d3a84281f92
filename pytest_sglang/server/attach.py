"""A server that somebody else runs: it is looked at, never started, never stopped."""

from __future__ import annotations

from urllib.parse import urlsplit

from pytest_sglang.record.clock import Clock
from pytest_sglang.record.values import Finding
from pytest_sglang.rig.model import StartPromise
from pytest_sglang.server import control, processes
from pytest_sglang.server.control import ControlError, ControlState, Kind
from pytest_sglang.server.log import FileLog, LogSource, TextLog

DEFAULT_PORT = 30000
"""SGLang's own default port."""


class Attach:
    """The server at ``url``, known by who listens there, or by an SGLang on this machine that is about to."""

    kind: Kind = "attach"
    run_owned = False
    log_at_start: object | None = None

    def __init__(self, url: str, *, clock: Clock, log: str | None = None) -> None:
        self.subject = url
        self._port, self._clock, self._log = control.port_of(url), clock, log
        self._host = urlsplit(url).hostname or "127.0.0.1"

    def description(self) -> dict[str, object]:
        return {"kind": "attach", "url": self.subject, "log": self._log}

    def state(self) -> ControlState:
        if not processes.is_local(self._host):
            return ControlState(
                active=False, detail=f"{self._host} is not this machine: its processes cannot be seen", result="unreadable"
            )
        found = processes.listener(self._port)
        if found:
            pid = processes.launcher(found[0].pid)
            return self._running(pid, f"listens on port {self._port}")
        if processes.port_is_taken(self._port):
            return ControlState(active=True, detail=f"port {self._port} is served by a process that is hidden from us")
        starting = processes.launching(self._port, DEFAULT_PORT)
        return (
            self._running(starting, "starting, its port is closed")
            if starting
            else ControlState(active=False, detail="nobody listens")
        )

    def _running(self, pid: int, detail: str) -> ControlState:
        created = processes.started_at_wall(pid)
        return ControlState(active=True, pid=pid, started_at=self._clock.from_wall(created) if created else None, detail=detail)

    def may_control(self) -> str | None:
        return "the rig file names no way to start it again (server.systemd, server.command or server.container)"

    def start(self) -> None:
        raise ControlError(f"{self.subject} cannot be started: {self.may_control()}")

    def stop(self, grace_s: float) -> None:
        raise ControlError(f"{self.subject} is not stopped: {self.may_control()}")

    def environment(self) -> dict[str, str]:
        return processes.environ(self.state().pid)

    def argv(self) -> tuple[str, ...]:
        return processes.cmdline(self.state().pid)

    def log(self) -> LogSource:
        if self._log:
            return FileLog(self._log)
        return TextLog("", name="no log", why="the rig file names no log (server.log)")

    def findings(self, start: StartPromise | None) -> list[Finding]:
        detail = (
            "it is attached to only: whether this process is the one that its owner started, whether it restarted by itself, and its "
            "owner's time-outs are not checked"
        )
        remedy = "name its owner in the rig file: server.systemd, server.container or server.command"
        return [Finding("attach-only", "info", self.subject, detail, remedy)]
