"""A server in a Docker or Podman container, by the engine's own command line."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pytest_sglang.record.clock import Clock
from pytest_sglang.record.values import Finding
from pytest_sglang.rig.model import StartPromise
from pytest_sglang.server import control, processes, redact
from pytest_sglang.server.control import ControlError, ControlState, Kind
from pytest_sglang.server.log import FileLog, LogSource
from pytest_sglang.server.sources import ContainerLog

_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)")


class Container:
    """A container that exists already; it is started and stopped, never created or removed."""

    kind: Kind = "container"
    run_owned = False

    def __init__(self, name: str, *, url: str, clock: Clock, log: str | None = None, cli: Sequence[str] | None = None) -> None:
        self.subject = name
        self.log_at_start: object | None = None
        self._url, self._port, self._clock, self._promised_log = url, control.port_of(url), clock, log
        self._killed = False
        self._given = list(cli) if cli else None
        self._cli = self._given or [next((each for each in ("docker", "podman") if shutil.which(each)), "docker")]

    def description(self) -> dict[str, object]:
        return {"kind": "container", "name": self.subject, "url": self._url, "log": self._promised_log, "cli": self._given}

    def _inspect(self) -> dict[str, Any] | str:
        ran = control.run([*self._cli, "inspect", "--type", "container", self.subject])
        if ran.code != 0:
            return ran.err or f"{self._cli[0]} inspect ended with {ran.code}"
        try:
            found = json.loads(ran.out)[0]
        except (ValueError, IndexError, KeyError, TypeError):
            return f"{self._cli[0]} inspect {self.subject}: not the JSON of a container"
        return found if isinstance(found, dict) else f"{self._cli[0]} inspect {self.subject}: not a container"

    def state(self) -> ControlState:
        found = self._inspect()
        if isinstance(found, str):
            return ControlState(active=False, detail=found, result="unreadable")
        state = found.get("State") or {}
        # between two deaths Docker says Running and Restarting at once, with no process
        running = bool(state.get("Running")) and not state.get("Restarting")
        code = None if running else state.get("ExitCode")
        return ControlState(
            active=running,
            pid=state.get("Pid") or None,
            started_at=self._started_at(state.get("StartedAt")),
            restarts=found.get("RestartCount"),
            stopping=True if state.get("Status") == "stopping" else None,
            inner_port=self._inner_port(found) if running else None,
            detail=str(state.get("Status") or ("running" if running else "stopped")),
            result="oom-kill" if state.get("OOMKilled") else "" if running or code is None else self._result(code),
            # an exit code above 128 is how the engine writes a signal
            exit_code=128 - code if isinstance(code, int) and code > 128 else code,
        )

    def _inner_port(self, found: dict[str, Any]) -> int | None:
        """Which port of the container is published as the url's: ``{"30000/tcp": [{"HostIp": "", "HostPort": "8001"}]}``."""
        ports = (found.get("NetworkSettings") or {}).get("Ports") or {}
        for inner, outer in ports.items():
            number, _, protocol = str(inner).partition("/")
            if protocol in ("", "tcp") and any(str(each.get("HostPort")) == str(self._port) for each in outer or []):
                return int(number)
        return None

    def _result(self, code: int) -> str:
        return "timeout" if self._killed and code == 137 else "success" if code == 0 else "exit-code"

    def _started_at(self, stamp: str | None) -> float | None:
        # nanoseconds are more digits than Python reads; the year 1 means never
        match = _STAMP.fullmatch(stamp or "")
        if match is None or match[1].startswith("0001-"):
            return None
        moment = datetime.fromisoformat(f"{match[1]}.{(match[2] or '0')[:6].ljust(6, '0')}{match[3].replace('Z', '+00:00')}")
        return self._clock.from_wall(moment.timestamp())

    def may_control(self) -> str | None:
        found = self._inspect()
        if not isinstance(found, str):
            return None
        return f"{found} (may you use {self._cli[0]}? e.g. sudo usermod -aG {self._cli[0]} $USER, then log in again)"

    def start(self) -> None:
        self.log_at_start = self.log().end()
        self._killed = False
        ran = control.run([*self._cli, "start", self.subject], timeout_s=60.0)
        if ran.code != 0:
            raise ControlError(f"{self._cli[0]} start {self.subject} failed: {ran.err or f'exit {ran.code}'}")

    def stop(self, grace_s: float) -> None:
        standing = control.Standing(self.state().pid, self._port)
        seconds, begun = max(1, round(grace_s)), time.monotonic()
        ran = control.run([*self._cli, "stop", "-t", str(seconds), self.subject], timeout_s=grace_s + 30.0)
        # the engine sends SIGKILL when the time is up; SGLang's own end may be a SIGKILL too, but a sooner one
        self._killed = time.monotonic() - begun >= seconds
        if ran.code != 0:
            raise ControlError(
                f"{self._cli[0]} stop {self.subject} failed: {ran.err or f'exit {ran.code}'}", under_way=ran.code is None
            )
        standing.prove_gone(self.subject, min(control.GONE_S, max(2.0, grace_s)))

    def environment(self) -> dict[str, str]:
        """Its environment; paths in it are paths inside the container."""
        found = self._inspect()
        if isinstance(found, str):
            return {}
        words = (found.get("Config") or {}).get("Env") or []
        return {name: value for name, _, value in (str(word).partition("=") for word in words)} | processes.environ(
            self.state().pid
        )

    def argv(self) -> tuple[str, ...]:
        found = self._inspect()
        if isinstance(found, str) or not found.get("Path"):
            return ()
        return redact.argv([str(found["Path"]), *(str(each) for each in found.get("Args") or [])])

    def log(self) -> LogSource:
        return FileLog(self._promised_log) if self._promised_log else ContainerLog(self.subject, self._cli)

    def findings(self, start: StartPromise | None) -> list[Finding]:
        state = self.state()
        found = []
        if state.restarts:
            detail = f"{self._cli[0]} restarted it {state.restarts} time{'s' if state.restarts > 1 else ''} by itself"
            found.append(Finding("restarted-by-itself", "fail" if state.restarts >= 3 else "warn", self.subject, detail))
        if state.result == "oom-kill":
            found.append(Finding("oom-kill", "fail", self.subject, "the kernel killed it for want of memory"))
        return found
