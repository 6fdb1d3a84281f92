"""Starts one server and ends its whole process tree with the run, ``kill -9`` of the run included.

Run as a file by ``command.Command`` (standard library only: it must start fast and whatever the environment is).
Standard input is a pipe from the run: the first line is a JSON object {argv, env, cwd, log, status, grace_s}; "stop SECONDS" ends
the tree with that grace; the end of the pipe (the run is gone) or SIGTERM ends it with ``grace_s``. Being a child subreaper
(prctl PR_SET_CHILD_SUBREAPER) it inherits orphaned schedulers, so that none can slip away. It writes ``status``, a JSON object
{reaper_pid, pid, started, exit_status, ended, left, killed}, anew at every change; ``exit_status`` is negative for a signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
EXEC_S = 5.0
"""How long the reaper waits for its child to become the server (a working directory on a dead network file system never answers)."""
KILL_S = 10.0
"""How long SIGKILL is repeated until nothing is left (a process in an uninterruptible driver call dies late)."""


def main() -> int:
    """Read the order, start the server, watch over it until nothing of it is left."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: None)
    line, rest = _first_line()
    order = json.loads(line)
    status: dict[str, Any] = {
        "reaper_pid": os.getpid(),
        "pid": None,
        "started": None,
        "exit_status": None,
        "ended": None,
        "left": [],
        "killed": False,
    }
    pid, executed = _launch(order, libc)
    status.update(pid=pid, started=time.time())
    # whoever is told the pid reads that process's environment and command line: they are the server's own only from its exec on
    select.select([executed], [], [], EXEC_S)
    os.close(executed)
    _write(order["status"], status)
    return _watch(order, status, wake_read, rest)


def _first_line() -> tuple[bytes, bytes]:
    data = b""
    while b"\n" not in data:
        piece = os.read(0, 65536)
        if not piece:
            sys.exit(0)  # the run died before it said what to start
        data += piece
    line, _, rest = data.partition(b"\n")
    return line, rest


def _launch(order: dict[str, Any], libc: Any) -> tuple[int, int]:
    """The server's pid, and a pipe that ends as soon as the server is executed or has failed to be."""
    executed, executing = os.pipe()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    parent = os.getpid()
    pid = os.fork()
    if pid:
        os.close(log)
        os.close(executing)
        return pid, executed
    try:
        os.setsid()
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # the reaper itself may be killed
        if os.getppid() != parent:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        for each in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(each, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        if order.get("cwd"):
            os.chdir(order["cwd"])
        os.execvpe(order["argv"][0], order["argv"], order["env"])
    except BaseException as error:
        os.write(2, f"{order['argv'][0]}: {error}\n".encode())
    os._exit(127)


def _watch(order: dict[str, Any], status: dict[str, Any], wake_read: int, pending: bytes) -> int:
    stdin_open = True
    while True:
        readable, _, _ = select.select([wake_read, *([0] if stdin_open else [])], [], [], 1.0)
        signals = b""
        if wake_read in readable:
            with contextlib.suppress(BlockingIOError):
                signals = os.read(wake_read, 4096)
        _reap(order, status)
        if 0 in readable:
            piece = os.read(0, 4096)
            pending += piece
            stdin_open = bool(piece)
        stop = b"stop" in pending and b"\n" in pending
        if stop or not stdin_open or signal.SIGTERM in signals:
            words = pending.split()
            grace = float(words[1]) if stop and len(words) > 1 else float(order["grace_s"])
            return _end(order, status, grace)
        if status["exit_status"] is not None and not _descendants():
            return 0


def _reap(order: dict[str, Any], status: dict[str, Any]) -> None:
    while True:
        try:
            pid, code = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        if pid == status["pid"]:
            status.update(exit_status=os.waitstatus_to_exitcode(code), ended=time.time(), left=_descendants())
            _write(order["status"], status)


def _end(order: dict[str, Any], status: dict[str, Any], grace_s: float) -> int:
    """SIGTERM to the server, then to what it leaves behind; SIGKILL to everything after the grace."""
    deadline = time.monotonic() + grace_s
    asked: set[int] = set()
    while time.monotonic() < deadline:
        _reap(order, status)
        if not _descendants():
            break
        # children of the server are its own business as long as it lives: SGLang drains first
        for pid in _children(os.getpid()):
            if pid not in asked:
                asked.add(pid)
                _signal(pid, signal.SIGTERM)
                _signal(pid, signal.SIGCONT)
        time.sleep(0.02)
    # SGLang kills its own tree at the end of a stop, so its exit status alone does not tell who did it
    status["killed"] = status["exit_status"] is None
    deadline = time.monotonic() + KILL_S
    while (left := _descendants()) and time.monotonic() < deadline:
        for pid in left:
            _signal(pid, signal.SIGKILL)
        time.sleep(0.02)
        _reap(order, status)
    _reap(order, status)
    status.update(left=_descendants(), ended=status["ended"] or time.time())
    _write(order["status"], status)
    return 1 if status["left"] else 0


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _parents() -> dict[int, int]:
    found: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    # the name in brackets may itself hold brackets and spaces
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
            except OSError:
                continue
            if state != b"Z":
                found[int(entry)] = int(parent)
    return found


def _children(of: int) -> list[int]:
    return [pid for pid, parent in _parents().items() if parent == of]


def _descendants() -> list[int]:
    """Living processes below this one, zombies left out."""
    parents = _parents()
    found: list[int] = []
    level = {os.getpid()}
    while level:
        level = {pid for pid, parent in parents.items() if parent in level}
        found += level
    return found


def _write(path: str, status: dict[str, Any]) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    with contextlib.suppress(OSError):
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(status, file)
        os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
