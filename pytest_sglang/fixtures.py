"""The fixtures: thin over pytest_sglang.session, each step overridable in a conftest.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_sglang.rig.model import Rig
    from pytest_sglang.session.deployment import Deployment
    from pytest_sglang.session.kernels import TritonCache
    from pytest_sglang.session.power import GpuPower
    from pytest_sglang.session.scope import CheckScope
    from pytest_sglang.session.server import SglangServer
    from pytest_sglang.session.topology import NvlinkTopology

__all__ = [
    "gpu_power",
    "nvlink_topology",
    "power_level_w",
    "sglang_check",
    "sglang_deployment",
    "sglang_rig",
    "sglang_server",
    "triton_cache",
]


@pytest.fixture(scope="session")
def sglang_deployment(pytestconfig: pytest.Config) -> Deployment:
    """The rig of this run, opened: override it to hand the other fixtures a deployment of your own making."""
    from pytest_sglang.options import DEPLOYMENT

    opened = pytestconfig.stash.get(DEPLOYMENT, None)
    if opened is None:
        raise pytest.UsageError(
            "no rig is open: request the fixture by name in a test or in its fixtures, not by getfixturevalue or a hook"
        )
    return opened


@pytest.fixture(scope="session")
def sglang_rig(sglang_deployment: Deployment) -> Rig:
    """The promises: the rig file, typed."""
    return sglang_deployment.rig


@pytest.fixture(scope="session")
def sglang_server(sglang_deployment: Deployment) -> SglangServer:
    """The server under test: restart(), wait_ready(), measure(), last_start, info, log."""
    return sglang_deployment.server


@pytest.fixture(scope="session")
def gpu_power(sglang_deployment: Deployment) -> GpuPower:
    """Power limits in watts per GPU, energy windows, and set(), which is put back on exit."""
    return sglang_deployment.power


@pytest.fixture(scope="session")
def nvlink_topology(sglang_deployment: Deployment) -> NvlinkTopology:
    """NVLink pairs, links per pair, and the matrix as ``nvidia-smi topo -m`` shows it."""
    return sglang_deployment.topology


@pytest.fixture(scope="session")
def triton_cache(sglang_deployment: Deployment) -> TritonCache:
    """Every place where this SGLang's compiled kernels really are: snapshot(), added_since(), set_aside()."""
    return sglang_deployment.kernels


@pytest.fixture
def power_level_w(request: pytest.FixtureRequest) -> float | None:
    """The power level of --power at which this test runs, in watts; None without --power."""
    return getattr(request, "param", None)


@pytest.fixture
def sglang_check(request: pytest.FixtureRequest, sglang_deployment: Deployment) -> CheckScope:
    """This test's check: judge() takes a judgement, observe() keeps a number."""
    return sglang_deployment.current
