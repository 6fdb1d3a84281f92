"""What went wrong with the cards since the run began: lost ones, memory errors, the driver's messages in the kernel log."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pytest_sglang.gpu import host
from pytest_sglang.gpu.power import run_command
from pytest_sglang.gpu.readings import GpuLost, Missing, Reading
from pytest_sglang.judge import health as judge
from pytest_sglang.judge.hardware import Unreadable
from pytest_sglang.judge.health import FoundMemory
from pytest_sglang.judge.verdict import Judgement
from pytest_sglang.session.errors import NotChecked

if TYPE_CHECKING:
    from pytest_sglang.gpu.power import Run
    from pytest_sglang.session.deployment import Deployment
    from pytest_sglang.session.hardware import Hardware


SILENT = "does not answer the driver any more"


def memory(hardware: Hardware) -> tuple[list[FoundMemory], dict[str, str]]:
    """Memory state of the promised cards, and those that do not answer any more, with the reason."""
    found: list[FoundMemory] = []
    lost = {each.label: "promised, and not there since the run began" for each in hardware.promised if each.card is None}
    for card in hardware.present:
        try:
            found.append(card.memory_state())
        except GpuLost:
            lost[f"GPU {card.index}"] = SILENT
    return found, lost


def judge_health(deployment: Deployment) -> Judgement:
    """Every promised card answers, and its memory is sound."""
    hardware = deployment.hardware
    if hardware is None:
        raise NotChecked("the rig file promises no GPUs (add [[gpus]] tables)")
    now, lost = memory(hardware)
    return judge.memory(hardware.memory_before, now, lost, unavailable=deployment.rig.unavailable)


def runner(deployment: Deployment) -> Run:
    """How the kernel log of the rig is asked for."""
    return run_command if deployment.simulation is None else deployment.simulation.kernel_log


def messages(deployment: Deployment) -> Reading[tuple[host.Xid, ...]]:
    """The driver's messages in the kernel log since the run began."""
    found = host.messages_since(deployment.recorder.began_wall, runner(deployment))
    deployment.kernel_messages = None if isinstance(found, Missing) else found
    return found


def judge_kernel_log(deployment: Deployment) -> Judgement:
    """No Xid and no fault of the driver since the run began. Raises NotChecked where the log cannot be read and that is waived."""
    found = messages(deployment)
    if isinstance(found, Missing):
        if "xid" in deployment.rig.unavailable:
            raise NotChecked(f"the kernel log cannot be read ({found.reason}); waived in the rig file")
        # the judgement grants the right in its own words
        return judge.kernel_log(Unreadable(found.reason.partition(f"; {judge.GRANT_LOG}")[0], permission=True), "")
    since = time.strftime("%H:%M:%S", time.localtime(deployment.recorder.began_wall))
    return judge.kernel_log(host.findings(found, labels(deployment), only=True), since)


def labels(deployment: Deployment) -> dict[str, str]:
    """Names of the promised cards by PCI bus id."""
    return (
        {} if deployment.hardware is None else {card.pci: f"GPU {card.index}" for card in deployment.hardware.present if card.pci}
    )


def loss(deployment: Deployment, error: GpuLost) -> str:
    """Why a card was lost, with what the kernel log says of it."""
    found = messages(deployment)
    told = () if isinstance(found, Missing) else host.findings(found, labels(deployment), only=True)
    said = [f"{each.subject}: {each.detail}" for each in told if each.severity == "fail"]
    return "; ".join([str(error), *said])
