"""Processes of a server as /proc shows them: trees, listeners, what survived. psutil is imported where it is used."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pytest_sglang.record.values import Value
from pytest_sglang.server import redact, sockets

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


def listener(port: int, host: str | None = None) -> list[ListeningProcess]:
    """Who listens on ``port`` on this machine; empty when nobody does or the process belongs to another user and is hidden.

    With ``host`` only who is reached there: another server may listen on the same port of another address.
    """
    import psutil

    try:
        found = _listeners(port)
        reached = sockets.reached((each.laddr.ip for each in found), sockets.addresses(host) if host else frozenset())
        pids = {each.pid for each in found if each.pid and each.laddr.ip.removeprefix("::ffff:") in reached}
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
        created = started_at_wall(pid)
        if created is None:
            return None
        return ListeningProcess(pid, max(0.0, time.time() - created), redact.argv(process.cmdline() or [process.name()]), created)
    except psutil.Error:
        return None


def listening_inside(pid: int | None, port: int) -> list[ListeningProcess]:
    """Processes of the tree of ``pid`` that listen on ``port`` in their own network namespace (a container's)."""
    found = [each.pid for each in tree(pid)]
    holding = sockets.holders(sockets.listening(port, pid), found) if found else []
    return [process for each in holding if (process := _listening(each)) is not None]


def bound(port: int) -> set[tuple[str, int | None]]:
    """Address and pid of everybody who listens on ``port``; pid None = hidden from us."""
    import psutil

    try:
        return {(each.laddr.ip, each.pid) for each in _listeners(port)}
    except (psutil.Error, OSError):
        return set()


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


_CGROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified")
"""Where the hierarchy in which systemd keeps its units is mounted: version 2, version 1, both (systemd.resource-control(5))."""


def in_cgroup(path: str) -> list[psutil.Process]:
    """Living processes of a unit's cgroup (``ControlGroup`` of ``systemctl show``) and of those below it, the oldest first."""
    import psutil

    pids: set[int] = set()
    for mounted in _CGROUPS if path.strip("/") else ():
        for folder, _, _ in os.walk(mounted + path):
            try:
                with open(f"{folder}/cgroup.procs", encoding="ascii") as file:
                    pids |= {int(line) for line in file if line.strip() not in ("", "0")}
            except (OSError, ValueError):
                continue
    found = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            if is_alive(process):
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=lambda each: (each.create_time(), each.pid))


def of_same_unit(pid: int | None) -> set[int]:
    """Processes in the same unit's or container's cgroup as ``pid``, orphans included; empty where that is no cgroup of its own."""
    import psutil

    own = _cgroup(pid)
    if not own or own in (_cgroup(os.getpid()), _cgroup(1)):
        return set()
    return {each for each in psutil.pids() if _cgroup(each) == own}


def _cgroup(pid: int | None) -> str:
    """Path in the hierarchy in which a service manager keeps its units; "" for the root or where it is hidden."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return ""
    named = [each[2] for each in lines if each[1] == "name=systemd"] or [each[2] for each in lines if not each[1]]
    return named[0] if named and named[0] != "/" else ""


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
    """When the process was created, epoch seconds of the wall clock as it goes now.

    By its age: psutil keeps the boot time that it saw first, and a clock that was set meanwhile would shift every process.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - max(0.0, age_s)


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
