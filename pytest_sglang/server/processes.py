"""Processes of a server as /proc shows them: trees, listeners, what survived. psutil is imported where it is used."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pytest_sglang.record.values import Value
from pytest_sglang.server import redact

if TYPE_CHECKING:
    import psutil


class ListeningProcess(Value, frozen=True):
    """A process that listens on a TCP port. ``age_s`` and ``create_time`` (epoch) in wall time; the command line is redacted."""

    pid: int
    age_s: float
    cmdline: tuple[str, ...]
    create_time: float

    def __str__(self) -> str:
        return f"pid {self.pid} (running for {self.age_s:.0f} s): {' '.join(self.cmdline)[:200]}"


def listener(port: int) -> list[ListeningProcess]:
    """Who listens on ``port`` on this machine; empty when nobody does or the process belongs to another user and is hidden."""
    import psutil

    try:
        pids = {each.pid for each in _listeners(port) if each.pid}
    except (psutil.Error, OSError):
        return []
    return [process for pid in sorted(pids) if (process := _listening(pid)) is not None]


def _listeners(port: int) -> list[Any]:
    import psutil

    connections: list[Any] = psutil.net_connections(kind="tcp")
    return [each for each in connections if each.status == psutil.CONN_LISTEN and each.laddr.port == port]


def _listening(pid: int) -> ListeningProcess | None:
    import psutil

    try:
        process = psutil.Process(pid)
        created = process.create_time()
        return ListeningProcess(pid, max(0.0, time.time() - created), redact.argv(process.cmdline() or [process.name()]), created)
    except psutil.Error:
        return None


def port_is_taken(port: int) -> bool:
    """Whether anybody listens on ``port``, also where the process itself is hidden from us."""
    import psutil

    try:
        return bool(_listeners(port))
    except (psutil.Error, OSError):
        return False


def tree(pid: int | None) -> list[psutil.Process]:
    """The living process ``pid`` and its descendants; empty when it is gone."""
    import psutil

    if not pid:
        return []
    try:
        top = psutil.Process(pid)
        return [each for each in (top, *top.children(recursive=True)) if is_alive(each)]
    except psutil.Error:
        return []


def is_alive(process: psutil.Process) -> bool:
    """Whether this very process (pid and creation time) still runs; a zombie does not."""
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def contains(top: int | None, pid: int) -> bool:
    """Whether ``pid`` is ``top`` or a descendant of it."""
    return any(each.pid == pid for each in tree(top))


def started_at_wall(pid: int) -> float | None:
    """When the process was created, epoch seconds of the wall clock."""
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def cmdline(pid: int | None) -> tuple[str, ...]:
    """The command line of ``pid``, redacted; () when it is gone or hidden."""
    import psutil

    if not pid:
        return ()
    try:
        return redact.argv(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ()


def environ(pid: int | None) -> dict[str, str]:
    """The environment with which ``pid`` was started; {} when it is hidden or blanked.

    SGLang's schedulers and its detokenizer call setproctitle, which blanks their /proc/PID/environ; its main process does not.
    """
    if not pid:
        return {}
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            data = file.read()
    except OSError:
        return {}
    pairs = (each.partition("=") for each in data.decode("utf-8", errors="surrogateescape").split("\0"))
    return {name: value for name, equals, value in pairs if name and equals}


def cpu_s(processes: Iterable[psutil.Process]) -> float:
    """CPU seconds that these processes have used so far, those of reaped children included."""
    import psutil

    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def stopped(processes: Iterable[psutil.Process]) -> list[str]:
    """Processes that somebody stopped (SIGSTOP), for a person."""
    held = list(processes)
    pids = stopped_pids(held)
    return [describe(process) for process in held if process.pid in pids]


def stopped_pids(processes: Iterable[psutil.Process]) -> set[int]:
    """Those of them that somebody stopped (SIGSTOP, a debugger)."""
    import psutil

    found = set()
    for process in processes:
        try:
            if process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def titles(processes: Iterable[psutil.Process]) -> dict[int, str]:
    """pid -> what it is, for a person: schedulers first, which do the work; helpers of Python's multiprocessing last."""
    import psutil

    found: dict[int, str] = {}
    for process in processes:
        try:
            words = process.cmdline() or [process.name()]
        except psutil.Error:
            continue
        title = words[0].strip() if words[0].startswith("sglang::") else " ".join(redact.argv(words))[:80]
        found[process.pid] = title

    def rank(title: str) -> int:
        return 0 if "scheduler" in title else 2 if "multiprocessing" in title or "compile_worker" in title else 1

    return dict(sorted(found.items(), key=lambda each: rank(each[1])))


def wait_gone(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait until none of ``processes`` lives; what still does after ``timeout_s`` (wall)."""
    deadline = time.monotonic() + timeout_s
    left = [each for each in processes if is_alive(each)]
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = [each for each in left if is_alive(each)]
    return left


def describe(process: psutil.Process) -> str:
    """``pid 4711 (sglang::scheduler_TP0)``."""
    import psutil

    try:
        return f"pid {process.pid} ({' '.join(redact.argv(process.cmdline()))[:120] or process.name()})"
    except psutil.Error:
        return f"pid {process.pid}"


def is_local(host: str) -> bool:
    """Whether ``host`` (a name or an address) is this machine."""
    import ipaddress
    import socket

    import psutil

    if host in ("localhost", "0.0.0.0", "::", os.uname().nodename):
        return True
    try:
        addresses = {str(each[4][0]).partition("%")[0] for each in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    own = {each.address.partition("%")[0] for interface in psutil.net_if_addrs().values() for each in interface}
    return any(address in own or ipaddress.ip_address(address).is_loopback for address in addresses)


def is_launcher(words: Iterable[str]) -> bool:
    """Whether a command line starts an SGLang: ``python -m sglang.launch_server ...`` or ``sglang serve ...``."""
    words = list(words)
    for position, word in enumerate(words[:6]):
        if word == "sglang.launch_server" or word.endswith("sglang/launch_server.py"):
            return True
        if word.rpartition("/")[2] == "sglang" and words[position + 1 : position + 2] == ["serve"]:
            return True
    return False


def launcher(pid: int) -> int:
    """The SGLang that started ``pid``: HTTP workers listen for their parent."""
    import psutil

    try:
        for parent in reversed(psutil.Process(pid).parents()):
            if is_launcher(parent.cmdline()):
                return int(parent.pid)
    except psutil.Error:
        pass
    return pid


def launching(port: int, default_port: int) -> int | None:
    """An SGLang on this machine that was told to listen on ``port``, whether it does already or not; the newest of several."""
    import psutil

    found: list[tuple[float, int]] = []
    for process in psutil.process_iter(["cmdline", "create_time"]):
        words = process.info["cmdline"] or []
        if is_launcher(words) and _port_argument(words, default_port) == port:
            found.append((process.info["create_time"], process.pid))
    return max(found)[1] if found else None


def _port_argument(words: list[str], default_port: int) -> int:
    for position, word in enumerate(words):
        text = (
            word[7:]
            if word.startswith("--port=")
            else words[position + 1]
            if word == "--port" and position + 1 < len(words)
            else ""
        )
        if text.isdigit():
            return int(text)
    return default_port
