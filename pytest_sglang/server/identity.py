"""Who answers on the URL: the promised server's own process, with the promised model and arguments, or an impostor."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from pytest_sglang.record.clock import Clock
from pytest_sglang.record.values import Finding, Value
from pytest_sglang.rig.model import ServerPromise
from pytest_sglang.server import control, processes, redact
from pytest_sglang.server.control import ControlState
from pytest_sglang.server.http import ControlPlane, Unreadable
from pytest_sglang.server.processes import ListeningProcess, listener

__all__ = ["Identity", "ListeningProcess", "identify", "listener"]

_PROXIES = ("docker-proxy", "rootlessport", "slirp4netns", "pasta", "conmon", "netavark")
"""What listens in a container's place when its port is published."""


class Identity(Value, frozen=True, kw_only=True):
    """Who answers. None = not known (the reasons stand in ``unreadable``); a finding of severity "fail" for each broken promise.

    ``local`` False: the url belongs to another machine, and nothing is claimed of process, age or command line.
    """

    local: bool
    pid: int | None = None
    listening: tuple[ListeningProcess, ...] = ()
    model: str | None = None
    served_name: str | None = None
    served_names: tuple[str, ...] = ()
    tp: int | None = None
    torch_compile: bool | None = None
    version: str | None = None
    argv: tuple[str, ...] = ()
    arguments: dict[str, Any] = {}
    findings: tuple[Finding, ...] = ()
    unreadable: tuple[str, ...] = ()


def identify(
    url: str,
    server: ServerPromise,
    controller_state: ControlState,
    plane: ControlPlane,
    clock: Clock,
    asked_at: float | None = None,
) -> Identity:
    """Look at process and arguments of what answers at ``url``. ``asked_at`` (rig epoch): it must have started after that."""
    local = processes.is_local(urlsplit(url).hostname or "127.0.0.1")
    findings: list[Finding] = []
    unreadable: list[str] = []
    listening: list[ListeningProcess] = []
    if local:
        listening = listener(control.port_of(url))
        findings += _process(url, server, controller_state, listening, clock, asked_at, unreadable)
    else:
        findings.append(
            Finding("not-local", "info", url, "another machine serves this url: nothing is claimed of its process and hardware")
        )
    info = plane.server_info()
    if isinstance(info, Unreadable):
        unreadable.append(info.reason)
    arguments: dict[str, Any] = info if isinstance(info, dict) else {}
    names, model = _names(plane, arguments, unreadable)
    tp, compiled = arguments.get("tp_size"), _torch_compile(arguments)
    findings += _promises(server, names, model, tp, compiled, arguments)
    pid = listening[0].pid if listening else controller_state.pid
    return Identity(
        local=local,
        pid=pid,
        listening=tuple(listening),
        model=model,
        served_name=names[0] if names else None,
        served_names=names,
        tp=tp if isinstance(tp, int) else None,
        torch_compile=compiled,
        version=str(arguments["version"]) if arguments.get("version") else None,
        argv=_argv(pid if local else None, arguments),
        arguments={key: value for key, value in arguments.items() if key != "internal_states"},
        findings=tuple(findings),
        unreadable=tuple(unreadable),
    )


def _argv(pid: int | None, arguments: dict[str, Any]) -> tuple[str, ...]:
    """The command line of the process, else the one that the server tells (0.5.20 and later)."""
    if pid:
        return processes.cmdline(processes.launcher(pid))
    launched = arguments.get("launch_command")
    return (redact.text(str(launched)),) if launched else ()


def _process(
    url: str,
    server: ServerPromise,
    state: ControlState,
    listening: list[ListeningProcess],
    clock: Clock,
    asked_at: float | None,
    unreadable: list[str],
) -> list[Finding]:
    """The listener's tree must be the owner's: SGLang logs "ready to roll" also when the old server answered its warm-up."""
    port = control.port_of(url)
    if not listening:
        hidden = processes.port_is_taken(port)
        unreadable.append(
            f"the process that listens on port {port} is hidden from this user" if hidden else f"nobody listens on port {port}"
        )
        return []
    owned = server.systemd or server.command or server.container
    strangers = [each for each in listening if not _belongs(each, state.pid, server)] if owned else []
    if strangers:
        who = f"pid {state.pid}" if state.pid else state.detail or "not running"
        owner = f"{owned if isinstance(owned, str) else 'the command'} ({who})"
        detail = f"port {port} is served by {strangers[0]}, not by {owner}"
        return [Finding("impostor", "fail", url, detail, f"stop that process: kill {strangers[0].pid}")]
    first = min(listening, key=lambda each: each.create_time)
    if asked_at is not None and clock.from_wall(first.create_time) < asked_at - 1.0:
        detail = f"port {port} is served by {first}, which was there before the start was asked for: the old server is still bound"
        return [Finding("impostor", "fail", url, detail, "stop the old server")]
    return []


def _belongs(process: ListeningProcess, pid: int | None, server: ServerPromise) -> bool:
    if pid is not None and processes.contains(pid, process.pid):
        return True
    return bool(server.container) and any(word.rpartition("/")[2] in _PROXIES for word in process.cmdline[:1])


def stranger(url: str, pid: int | None, *, container: bool = False) -> ListeningProcess | None:
    """A process that listens on the url's port and is not in the tree of ``pid``; None where none can be seen."""
    if pid is None or not processes.is_local(urlsplit(url).hostname or "127.0.0.1"):
        return None
    others = [each for each in listener(control.port_of(url)) if not processes.contains(pid, each.pid)]
    return None if container or not others else others[0]


def _names(plane: ControlPlane, arguments: dict[str, Any], unreadable: list[str]) -> tuple[tuple[str, ...], str | None]:
    models = plane.models()
    if isinstance(models, Unreadable):
        unreadable.append(models.reason)
        models = []
    info = plane.model_info()
    if isinstance(info, Unreadable):
        unreadable.append(info.reason)
        info = {}
    model = info.get("model_path") or arguments.get("model_path")
    return tuple(models), str(model) if model else None


def _torch_compile(arguments: dict[str, Any]) -> bool | None:
    """Whether torch.compile is asked for and in force, as far as the server tells.

    The scheduler's own copy of the arguments (internal_states) comes first: 0.5.10 and 0.5.11 switch the flag off there when the
    model cannot be compiled. torch.compile is applied inside decode-graph capture only: without graphs on CUDA it does nothing.
    """
    inner = arguments.get("internal_states")
    states = [each for each in inner if isinstance(each, dict)] if isinstance(inner, list) else []
    flags = [each["enable_torch_compile"] for each in (*states, arguments) if isinstance(each.get("enable_torch_compile"), bool)]
    if not flags:
        return None
    if not all(flags):
        return False
    return not _graphs_off(arguments)


def _graphs_off(arguments: dict[str, Any]) -> bool:
    if str(arguments.get("device", "cuda")) != "cuda":
        return False
    resolved = arguments.get("cuda_graph_config")
    if isinstance(resolved, dict) and isinstance(resolved.get("decode"), dict):
        return bool(resolved["decode"].get("backend") == "disabled")
    return arguments.get("disable_cuda_graph") is True


def _promises(
    server: ServerPromise, names: tuple[str, ...], model: str | None, tp: object, compiled: bool | None, arguments: dict[str, Any]
) -> list[Finding]:
    """The promised model, served name, tensor parallel size and torch.compile, against what the server says of itself."""
    found = []
    subject = server.url
    if server.model is not None and model is not None and model.rstrip("/") != server.model.rstrip("/"):
        found.append(Finding("wrong-model", "fail", subject, f"model {model} is served, promised is {server.model}"))
    if server.served_name is not None and names and server.served_name not in names:
        detail = f"served name {', '.join(names)}, promised is {server.served_name}"
        found.append(Finding("wrong-served-name", "fail", subject, detail, f"--served-model-name {server.served_name}"))
    if server.tp is not None and isinstance(tp, int) and tp != server.tp:
        detail = f"tensor parallel size {tp}, promised is {server.tp}"
        found.append(Finding("wrong-tp", "fail", subject, detail, f"--tp-size {server.tp}"))
    if server.torch_compile is True and compiled is False:
        asked = arguments.get("enable_torch_compile") is True
        why = "decode graphs are off, so it does nothing" if asked and _graphs_off(arguments) else "the server switched it off"
        detail = f"torch.compile is promised, but {why if asked else 'it is not switched on'}"
        found.append(Finding("torch-compile-off", "fail", subject, detail, "--enable-torch-compile, with decode CUDA graphs on"))
    if server.torch_compile is False and compiled is True:
        found.append(
            Finding("torch-compile-on", "fail", subject, "torch.compile is on, promised is off", "drop --enable-torch-compile")
        )
    return found
