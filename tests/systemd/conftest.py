"""Every test of this folder runs inside a real systemd, booted once. Where none can be booted they are skipped, with the reason.

SGLANG_SYSTEMD_REQUIRED=1 makes that a failure.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from systemd_namespace import Namespace, Unavailable
from systemd_units import RealUnit

BOOTED: pytest.StashKey[Namespace | str] = pytest.StashKey()


def _namespace(config: pytest.Config) -> Namespace | str:
    """The booted systemd, or why there is none."""
    if BOOTED not in config.stash:
        try:
            namespace = Namespace()
        except Unavailable as why:
            config.stash[BOOTED] = str(why)
        else:
            config.stash[BOOTED] = namespace
            config.add_cleanup(namespace.end)
    return config.stash[BOOTED]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """The whole protocol of a test, fixtures included, in a child inside the namespaces; its reports come back."""
    # pytest asks every conftest about every test
    if Path(__file__).parent not in item.path.parents:
        return None
    namespace = _namespace(item.config)
    if isinstance(namespace, str):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    try:
        plain = namespace.call(lambda: _reports(item))
    except RuntimeError as error:
        why = str(error)
        call = pytest.CallInfo.from_call(lambda: pytest.fail(why, pytrace=False), "call")
        item.ihook.pytest_runtest_logreport(report=item.ihook.pytest_runtest_makereport(item=item, call=call))
    else:
        for each in plain:
            report = item.config.hook.pytest_report_from_serializable(config=item.config, data=each)
            item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _reports(item: pytest.Item) -> list[dict[str, Any]]:
    base = item.config._tmp_path_factory._basetemp  # type: ignore[attr-defined]
    if base is not None:
        Path(base).mkdir(parents=True, exist_ok=True)  # made outside, where it is covered now
    # what the parent has set up is the parent's to tear down
    upper: Any = SimpleNamespace(listchain=lambda: item.listchain()[:-1])
    reports = runtestprotocol(item, log=False, nextitem=upper)
    plain = [item.config.hook.pytest_report_to_serializable(config=item.config, report=each) for each in reports]
    return [{key: value for key, value in each.items() if not key.startswith("sglang_")} for each in plain]


def pytest_runtest_setup(item: pytest.Item) -> None:
    namespace = _namespace(item.config)
    if isinstance(namespace, str):
        if os.environ.get("SGLANG_SYSTEMD_REQUIRED") == "1":
            pytest.fail(f"no real systemd: {namespace}", pytrace=False)
        pytest.skip(f"no real systemd: {namespace}")


@pytest.fixture
def make_unit(tmp_path: Path) -> Iterator[Callable[..., RealUnit]]:
    """Make a unit with a name of its own."""
    made: list[RealUnit] = []

    def make(service: str = "", unit: str = "", options: str = "", **more: Any) -> RealUnit:
        made.append(RealUnit(tmp_path, f"sglang-{os.getpid()}-{len(made)}", service, unit, options, **more))
        return made[-1]

    yield make
    for each in made:
        each.remove()
