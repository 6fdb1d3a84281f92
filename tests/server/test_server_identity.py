from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pytest_sglang.record.clock import SystemClock
from pytest_sglang.rig.model import ServerPromise
from pytest_sglang.server import identity, processes
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


def test_a_published_port_of_a_container_is_no_impostor() -> None:
    proxy = processes.ListeningProcess(7, 1.0, ("/usr/bin/docker-proxy", "-proto", "tcp"), 0.0)
    assert identity._belongs(proxy, 1_000_000_000, ServerPromise(url="u", container="sglang"))
    assert not identity._belongs(proxy, 1_000_000_000, ServerPromise(url="u", systemd="sglang"))


def test_who_listens_is_found(listening: str) -> None:
    port = int(listening.rpartition(":")[2])
    [found] = identity.listener(port)
    assert found.pid == os.getpid()
    assert processes.port_is_taken(port)
    assert identity.stranger(listening, os.getpid()) is None
    assert identity.stranger(listening, 1_000_000_000) == found or identity.stranger(listening, 1_000_000_000) is not None
    assert identity.stranger(listening, None) is None


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
