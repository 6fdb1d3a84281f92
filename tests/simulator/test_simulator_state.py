"""The simulated cards: closed forms against numbers, limits, loads, and what happens without anybody."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_sglang.simulator import hardware, state
from pytest_sglang.simulator.hardware import Hardware, Trait
from pytest_sglang.simulator.state import CardPiece, HardwareState


@pytest.fixture(scope="module")
def cards() -> Hardware:
    return hardware.load("six-3090")


@pytest.fixture
def live(tmp_path: Path, cards: Hardware) -> HardwareState:
    return HardwareState.create(tmp_path, cards, 250.0)


def _piece(**changed: float) -> CardPiece:
    plain = {
        "limit_w": 250.0,
        "energy_j": 1000.0,
        "power_w": 25.0,
        "target_w": 245.0,
        "temperature_c": 32.0,
        "target_c": 57.0,
        "load": 1.0,
        "memory_b": 0.0,
        "fallback_at_s": math.inf,
        "fallback_w": 350.0,
    }
    return CardPiece(**(plain | changed))


@pytest.mark.parametrize("elapsed_s", [0.05, 0.3, 1.0, 7.0])
def test_energy_is_the_integral_of_power(elapsed_s: float) -> None:
    piece, steps = _piece(), 20_000
    width = elapsed_s / steps
    summed = sum(piece.power_after((n + 0.5) * width) * width for n in range(steps))
    assert piece.energy_after(elapsed_s) - 1000.0 == pytest.approx(summed, rel=1e-6)


def test_power_and_temperature_begin_at_their_values_and_end_at_their_targets() -> None:
    piece = _piece()
    assert (piece.power_after(0.0), piece.temperature_after(0.0)) == (25.0, 32.0)
    assert piece.power_after(10.0) == pytest.approx(245.0)
    assert piece.temperature_after(1000.0) == pytest.approx(57.0)
    assert piece.temperature_after(1.0) < 33.0


def test_energy_before_a_piece_goes_on_backwards_at_its_power() -> None:
    assert _piece().energy_after(-1.0) == 975.0


def test_idle_cards_draw_their_idle_power(live: HardwareState) -> None:
    for card in live.now():
        assert 24.0 < card.power_w < 29.0
        assert card.average_w == pytest.approx(card.power_w, rel=0.01)
        assert (card.load, card.memory_b) == (0.0, 0)


def test_load_brings_the_serving_cards_near_their_limit_and_only_them(live: HardwareState) -> None:
    live.set_owner(os.getpid())
    live.set_load(1.0, 2**30)
    start = time.monotonic()
    ramping = live.now()[0].average_w
    loaded = live.now(start + 3.0)
    assert all(0.97 * 250 < card.power_w < 250 for card in loaded[:4])
    assert all(card.power_w < 30 for card in loaded[4:])
    assert [card.memory_b for card in loaded] == [2**30] * 4 + [0] * 2
    assert ramping < 60 < loaded[0].average_w


def test_the_average_lags_behind_the_instant_value_by_about_a_second(live: HardwareState) -> None:
    live.set_owner(os.getpid())
    live.set_load(1.0)
    start = time.monotonic()
    early, late = live.now(start + 0.5)[0], live.now(start + 3.0)[0]
    assert early.average_w < 0.55 * early.power_w
    assert late.average_w == pytest.approx(late.power_w, rel=0.01)


def test_the_energy_counter_moves_every_tenth_of_a_second(live: HardwareState) -> None:
    live.set_owner(os.getpid())
    live.set_load(1.0)
    begin = math.ceil(time.monotonic() * 10) / 10 + 2
    inside = {live.now(begin + fraction)[0].energy_j for fraction in (0.011, 0.05, 0.089)}
    after = live.now(begin + 0.111)[0].energy_j
    assert len(inside) == 1
    assert after - inside.pop() == pytest.approx(24.6, rel=0.02)


def test_energy_never_falls_over_changes(live: HardwareState) -> None:
    live.set_owner(os.getpid())
    seen = []
    for load in (1.0, 0.0, 0.4, 1.0, 0.0):
        live.set_load(load)
        time.sleep(0.03)
        seen.append(live.now()[1].energy_j)
    assert seen == sorted(seen)


def test_a_limit_is_kept_and_changes_the_power_under_load(live: HardwareState) -> None:
    live.set_owner(os.getpid())
    live.set_load(1.0)
    live.set_limit(1, 300.0)
    assert live.limits_w() == (250.0, 300.0, 250.0, 250.0, 250.0, 250.0)
    loaded = live.now(time.monotonic() + 3)
    assert loaded[1].power_w - loaded[0].power_w == pytest.approx(49, abs=2)


def test_a_limit_that_is_lost_falls_back_by_itself(live: HardwareState) -> None:
    live.set_limit(2, 250.0, falls_back_after_s=0.08)
    assert live.limits_w()[2] == 250.0
    time.sleep(0.1)
    assert live.limits_w() == (250.0, 250.0, 350.0, 250.0, 250.0, 250.0)


def test_a_fall_back_counts_from_its_own_moment_however_late_it_is_noticed(live: HardwareState) -> None:
    live.set_owner(os.getpid())
    live.set_load(1.0)
    live.set_limit(2, 150.0, falls_back_after_s=0.2)
    time.sleep(0.6)
    noticed = live.now()[2]
    # 0.4 s after the fall back most of the way from 148 W to 344 W is gone
    assert noticed.power_w > 260.0


def test_fallbacks_are_lost_from_the_beginning(tmp_path: Path, cards: Hardware) -> None:
    live = HardwareState.create(tmp_path, cards, 250.0, [2])
    assert live.limits_w() == (250.0, 250.0, 350.0, 250.0, 250.0, 250.0)


def test_the_load_of_a_killed_process_ends_with_it(live: HardwareState) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as owner:
        live.set_owner(owner.pid)
        live.set_load(1.0, 2**30)
        assert live.owner()[0] == owner.pid
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert live.owner() == (0, 0)
    assert (live.now()[0].load, live.now()[0].memory_b) == (0.0, 0)
    assert live.now(time.monotonic() + 3)[0].power_w < 30


def test_two_processes_see_one_state(live: HardwareState, tmp_path: Path, cards: Hardware) -> None:
    HardwareState(tmp_path, cards).set_limit(5, 123.0)
    assert live.limits_w()[5] == 123.0


def test_the_ring_goes_round(live: HardwareState) -> None:
    for number in range(200):
        live.set_limit(0, 200.0 + number % 50)
    assert live.limits_w()[0] == 249.0
    assert live.now()[0].average_w == pytest.approx(25, abs=2)


def test_a_removed_rig_still_answers(live: HardwareState, tmp_path: Path) -> None:
    live.set_owner(1)  # not ours: as good as any living process
    live.set_load(1.0, 5)
    state_map = live._map
    state_map[24:40] = b"\0" * 16
    (tmp_path / "state.lock").unlink()
    tmp_path.joinpath("state").unlink()
    tmp_path.rmdir()
    assert live.now()[0].load == 1.0


def test_another_file_is_refused(tmp_path: Path, cards: Hardware) -> None:
    (tmp_path / state.NAME).write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="no simulated hardware"):
        HardwareState(tmp_path, cards)


# --- what the hardware is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit_w", "tok_s"), [(200, 26.3), (230, 34.5), (250, 39.0), (270, 43.6), (290, 47.5), (330, 50.4), (360, 50.6), (390, 52.5)]
)
def test_decode_speed_follows_the_published_points(cards: Hardware, limit_w: float, tok_s: float) -> None:
    assert cards.curve.tok_s(limit_w) == pytest.approx(tok_s)


def test_nvlink_brings_the_promised_gain(cards: Hardware) -> None:
    assert cards.curve.tok_s(250) * (1 + cards.curve.nvlink_gain) == pytest.approx(43.3, abs=0.05)
    assert cards.curve.tok_s(390) * (1 + cards.curve.nvlink_gain) == pytest.approx(58.3, abs=0.05)


def test_speed_is_linear_between_points_and_flat_beyond(cards: Hardware) -> None:
    assert cards.curve.tok_s(240) == pytest.approx((34.5 + 39.0) / 2)
    assert cards.curve.tok_s(50) == cards.curve.tok_s(100)
    assert cards.curve.tok_s(450) == 52.5
    assert cards.curve.mhz(250) == 975


def test_cards_meet_where_the_toml_says(cards: Hardware) -> None:
    assert [cards.meeting(0, other) for other in range(1, 4)] == ["PHB", "NODE", "NODE"]
    assert cards.bus_id(0) == "00000000:01:00.0"
    pcie = hardware.load("four-3090-pcie")
    assert [pcie.meeting(0, other) for other in range(1, 4)] == ["PIX", "PXB", "SYS"]


def test_unknown_hardware_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"no simulated hardware 'nine-h100' \(there is .*six-3090"):
        hardware.load("nine-h100")


# --- what single cards have of their own -----------------------------------------------------------------------------------

REAL = time.monotonic


def _traits(tmp_path: Path, cards: Hardware, **traits: Trait) -> HardwareState:
    made = HardwareState.create(tmp_path, cards, 250.0, traits={int(name[1:]): trait for name, trait in traits.items()})
    made.set_owner(os.getpid())
    return made


def _ahead(live: HardwareState, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """``seconds`` more than really have passed for the cards."""
    monkeypatch.setattr(state.time, "monotonic", lambda: REAL() + seconds)


def test_a_clamped_card_takes_any_limit_and_keeps_its_own(tmp_path: Path, cards: Hardware) -> None:
    live = _traits(tmp_path, cards, c3=Trait(clamp_w=220.0))
    assert live.limits_w()[2:4] == (250.0, 220.0)
    live.set_limit(3, 390.0)
    assert (live.now()[3].requested_w, live.now()[3].limit_w) == (390.0, 220.0)
    live.set_limit(3, 200.0)
    assert live.now()[3].limit_w == 200.0
    assert live.pace() == (200.0, 1.0)


def test_a_card_in_hot_air_slows_down_seconds_after_a_load_and_recovers_when_cool(
    tmp_path: Path, cards: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = _traits(tmp_path, cards, c2=Trait(idle_c=92.0))
    live.set_load(1.0)
    assert (live.now()[2].hot, live.pace()[1]) == (False, 1.0)
    _ahead(live, monkeypatch, 4.0)
    hot = live.now()[2]
    assert (hot.hot, hot.capped, live.pace()[1]) == (True, False, hardware.SLOWED)
    assert live.now()[1].capped
    assert 93.0 <= hot.temperature_c <= 94.0
    _ahead(live, monkeypatch, 8.0)
    assert live.now()[2].power_w < 200.0
    assert live.now()[2].hot_s == pytest.approx(8.0 - 1.7, abs=0.5)
    assert live.now()[1].capped_s == pytest.approx(8.0, abs=0.3)
    live.set_load(0.0)
    assert (live.now()[2].hot, live.now()[2].share) == (False, 1.0)


def test_a_braked_card_is_slow_under_load_only(tmp_path: Path, cards: Hardware) -> None:
    live = _traits(tmp_path, cards, c1=Trait(brake=0.5))
    assert not live.now()[1].braked
    live.set_load(1.0)
    assert (live.now()[1].braked, live.now()[1].share, live.pace()[1]) == (True, 0.5, 0.5)
    assert not live.now()[0].braked


def test_a_rank_that_idles_holds_its_memory_and_does_nothing(tmp_path: Path, cards: Hardware) -> None:
    live = _traits(tmp_path, cards, c2=Trait(works=0.0))
    live.set_owner(os.getpid())
    live.set_load(1.0, 2**30)
    assert [live.now()[card].load for card in (1, 2)] == [1.0, 0.0]
    assert live.now()[2].memory_b == 2**30


def test_a_lost_counter_begins_again_and_power_does_not_notice(
    tmp_path: Path, cards: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = _traits(tmp_path, cards, c0=Trait(reset_after_s=0.7))
    before = live.now()[0].energy_j
    live.set_load(1.0)
    _ahead(live, monkeypatch, 0.6)
    assert live.now()[0].energy_j >= before
    _ahead(live, monkeypatch, 3.0)
    now = live.now()[0]
    assert 0.0 <= now.energy_j < 700.0
    assert now.average_w == pytest.approx(now.power_w, rel=0.02)
    _ahead(live, monkeypatch, 4.0)
    assert live.now()[0].energy_j > now.energy_j


def test_on_the_plateau_the_cap_does_not_bind(live: HardwareState, monkeypatch: pytest.MonkeyPatch) -> None:
    live.set_owner(os.getpid())
    for index in range(6):
        live.set_limit(index, 370.0)
    live.set_load(1.0)
    _ahead(live, monkeypatch, 5.0)
    now = live.now()[0]
    assert not now.capped
    assert now.power_w == pytest.approx(345 * 0.985, rel=0.01)
    live.set_limit(0, 390.0)
    assert live.now()[0].capped


def test_the_averaged_power_reads_low_after_a_load_as_recorded(live: HardwareState, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the recorded H200 the average of the first 2 s of a decode read 28 % below the energy counter."""
    live.set_owner(os.getpid())
    begin_j, begin_s = live.now()[0].energy_j, time.monotonic()
    live.set_load(1.0)
    averages = [live.now(begin_s + tick / 20)[0].average_w for tick in range(41)]
    _ahead(live, monkeypatch, 2.1)
    joules = live.now(begin_s + 2.1)[0].energy_j - begin_j
    assert 0.65 < (sum(averages) / len(averages)) / (joules / 2.1) < 0.85
