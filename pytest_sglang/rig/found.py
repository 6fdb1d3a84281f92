"""What ``init`` observed of a rig as it stands: plain values, handed to ``pytest_sglang.rig.write``. None = not found."""

from __future__ import annotations

from pytest_sglang.record.values import Value


class FoundCard(Value, frozen=True, kw_only=True):
    """One card. Watts; ``loaded``: it worked when the PCIe generation was read (an idle card drops to gen 1)."""

    index: int
    uuid: str
    pci: str | None = None
    name: str | None = None
    persistence: bool | None = None
    requested_w: float | None = None
    enforced_w: float | None = None
    default_w: float | None = None
    min_w: float | None = None
    max_w: float | None = None
    pcie_gen: int | None = None
    pcie_max_gen: int | None = None
    pcie_width: int | None = None
    pcie_max_width: int | None = None
    loaded: bool = False


class FoundPair(Value, frozen=True, kw_only=True):
    """Two cards (NVML indices) with NVLink links between them; ``most``: links that they could have, where that is known."""

    one: int
    other: int
    links: int
    most: int | None = None


class FoundServer(Value, frozen=True, kw_only=True):
    """The server that answers. ``gpus``: NVML indices; ``argv``: its command line, secrets redacted by the caller."""

    url: str
    model: str | None = None
    served_name: str | None = None
    tp: int | None = None
    gpus: tuple[int, ...] | None = None
    exclusive: bool | None = None
    """Nobody else computes on its GPUs; None = not looked at."""
    torch_compile: bool | None = None
    systemd: str | None = None
    container: str | None = None
    log: str | None = None
    api_key_needed: bool = False
    version: str | None = None
    argv: tuple[str, ...] = ()
    ready_s: float | None = None
    """How long the start took that it had, seconds."""


class FoundCache(Value, frozen=True, kw_only=True):
    """One place of compiled kernels; ``note``: what threatens it (a temporary directory, another owner)."""

    name: str
    path: str
    files: int | None = None
    bytes: int | None = None
    note: str = ""


class Found(Value, frozen=True, kw_only=True):
    """A rig as it stands.

    ``missing``: why a key was not found, by its path (``"server.log"``, ``"gpus"``). ``unavailable``: readings that this host
    cannot give, with their reasons. ``state``: lines on how the rig stands now. ``problems``: what looks like a fault.
    """

    name: str
    cards: tuple[FoundCard, ...] = ()
    pairs: tuple[FoundPair, ...] = ()
    server: FoundServer | None = None
    caches: tuple[FoundCache, ...] = ()
    unavailable: dict[str, str] = {}
    missing: dict[str, str] = {}
    state: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
