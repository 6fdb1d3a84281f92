from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pytest_sglang.record.clock import SystemClock
from pytest_sglang.rig.model import ServerPromise
from pytest_sglang.server import identity, processes, sockets
from pytest_sglang.server.control import ControlState
from pytest_sglang.server.http import ControlPlane, Unreadable

INFO = {"model_path": "/models/m", "tp_size": 4, "enable_torch_compile": True, "version": "0.5.11", "device": "cuda"}


class Plane(ControlPlane):
    """Answers from memory."""

    def __init__(self, info: dict[str, Any] | None = None, names: tuple[str, ...] = ("m",)) -> None:
        super().__init__("http://127.0.0.1:1")
        self._info, self._names = info, list(names)

    def server_info(self) -> dict[str, Any] | Unreadable:
        return Unreadable("no answer within 5 s") if self._info is None else self._info

    def model_info(self) -> dict[str, Any] | Unreadable:
        return Unreadable("no answer within 5 s") if self._info is None else {"model_path": self._info["model_path"]}

    def models(self) -> list[str] | Unreadable:
        return self._names


@pytest.fixture
def listening() -> Iterator[str]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def _identify(
    url: str, info: dict[str, Any] | None = None, *, pid: int | None = None, asked_at: float | None = None, **promised: Any
) -> identity.Identity:
    state = ControlState(active=True, pid=pid if pid is not None else os.getpid())
    promise = ServerPromise(url=url, **promised)
    return identity.identify(url, promise, state, Plane({**INFO, **(info or {})}), SystemClock(), asked_at)


def test_the_promised_server_has_no_findings(listening: str) -> None:
    found = _identify(listening, systemd="sglang.service", model="/models/m/", served_name="m", tp=4, torch_compile=True)
    assert found.findings == ()
    assert (found.local, found.pid, found.model, found.served_name, found.tp, found.torch_compile) == (
        True,
        os.getpid(),
        "/models/m",
        "m",
        4,
        True,
    )
    assert found.version == "0.5.11"
    assert found.unreadable == ()
    assert found.argv


def test_an_impostor_is_named_with_pid_age_and_command_line(listening: str) -> None:
    found = _identify(listening, pid=1_000_000_000, systemd="sglang.service")
    assert [each.kind for each in found.findings] == ["impostor"]
    assert f"pid {os.getpid()} (running for" in found.findings[0].detail
    assert "not by sglang.service (pid 1000000000)" in found.findings[0].detail


def test_an_old_server_that_is_still_bound_is_an_impostor(listening: str) -> None:
    found = _identify(listening, asked_at=time.time() + 60, command=("x",))
    assert [each.kind for each in found.findings] == ["impostor"]
    assert "still bound" in found.findings[0].detail


def test_attach_accepts_whoever_listens(listening: str) -> None:
    assert _identify(listening, pid=1_000_000_000).findings == ()


@pytest.mark.parametrize(
    ("info", "promised", "kind", "detail"),
    [
        (
            {"model_path": "/models/other"},
            {"model": "/models/m"},
            "wrong-model",
            "model /models/other is served, promised is /models/m",
        ),
        ({}, {"served_name": "big"}, "wrong-served-name", "served name m, promised is big"),
        ({"tp_size": 2}, {"tp": 4}, "wrong-tp", "tensor parallel size 2, promised is 4"),
        ({"enable_torch_compile": False}, {"torch_compile": True}, "torch-compile-off", "it is not switched on"),
        ({"disable_cuda_graph": True}, {"torch_compile": True}, "torch-compile-off", "decode graphs are off"),
        (
            {"cuda_graph_config": {"decode": {"backend": "disabled"}}},
            {"torch_compile": True},
            "torch-compile-off",
            "decode graphs are off",
        ),
        (
            {"internal_states": [{"enable_torch_compile": False}]},
            {"torch_compile": True},
            "torch-compile-off",
            "the server switched it off",
        ),
        ({}, {"torch_compile": False}, "torch-compile-on", "torch.compile is on"),
    ],
)
def test_a_broken_promise_is_a_finding(
    listening: str, info: dict[str, Any], promised: dict[str, Any], kind: str, detail: str
) -> None:
    found = _identify(listening, info, **promised)
    assert [(each.kind, each.severity) for each in found.findings] == [(kind, "fail")]
    assert detail in found.findings[0].detail
    if kind == "wrong-model":
        assert f"(pid {os.getpid()} (running for" in found.findings[0].detail


def test_disabled_decode_graphs_are_normal_on_the_cpu_engine(listening: str) -> None:
    info = {"device": "cpu", "cuda_graph_config": {"decode": {"backend": "disabled"}}}
    assert _identify(listening, info, torch_compile=True).findings == ()


def test_what_cannot_be_read_is_no_broken_promise(listening: str) -> None:
    promise = ServerPromise(url=listening, model="/models/m", tp=4, torch_compile=True)
    found = identity.identify(listening, promise, ControlState(active=True), Plane(None), SystemClock())
    assert found.findings == ()
    assert (found.model, found.tp, found.torch_compile) == (None, None, None)
    assert found.unreadable == ("no answer within 5 s", "no answer within 5 s")


def test_another_machine_claims_nothing_of_its_process() -> None:
    found = _identify("http://192.0.2.1:8001", systemd="sglang.service", model="/models/m")
    assert not found.local
    assert [(each.kind, each.severity) for each in found.findings] == [("not-local", "info")]


def test_nobody_listening_is_said(port: int) -> None:
    found = _identify(f"http://127.0.0.1:{port}", systemd="x.service")
    assert found.listening == ()
    assert found.unreadable == (f"nobody listens on port {port}",)


PROXY = processes.ListeningProcess(7, 1.0, ("nginx: master process /usr/sbin/nginx -g daemon off;",), 0.0)
FORWARDER = processes.ListeningProcess(8, 1.0, ("/usr/bin/docker-proxy", "-proto", "tcp"), 0.0)
ECHO = "server_args=ServerArgs(model_path='/models/m', random_seed=197825395, tp_size=4)"


def _in_place(
    monkeypatch: pytest.MonkeyPatch,
    listens: list[processes.ListeningProcess],
    *,
    log: str = ECHO,
    seed: int | None = 197825395,
    argv: tuple[str, ...] = (),
    **promised: Any,
) -> identity.Identity:
    """Who answers where ``listens`` is what can be seen at the url; the unit's own process is pid 1000000000."""
    monkeypatch.setattr(identity, "listener", lambda port, host: listens)
    monkeypatch.setattr(processes, "port_is_taken", lambda port: True)
    promise = ServerPromise(url="http://127.0.0.1:9", **(promised or {"systemd": "sglang.service"}))
    state = ControlState(active=True, pid=1_000_000_000)
    plane = Plane(INFO if seed is None else {**INFO, "random_seed": seed})
    return identity.identify(promise.url, promise, state, plane, SystemClock(), log_text=lambda: log, argv=argv)


@pytest.mark.parametrize("proxy", [PROXY, FORWARDER])
def test_a_proxy_in_front_is_seen_through_by_the_random_seed(monkeypatch: pytest.MonkeyPatch, proxy: Any) -> None:
    found = _in_place(monkeypatch, [proxy])
    assert [(each.kind, each.severity) for each in found.findings] == [("behind-proxy", "info")]
    assert found.unproved == ""
    assert found.pid == 1_000_000_000, "the server's process, not the proxy's"


def test_a_proxy_that_leads_to_another_server_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _in_place(monkeypatch, [PROXY], seed=4)
    assert [(each.kind, each.severity) for each in found.findings] == [("impostor", "fail")]
    assert "another random seed" in found.findings[0].detail


@pytest.mark.parametrize(
    "more",
    [{"log": ""}, {"seed": None}, {"argv": ("sglang", "serve", "--random-seed", "197825395")}, {"argv": ("x", "--random-seed=1")}],
)
def test_a_proxy_that_cannot_be_seen_through_proves_nothing(monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]) -> None:
    found = _in_place(monkeypatch, [PROXY], **more)
    assert found.findings == ()
    assert "not proved: pid 7" in found.unproved
    assert "sglang.service (pid 1000000000)" in found.unproved


def test_a_hidden_listener_is_known_by_the_seed_or_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's process: ss and psutil show the socket without its owner."""
    assert _in_place(monkeypatch, []).unproved == ""
    assert "hidden from this user" in _in_place(monkeypatch, [], log="").unproved
    assert [each.kind for each in _in_place(monkeypatch, [], seed=4).findings] == ["impostor"]
    dictionary = "server_args={'model_path': '/models/m', 'random_seed': 197825395}"
    assert _in_place(monkeypatch, [], log=dictionary).unproved == ""


def test_a_stranger_that_is_no_proxy_needs_no_seed_to_be_an_impostor(monkeypatch: pytest.MonkeyPatch) -> None:
    old = processes.ListeningProcess(9, 7200.0, ("python3", "-m", "sglang.launch_server", "--port", "9"), 0.0)
    found = _in_place(monkeypatch, [old])
    assert [each.kind for each in found.findings] == ["impostor"]
    assert "pid 9 (running for 7200 s): python3 -m sglang.launch_server" in found.findings[0].detail


def test_attach_only_claims_nothing_of_a_process_that_it_cannot_see(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _in_place(monkeypatch, [], log="", model="/models/m")
    assert (found.findings, found.unproved) == ((), "")
    assert found.unreadable == ("the process that listens on port 9 is hidden from this user",)


def test_a_proxy_may_be_older_than_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert identity._in_time("http://127.0.0.1:9", [PROXY], SystemClock(), time.time()) == []


def test_who_listens_is_found(listening: str) -> None:
    port = int(listening.rpartition(":")[2])
    [found] = identity.listener(port)
    assert found.pid == os.getpid()
    assert processes.port_is_taken(port)
    assert identity.stranger(listening, os.getpid()) is None
    assert identity.stranger(listening, 1_000_000_000) == found or identity.stranger(listening, 1_000_000_000) is not None
    assert identity.stranger(listening, None) is None


@pytest.mark.parametrize(
    ("family", "bound", "host"),
    [(socket.AF_INET6, "::1", "[::1]"), (socket.AF_INET6, "::", "127.0.0.1"), (socket.AF_INET, "0.0.0.0", "127.0.0.1")],
)
def test_listeners_of_both_protocols_and_of_wildcards_are_found(family: socket.AddressFamily, bound: str, host: str) -> None:
    with socket.socket(family) as server:
        try:
            server.bind((bound, 0))
        except OSError as error:
            pytest.skip(f"{bound}: {error}")
        server.listen()
        port = server.getsockname()[1]
        [found] = identity.listener(port, host.strip("[]"))
        assert found.pid == os.getpid()
        assert _identify(f"http://{host}:{port}", systemd="x.service").findings == ()
        assert [each.ip for each in sockets.listening(port)] == [bound]
        assert sockets.holders(sockets.listening(port), [os.getpid(), 1_000_000_000]) == [os.getpid()]


def test_who_listens_on_the_same_port_of_another_address_is_nobody_s_impostor() -> None:
    code = "import socket,sys,time; s=socket.socket(); s.bind(('127.0.0.2',int(sys.argv[1]))); s.listen(); print(1,flush=True); time.sleep(60)"
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with subprocess.Popen([sys.executable, "-S", "-c", code, str(port)], stdout=subprocess.PIPE) as other:
            try:
                assert other.stdout is not None
                other.stdout.readline()
                assert len(processes.listener(port)) == 2
                assert [each.pid for each in processes.listener(port, "127.0.0.1")] == [os.getpid()]
                assert _identify(f"http://127.0.0.1:{port}", systemd="x.service").findings == ()
                assert identity.stranger(f"http://127.0.0.1:{port}", os.getpid()) is None
                assert [each.kind for each in _identify(f"http://127.0.0.2:{port}", pid=1_000_000_000, systemd="x").findings] == [
                    "impostor"
                ]
            finally:
                other.kill()


def test_who_listens_in_another_network_namespace_is_found_through_its_owner_s_process() -> None:
    """A container that publishes its port by the kernel alone: nobody is seen to listen on this side."""
    code = "import socket,time; s=socket.socket(); s.bind(('0.0.0.0',30000)); s.listen(); print(1,flush=True); time.sleep(60)"
    with subprocess.Popen(
        ["unshare", "--net", sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as inside:
        try:
            assert inside.stdout is not None
            if not inside.stdout.readline():
                pytest.skip(f"no network namespace can be made here: {inside.communicate()[1].strip()}")
            assert not sockets.same_namespace(inside.pid)
            assert [each.pid for each in processes.listening_inside(inside.pid, 30000)] == [inside.pid]
            assert processes.listening_inside(inside.pid, 30001) == []
            assert processes.listening_inside(None, 30000) == []
            promise = ServerPromise(url="http://127.0.0.1:9", container="sglang")
            state = ControlState(active=True, pid=inside.pid, inner_port=30000)
            found = identity.identify(promise.url, promise, state, Plane(INFO), SystemClock())
            assert (found.unproved, found.findings, found.pid) == ("", (), inside.pid)
            elsewhere = ControlState(active=True, pid=inside.pid, inner_port=8000)
            assert "not proved" in identity.identify(promise.url, promise, elsewhere, Plane(INFO), SystemClock()).unproved
        finally:
            inside.kill()


@pytest.mark.parametrize(
    ("bound", "wanted", "reached"),
    [
        (["127.0.0.1", "10.0.0.1"], {"127.0.0.1"}, {"127.0.0.1"}),
        (["0.0.0.0", "127.0.0.1"], {"127.0.0.1"}, {"127.0.0.1"}),
        (["0.0.0.0", "10.0.0.1"], {"127.0.0.1"}, {"0.0.0.0"}),
        (["::ffff:127.0.0.1"], {"127.0.0.1"}, {"127.0.0.1"}),
        (["10.0.0.1"], {"127.0.0.1"}, set()),
        (["10.0.0.1"], set(), {"10.0.0.1"}),
    ],
)
def test_the_very_address_comes_before_a_wildcard(bound: list[str], wanted: set[str], reached: set[str]) -> None:
    assert sockets.reached(bound, frozenset(wanted)) == reached
    assert sockets.addresses("no-such-host.invalid") == frozenset()


def test_local_hosts_are_known() -> None:
    assert processes.is_local("localhost")
    assert processes.is_local("127.0.0.2")
    assert not processes.is_local("192.0.2.1")
    assert not processes.is_local("no-such-host.invalid")


LAUNCHERS: list[tuple[str, bool]] = [
    ("python3 -m sglang.launch_server --port 1", True),
    ("/v/bin/python /v/bin/sglang serve --model-path m", True),
    ("python -m pytest sglang serve", True),
    ("vim sglang.conf", False),
    ("sglang::scheduler_TP0", False),
]


@pytest.mark.parametrize(("line", "is_one"), [each for each in LAUNCHERS if "pytest" not in each[0]])
def test_an_sglang_is_known_by_its_command_line(line: str, is_one: bool) -> None:
    assert processes.is_launcher(line.split()) is is_one


def test_the_port_of_a_command_line_is_read() -> None:
    read: Callable[[list[str], int], int] = processes._port_argument
    assert read(["x", "--port", "81"], 30000) == 81
    assert read(["x", "--port=82"], 30000) == 82
    assert read(["x", "--port"], 30000) == 30000
