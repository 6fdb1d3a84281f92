"""Units of a real systemd for tests: written, loaded, looked at from outside the product, removed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pytest_sglang.record.clock import SystemClock
from pytest_sglang.rig.model import ServerPromise
from pytest_sglang.server.http import ControlPlane
from pytest_sglang.server.systemd import Systemd

SERVER = Path(__file__).resolve().parent / "unit_server.py"
SYSTEM, USER = Path("/run/systemd/system"), Path("/run/user/0/systemd/user")


def systemctl(*words: str, user: bool = False, check: bool = True) -> str:
    done = subprocess.run(
        ["systemctl", *(["--user"] if user else []), "--no-pager", *words], capture_output=True, text=True, timeout=60
    )
    assert not check or done.returncode == 0, done.stderr
    return done.stdout.strip()


def until(true: Callable[[], object], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.03)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RealUnit:
    """``service`` and ``unit`` are lines of those sections; ``options`` go to the server. ``exec_start`` in place of it."""

    def __init__(
        self,
        folder: Path,
        name: str,
        service: str = "",
        unit: str = "",
        options: str = "",
        *,
        exec_start: str = "",
        user: bool = False,
    ) -> None:
        self.folder, self.user = folder, user
        self.file = f"{name}.service"
        self.name = f"user:{self.file}" if user else self.file
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = f"{sys.executable} -S {SERVER} --port {self.port} {options}".strip()
        self._path = (USER if user else SYSTEM) / self.file
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(
            f"[Unit]\nDefaultDependencies=no\n{unit}\n[Service]\nEnvironment=HOME={folder} PYTHONDONTWRITEBYTECODE=1\n"
            f"ExecStart={exec_start or self.command}\n{service}\n"
        )
        # as systemctl enable would: a unit that nothing refers to is unloaded, and forgotten, when it stops
        self._wanted = self._path.parent / ("basic.target.wants" if user else "mini.target.wants") / self.file
        self._wanted.parent.mkdir(exist_ok=True)
        self._wanted.symlink_to(self._path)
        systemctl("daemon-reload", user=user)

    def controller(self, log: str | None = None) -> Systemd:
        """The product's own, with systemctl as it stands."""
        return Systemd(self.name, url=self.url, clock=SystemClock(), log=log)

    @property
    def promise(self) -> ServerPromise:
        return ServerPromise(url=self.url, systemd=self.name)

    def plane(self) -> ControlPlane:
        return ControlPlane(self.url)

    def shown(self, name: str) -> str:
        """A property, read without the product."""
        return systemctl("show", self.file, "-p", name, "--value", user=self.user)

    def main_pid(self) -> int:
        return int(self.shown("MainPID") or 0)

    def start(self) -> int:
        """By the owner; back when it serves."""
        systemctl("start", "--no-block", self.file, user=self.user)
        self.serves()
        return self.main_pid()

    def serves(self, within_s: float = 30.0) -> None:
        """Until its health is 200."""
        with self.plane() as plane:
            until(lambda: plane.health() == 200, within_s)

    def remove(self) -> None:
        systemctl("stop", "--no-block", self.file, user=self.user, check=False)
        # its ExecStop, too, is killed
        until(lambda: self._killed(), 20)
        systemctl("reset-failed", self.file, user=self.user, check=False)
        for path in (self._wanted, self._path):
            path.unlink(missing_ok=True)

    def _killed(self) -> bool:
        systemctl("kill", "--signal=KILL", self.file, user=self.user, check=False)
        return self.shown("ActiveState") in ("inactive", "failed")


def user_manager() -> None:
    """``systemd --user`` for root, as logind would start it; XDG_RUNTIME_DIR leads systemctl --user to it."""
    os.environ["XDG_RUNTIME_DIR"] = "/run/user/0"
    path = SYSTEM / "user@0.service"
    if path.exists():
        return
    Path("/run/user/0").mkdir(parents=True)
    path.write_text(
        "[Unit]\nDefaultDependencies=no\n[Service]\nType=notify\nDelegate=yes\nKillMode=mixed\nSlice=user-0.slice\n"
        "Environment=XDG_RUNTIME_DIR=/run/user/0 HOME=/root\nExecStart=/lib/systemd/systemd --user --unit=basic.target\n"
    )
    systemctl("daemon-reload")
    systemctl("start", "user@0.service")
