"""Who may start and stop a server, and what is known of its process: one Protocol, four kinds of owner."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

from pytest_sglang.record.clock import Clock
from pytest_sglang.record.values import Finding, Value
from pytest_sglang.rig.model import ServerPromise, StartPromise
from pytest_sglang.server import processes

if TYPE_CHECKING:
    import psutil

    from pytest_sglang.server.log import LogSource

Kind = Literal["systemd", "command", "container", "attach"]


class ControlError(Exception):
    """A start or stop that did not work; the message says what was tried and what stands in the way."""

    def __init__(self, message: str, *, under_way: bool = False) -> None:
        super().__init__(message)
        self.under_way = under_way
        """It may still come to an end: the tool that was asked has not answered in time, or something of the server is left."""


class ControlState(Value, frozen=True, kw_only=True):
    """What is known of the server's main process now. ``started_at`` in rig time (epoch seconds); None = not known."""

    active: bool
    pid: int | None = None
    started_at: float | None = None
    restarts: int | None = None
    """How often its owner restarted it by itself since it was started by hand."""
    detail: str = ""
    stopping: bool | None = None
    """Its owner has been asked to stop it and is at it; None = not told."""
    inner_port: int | None = None
    """The port of its own network namespace to which its owner maps the url's (a container's published port)."""
    result: str = ""
    """How it ended: ``success``, ``exit-code``, ``signal``, ``oom-kill``, ``start-limit-hit`` ...; ``unreadable``: not known."""
    exit_code: int | None = None
    """Exit status of the last process, negative for a signal."""


class Controller(Protocol):
    """One server's owner."""

    kind: Kind
    subject: str
    """What is controlled, for a person: the unit's name, the command, the container, the url."""
    run_owned: bool
    """True: this run started it, and it ends with the run."""
    log_at_start: object | None
    """Position in the log just before this controller's last ``start()``; None where it started nothing."""

    def state(self) -> ControlState:
        """What is known of the process now; never raises."""

    def may_control(self) -> str | None:
        """None: the right to start and stop is proved, without changing anything; else why not, and the line that grants it."""

    def start(self) -> None:
        """Start it and return at once, not waiting for readiness. Raises ControlError."""

    def stop(self, grace_s: float) -> None:
        """Stop it; back when no process of its tree lives and its port is free. Raises ControlError naming survivors."""

    def environment(self) -> dict[str, str]:
        """Its environment variables, secrets in clear: not for a report."""

    def argv(self) -> tuple[str, ...]:
        """Its command line, secrets redacted."""

    def log(self) -> LogSource:
        """Its log."""

    def description(self) -> dict[str, object]:
        """Plain JSON from which ``from_description`` makes an equal controller in another process. Holds no secret."""

    def findings(self, start: StartPromise | None) -> list[Finding]:
        """What is off about the owner's side: a unit's time-out, restarts by itself, a missing unit."""


def make(
    server: ServerPromise,
    *,
    clock: Clock,
    run_dir: Path,
    systemctl: Sequence[str] | None = None,
    journalctl: Sequence[str] | None = None,
    container_cli: Sequence[str] | None = None,
) -> Controller:
    """The controller that the rig file names. Given prefixes replace the machine's own tools: a simulated rig has its systemctl."""
    if server.systemd is not None:
        from pytest_sglang.server.systemd import Systemd

        return Systemd(server.systemd, url=server.url, log=server.log, clock=clock, systemctl=systemctl, journalctl=journalctl)
    if server.command is not None:
        from pytest_sglang.server.command import Command

        return Command(server.command, url=server.url, env=server.env, cwd=server.cwd, log=server.log, clock=clock, run_dir=run_dir)
    if server.container is not None:
        from pytest_sglang.server.container import Container

        return Container(server.container, url=server.url, log=server.log, clock=clock, cli=container_cli)
    from pytest_sglang.server.attach import Attach

    return Attach(server.url, log=server.log, clock=clock)


def from_description(description: Mapping[str, Any], clock: Clock | None = None) -> Controller:
    """The controller of ``Controller.description()``, in another process (the guard, ``undo``). Raises ControlError."""
    from pytest_sglang.record.clock import SystemClock

    clock = clock or SystemClock()
    kind, url, log = description.get("kind"), str(description.get("url", "")), description.get("log")
    if kind == "systemd":
        from pytest_sglang.server.systemd import Systemd

        return Systemd(
            description["unit"],
            url=url,
            log=log,
            clock=clock,
            systemctl=description.get("systemctl"),
            journalctl=description.get("journalctl"),
        )
    if kind == "command":
        from pytest_sglang.server.command import Command

        return Command(description["argv"], url=url, log=log, clock=clock, run_dir=Path(description["run_dir"]), described=True)
    if kind == "container":
        from pytest_sglang.server.container import Container

        return Container(description["name"], url=url, log=log, clock=clock, cli=description.get("cli"))
    if kind == "attach":
        from pytest_sglang.server.attach import Attach

        return Attach(url, log=log, clock=clock)
    raise ControlError(f"not a description of a server's controller: kind {kind!r} (systemd, command, container or attach)")


def port_of(url: str) -> int:
    """The TCP port of ``url``."""
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


class Ran(Value, frozen=True):
    """A finished tool: ``code`` None where it could not be run or took too long, with the reason in ``err``."""

    code: int | None
    out: str
    err: str


def run(argv: Sequence[str], timeout_s: float = 15.0) -> Ran:
    """Run a tool without terminal and without a shell; never raises.

    Its output goes to files: a pipe would be waited for as long as anything that the tool started keeps it open.
    """
    import tempfile

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            done = subprocess.run(list(argv), stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=timeout_s, check=False)
        except FileNotFoundError:
            return Ran(None, "", f"{argv[0]} is not installed here")
        except subprocess.TimeoutExpired:
            return Ran(None, "", f"{' '.join(argv)} took longer than {timeout_s:g} s")
        except OSError as error:
            return Ran(None, "", f"{argv[0]}: {error.strerror or error}")
        out.seek(0)
        err.seek(0)
        text = [file.read().decode("utf-8", errors="replace") for file in (out, err)]
        return Ran(done.returncode, text[0], text[1].strip())


GONE_S = 20.0
"""Wall seconds that are left to processes and port when a service manager says that it has stopped the server."""


class Standing:
    """The processes and the port of a server just before it is stopped, to prove afterwards that nothing is left."""

    def __init__(self, pid: int | None, port: int, more: Sequence[psutil.Process] = ()) -> None:
        """``more``: processes that belong to it without being descendants of ``pid``."""
        self.port = port
        self.tree: list[psutil.Process] = list(dict.fromkeys([*processes.tree(pid), *more]))
        inside = {each.pid for each in self.tree}
        before = processes.bound(port)
        self.ours = frozenset(ip for ip, holder in before if holder in inside)
        """Addresses on which it listens."""
        self._others = frozenset(before) - {(ip, holder) for ip, holder in before if holder in inside}

    def taken_by(self) -> list[str]:
        """Who listens where the server did; another server on the same port of another address is none of its business."""
        wild = bool(self.ours & {"0.0.0.0", "::"})
        now = [(ip, holder) for ip, holder in processes.bound(self.port) if ip in self.ours or wild]
        known = {each.pid: str(each) for each in processes.listener(self.port)}
        return [
            known.get(holder or 0, "a process that is hidden from us") for ip, holder in now if (ip, holder) not in self._others
        ]

    def prove_gone(self, subject: str, timeout_s: float) -> None:
        """Raise ControlError unless every process is gone and the port free within ``timeout_s`` (wall)."""
        deadline = time.monotonic() + timeout_s
        left = processes.wait_gone(self.tree, timeout_s)
        if left:
            names = ", ".join(processes.describe(each) for each in left)
            raise ControlError(
                f"{subject} was stopped, but still alive after {timeout_s:.0f} s: {names} (they may hold GPU memory)",
                under_way=True,
            )
        while holders := self.taken_by():
            if time.monotonic() > deadline + 2.0:
                raise ControlError(
                    f"{subject} was stopped, but port {self.port} is still taken by {'; '.join(sorted(set(holders)))}"
                )
            time.sleep(0.05)
