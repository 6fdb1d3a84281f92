"""Help for tests that run a whole simulated rig: raw HTTP, waiting, the stand-in for systemctl."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_sglang.simulator.rig import SimulatedRig

RECORDED = Path(__file__).parents[1] / "data" / "simulator" / "responses-0.5.11.json"
FAST = 1000.0
"""Ten times as fast as a user sees it: what is tested here does not depend on it."""


def wait(condition: Callable[[], object], within_s: float = 20.0, every_s: float = 0.02) -> None:
    """Until ``condition()`` is true."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(every_s)


def up(rig: SimulatedRig, within_s: float = 20.0) -> None:
    """Until the start that was made last is ready by its log, which begins with a start of long ago."""

    def ready() -> bool:
        text, now = rig.log.read_bytes(), rig.state()
        begun = text.count(b"server_args=") == now["starts"] + 1 and now["active"] == "active"
        return begun and b"fired up" in text[text.rfind(b"server_args=") :]

    wait(ready, within_s)


def last_start(rig: SimulatedRig) -> str:
    """Log of the start that was made last, from its argument echo on; "" = none yet but the one of long ago."""
    starts = rig.log.read_text(encoding="utf-8").split("server_args=ServerArgs")
    return "server_args=ServerArgs" + starts[-1] if len(starts) > 2 else ""


def capture_s(log: str) -> float:
    """Seconds of graph capture."""
    match = re.search(r"Capture cuda graph end\. Time elapsed: ([\d.]+) s", log)
    assert match is not None
    return float(match[1])


def form(line: str) -> str:
    """A log line without its numbers, rank and stamp."""
    line = re.sub(r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d( TP\d)?\]", "[]", line)
    return re.sub(r"\d+(\.\d+)?", "0", line)


def ask(
    rig: SimulatedRig, path: str, body: object = None, *, method: str | None = None, key: str | None = None
) -> tuple[int, Any, bytes]:
    """Status, headers and body of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=30)
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, data, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def events(body: bytes) -> list[Any]:
    """The events of a stream; the end mark is "[DONE]"."""
    lines = [line for line in body.decode().split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def systemctl(rig: SimulatedRig, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the stand-in."""
    return subprocess.run([*rig.systemctl, *words], capture_output=True, text=True, timeout=60, check=False)


def shown(rig: SimulatedRig, properties: str = "", unit: str = "sglang.service") -> dict[str, str]:
    """``systemctl show``."""
    wanted = ["-p", properties] if properties else []
    return dict(line.split("=", 1) for line in systemctl(rig, "show", unit, *wanted).stdout.splitlines())


def shape(value: object) -> object:
    """A JSON value without its contents: key order, types, nesting; a list by its first element."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__
