"""pytest-sglang: is this SGLang rig as good as it was promised?

The public names; nothing heavy is imported until one of them is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pytest_sglang.record.run import Check, Run
    from pytest_sglang.record.values import CacheDiff, Energy, Finding, Phase, Round, Startup, Throughput
    from pytest_sglang.rig.load import load as load_rig
    from pytest_sglang.rig.model import Rig
    from pytest_sglang.session.kernels import TritonCache
    from pytest_sglang.session.power import GpuPower
    from pytest_sglang.session.server import SglangServer
    from pytest_sglang.session.topology import NvlinkTopology

_WHERE = {
    "Check": "record.run",
    "Run": "record.run",
    "CacheDiff": "record.values",
    "Energy": "record.values",
    "Finding": "record.values",
    "Phase": "record.values",
    "Round": "record.values",
    "Startup": "record.values",
    "Throughput": "record.values",
    "Rig": "rig.model",
    "load_rig": "rig.load",
    "SglangServer": "session.server",
    "GpuPower": "session.power",
    "NvlinkTopology": "session.topology",
    "TritonCache": "session.kernels",
}

__all__ = [
    "CacheDiff",
    "Check",
    "Energy",
    "Finding",
    "GpuPower",
    "NvlinkTopology",
    "Phase",
    "Rig",
    "Round",
    "Run",
    "SglangServer",
    "Startup",
    "Throughput",
    "TritonCache",
    "__version__",
    "load_rig",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'pytest_sglang' has no attribute {name!r}")
    import importlib

    module = importlib.import_module(f"pytest_sglang.{_WHERE[name]}")
    return getattr(module, "load" if name == "load_rig" else name)
