"""A real systemd in namespaces of its own, and a test's whole protocol inside it: there ``systemctl`` is simply ``systemctl``."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SYSTEMD = Path("/lib/systemd/systemd")
COVERED = ("/run", "/tmp", "/var/tmp", "/var/log")
NAMESPACES = ("ipc", "uts", "cgroup", "pid", "mnt")
BOOT_S = 60.0


class Unavailable(Exception):
    """No systemd can be booted here; the message says why."""


class Namespace:
    """Booted when made; ``end()`` ends every process in it. Raises Unavailable."""

    def __init__(self) -> None:
        self._cgroups: list[Path] = []
        why = _why_not()
        if why is not None:
            raise Unavailable(why)
        self._folder = Path(tempfile.mkdtemp(prefix="systemd-"))
        (self._folder / "units").mkdir()
        self._log = self._folder / "systemd.log"
        with self._log.open("wb") as log:
            # it must not outlive this run, whatever ends it
            command = ["setpriv", "--pdeathsig", "KILL", "bash", str(HERE / "namespace.sh"), str(self._folder / "units"), *_keep()]
            self._script = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
            )
        try:
            self.pid = self._booted()
        except BaseException:
            self.end()
            raise

    @property
    def prefix(self) -> list[str]:
        """What stands before a command that is to run inside."""
        return ["nsenter", "-t", str(self.pid), "-p", "-m", "-u", "-i", "-C"]

    def _booted(self) -> int:
        deadline = time.monotonic() + BOOT_S
        pid = 0
        while time.monotonic() < deadline and self._script.poll() is None:
            pid = pid or self._systemd()
            if pid:
                self.pid = pid
                asked = subprocess.run([*self.prefix, "systemctl", "is-system-running"], capture_output=True, text=True)
                if asked.stdout.strip() in ("running", "degraded"):
                    return pid
            time.sleep(0.05)
        said = self._log.read_text(errors="replace").strip().splitlines()
        raise Unavailable(f"systemd did not boot in a namespace: {said[-1] if said else 'no word from it'}")

    def _systemd(self) -> int:
        try:
            children = psutil.Process(self._script.pid).children()
            return next((each.pid for each in children if each.name() == "systemd"), 0)
        except psutil.Error:
            return 0

    def end(self) -> None:
        """SIGKILL to PID 1 ends everything in the namespace; its cgroups and its folder go with it."""
        pid = self._systemd()
        if pid:
            os.kill(pid, signal.SIGKILL)
        else:
            self._script.kill()
        self._script.wait()
        for line in self._log.read_text(errors="replace").splitlines():
            if line.startswith("cgroup /sys/fs/cgroup/"):
                _remove_cgroup(Path(line.removeprefix("cgroup ")))
        shutil.rmtree(self._folder, ignore_errors=True)

    def call(self, work: Callable[[], Any]) -> Any:
        """``work()`` in a forked child inside the namespaces; its result must be plain JSON. Raises RuntimeError."""
        handles = [os.open(f"/proc/{self.pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in NAMESPACES]
        reading, writing = os.pipe()
        here = os.getcwd()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads: the child uses none of them
            child = os.fork()
        if child == 0:
            os.close(reading)
            _enter(handles, here)
            _work(work, writing)
        os.close(writing)
        for each in handles:
            os.close(each)
        with os.fdopen(reading, "rb") as pipe:
            told = pipe.read()
        os.waitpid(child, 0)
        if not told:
            raise RuntimeError("the child in the systemd namespace died without a word")
        found = json.loads(told)
        if "error" in found:
            raise RuntimeError(found["error"])
        return found["result"]


def _why_not() -> str | None:
    if not SYSTEMD.exists():
        return f"systemd is not installed ({SYSTEMD})"
    missing = [each for each in ("unshare", "nsenter", "setpriv", "journalctl") if shutil.which(each) is None]
    if missing:
        return f"{', '.join(missing)} is not installed"
    if os.geteuid() != 0:
        return "booting systemd in a namespace needs root"
    tried = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--uts", "--ipc", "--cgroup", "true"],
        capture_output=True,
        text=True,
    )
    return None if tried.returncode == 0 else f"unshare was refused: {tried.stderr.strip()}"


def _keep() -> list[str]:
    """What the tests need below the directories that are covered."""
    wanted = {str(ROOT), sys.prefix, sys.base_prefix, os.getcwd()}
    found = sorted(each for each in wanted if each.startswith(tuple(f"{place}/" for place in COVERED)))
    return [each for each in found if not any(each.startswith(f"{other}/") for other in found)]


def _remove_cgroup(top: Path) -> None:
    deadline = time.monotonic() + 5.0
    while top.exists() and time.monotonic() < deadline:
        for folder, _, _ in os.walk(top, topdown=False):
            try:
                os.rmdir(folder)
            except OSError:
                time.sleep(0.02)  # its last process is just dying


def _enter(handles: list[int], folder: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for each in handles:
        if libc.setns(each, 0) != 0:
            os._exit(2)
    try:
        os.chdir(folder)
    except OSError:
        os.chdir("/")
    # a pid namespace is for children only
    grandchild = os.fork()
    if grandchild:
        os.waitpid(grandchild, 0)
        os._exit(0)


def _work(work: Callable[[], Any], writing: int) -> None:
    try:
        told: dict[str, Any] = {"result": work()}
        data = json.dumps(told)
    except BaseException:
        data = json.dumps({"error": traceback.format_exc()})
    try:
        with os.fdopen(writing, "w") as pipe:
            pipe.write(data)
    finally:
        os._exit(0)
