"""Cards that work and caches that grow are signs of life; somebody else's work on a card is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_sglang.cache import locate
from pytest_sglang.gpu.nvml import Nvml
from pytest_sglang.session.activity import Activity
from pytest_sglang.simulator.caches import Caches, known
from pytest_sglang.simulator.rig import SimulatedRig
from pytest_sglang.simulator.state import HardwareState


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedRig]:
    monkeypatch.setattr(Caches, "fill", lambda _: None)
    made = SimulatedRig.create(tmp_path / "rig")
    yield made
    made.destroy()


def activity(rig: SimulatedRig, nvml: Nvml) -> Activity:
    environ = {"TRITON_CACHE_DIR": str(rig.config.triton_dir), "TORCHINDUCTOR_CACHE_DIR": str(rig.config.inductor_dir)}
    places = locate.locate(version="0.5.11", environ=environ, home=rig.config.home, tmpdir=rig.config.home, user="root")
    serving = [card for card in nvml.cards() if card.index in rig.config.hardware.serving]
    deployment: Any = SimpleNamespace(
        kernels=SimpleNamespace(places_unasked=lambda: places), hardware=SimpleNamespace(serving=serving)
    )
    return Activity(deployment)


def test_a_card_that_works_is_a_sign_of_life_each_time_and_an_idle_one_never(rig: SimulatedRig) -> None:
    state, nvml = HardwareState(rig.directory, rig.config.hardware), Nvml.open(rig.nvml())
    try:
        look = activity(rig, nvml)
        assert "GPU work" in look.watched
        assert look() == look() == look()
        import os

        state.set_owner(os.getpid())
        state.set_load(0.35, 2**30)
        busy = [look() for _ in range(3)]
        assert len(set(busy)) == 3
        state.set_load(0.0, 2**31)
        # more memory is a sign too, once
        first, *others = [look() for _ in range(3)]
        assert first != busy[-1]
        assert others == [first, first]
    finally:
        nvml.close()


def test_a_cache_that_grows_is_a_sign_of_life(rig: SimulatedRig) -> None:
    nvml = Nvml.open(rig.nvml())
    try:
        look = activity(rig, nvml)
        before = look()
        caches = Caches(rig.config.triton_dir, rig.config.inductor_dir, rig.config.model)
        caches.compile(known(rig.config.model)[0])
        assert look() != before
    finally:
        nvml.close()


def test_a_card_that_somebody_used_before_the_start_tells_nothing_about_it(rig: SimulatedRig) -> None:
    import os

    state, nvml = HardwareState(rig.directory, rig.config.hardware), Nvml.open(rig.nvml())
    try:
        state.set_owner(os.getpid())
        state.set_load(1.0, 2**30)
        look = activity(rig, nvml)
        assert "GPU" not in look.watched
        assert look() == look()
    finally:
        nvml.close()
