"""How the rig stands, in one line: power limits, server, caches, as they were read back."""

from __future__ import annotations

from typing import Any

from pytest_sglang.record.run import Run


def parts(state: dict[str, Any]) -> list[str]:
    """``limits 250 W x 6``, ``sglang.service active (pid 4711)``, ``caches in place``; what could not be read says why."""
    told = []
    limits = state.get("power_limits_w")
    if isinstance(limits, dict) and limits:
        told.append(limits_text(limits))
    server = state.get("server")
    if isinstance(server, dict):
        told.append(server_text(server))
    if "caches_aside" in state:
        told.append(caches_text(state["caches_aside"]))
    return told


def found_line(state: dict[str, Any], nothing: str) -> str:
    """The parts as they were before the run: what the run starts itself was not there then."""
    server = state.get("server")
    own = isinstance(server, dict) and server.get("run_owned") and not server.get("active") and "unreadable" not in server
    told = parts(state)
    if own:
        told = ["no server running (this run starts its own)" if each == server_text(server or {}) else each for each in told]
    return ", ".join(told) or nothing


def line(state: dict[str, Any], nothing: str) -> str:
    """The parts in one line; ``nothing`` where there are none."""
    return ", ".join(parts(state)) or nothing


def as_left_line(run: Run) -> str:
    """``rig as left: limits 250 W x 6, sglang.service active (pid N), caches in place``: the last line of a run."""
    nothing = "not read back" if run.finished is not None else "not read back yet, the run has not ended"
    return f"rig as left: {line(run.as_left, nothing)}{' (SIMULATED)' if run.simulated else ''}"


def limits_text(limits: dict[str, Any]) -> str:
    """Equal limits together, the commonest first: ``limits 250 W x 5, 350 W (GPU 3)``."""
    read: dict[str, list[str]] = {}
    unread: dict[str, list[str]] = {}
    for gpu, limit in limits.items():
        if isinstance(limit, (int, float)) and not isinstance(limit, bool):
            read.setdefault(f"{limit:g} W", []).append(gpu)
        else:
            unread.setdefault(f"unreadable: {limit}", []).append(gpu)
    commonest, *others = sorted(read.items(), key=lambda group: -len(group[1])) or [("", [])]
    told = [f"{commonest[0]} x {len(commonest[1])}"] if commonest[0] else []
    told += [f"{text} (GPU {', '.join(gpus)})" for text, gpus in (*others, *unread.items())]
    return "limits " + ", ".join(told)


def server_text(server: dict[str, Any]) -> str:
    """``sglang.service active (pid 4711)``; a server that is up without being healthy says so."""
    subject = str(server.get("subject") or "server")
    if "unreadable" in server:
        return f"{subject} unreadable: {server['unreadable']}"
    if not server.get("active"):
        if server.get("run_owned"):
            return f"{subject} stopped (it was this run's own)"
        detail = server.get("detail")
        return f"{subject} not active{f' ({detail})' if detail else ''}"
    pid = server.get("pid")
    about = [f"pid {pid}" if pid is not None else "pid unknown"]
    if "health" in server and server["health"] != 200:
        about.append("does not answer" if server["health"] is None else f"health {server['health']}")
    return f"{subject} active ({', '.join(about)})"


def caches_text(aside: Any) -> str:
    """``caches in place``, or which are still set aside."""
    return f"caches still set aside: {', '.join(map(str, aside))}" if aside else "caches in place"
