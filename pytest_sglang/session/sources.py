"""Where evidence could come from on this machine: driver library, server, rig file; each looked for and told, none changed."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

DEFAULT_URL = "http://127.0.0.1:30000"
"""SGLang's own default address."""


def survey(url: str | None) -> list[str]:
    """One line each for the driver library and the server's URL: what was looked for and what was found."""
    return [f"driver library: {driver()}", f"server: {server(url or DEFAULT_URL)}"]


def driver() -> str:
    """What NVML says here: the number of GPUs and the driver's version, or why there is none."""
    from pytest_sglang.gpu.nvml import Nvml
    from pytest_sglang.gpu.readings import NoDriver

    try:
        with Nvml.open() as opened:
            return f"found, driver {opened.driver()}, {opened.count()} GPU(s)"
    except NoDriver as error:
        return str(error)


def server(url: str) -> str:
    """Whether anything accepts connections at ``url``."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "127.0.0.1", port), timeout=2):
            return f"{url} accepts connections"
    except OSError as error:
        return f"{url}: {error.strerror or error}"
