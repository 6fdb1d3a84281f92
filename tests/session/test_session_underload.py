"""Links under load: a card that idled, counters that cannot be read, counters that the card has not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_sglang.gpu.integral import SlowSample
from pytest_sglang.gpu.nvml import Nvml
from pytest_sglang.rig.model import GpuPromise, Rig, ServerPromise
from pytest_sglang.session import checks, underload
from pytest_sglang.session.errors import Inconclusive
from pytest_sglang.session.hardware import Hardware
from pytest_sglang.session.scope import CheckScope
from pytest_sglang.session.underload import Counters, UnderLoad
from pytest_sglang.simulator.rig import SimulatedRig

IDLE, CAPPED = 0x1, 0x4
Make = Callable[..., Any]


@pytest.fixture
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Four cards of a simulated rig as one tensor parallel group, working for this very process."""
    monkeypatch.setattr("pytest_sglang.simulator.rig._furnish", lambda made: None)

    def make(*faults: str, tp: int | None = 4, unavailable: frozenset[str] = frozenset()) -> Any:
        simulated = SimulatedRig.create(tmp_path / "rig", faults=faults)
        simulated.pretend(os.getpid())
        server = ServerPromise(url="http://127.0.0.1:1", tp=tp, gpus=(0, 1, 2, 3))
        gpus = tuple(GpuPromise(index=each, pcie_gen=4, pcie_width=16) for each in range(6))
        rig = Rig(name="r", path=Path("rig.toml"), gpus=gpus, server=server, unavailable=unavailable)
        deployment: Any = SimpleNamespace(rig=rig, hardware=Hardware(Nvml.open(simulated.nvml()), rig, {}), loads=[])
        deployment.scope = CheckScope(deployment, checks.STANDARD["links-under-load"])
        return deployment

    return make


def loaded(deployment: Any, **reasons: int) -> Any:
    """The judgement over one load in which each card had these clocks event reasons (``gpu2=IDLE``), CAPPED where not named."""
    hardware = deployment.hardware
    before = underload.counters(hardware, hardware.serving)
    masks = {card.uuid: reasons.get(f"gpu{card.index}", CAPPED) for card in hardware.serving}
    slow = {
        uuid: [SlowSample(0.5, 60, 975, 9501, mask, 1 if mask & IDLE else 4, 16) for _ in range(3)] for uuid, mask in masks.items()
    }
    window: Any = SimpleNamespace(slow=lambda *_: slow)
    load = underload.seen(hardware, window, SimpleNamespace(rounds=(SimpleNamespace(begin_s=0.0, end_s=1.0),)), before)  # type: ignore[arg-type]
    assert load is not None
    deployment.loads.append(load)
    return underload.judged(deployment)


def test_cards_that_all_work_pass_and_the_message_says_what_was_counted(deployed: Make) -> None:
    judged = loaded(deployed())
    assert (judged.verdict, judged.message) == ("pass", "PCIe links under load are as promised, and nothing was sent again")


def test_a_rank_that_idled_while_the_others_worked_fails(deployed: Make) -> None:
    judged = loaded(deployed(), gpu2=IDLE)
    assert judged.verdict == "fail"
    assert judged.message == "GPU 2 idled while the server worked (GPU 0 did not)"


def test_an_idle_card_of_another_layout_than_one_group_is_inconclusive(deployed: Make) -> None:
    """Two groups of two: one request keeps one of them idle, which is no fault, but nothing is known of its links."""
    judged = loaded(deployed(tp=2), gpu2=IDLE, gpu3=IDLE)
    assert judged.verdict == "inconclusive"
    assert "GPU 2 PCIe link under load not readable: it was idle in the measurement" in judged.message


def test_a_load_that_no_card_felt_is_inconclusive_and_names_no_idle_rank(deployed: Make) -> None:
    judged = loaded(deployed(), gpu0=IDLE, gpu1=IDLE, gpu2=IDLE, gpu3=IDLE)
    assert (judged.verdict, "no promised card worked" in judged.message) == ("inconclusive", True)


def test_a_load_that_ended_without_a_round_is_inconclusive_and_no_skip(deployed: Make) -> None:
    made = deployed()
    made.server = SimpleNamespace(measure=lambda rounds: None)
    with pytest.raises(Inconclusive, match="nothing is known of the links under load"):
        underload.judged(made)


def test_counters_that_fail_are_inconclusive_and_can_be_waived(deployed: Make) -> None:
    judged = loaded(deployed("counters-hidden"))
    assert judged.verdict == "inconclusive"
    assert judged.message == "GPU 1 PCIe replays not readable: Unknown Error; GPU 1 NVLink errors not readable: Unknown Error"


def test_a_waived_counter_is_not_claimed(deployed: Make) -> None:
    judged = loaded(deployed("counters-hidden", unavailable=frozenset({"pcie_replays", "nvlink_errors"})))
    assert (judged.verdict, judged.message) == ("pass", "PCIe links under load are as promised")
    assert {each.kind for each in judged.findings} == set()


def test_a_card_without_such_counters_keeps_its_promise_and_says_what_it_cannot_tell(deployed: Make) -> None:
    made = deployed("counters-missing")
    judged = loaded(made)
    assert judged.verdict == "pass"
    assert "nothing was sent again" not in judged.message
    assert "PCIe replays of GPU 0, 1, 2, 3 are not told by the card" in judged.message
    assert made.scope.left_out == {
        "pcie-replays": "GPU 0, 1, 2, 3: Not Supported",
        "nvlink-errors": "GPU 0, 1, 2, 3: Not Supported",
    }


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ({"GPU 0 PCIe replays": 4}, {}, "readable before the load, and is not after it"),
        ({"GPU 0 PCIe replays": 4}, {"GPU 0 PCIe replays": 0}, "went backwards"),
        ({"GPU 0 link 1 replay": 4}, {"GPU 0 link 1 replay": 0}, "went backwards"),
    ],
)
def test_a_counter_that_cannot_be_compared_is_inconclusive(
    deployed: Make, before: dict[str, int], after: dict[str, int], why: str
) -> None:
    made = deployed()
    pcie: dict[str, tuple[int | None, int | None]] = {card.uuid: (4, 16) for card in made.hardware.serving}
    made.loads.append(UnderLoad(seconds=9.0, pcie=pcie, before=Counters(counts=before), after=Counters(counts=after)))
    judged = underload.judged(made)
    assert (judged.verdict, why in judged.message) == ("inconclusive", True)


def test_a_link_that_went_down_fails_and_its_counters_are_no_second_story(deployed: Make) -> None:
    made = deployed()
    pcie: dict[str, tuple[int | None, int | None]] = {card.uuid: (4, 16) for card in made.hardware.serving}
    before = Counters(counts={"GPU 0 link 1 replay": 4}, up=frozenset({"GPU 0 link 1"}))
    made.loads.append(UnderLoad(seconds=9.0, pcie=pcie, before=before, after=Counters()))
    judged = underload.judged(made)
    assert (judged.verdict, len(judged.findings)) == ("fail", 1)
