"""Power levels through the journal on the stand-in's cards: set, read back, refused, put back in every order and by the next start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from session_fakes import dead_owner

from pytest_sglang.gpu.nvml import Missing, Nvml
from pytest_sglang.rig.model import GpuPromise, Rig
from pytest_sglang.session import power as session_power
from pytest_sglang.session.errors import Inconclusive, NotChecked
from pytest_sglang.session.hardware import Hardware, range_problems
from pytest_sglang.session.journal import Journal
from pytest_sglang.session.options import RunOptions
from pytest_sglang.session.power import GpuPower
from pytest_sglang.session.state import Owner
from pytest_sglang.session.undo import undo
from pytest_sglang.simulator.rig import SimulatedRig
from pytest_sglang.simulator.state import HardwareState


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_power, "SETTLE_S", 0.0)
    monkeypatch.setattr("pytest_sglang.gpu.power.SETTLE_S", 0.1)
    # its cards are all that is needed: no caches of a server that never starts
    monkeypatch.setattr("pytest_sglang.simulator.rig._furnish", lambda made: None)


@pytest.fixture
def simulated(tmp_path: Path, request: pytest.FixtureRequest, _no_waiting: None) -> Iterator[SimulatedRig]:
    rig = SimulatedRig.create(tmp_path / "rig", power_w=300, faults=getattr(request, "param", ()))
    yield rig
    rig.destroy()


def promise(**more: Any) -> Rig:
    gpus = tuple(GpuPromise(index=index, persistence=True) for index in range(6))
    return Rig(**{"name": "r", "path": Path("rig.toml"), "gpus": gpus, **more})


def opened(
    simulated: SimulatedRig, state: Path, owner: Owner | None = None, *, set_power: bool = True, rig: Rig | None = None
) -> Any:
    """What GpuPower needs of a deployment: cards, promise, options, journal, recorder."""
    rig = rig or promise()
    context = {"nvml": "pytest_sglang.session.simulated:open_nvml", "argument": str(simulated.directory)}
    told: list[Any] = []
    return SimpleNamespace(
        rig=rig,
        options=RunOptions(rootdir=Path(), set_power=set_power),
        hardware=Hardware(Nvml.open(simulated.nvml()), rig, context),
        journal=Journal(state, owner or Owner.me("run")),
        recorder=SimpleNamespace(findings=told.extend),
        worked={},
        told=told,
    )


def limits(simulated: SimulatedRig) -> list[float]:
    return [card.requested_w for card in HardwareState(simulated.directory, simulated.config.hardware).now()]


def test_a_sweep_ends_with_the_limits_of_its_beginning(simulated: SimulatedRig, tmp_path: Path) -> None:
    deployment = opened(simulated, tmp_path / "state")
    power = GpuPower(deployment)
    for level in (250.0, 300.0, 390.0, 200.0):
        power.ensure(level)
        assert limits(simulated) == [level] * 6
        assert power.judge_limit(level).verdict == "pass"
    power.restore()
    assert limits(simulated) == [300.0] * 6
    assert deployment.journal.open == ()
    assert deployment.told == []
    deployment.journal.close()


def test_a_block_puts_back_what_it_has_set_and_no_more(simulated: SimulatedRig, tmp_path: Path) -> None:
    deployment = opened(simulated, tmp_path / "state")
    power = GpuPower(deployment)
    power.ensure(250.0)
    with power.set(390.0):
        assert limits(simulated) == [390.0] * 6
    assert limits(simulated) == [250.0] * 6
    power.restore()
    assert limits(simulated) == [300.0] * 6
    deployment.journal.close()


def test_a_level_that_was_lost_behind_a_block_is_seen_and_not_mended(simulated: SimulatedRig, tmp_path: Path) -> None:
    deployment = opened(simulated, tmp_path / "state")
    power = GpuPower(deployment)
    power.ensure(250.0)
    with power.set(390.0):
        pass
    power.gpus[2].set_limit_w(350.0)
    power.ensure(250.0)  # what each check does before it begins
    assert power.judge_limit(250.0).verdict == "fail"
    power.restore()
    deployment.journal.close()


def test_a_run_that_died_in_a_sweep_is_undone_at_the_next_start(simulated: SimulatedRig, tmp_path: Path) -> None:
    deployment = opened(simulated, tmp_path / "state", dead_owner())
    power = GpuPower(deployment)
    for level in (250.0, 390.0):
        power.ensure(level)
    told: list[Any] = []
    undo(tmp_path / "state", tell=told.append)
    assert limits(simulated) == [300.0] * 6
    assert len(told) == 12


def test_a_limit_that_somebody_else_has_set_meanwhile_is_left_alone(simulated: SimulatedRig, tmp_path: Path) -> None:
    deployment = opened(simulated, tmp_path / "state")
    power = GpuPower(deployment)
    power.ensure(250.0)
    power.gpus[2].set_limit_w(275.0)
    power.restore()
    assert limits(simulated) == [300.0, 300.0, 275.0, 300.0, 300.0, 300.0]
    deployment.journal.close()


@pytest.mark.parametrize(
    ("level", "max_total_w", "why"),
    [(400.0, None, r"GPU 0 .* takes 100-390 W, not 400 W"), (390.0, 2000.0, r"6 x 390 W is 2340 W, above the rig's max_total_w")],
)
def test_a_test_of_the_users_own_cannot_go_beyond_card_or_power_supply(
    simulated: SimulatedRig, tmp_path: Path, level: float, max_total_w: float | None, why: str
) -> None:
    deployment = opened(simulated, tmp_path / "state", rig=promise(max_total_w=max_total_w))
    with pytest.raises(Inconclusive, match=why), GpuPower(deployment).set(level):
        pytest.fail("the block was entered")
    assert limits(simulated) == [300.0] * 6
    assert deployment.journal.open == ()
    deployment.journal.close()


def test_without_the_right_nothing_is_set(simulated: SimulatedRig, tmp_path: Path) -> None:
    deployment = opened(simulated, tmp_path / "state", set_power=False)
    with pytest.raises(NotChecked, match="not set without --sglang-set-power"):
        GpuPower(deployment).ensure(250.0)
    assert limits(simulated) == [300.0] * 6
    deployment.journal.close()


@pytest.mark.parametrize("simulated", [("power-limit-clamped",)], indirect=True)
def test_a_clamped_limit_is_read_back_and_no_block_runs_at_it(simulated: SimulatedRig, tmp_path: Path) -> None:
    deployment = opened(simulated, tmp_path / "state")
    power = GpuPower(deployment)
    power.ensure(250.0)
    judged = power.judge_limit(250.0)
    assert judged.verdict == "fail"
    assert judged.message == "GPU 3 enforces 220 W, asked 250 W; requested 250 W, but the driver enforces another limit"
    with pytest.raises(Inconclusive, match=r"asked 390 W, read back requested 390\.0 W and enforced 220\.0 W"), power.set(390.0):
        pytest.fail("the block was entered")
    power.restore()
    assert limits(simulated) == [300.0] * 6
    deployment.journal.close()


def test_every_level_of_a_sweep_is_looked_at_before_anything_runs(simulated: SimulatedRig, tmp_path: Path) -> None:
    deployment = opened(simulated, tmp_path / "state", rig=promise(max_total_w=2000.0))
    options = msgspec.structs.replace(deployment.options, power_levels_w=(250.0, 390.0, 420.0))
    problems = range_problems(deployment.hardware, deployment.rig, options)
    assert [line.split(":")[0] for line in problems] == ["--power=390", *["--power=420"] * 7]
    assert "takes 100-390 W, not 420 W" in problems[1]
    deployment.journal.close()


def test_throttling_without_a_load_is_inconclusive(simulated: SimulatedRig, tmp_path: Path) -> None:
    deployment = opened(simulated, tmp_path / "state")
    with pytest.raises(Inconclusive, match="no load was put on the cards"):
        GpuPower(deployment).judge_throttling(250.0)
    deployment.journal.close()


def hide(power: GpuPower, index: int) -> None:
    """The requested limit of one card cannot be read any more."""
    card = power.gpus[index]
    known = card.limits
    card.limits = lambda: msgspec.structs.replace(known(), requested_w=Missing("Unknown Error"))  # type: ignore[method-assign]


def test_a_limit_that_cannot_be_read_is_not_set_and_no_block_runs_at_it(simulated: SimulatedRig, tmp_path: Path) -> None:
    """It could not be put back, and a level that one card was left out of is no level."""
    deployment = opened(simulated, tmp_path / "state")
    power = GpuPower(deployment)
    hide(power, 2)
    with pytest.raises(Inconclusive, match=r"the present one cannot be read, so it could not be put back \(GPU 2: Unknown"):
        power.ensure(250.0)
    with pytest.raises(Inconclusive, match="GPU 2"), power.set(250.0):
        pytest.fail("the block was entered")
    assert limits(simulated) == [300.0] * 6
    deployment.journal.close()


@pytest.mark.parametrize("simulated", [("power-limit-clamped",)], indirect=True)
def test_a_block_that_cannot_be_entered_leaves_no_card_at_its_level(simulated: SimulatedRig, tmp_path: Path) -> None:
    """GPU 0 to 2 are set before GPU 3 does not take it: they must not stay there until the end of the run."""
    deployment = opened(simulated, tmp_path / "state")
    with pytest.raises(Inconclusive, match="asked 390 W"), GpuPower(deployment).set(390.0):
        pytest.fail("the block was entered")
    assert limits(simulated) == [300.0] * 6
    assert deployment.journal.open == ()
    deployment.journal.close()
