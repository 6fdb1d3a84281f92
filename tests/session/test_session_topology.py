"""Topology against the server's plan, memory and kernel log of a deployment, on simulated cards that work for this very process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from pytest_sglang.gpu.nvml import Nvml
from pytest_sglang.rig.model import GpuPromise, NvlinkPromise, Rig, ServerPromise
from pytest_sglang.server.log import TextLog
from pytest_sglang.session import checks, health, underload
from pytest_sglang.session.errors import Inconclusive, NotChecked
from pytest_sglang.session.hardware import Hardware
from pytest_sglang.session.scope import CheckScope
from pytest_sglang.session.topology import NvlinkTopology
from pytest_sglang.simulator.rig import SimulatedRig

ECHO = "[2026-11-24 01:53:00] server_args=ServerArgs(model_path='/models/x')\n"
CAPTURED = "[2026-11-24 01:54:00 TP0] Capture cuda graph end. Time elapsed: 20.00 s. mem usage=0.31 GB. avail mem=4.51 GB.\n"
REGISTERED = "[2026-11-24 01:53:59 TP0] Registering 2340 cuda graph addresses\n"
FAILED = "[2026-11-24 01:53:10 TP0] Setup Custom allreduce failed with invalid literal for int() with base 10: 'GPU-2'. To silence this warning, x\n"
OFF = "[2026-11-24 01:53:10 TP0] CustomAllreduce is disabled because it's not supported on more than two PCIe-only GPUs. To silence x\n"

Make = Callable[..., Any]


@pytest.fixture
def deployed(tmp_path: Path) -> Make:
    """A deployment as far as topology and health look at it."""

    def make(
        name: str = "two-3090",
        *,
        log: str = ECHO + REGISTERED + CAPTURED,
        faults: tuple[str, ...] = (),
        info: dict[str, Any] | None = None,
        pid: int | None = os.getpid(),
        **more: Any,
    ) -> Any:
        simulated = SimulatedRig.create(tmp_path / "rig", hardware=name, faults=faults)
        simulated.pretend(os.getpid())
        hardware = simulated.config.hardware
        server = ServerPromise(url="http://127.0.0.1:1", tp=len(hardware.serving), **more.pop("server", {}))
        rig = Rig(
            name=name,
            path=Path("rig.toml"),
            gpus=tuple(GpuPromise(index=each) for each in range(hardware.gpu.count)),
            server=server,
            **more,
        )
        state = SimpleNamespace(pid=pid)
        return SimpleNamespace(
            rig=rig,
            hardware=Hardware(Nvml.open(simulated.nvml()), rig, {}),
            controller=SimpleNamespace(state=lambda: state),
            log=TextLog(log),
            server=SimpleNamespace(info={"version": "0.5.11", **(info or {})}, identity=lambda: SimpleNamespace(tp=None)),
            simulation=SimpleNamespace(kernel_log=lambda command: simulated.kernel_log(list(command))),
            recorder=SimpleNamespace(began_wall=0.0, verdict_of=lambda *_: None),
            lost_in=None,
            require_this_machine=lambda: None,
            options=SimpleNamespace(may_set_power=False),
        )

    return make


def kinds(judged: Any) -> list[tuple[str, str]]:
    return [(each.kind, each.severity) for each in judged.findings if each.kind != "foreign-process"]


def test_tp_2_inside_a_pair_has_custom_all_reduce_and_a_display_server_is_no_fault(deployed: Make) -> None:
    judged = NvlinkTopology(deployed(server={"gpus": (0, 1), "exclusive": True})).judge_placement()
    assert (judged.verdict, kinds(judged)) == ("pass", [])
    assert judged.message == "the server runs on GPUs 0, 1; custom all-reduce is on, as its links let expect"
    assert [(each.kind, each.severity) for each in judged.findings] == [("foreign-process", "info")]


def test_tp_2_inside_a_pair_without_custom_all_reduce_fails_with_the_logs_reason(deployed: Make) -> None:
    judged = NvlinkTopology(deployed(log=ECHO + FAILED + CAPTURED)).judge_placement()
    assert (judged.verdict, kinds(judged)) == ("fail", [("custom-all-reduce", "fail")])
    assert "invalid literal for int()" in judged.message


def test_only_the_newest_start_of_the_log_counts(deployed: Make) -> None:
    judged = NvlinkTopology(deployed(log=ECHO + FAILED + CAPTURED + ECHO + REGISTERED + CAPTURED)).judge_placement()
    assert kinds(judged) == []


def test_a_flag_that_switches_it_off_is_a_warning(deployed: Make) -> None:
    judged = NvlinkTopology(deployed(log=ECHO + CAPTURED, info={"disable_custom_all_reduce": True})).judge_placement()
    assert (judged.verdict, kinds(judged)) == ("pass", [("custom-all-reduce", "warn")])


def test_tp_4_over_two_pairs_is_off_by_design(deployed: Make) -> None:
    judged = NvlinkTopology(deployed("six-3090", log=ECHO + OFF + CAPTURED, server={"gpus": (0, 1, 2, 3)})).judge_placement()
    assert (judged.verdict, kinds(judged)) == ("pass", [("custom-all-reduce", "info")])


def test_eight_cards_on_switches_have_it(deployed: Make) -> None:
    assert "is on, as its links let expect" in NvlinkTopology(deployed("eight-h100")).judge_placement().message


def test_counters_are_judged_over_all_the_time_between_their_two_readings(deployed: Make) -> None:
    hardware = deployed().hardware
    before = underload.counters(hardware, hardware.serving)
    assert len(before.up) == 8
    # half a minute of heat soak came before the one round that counts: packets were sent again in all of it
    before = msgspec.structs.replace(before, at_s=before.at_s - 30.0)
    window: Any = SimpleNamespace(slow=lambda *_: {})
    result: Any = SimpleNamespace(rounds=(SimpleNamespace(begin_s=0.0, end_s=1.0),))
    load = underload.seen(hardware, window, result, before)
    assert load is not None
    assert load.seconds >= 30.0


def test_processes_that_cannot_be_seen_are_inconclusive_and_waived_not_checked(deployed: Make) -> None:
    hidden = deployed(pid=None)
    assert NvlinkTopology(hidden).judge_placement().verdict == "inconclusive"
    hidden.rig = Rig(name="x", path=Path("rig.toml"), server=hidden.rig.server, unavailable=frozenset({"placement"}))
    with pytest.raises(NotChecked, match=r"cannot be seen\); waived in the rig file"):
        NvlinkTopology(hidden).judge_placement()


def test_best_gpus_prefers_bridges_and_then_the_nearest(deployed: Make) -> None:
    assert NvlinkTopology(deployed("six-3090")).best_gpus(4) == (0, 1, 2, 3)


def test_best_gpus_of_cards_without_bridges_are_those_behind_one_switch(deployed: Make) -> None:
    assert NvlinkTopology(deployed("four-3090-pcie")).best_gpus(2) == (0, 1)


def test_links_that_are_not_declared_are_not_checked(deployed: Make) -> None:
    with pytest.raises(NotChecked, match="declares no NVLink"):
        NvlinkTopology(deployed()).judge()


def test_declared_links_are_judged(deployed: Make) -> None:
    promised = deployed(nvlink=NvlinkPromise(pairs=((0, 1),), links=4))
    assert NvlinkTopology(promised).judge().verdict == "pass"


# --- memory, kernel log ------------------------------------------------------------------------------------------------------------


def test_sound_cards_are_healthy_and_a_lost_one_is_named(deployed: Make) -> None:
    made = deployed("six-3090", faults=("xid-79",))
    judged = health.judge_health(made)
    assert judged.verdict == "fail"
    assert judged.message.startswith("GPU 2 promised, and not there")


def test_errors_since_the_run_began_fail(deployed: Make) -> None:
    made = deployed("six-3090", faults=("ecc-errors",))
    made.hardware.memory_before = tuple(
        msgspec.structs.replace(each, uncorrected=0 if each.ecc else None) for each in made.hardware.memory_before
    )
    assert "uncorrected memory errors since the run began" in health.judge_health(made).message


def test_a_quiet_kernel_log_passes(deployed: Make) -> None:
    made = deployed()
    assert health.judge_kernel_log(made).verdict == "pass"


def test_a_hidden_kernel_log_is_inconclusive_and_waived_not_checked(deployed: Make) -> None:
    made = deployed(faults=("kernel-log-hidden",))
    judged = health.judge_kernel_log(made)
    assert judged.verdict == "inconclusive"
    assert judged.cause is not None
    assert judged.cause.count("usermod") == 1
    made.rig = Rig(name="x", path=Path("rig.toml"), unavailable=frozenset({"xid"}))
    with pytest.raises(NotChecked, match="waived in the rig file"):
        health.judge_kernel_log(made)


# --- a check's preconditions --------------------------------------------------------------------------------------------------------


class NoServer(SimpleNamespace):
    """A deployment whose rig file promises no server."""

    @property
    def server(self) -> Any:
        raise NotChecked("the rig file promises no server (add a [server] table)")


def test_a_rig_file_without_a_server_is_judged_by_its_hardware(deployed: Make) -> None:
    made = deployed()
    alone = NoServer(**{name: value for name, value in vars(made).items() if name != "server"})
    CheckScope(alone, checks.STANDARD["gpu-identity"]).enter()  # type: ignore[arg-type]
    with pytest.raises(NotChecked, match="promises no server"):
        CheckScope(alone, checks.STANDARD["ready"]).enter()  # type: ignore[arg-type]


def test_nothing_is_measured_after_a_card_was_lost_but_its_health_is_told(deployed: Make) -> None:
    made = deployed()
    made.lost_in = "decode-throughput"
    with pytest.raises(Inconclusive, match="a GPU was lost in decode-throughput") as raised:
        CheckScope(made, checks.STANDARD["warm-restart"]).enter()
    assert raised.value.because == "decode-throughput"
    CheckScope(made, checks.STANDARD["gpu-health"]).enter()
