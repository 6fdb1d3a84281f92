"""Starts and stops a real SGLang on the CPU."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

HERE = Path(__file__).parent
FOLDER = HERE.parent.parent / ".engine"
READY_WITHIN_S = 300.0
STOPPED_WITHIN_S = 60.0
COMPILED = ("--enable-torch-compile", "--torch-compile-max-bs", "4")


class Server(NamedTuple):
    """A server that runs: its process, port and home directory, and how long it took to be ready."""

    process: subprocess.Popen[bytes]
    port: int
    home: Path
    log: Path
    ready_s: float

    def call(self, method: str, path: str, body: object = None, timeout_s: float = 120.0) -> tuple[int, Any]:
        """Status and JSON (or text) of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        return answer.status, json.loads(text) if text.startswith(("{", "[")) else text


class Engine:
    """Starts and stops real servers, one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def serving(self, home: Path, *flags: str, **environ: str) -> Iterator[Server]:
        """A ready server whose home is ``home``; it and all its children are gone behind the block."""
        home.mkdir(parents=True, exist_ok=True)
        port = free_port()
        log = home / "server.log"
        command = ["bash", str(HERE / "engine" / "serve.sh"), str(self.folder), str(port), *flags]
        begun = time.monotonic()
        with open(log, "ab") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env={**os.environ, **environ, "HOME": str(home)},
            )
        try:
            server = Server(process, port, home, log, 0.0)
            wait_ready(server)
            yield server._replace(ready_s=time.monotonic() - begun)
        finally:
            stop(process)

    def compiled(self, home: Path) -> Any:
        """A ready server with torch.compile on."""
        return self.serving(home, *COMPILED, SGLANG_CPU_COMPILE_FIX="1")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_ready(server: Server) -> None:
    """Wait until /health answers 200; fail with the end of the log when the server dies or takes too long."""
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            pytest.fail(f"the server died with {server.process.returncode}:\n{server.log.read_text(errors='replace')[-3000:]}")
        try:
            if server.call("GET", "/health", timeout_s=5)[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.25)
    pytest.fail(f"not ready within {READY_WITHIN_S:.0f} s:\n{server.log.read_text(errors='replace')[-3000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and for what is left of its session SIGKILL."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
