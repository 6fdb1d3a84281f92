"""Who answers on the URL: the promised server's own process, with the promised model and arguments, or an impostor."""

from __future__ import annotations

import re
from collections.abc import Callable
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

_PROXIES = frozenset(
    {"docker-proxy", "rootlessport", "rootlessport-child", "slirp4netns", "pasta", "conmon", "netavark"}
    | {"nginx", "haproxy", "envoy", "caddy", "traefik", "apache2", "httpd", "lighttpd", "socat", "systemd-socket-proxyd"}
)
"""What listens in a server's place: a container engine's port forwarder, a reverse proxy."""
_SEED = re.compile(r"random_seed(?:=|['\"]?: )(\d+)")


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
    unproved: str = ""
    """Why it is not proved that the owner's own server answers; "" = it is, or no owner is promised."""


def identify(
    url: str,
    server: ServerPromise,
    controller_state: ControlState,
    plane: ControlPlane,
    clock: Clock,
    asked_at: float | None = None,
    *,
    log_text: Callable[[], str] = str,
    argv: tuple[str, ...] = (),
) -> Identity:
    """Look at process and arguments of what answers at ``url``. ``asked_at`` (rig epoch): it must have started after that.

    ``log_text`` gives the log of the owner's newest start, from its argument echo on: by the random seed in it a server is known
    whose process cannot be seen, or that stands behind a proxy.
    """
    host = urlsplit(url).hostname or "127.0.0.1"
    local = processes.is_local(host)
    findings: list[Finding] = []
    unreadable: list[str] = []
    listening: list[ListeningProcess] = []
    info = plane.server_info()
    if isinstance(info, Unreadable):
        unreadable.append(info.reason)
    arguments: dict[str, Any] = info if isinstance(info, dict) else {}
    unproved = ""
    if local:
        listening = listener(control.port_of(url), host)
        seen = _Seen(url, server, controller_state, listening, lambda: _same_seed(arguments, log_text(), argv))
        listening, unproved = seen.listening, seen.unproved
        findings += seen.findings or _in_time(url, listening, clock, asked_at)
        unreadable += [seen.unseen] if seen.unseen else []
    else:
        findings.append(
            Finding("not-local", "info", url, "another machine serves this url: nothing is claimed of its process and hardware")
        )
    names, model = _names(plane, arguments, unreadable)
    tp, compiled = arguments.get("tp_size"), _torch_compile(arguments)
    who = f" ({listening[0]})" if listening else ""
    findings += _promises(server, names, model, tp, compiled, arguments, who)
    pid = next((each.pid for each in listening if not _is_proxy(each)), controller_state.pid)
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
        unproved=unproved,
    )


def _argv(pid: int | None, arguments: dict[str, Any]) -> tuple[str, ...]:
    """The command line of the process, else the one that the server tells (0.5.20 and later)."""
    if pid:
        return processes.cmdline(processes.launcher(pid))
    launched = arguments.get("launch_command")
    return (redact.text(str(launched)),) if launched else ()


class _Seen:
    """Whose process listens. The listener's tree must be the owner's: SGLang logs "ready to roll" also when the old server answered."""

    def __init__(
        self,
        url: str,
        server: ServerPromise,
        state: ControlState,
        listening: list[ListeningProcess],
        same_seed: Callable[[], bool | None],
    ) -> None:
        self.listening, self.findings, self.unproved, self.unseen = listening, list[Finding](), "", ""
        port, owned = control.port_of(url), server.systemd or server.command or server.container
        if not listening:
            hidden = processes.port_is_taken(port)
            self.unseen = (
                f"the process that listens on port {port} is hidden from this user" if hidden else f"nobody listens on port {port}"
            )
        strangers = [each for each in listening if not _belongs(each, state.pid)]
        if not owned or (listening and not strangers):
            return
        owner = f"{owned if isinstance(owned, str) else 'the command'} ({f'pid {state.pid}' if state.pid else state.detail or 'not running'})"
        if strangers and not all(_is_proxy(each) for each in strangers):
            stranger = next(each for each in strangers if not _is_proxy(each))
            detail = f"port {port} is served by {stranger}, not by {owner}"
            self.findings.append(Finding("impostor", "fail", url, detail, f"stop that process: kill {stranger.pid}"))
            return
        self._behind(url, owner, state, strangers, same_seed())

    def _behind(self, url: str, owner: str, state: ControlState, proxies: list[ListeningProcess], same_seed: bool | None) -> None:
        """Nobody of the owner's is seen at the url: a proxy passes on, a container has its own network, or another user's is hidden."""
        inside = processes.listening_inside(state.pid, state.inner_port) if state.inner_port else []
        if inside:
            # the engine maps the url's port to this very container, where the server itself listens
            self.listening = inside
        elif same_seed is False:
            detail = f"what answers at {url} is not {owner}: it has another random seed than that server's log tells"
            self.findings.append(Finding("impostor", "fail", url, detail, "find out where the url leads"))
        elif same_seed is None:
            who = f"{proxies[0]} passes on to somebody" if proxies else self.unseen
            self.unproved = f"that {owner} answers is not proved: {who}, and its log tells no random seed to know it by"
        elif proxies:
            detail = f"{proxies[0]} passes on to {owner}, known by the random seed in its log"
            self.findings.append(Finding("behind-proxy", "info", url, detail))


def _in_time(url: str, listening: list[ListeningProcess], clock: Clock, asked_at: float | None) -> list[Finding]:
    """The old server must not be the one that still answers. A proxy may have been there all the time."""
    servers = [each for each in listening if not _is_proxy(each)]
    first = min(servers, key=lambda each: each.create_time, default=None)
    if first is None or asked_at is None or clock.from_wall(first.create_time) >= asked_at - 1.0:
        return []
    port = control.port_of(url)
    detail = f"port {port} is served by {first}, which was there before the start was asked for: the old server is still bound"
    return [Finding("impostor", "fail", url, detail, "stop the old server")]


def _same_seed(arguments: dict[str, Any], log: str, argv: tuple[str, ...]) -> bool | None:
    """Whether the server that answers has the random seed that its owner's log tells; None where that proves nothing.

    SGLang draws a seed of its own at every start and tells it in its argument echo and in /server_info, unless it was given one.
    """
    told, logged = arguments.get("random_seed"), _SEED.search(log)
    given = any(word.startswith("--random-seed") for word in argv)
    return None if given or logged is None or not isinstance(told, int) else told == int(logged[1])


def _belongs(process: ListeningProcess, pid: int | None) -> bool:
    return pid is not None and processes.contains(pid, process.pid)


def _is_proxy(process: ListeningProcess) -> bool:
    # nginx and haproxy call themselves "nginx: master process ..."
    words = process.cmdline[0].split() if process.cmdline else []
    return bool(words) and words[0].rpartition("/")[2].rstrip(":") in _PROXIES


def stranger(url: str, pid: int | None, *, container: bool = False) -> ListeningProcess | None:
    """A process that listens at the url and is neither in the tree of ``pid`` nor a proxy; None where none can be seen."""
    host = urlsplit(url).hostname or "127.0.0.1"
    if pid is None or container or not processes.is_local(host):
        return None
    others = (
        each for each in listener(control.port_of(url), host) if not processes.contains(pid, each.pid) and not _is_proxy(each)
    )
    return next(others, None)


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
    server: ServerPromise,
    names: tuple[str, ...],
    model: str | None,
    tp: object,
    compiled: bool | None,
    arguments: dict[str, Any],
    who: str,
) -> list[Finding]:
    """The promised model, served name, tensor parallel size and torch.compile, against what the server says of itself.

    ``who``: its process, its age and its command line, in brackets.
    """
    found = []
    subject = server.url
    if server.model is not None and model is not None and model.rstrip("/") != server.model.rstrip("/"):
        found.append(Finding("wrong-model", "fail", subject, f"model {model} is served, promised is {server.model}{who}"))
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
