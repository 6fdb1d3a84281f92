from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_sglang.record.clock import SystemClock
from pytest_sglang.server.command import Command

LOGS = Path(__file__).parent.parent / "data" / "logs"
FAKE = Path(__file__).parent / "fake_sglang.py"


@pytest.fixture
def recorded() -> Callable[[str], str]:
    """Text of a recorded log by its name without ".log"."""
    return lambda name: (LOGS / f"{name}.log").read_text(encoding="utf-8")


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def fake(port: int, tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Make a Command controller of the fake server; everything is ended afterwards."""
    made: list[Command] = []

    def make(*options: str, env: dict[str, str] | None = None) -> Command:
        argv = (sys.executable, "-S", str(FAKE), "--port", str(port), *options)
        made.append(Command(argv, url=f"http://127.0.0.1:{port}", clock=SystemClock(), run_dir=tmp_path, env=env))
        return made[-1]

    yield make
    for each in made:
        each.stop(0.2)
