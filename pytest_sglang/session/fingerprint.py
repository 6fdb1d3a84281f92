"""The full fingerprint of a run, since runs made now will be compared later: cards, driver, kernel, engine, versions, arguments; redacted."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_sglang.record.values import Finding
from pytest_sglang.session.redaction import redact

if TYPE_CHECKING:
    from pytest_sglang.session.deployment import Deployment

DISTRIBUTIONS = (
    "sglang",
    "torch",
    "triton",
    "sgl_kernel",
    "sglang_kernel",
    "flashinfer_python",
    "transformers",
    "nvidia_nccl_cu12",
    "nvidia_nccl_cu13",
)


def take(deployment: Deployment) -> dict[str, Any]:
    """What this run was made on; readings that fail say why instead of being left out."""
    from pytest_sglang import __version__

    facts: dict[str, Any] = {
        "plugin": __version__,
        "python": platform.python_version(),
        "host": platform.node(),
        "kernel": platform.release(),
        "os": _os(),
        "simulated": deployment.options.simulated,
        "faults": list(deployment.options.faults),
    }
    if deployment.hardware is not None:
        facts["driver"] = str(deployment.hardware.nvml.driver())
        facts["gpus"] = [card.fingerprint() for card in deployment.hardware.present]
    if deployment.rig.server is not None:
        facts["server"] = _server(deployment)
    return redact(facts)  # type: ignore[no-any-return]


def _os() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()


def _server(deployment: Deployment) -> dict[str, Any]:
    controller = deployment.controller
    state = controller.state()
    facts: dict[str, Any] = {
        "url": deployment.rig.server.url if deployment.rig.server else None,
        "control": controller.kind,
        "subject": controller.subject,
    }
    if not state.active:
        facts["state"] = state.detail
        return facts
    facts["argv"] = list(controller.argv())
    facts["pid"] = state.pid
    if deployment.plane.health() == 200:
        info = deployment.server.info
        facts["version"] = info.get("version")
        facts["arguments"] = {key: value for key, value in info.items() if key not in ("internal_states",)}
        facts["models"] = deployment.plane.models() if isinstance(deployment.plane.models(), list) else None
    if state.pid is not None:
        facts["packages"] = packages_of(state.pid)
    return facts


def packages_of(pid: int) -> dict[str, str]:
    """Versions of torch, triton and kin in the environment of process ``pid``, from its mapped files; nothing is executed there.

    Empty where the process belongs to somebody else or maps none of them.
    """
    return {name: version for name, (version, _) in installed(pid).items()}


def installed(pid: int) -> dict[str, tuple[str, float]]:
    """As ``packages_of``, with the time at which each was installed (epoch seconds)."""
    found: dict[str, tuple[str, float]] = {}
    for site in _sites(pid):
        for path in site.glob("*.dist-info"):
            name, _, version = path.name.removesuffix(".dist-info").partition("-")
            if name.lower() in DISTRIBUTIONS:
                found.setdefault(name.lower(), (version, path.stat().st_mtime))
    return found


def _sites(pid: int) -> list[Path]:
    try:
        maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:
        return []
    sites = re.findall(r"(/\S+?/(?:site|dist)-packages)/", maps)
    # a container's paths are those of its own root
    return [path for site in dict.fromkeys(sites) for path in (Path(f"/proc/{pid}/root{site}"), Path(site)) if path.is_dir()][:8]


def own_environment(deployment: Deployment) -> list[Finding]:
    """Warn when this plugin is installed in the very environment that is under test."""
    if deployment.simulation is not None:
        return []
    pid = deployment.controller.state().pid
    here = [Path(each).resolve() for each in sys.path if each.endswith(("site-packages", "dist-packages"))]
    if pid is None or not any(site.resolve() in here and any(site.glob("sglang-*.dist-info")) for site in _sites(pid)):
        return []
    return [
        Finding(
            "installed-in-the-servers-environment",
            "warn",
            "pytest-sglang",
            "it is installed in SGLang's own Python environment, which changes what is under test",
            "make an environment of its own: python3 -m venv ~/acceptance && ~/acceptance/bin/pip install pytest-sglang",
        )
    ]
