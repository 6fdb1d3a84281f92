"""Who answers at the url of a unit: itself, an old server, or somebody behind a proxy."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from systemd_units import SERVER, RealUnit, free_port, until

from pytest_sglang.record.clock import SystemClock
from pytest_sglang.rig.model import ServerPromise
from pytest_sglang.server import identity, ready
from pytest_sglang.server.http import ControlPlane
from pytest_sglang.session.deployment import Deployment

Make = Callable[..., RealUnit]
FORWARD = """
import socket, sys, threading
here, there = int(sys.argv[1]), int(sys.argv[2])
def copy(one, other):
    try:
        while data := one.recv(65536): other.sendall(data)
    except OSError: pass
    finally:
        try: other.shutdown(socket.SHUT_WR)
        except OSError: pass
listening = socket.create_server(("127.0.0.1", here))
while True:
    client, _ = listening.accept()
    try: server = socket.create_connection(("127.0.0.1", there))
    except OSError: client.close(); continue
    for pair in ((client, server), (server, client)): threading.Thread(target=copy, args=pair, daemon=True).start()
"""


@contextmanager
def process(argv: list[str], **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more) as made:
        try:
            yield made
        finally:
            made.kill()


def identify(unit: RealUnit, url: str | None = None, asked_at: float | None = None) -> identity.Identity:
    """As a run does."""
    controller = unit.controller()
    log = Deployment._log_of_newest_start
    seen: Any = SimpleNamespace(controller=controller, log=controller.log())
    promise = ServerPromise(url=url or unit.url, systemd=unit.name, model="/models/tiny")
    with ControlPlane(promise.url) as plane:
        return identity.identify(
            promise.url,
            promise,
            controller.state(),
            plane,
            SystemClock(),
            asked_at,
            log_text=lambda: log(seen),
            argv=controller.argv(),
        )


def answers(port: int) -> None:
    with ControlPlane(f"http://127.0.0.1:{port}") as plane:
        until(lambda: plane.health() == 200)


def test_an_old_server_that_holds_the_port_is_named(make_unit: Make) -> None:
    """The unit's own server cannot bind, and everything answers as it should: by the old one."""
    unit = make_unit("Restart=no")
    with process([sys.executable, "-S", str(SERVER), "--port", str(unit.port)]) as old:
        answers(unit.port)
        controller = unit.controller()
        asked = time.time()
        controller.start()
        with unit.plane() as plane, pytest.raises(ready.StartFailed) as failed:
            ready.wait_ready(
                controller=controller,
                plane=plane,
                log=controller.log(),
                clock=SystemClock(),
                launched_at=asked,
                budget_s=30.0,
                silence_s=30.0,
            )
        assert failed.value.startup.ready_s is None
        found = identify(unit, asked_at=asked)
        (impostor,) = [each for each in found.findings if each.kind == "impostor"]
        assert f"pid {old.pid} (running for " in impostor.detail
        assert f"unit_server.py --port {unit.port}, not by {unit.name}" in impostor.detail
        assert impostor.remedy == f"stop that process: kill {old.pid}"


def test_a_unit_behind_a_proxy_is_known_by_its_seed(make_unit: Make) -> None:
    unit, other = make_unit(), make_unit()
    pid = unit.start()
    other.start()
    for server, kinds in ((unit, ["behind-proxy"]), (other, ["impostor"])):
        port = free_port()
        forward = ["nginx: master process", "-S", "-c", FORWARD, str(port), str(server.port)]
        with process(forward, executable=sys.executable):
            answers(port)
            found = identify(unit, f"http://127.0.0.1:{port}")
            assert [each.kind for each in found.findings] == kinds
            assert found.unproved == ""
            assert found.pid == pid


def test_another_server_on_the_same_port_of_another_address_is_no_impostor(make_unit: Make, tmp_path: Path) -> None:
    unit = make_unit()
    pid = unit.start()
    code = f"import socket, time; s = socket.create_server(('127.0.0.2', {unit.port})); open({str(tmp_path / 'up')!r}, 'w'); time.sleep(99)"
    with process([sys.executable, "-S", "-c", code]):
        until((tmp_path / "up").exists)
        assert identify(unit).findings == ()
        assert identify(unit).pid == pid
        controller = unit.controller()
        controller.stop(5.0)
        assert not controller.state().active
        assert not os.path.exists(f"/proc/{pid}")
