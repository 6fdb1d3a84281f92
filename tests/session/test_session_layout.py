"""What the record keeps of cards and links, on simulated cards that work for this very process."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_sglang.gpu.nvml import Nvml
from pytest_sglang.record.clock import SystemClock
from pytest_sglang.record.run import Run
from pytest_sglang.rig.model import GpuPromise, NvlinkPromise, Rig, ServerPromise
from pytest_sglang.session import layout
from pytest_sglang.session.hardware import Hardware
from pytest_sglang.session.recorder import Recorder
from pytest_sglang.session.topology import NvlinkTopology
from pytest_sglang.simulator.rig import SimulatedRig

PAIRS = NvlinkPromise(pairs=((0, 1), (2, 3), (4, 5)), links=4)
Make = Callable[..., Any]


@pytest.fixture
def deployed(tmp_path: Path) -> Make:
    """A deployment as far as the layout looks at it."""

    def make(
        name: str = "six-3090", *, faults: tuple[str, ...] = (), active: bool = True, count: int | None = None, **more: Any
    ) -> Any:
        simulated = SimulatedRig.create(Path(tempfile.mkdtemp(dir=tmp_path)) / "rig", hardware=name, faults=faults)
        simulated.pretend(os.getpid())
        hardware = simulated.config.hardware
        server = more.pop("server", ServerPromise(url="http://127.0.0.1:1", tp=len(hardware.serving)))
        gpus = tuple(GpuPromise(index=each) for each in range(count or hardware.gpu.count))
        rig = Rig(name=name, path=Path("rig.toml"), gpus=gpus, server=server, **more)
        state = SimpleNamespace(pid=os.getpid() if active else None, active=active)
        made = SimpleNamespace(
            rig=rig,
            hardware=Hardware(Nvml.open(simulated.nvml()), rig, {}),
            controller=SimpleNamespace(state=lambda: state),
            server=SimpleNamespace(info={"tp_size": 2}),
            is_this_machine=True,
            loads=[],
        )
        made.topology = NvlinkTopology(made)
        return made

    return make


def path(seen: dict[str, Any], one: int, other: int) -> dict[str, Any]:
    return next(each for each in seen["paths"] if each["gpus"] == [one, other])


def test_six_cards_in_pairs(deployed: Make) -> None:
    seen = layout.read(deployed(nvlink=PAIRS))
    assert [each["entry"] for each in seen["cards"]] == list(range(6))
    assert {(each["links"], each["links_up"]) for each in seen["cards"]} == {(4, 4)}
    assert seen["cards"][0]["pcie_max_gen"] == 4
    assert path(seen, 0, 1) == {"gpus": [0, 1], "links": 4, "path": None, "p2p_nvlink": "OK", "p2p_read": "OK"}
    assert (path(seen, 1, 2)["links"], path(seen, 1, 2)["path"]) == (0, "NODE")
    assert len(seen["paths"]) == 15
    assert seen["promised"][1] == {"entries": [2, 3], "gpus": [2, 3], "links": 4}
    assert seen["serving"] == {"promised": None, "tp": 4, "gpus": [0, 1, 2, 3], "groups": [[0, 1, 2, 3]]}


def test_a_dead_bridge_has_no_links(deployed: Make) -> None:
    seen = layout.read(deployed(faults=("nvlink-dead",), nvlink=PAIRS))
    assert (path(seen, 2, 3)["links"], path(seen, 0, 1)["links"]) == (0, 4)
    assert [each["links_up"] for each in seen["cards"]] == [4, 4, 0, 0, 4, 4]


def test_switches_are_told_from_bridges(deployed: Make) -> None:
    seen = layout.read(deployed("eight-h100"))
    assert {each["links_to_switch"] for each in seen["cards"]} == {18}
    assert {each["links"] for each in seen["paths"]} == {18}


def test_cards_without_nvlink_tell_that_it_is_not_supported(deployed: Make) -> None:
    seen = layout.read(deployed("four-3090-pcie"))
    assert {(each["links_unsupported"], each["links"]) for each in seen["cards"]} == {(True, 0)}
    assert path(seen, 0, 1)["links"] is None


def test_a_promised_card_that_is_not_there(deployed: Make) -> None:
    seen = layout.read(deployed("two-3090", count=3, nvlink=NvlinkPromise(pairs=((1, 2),), links=4)))
    assert seen["absent"] == [{"entry": 2, "label": "GPU 2"}]
    assert seen["promised"] == [{"entries": [1, 2], "gpus": [1, None], "links": 4}]


def test_a_lost_card_costs_only_itself(deployed: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = deployed(nvlink=PAIRS)
    from pytest_sglang.gpu.readings import GpuLost

    def gone() -> Any:
        raise GpuLost("GPU 2")

    monkeypatch.setattr(made.hardware.cards[2], "pcie", gone)
    seen = layout.read(made)
    assert "lost" in str(seen["cards"][2]["lost"])
    assert len(seen["paths"]) == 10
    assert path(seen, 0, 1)["links"] == 4


def test_where_the_server_is_not_seen_the_reason_is(deployed: Make) -> None:
    stopped = layout.read(deployed(active=False, server=ServerPromise(url="http://127.0.0.1:1", gpus=(0, 1), tp=2)))
    assert stopped["serving"] == {"promised": [0, 1], "tp": 2, "unreadable": "the server was not running"}
    made = deployed()
    made.is_this_machine = False
    assert "is not served by this machine" in layout.read(made)["serving"]["unreadable"]


def test_the_size_of_a_group_comes_from_the_server_where_it_is_not_promised(deployed: Make) -> None:
    seen = layout.read(deployed(server=ServerPromise(url="http://127.0.0.1:1")))
    assert seen["serving"]["groups"] == [[0, 1], [2, 3]]


def test_no_server_and_no_cards(deployed: Make) -> None:
    assert layout.read(deployed("two-3090", server=None))["serving"] == {}
    made = deployed("one-3090")
    made.hardware = None
    assert layout.read(made) == {}


def test_links_under_load_are_the_lowest_of_all_loads(deployed: Make) -> None:
    made = deployed("two-3090")
    uuid = made.hardware.cards[0].uuid
    made.loads = [SimpleNamespace(pcie={uuid: (4, 16)}), SimpleNamespace(pcie={uuid: (3, None)})]
    seen = layout.read(made)
    assert [(each["load_pcie_gen"], each["load_pcie_width"]) for each in seen["cards"]] == [(3, 16), (None, None)]


def test_it_never_raises(deployed: Make) -> None:
    made = deployed()
    made.loads = None
    assert layout.read(made) == {"unreadable": "TypeError: 'NoneType' object is not iterable"}


def test_the_record_keeps_where_the_server_was_seen_and_what_the_links_were_at_first(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, Run(run_id="x", started="", simulated=True), SystemClock())
    first = {"cards": [1], "paths": [{"links": 4}], "serving": {"gpus": [0]}}
    recorder.topology(first)
    recorder.topology(first)
    assert recorder.run.topology == first
    recorder.topology({"cards": [1], "paths": [{"links": 0}], "serving": {"unreadable": "the server was not running"}})
    assert recorder.run.topology == {
        "cards": [1],
        "paths": [{"links": 0}],
        "serving": {"gpus": [0]},
        "first_paths": [{"links": 4}],
    }
    recorder.topology({"unreadable": "the driver is gone"})
    assert recorder.run.topology["not_read_again"] == "the driver is gone"
    assert recorder.run.topology["paths"] == [{"links": 0}]
