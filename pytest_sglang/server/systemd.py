"""A server that is a systemd unit: start and stop by systemctl, everything else read from ``systemctl show``."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from pytest_sglang.record import units
from pytest_sglang.record.clock import Clock
from pytest_sglang.record.values import Finding
from pytest_sglang.rig.model import StartPromise
from pytest_sglang.server import control, processes, properties, redact
from pytest_sglang.server.control import ControlError, ControlState, Kind
from pytest_sglang.server.log import FileLog, LogSource
from pytest_sglang.server.properties import StartLimit, span_s
from pytest_sglang.server.sources import JournalLog

_PROPERTIES = (
    "LoadState,ActiveState,SubState,Result,MainPID,NRestarts,ExecMainStartTimestampMonotonic,ExecMainCode,ExecMainStatus,ExecStart,"
    "ExecStartPre,ExecStartPost,Environment,EnvironmentFiles,User,Type,TimeoutStartUSec,TimeoutStopUSec,StandardOutput,StandardError,"
    "StartLimitBurst,StartLimitIntervalUSec,Restart,PrivateTmp,FragmentPath,ControlGroup,"
    "WantedBy,RequiredBy,RequisiteOf,BoundBy,UpheldBy,ConsistsOf,TriggeredBy"
)
_PINNED_BY = ("WantedBy", "RequiredBy", "RequisiteOf", "BoundBy", "UpheldBy", "ConsistsOf", "TriggeredBy")
"""A unit that none of these refer to is unloaded when it stops, and systemd's count of its starts with it (seen with systemd 252)."""
_STARTS_OF_A_RUN = 3
"""A warm start, a cold one, and one with the caches put back."""
_COUNTED_START_TYPES = frozenset({"notify", "notify-reload", "forking", "oneshot", "dbus"})
"""Types whose start lasts until the server says so or exits: TimeoutStartSec covers all of the start-up (systemd.service(5))."""
_FLAPPING = 3


class Systemd:
    """A system unit, or a user's unit when its name is given as ``user:NAME``."""

    kind: Kind = "systemd"
    run_owned = False

    def __init__(
        self,
        unit: str,
        *,
        url: str,
        clock: Clock,
        log: str | None = None,
        systemctl: Sequence[str] | None = None,
        journalctl: Sequence[str] | None = None,
    ) -> None:
        self.subject = unit
        self.log_at_start: object | None = None
        self._user, self._unit = unit.startswith("user:"), unit.removeprefix("user:")
        self._url, self._port, self._clock, self._promised_log = url, control.port_of(url), clock, log
        self._given = (list(systemctl) if systemctl else None, list(journalctl) if journalctl else None)
        scope = ["--user"] if self._user else []
        self._systemctl = list(systemctl or ["systemctl", *scope, "--no-pager", "--no-ask-password"])
        self._journalctl = list(journalctl or ["journalctl", "--no-pager"])
        self._sudo = systemctl is None and not self._user and os.geteuid() != 0
        self._source: LogSource | None = None
        self._starts: list[float] = []

    def description(self) -> dict[str, object]:
        return {
            "kind": "systemd",
            "unit": self.subject,
            "url": self._url,
            "log": self._promised_log,
            "systemctl": self._given[0],
            "journalctl": self._given[1],
        }

    # --- reading -----------------------------------------------------------------------------------------------------------

    def show(self) -> dict[str, str]:
        """The unit's properties; {"unreadable": reason} where systemctl does not answer."""
        ran = control.run([*self._systemctl, "show", self._unit, "-p", _PROPERTIES])
        if ran.code != 0:
            return {"unreadable": ran.err or f"systemctl show ended with {ran.code}"}
        found: dict[str, str] = {}
        for line in ran.out.splitlines():
            name, _, value = line.partition("=")
            # a unit may have several ExecStartPre and EnvironmentFiles lines
            found[name] = f"{found[name]}\n{value}" if name in found else value
        return found

    def state(self) -> ControlState:
        shown = self.show()
        if "unreadable" in shown:
            return ControlState(active=False, detail=f"could not ask systemctl: {shown['unreadable']}", result="unreadable")
        if shown.get("LoadState") != "loaded":
            return ControlState(
                active=False, detail=f"unit {self.subject} is {shown.get('LoadState') or 'unknown'}", result="unreadable"
            )
        active, sub = shown.get("ActiveState", ""), shown.get("SubState", "")
        pid = properties.number(shown.get("MainPID")) or None
        started_us = properties.number(shown.get("ExecMainStartTimestampMonotonic"))
        started_at = self._clock.from_monotonic(started_us / 1e6) if started_us else None
        if sub == "exited" and not pid and (left := processes.in_cgroup(shown.get("ControlGroup", ""))):
            # a oneshot unit whose command has put the server into the background
            pid, started_at = left[0].pid, self._since(left[0].pid)
        return ControlState(
            active=active in ("active", "activating", "reloading", "deactivating")
            and not (sub == "auto-restart" or (sub == "exited" and not pid)),
            pid=pid,
            started_at=started_at,
            restarts=properties.number(shown.get("NRestarts")),
            detail=f"{active} ({sub})",
            stopping=active == "deactivating",
            result=shown.get("Result", ""),
            exit_code=None if pid else properties.exit_code(shown),
        )

    def _since(self, pid: int) -> float | None:
        created = processes.started_at_wall(pid)
        return None if created is None else self._clock.from_wall(created)

    def argv(self) -> tuple[str, ...]:
        shown = self.show()
        running = processes.cmdline(properties.number(shown.get("MainPID")))
        if running:
            return running
        match = re.search(r"argv\[\]=(.*?) ;", shown.get("ExecStart", ""))
        return redact.argv(properties.words(match[1])) if match else ()

    def environment(self) -> dict[str, str]:
        """The environment of the running process, else what the unit gives it.

        Settings of an EnvironmentFile override those of Environment= (systemd.exec(5)); HOME is that of the unit's user.
        """
        shown = self.show()
        found = {name: value for name, _, value in (word.partition("=") for word in properties.words(shown.get("Environment", "")))}
        for line in shown.get("EnvironmentFiles", "").splitlines():
            found |= properties.environment_file(Path(line.partition(" (")[0]))
        found.setdefault("HOME", properties.home(shown.get("User")))
        return found | processes.environ(properties.number(shown.get("MainPID")))

    def log(self) -> LogSource:
        if self._source is None:
            self._source = self._find_log()
        return self._source

    def _find_log(self) -> LogSource:
        if self._promised_log:
            return FileLog(self._promised_log)
        shown = self.show()
        # SGLang logs to standard error, its access lines to standard output
        for name in ("StandardError", "StandardOutput"):
            how, _, path = shown.get(name, "").partition(":")
            if how in ("append", "file", "truncate"):
                path = path or self._path_in_file(name)
                return FileLog(path) if path else self._journal()
            if how != "inherit":
                break
        return self._journal()

    def _journal(self) -> JournalLog:
        return JournalLog(self._unit, self._journalctl, user=self._user)

    def _path_in_file(self, name: str) -> str:
        """The path of ``StandardError=append:PATH`` from the unit's files: ``systemctl show`` gives the word alone (in 252)."""
        ran = control.run([*self._systemctl, "cat", self._unit])
        found = re.findall(rf"^{name}=\s*(?:append|file|truncate):(.+?)\s*$", ran.out, re.MULTILINE)
        # of several settings the last one holds
        return str(found[-1]) if ran.code == 0 and found else ""

    def findings(self, start: StartPromise | None) -> list[Finding]:
        shown = self.show()
        if "unreadable" in shown:
            return [Finding("unit-unreadable", "warn", self.subject, f"could not ask systemctl: {shown['unreadable']}")]
        if shown.get("LoadState") != "loaded":
            return [
                Finding(
                    "unit-missing",
                    "fail",
                    self.subject,
                    f"unit {self.subject} is {shown.get('LoadState')}",
                    "server.systemd in the rig file",
                )
            ]
        return [*self._time_out(shown, start), *self._restarts(shown), *self._start_limit(shown, start), *self._private_tmp(shown)]

    def _time_out(self, shown: dict[str, str], start: StartPromise | None) -> list[Finding]:
        limit_s, cold_s = span_s(shown.get("TimeoutStartUSec", "infinity")), start.cold_s if start else None
        kind = shown.get("Type", "simple")
        around = [name for name in ("ExecStartPre", "ExecStartPost") if shown.get(name)]
        if cold_s is None or limit_s is None or limit_s >= cold_s or not (kind in _COUNTED_START_TYPES or around):
            return []
        why = f"Type={kind}" if kind in _COUNTED_START_TYPES else " and ".join(around)
        detail = (
            f"systemd gives the start {units.duration(limit_s)} ({why}, TimeoutStartUSec), "
            f"but a cold start is promised within {units.duration(cold_s)}"
        )
        remedy = f"systemctl edit {self._unit}: [Service] TimeoutStartSec={round(cold_s * 1.5)}"
        # around a plain start the time-out covers the other commands only
        return [Finding("unit-timeout", "fail" if kind in _COUNTED_START_TYPES else "warn", self.subject, detail, remedy)]

    def _restarts(self, shown: dict[str, str]) -> list[Finding]:
        restarts, found = properties.number(shown.get("NRestarts")) or 0, []
        if restarts:
            detail = f"systemd restarted it {restarts} time{'s' if restarts > 1 else ''} by itself since it was started by hand"
            found.append(
                Finding(
                    "restarted-by-itself",
                    "fail" if restarts >= _FLAPPING else "warn",
                    self.subject,
                    detail,
                    f"look for the first traceback: journalctl -u {self._unit}; count anew: systemctl reset-failed, then restart",
                )
            )
        if shown.get("Result") in ("start-limit-hit", "oom-kill"):
            found.append(Finding(shown["Result"], "fail", self.subject, f"systemd says Result={shown['Result']}"))
        return found

    def _limit(self, shown: dict[str, str]) -> StartLimit:
        interval_s, burst = span_s(shown.get("StartLimitIntervalUSec", "0")), properties.number(shown.get("StartLimitBurst"))
        interval_s = float("inf") if interval_s is None else interval_s
        if not burst or interval_s <= 0 or not any(shown.get(name) for name in _PINNED_BY):
            return StartLimit(0, 0.0, 0)
        ours = sum(time.monotonic() - moment < interval_s for moment in self._starts)
        # a stand-in for systemctl has no part in this machine's journal
        told = 0 if self._given[0] and not self._given[1] else self._starts_in_journal(interval_s)
        return StartLimit(burst, interval_s, max(ours, told))

    def _starts_in_journal(self, interval_s: float) -> int:
        """How often systemd says that it started the unit in the last ``interval_s``, whoever asked."""
        prefix = "USER_" if self._user else ""
        since = ["-b"] if interval_s == float("inf") else [f"--since=-{interval_s:.0f}s"]
        match = [f"{prefix}UNIT={self._unit}", "SYSLOG_IDENTIFIER=systemd"]
        ran = control.run([*self._journalctl, "-o", "json", f"--output-fields={prefix}INVOCATION_ID", *since, *match])
        return len(set(re.findall(rf'"{prefix}INVOCATION_ID":"([0-9a-f]+)"', ran.out))) if ran.code == 0 else 0

    def _start_limit(self, shown: dict[str, str], start: StartPromise | None) -> list[Finding]:
        limit = self._limit(shown)
        every_s = (start.warm_s if start is not None else None) or 90.0
        planned = min(_STARTS_OF_A_RUN, 1 + int(min(limit.interval_s, 1e9) // every_s))
        if not limit.burst or not (limit.none_to_spare or planned + 1 > limit.burst):
            return []
        detail = f"a run restarts it up to {planned} times in that while: {limit.describe()}; beyond it systemd refuses every start"
        return [Finding("start-limit", "warn", self.subject, detail, f"systemctl edit {self._unit}: [Unit] StartLimitBurst=10")]

    def _private_tmp(self, shown: dict[str, str]) -> list[Finding]:
        if shown.get("PrivateTmp") != "yes" or "TORCHINDUCTOR_CACHE_DIR" in self.environment():
            return []
        return [
            Finding(
                "private-tmp",
                "warn",
                self.subject,
                "PrivateTmp=yes empties /tmp at every stop, and SGLang before 0.5.18 keeps a cache there: every start is cold",
                "set TORCHINDUCTOR_CACHE_DIR to a directory that stays",
            )
        ]

    # --- changing ----------------------------------------------------------------------------------------------------------

    def _command(self, verb: str, shown: dict[str, str]) -> list[str]:
        # waiting for the start of Type=notify would mean waiting for readiness
        block = (
            ["--no-block"] if verb == "start" and (shown.get("Type") in _COUNTED_START_TYPES or shown.get("ExecStartPre")) else []
        )
        if self._sudo:
            return ["sudo", "-n", "systemctl", "--no-ask-password", *block, verb, self._unit]
        return [*self._systemctl, *block, verb, self._unit]

    def may_control(self) -> str | None:
        shown = self.show()
        if "unreadable" in shown:
            return f"systemctl does not answer: {shown['unreadable']}"
        if shown.get("LoadState") != "loaded":
            return (
                f"unit {self.subject} is {shown.get('LoadState') or 'unknown'} (server.systemd in the rig file names another unit?)"
            )
        limit = self._limit(shown)
        if limit.none_to_spare:
            return (
                f"systemd would soon refuse every start of {self.subject} ({limit.describe()}), the owner's too; "
                f"raise StartLimitBurst or wait (systemctl edit {self._unit})"
            )
        if not self._sudo:
            return None
        commands = [self._command(verb, shown)[2:] for verb in ("start", "stop")]
        for command in commands:
            if control.run(["sudo", "-n", "-l", *command]).code != 0:
                path = "/usr/bin/systemctl"
                rule = ", ".join(" ".join([path, *each[1:]]) for each in commands)
                line = f"echo '{_me()} ALL=(root) NOPASSWD: {rule}' | sudo tee /etc/sudoers.d/pytest-sglang"
                return f"no right to start and stop {self.subject}; grant it with: {line}"
        return None

    def start(self) -> None:
        shown = self.show()
        self.log_at_start = self.log().end()
        if self._limit(shown).used_up or shown.get("Result") == "start-limit-hit":
            # whoever may control it was told before (may_control); a server that must come back comes back
            control.run(self._command("reset-failed", shown))
        self._starts.append(time.monotonic())
        ran = control.run(self._command("start", shown), timeout_s=60.0)
        if ran.code != 0:
            raise ControlError(f"systemctl start {self._unit} failed: {ran.err or f'exit {ran.code}'}")

    def stop(self, grace_s: float) -> None:
        shown = self.show()
        standing = control.Standing(
            properties.number(shown.get("MainPID")), self._port, processes.in_cgroup(shown.get("ControlGroup", ""))
        )
        stop_s = span_s(shown.get("TimeoutStopUSec", "90s"))
        ran = control.run(self._command("stop", shown), timeout_s=max(grace_s, (stop_s if stop_s is not None else grace_s)) + 15.0)
        if ran.code != 0:
            raise ControlError(f"systemctl stop {self._unit} failed: {ran.err or f'exit {ran.code}'}", under_way=ran.code is None)
        standing.prove_gone(self.subject, min(control.GONE_S, max(2.0, grace_s)))


def _me() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
