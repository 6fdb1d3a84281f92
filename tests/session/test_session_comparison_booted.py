"""Runs on one server process are one boot: they teach no spread between boots, and one start that all of them found counts once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stored_runs import edited, stored

from pytest_sglang.record import run as records
from pytest_sglang.session import comparison, store
from pytest_sglang.session.compared import Quantity
from pytest_sglang.session.comparison import Comparison
from pytest_sglang.session.serving import Serving

Edit = Callable[[dict[str, Any]], object]


def on(process: str | None, pid: int | None, launched_at: float | None) -> Edit:
    """Measurement and start of this process; None: not told."""

    def edit(told: dict[str, Any]) -> None:
        told["throughputs"][0].pop("process")
        if process is not None:
            told["throughputs"][0]["process"] = process
        start = told["startups"][0]["startup"]
        start.update(pid=pid, launched_at=launched_at, ready_s=80.0 if launched_at == 1000.0 else start["ready_s"])
        told["environment"]["server"]["pid"] = pid

    return edit


def nights(folder: Path, edits: list[Edit], tok_s: float = 40.0) -> list[Path]:
    return [
        edited(stored(folder, f"night-{number:02}", started=f"2026-10-{number + 1:02}T00:00:00.000Z", tok_s=tok_s), edit)
        for number, edit in enumerate(edits)
    ]


def after_reboot(folder: Path, edit: Edit, tok_s: float = 39.2, name: str = "rebooted") -> Path:
    return edited(stored(folder, name, started="2026-11-20T00:00:00.000Z", tok_s=tok_s, warm_s=86.0), edit)


def decode(found: Comparison) -> Quantity:
    return next(each for each in found.quantities if each.name == "decode at 250 W")


def compared(before: list[Path], after: Path) -> Comparison:
    history = store.runs(after.parent)[0]
    return comparison.compare([records.read(each) for each in before], [records.read(after)], history)


def seeded(number: int, pid: int | None = None) -> Edit:
    """An older run.json without a start: the server's pid and its random seed are all that it tells."""

    def edit(told: dict[str, Any]) -> None:
        on(None, pid, None)(told)
        told["startups"] = []
        told["environment"]["server"]["arguments"]["random_seed"] = number

    return edit


ONE: dict[str, tuple[Callable[[int], Edit], Edit]] = {
    "told": (lambda number: on("b1/7/70", 7, 1000.0), on("b2/7/70", 7, 9e6)),
    "by the newest start, told anew each time": (lambda number: on(None, 7, 1000.0 + number % 3), on(None, 7, 9e6)),
    "by the start alone": (lambda number: on(None, None, 1000.0), on(None, None, 9e6)),
    "by the server's pid": (lambda number: seeded(5, 7), seeded(5, 8)),
    "by its random seed": (lambda number: seeded(5), seeded(6)),
}


@pytest.mark.parametrize("how", ONE)
@pytest.mark.parametrize("sided", [1, 10])
def test_ten_runs_on_one_process_teach_nothing_of_an_ordinary_other_boot(tmp_path: Path, how: str, sided: int) -> None:
    same, other = ONE[how]
    before = nights(tmp_path, [same(number) for number in range(10)])
    found = compared(before[-sided:], after_reboot(tmp_path, other))
    change = decode(found).change
    assert change is not None
    assert found.verdict == "inconclusive"
    assert (change.outcome, change.spread.degrees) == ("undecided", None)
    assert "boots of" in change.why
    assert decode(found).boots == (1, 1)
    assert decode(found).rounds == (16 * sided, 16)
    note = "the 10 runs before measured one start of the server: they are one boot (only a restart in between makes another)"
    assert (note in found.notes) == (sided == 10)


def test_ten_boots_teach_and_the_same_loss_is_told(tmp_path: Path) -> None:
    before = nights(tmp_path, [on(f"b/{number}/7", number, 1e5 * number) for number in range(1, 11)])
    found = compared(before[-1:], after_reboot(tmp_path, on("b/99/7", 99, 9e6)))
    change = decode(found).change
    assert change is not None
    assert change.spread.degrees == 9.0
    assert change.outcome == "worse"
    assert not any("one boot" in each for each in found.notes)


def test_boots_of_older_runs_are_told_apart_by_their_starts_and_seeds(tmp_path: Path) -> None:
    for folder, edits in (
        (tmp_path / "starts", [on(None, 7, 1e5 * number) for number in range(1, 11)]),
        (tmp_path / "seeds", [seeded(number) for number in range(10)]),
    ):
        before = nights(folder, edits)
        found = compared(before[-1:], after_reboot(folder, seeded(99)))
        assert decode(found).change.spread.degrees == 9.0  # type: ignore[union-attr]


def test_runs_that_tell_no_process_are_one_boot(tmp_path: Path) -> None:
    def nothing(told: dict[str, Any]) -> None:
        on(None, None, None)(told)
        told["startups"] = []

    before = nights(tmp_path, [nothing] * 10)
    found = compared(before, after_reboot(tmp_path, nothing))
    assert decode(found).boots == (1, 1)
    assert decode(found).change.spread.degrees is None  # type: ignore[union-attr]


def test_earlier_rounds_of_a_compared_process_teach_noise_alone(tmp_path: Path) -> None:
    edits = [on("b1/7/70", 7, 1000.0)] * 5
    before = nights(tmp_path, [*edits, *(on(f"b/{number}/7", number, 1e5 * number) for number in range(11, 15))])
    found = compared(before[:1], after_reboot(tmp_path, on("b2/7/70", 7, 9e6)))
    spread = decode(found).change.spread  # type: ignore[union-attr]
    # the compared boot and four others of its key
    assert spread.degrees == 4.0
    assert spread.noise_degrees == 15 * (1 + 4 + 1) + (4 * 16 - 1)


def test_a_start_that_ten_runs_found_is_one_start(tmp_path: Path) -> None:
    before = nights(tmp_path, [on("b1/7/70", 7, 1000.0 + number % 3) for number in range(10)])
    for each in before:
        edited(each, lambda told: told["startups"][0]["startup"].update(ready_s=80.0))
    found = compared(before, after_reboot(tmp_path, on("b2/7/70", 7, 9e6)))
    (ready,) = (each for each in found.quantities if each.name == "warm start, ready")
    assert ready.boots == (1, 1)
    assert (ready.judged, ready.note) == (False, "not judged: one start on either side")
    again = after_reboot(tmp_path, on("b2/7/70", 7, 9e6), name="again")
    found = compared(before[:1], again)
    (ready,) = (each for each in found.quantities if each.name == "warm start, ready")
    assert not ready.judged


def test_a_process_has_the_same_name_in_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_sglang.session.serving.boot_id", lambda: "abc")
    assert Serving(7, 70, 1.0).name == Serving(7, 70, 99.0).name == "abc/7/70"
    assert Serving(7, None, 1.0).name is None
    assert Serving(None, None, 1.0).name is None
    monkeypatch.setattr("pytest_sglang.session.serving.boot_id", lambda: "")
    assert Serving(7, 70, 1.0).name is None


def test_the_short_form_keeps_the_process(tmp_path: Path) -> None:
    path = stored(tmp_path, "one")
    assert store.read(path / "run.json").throughputs[0].process == "boot/4000/one"
    edited(path, lambda told: told["throughputs"][0].pop("process"))
    assert store.read(path / "run.json").throughputs[0].process is None
