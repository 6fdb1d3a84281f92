"""A real SGLang on the CPU for the tests in this folder. ``make test-engine`` installs it; without it they are skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_servers import FOLDER, Engine, Server


@pytest.fixture(scope="session")
def engine() -> Path:
    """Where the engine is installed; skipped where it is not, unless SGLANG_ENGINE_REQUIRED=1."""
    if not (FOLDER / ".stamp").exists():
        reason = f"no engine in {FOLDER} (make test-engine installs it: 1.8 GB)"
        if os.environ.get("SGLANG_ENGINE_REQUIRED") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return FOLDER


@pytest.fixture(scope="session")
def servers(engine: Path) -> Engine:
    """Starts and stops real servers."""
    return Engine(engine)


@pytest.fixture(scope="session")
def plain_server(servers: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without torch.compile, ready after about 20 s; one for all tests that leave it as it is."""
    with servers.serving(tmp_path_factory.mktemp("plain")) as server:
        yield server
