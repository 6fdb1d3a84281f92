"""What an earlier start ran on: arguments, versions, cards, cache directories; kept from run to run, so that a change can be named."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_sglang.record.values import Value
from pytest_sglang.session.state import ensure, state_dir

if TYPE_CHECKING:
    from pytest_sglang.session.deployment import Deployment

FOLDER = "starts"
_KEPT_VARIABLES = ("TORCHINDUCTOR_", "TORCH_COMPILE_", "TRITON_", "CUDA_VISIBLE_DEVICES", "SGLANG_")
_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")


class Basis(Value, frozen=True, kw_only=True):
    """What a start's kernels depend on. ``places``: path of each cache by kind. ``at``: epoch seconds (wall)."""

    at: float
    argv: tuple[str, ...] = ()
    packages: dict[str, str] = {}
    archs: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    places: dict[str, str] = {}


class Past(Value, frozen=True, kw_only=True):
    """The newest start, and how long the newest cold one captured graphs (seconds of rig time)."""

    basis: Basis | None = None
    cold_capture_s: float | None = None
    cold_at: float | None = None


def basis_of(deployment: Deployment) -> Basis:
    """What the running server's start ran on, as far as it can be seen now."""
    from pytest_sglang.session.redaction import redact

    kernels = deployment.kernels
    controller, running = deployment.controller, kernels.running()
    packages = {name: version for name, version in (("triton", running.triton), ("torch", running.torch)) if version}
    version = deployment.server.info.get("version")
    if isinstance(version, str):
        packages["sglang"] = version
    environment = {
        name: value
        for name, value in controller.environment().items()
        if name.startswith(_KEPT_VARIABLES) and not any(word in name for word in _SECRET)
    }
    return Basis(
        at=time.time(),
        argv=tuple(redact(list(controller.argv()))),
        packages=packages,
        archs=tuple(sorted(running.archs)),
        environment=environment,
        places={place.kind: str(place.path) for place in reversed(kernels.places)},
    )


def recall(deployment: Deployment) -> Past:
    """What is kept of this server; empty where nothing is, or nothing that this version can read."""
    try:
        return msgspec.json.decode(_path(deployment).read_bytes(), type=Past)
    except (OSError, msgspec.DecodeError):
        return Past()


def keep(deployment: Deployment, past: Past) -> None:
    """Write it, at once or not at all. A state directory that cannot be written costs the memory, not the run."""
    path = _path(deployment)
    try:
        ensure(path.parent)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(json.dumps(msgspec.to_builtins(past), indent=1), encoding="utf-8")
        os.replace(beside, path)
    except (OSError, ValueError):
        return


def _path(deployment: Deployment) -> Path:
    # a simulated rig remembers its own starts, and is forgotten with them
    base = state_dir() if deployment.simulation is None else Path(deployment.simulation.rig.directory)
    name = f"{deployment.controller.subject} {deployment.rig.server.url if deployment.rig.server is not None else ''}"
    return base / FOLDER / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"


def changes(before: Basis, now: Basis) -> list[str]:
    """What differs between two starts, in the order in which it explains a recompilation."""
    found = [
        f"{name} {was} -> {now.packages[name]}"
        for name, was in sorted(before.packages.items())
        if now.packages.get(name, was) != was
    ]
    if before.archs and now.archs and before.archs != now.archs:
        found.append(f"GPU {', '.join(before.archs)} -> {', '.join(now.archs)}")
    found += _moved(before.places, now.places)
    if before.argv and now.argv and before.argv != now.argv:
        found.append(f"arguments: {_arguments(before.argv, now.argv)}")
    skipped = {"TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "SGLANG_CACHE_DIR"}
    for name in sorted(({*before.environment, *now.environment}) - skipped):
        was, new = before.environment.get(name), now.environment.get(name)
        if was != new:
            found.append(f"{name} {was or 'unset'} -> {new or 'unset'}")
    return found


def _moved(before: dict[str, str], now: dict[str, str]) -> list[str]:
    return [
        f"the {kind} cache was {before[kind]} and is {now[kind]}"
        for kind in ("triton", "inductor")
        if kind in before and kind in now and before[kind] != now[kind]
    ]


def _arguments(before: tuple[str, ...], now: tuple[str, ...]) -> str:
    """The flags that differ: "--torch-compile-max-bs 4 -> 8"."""
    old, new = _flags(before), _flags(now)
    parts = []
    for flag in dict.fromkeys((*old, *new)):
        if old.get(flag) != new.get(flag):
            was = "absent" if flag not in old else old[flag] or "set"
            became = "absent" if flag not in new else new[flag] or "set"
            parts.append(f"{flag} {was} -> {became}")
    return ", ".join(parts) or "their order"


def _flags(argv: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    flag = ""
    for word in argv:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            found[flag] = value if equals else ""
        elif flag:
            found[flag] = f"{found[flag]} {word}".strip()
    return found


def plain(basis: Basis) -> dict[str, Any]:
    """For a record."""
    found: dict[str, Any] = msgspec.to_builtins(basis)
    return found
