"""The state of one session with tests of ours: typed, on the stash, never a global."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_sglang.rig.model import Rig
    from pytest_sglang.session.checks import CheckSpec
    from pytest_sglang.session.deployment import Deployment
    from pytest_sglang.session.options import RunOptions
    from pytest_sglang.session.recorder import Recorder
    from pytest_sglang.session.scope import CheckScope
    from pytest_sglang.session.wanted import Wanted


@dataclass(slots=True)
class Planned:
    """One collected check: its test, its place, its limits, the power level it runs at."""

    item: pytest.Item
    spec: CheckSpec
    wanted: tuple[Wanted, ...]
    power_w: float | None
    promise: str
    skip_because: str | None = None

    @property
    def key(self) -> tuple[str, float | None]:
        """What tells two checks apart in run.json."""
        return (self.spec.id, self.power_w)


@dataclass(slots=True)
class Active:
    """Everything that the hooks share; ``deployment`` and ``recorder`` exist once the run has been opened."""

    config: pytest.Config
    options: RunOptions
    rig: Rig
    items: dict[pytest.Item, Planned]
    every: list[Planned]
    not_promised: tuple[str, ...] = ()
    deployment: Deployment | None = None
    recorder: Recorder | None = None
    scopes: dict[pytest.Item, CheckScope] = field(default_factory=dict)
    unchecked: dict[tuple[str, float | None], str] = field(default_factory=dict)
    interrupted: bool = False
    closed: bool = False
    baseline_line: str = ""
    """What became of ``--sglang-baseline=save``."""

    @property
    def opened(self) -> Deployment:
        """The deployment of a run that has been opened."""
        if self.deployment is None:
            raise pytest.UsageError("the rig has not been opened: this hook or fixture was used outside the test run")
        return self.deployment
