"""``[start.phases]``: a budget for each phase of a start."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_sglang.rig.load import RigError, load

START = '[start]\ncold = "25 min"\nwarm = "90 s"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "rig.toml"
    path.write_text(f"schema = 1\n{text}")
    return path


def errors(folder: Path, text: str) -> list[str]:
    with pytest.raises(RigError) as caught:
        load(written(folder, text))
    return str(caught.value).splitlines()


def test_budgets_are_seconds_by_phase(tmp_path: Path) -> None:
    rig = load(written(tmp_path, f'{START}[start.phases]\nweights = "2 min"\ncapture_decode = "<= 20 min"\nwarmup = 15\n'))
    assert rig.start is not None
    assert rig.start.phases_s == {"weights": 120.0, "capture_decode": 1200.0, "warmup": 15.0}
    assert load(written(tmp_path, START)).start.phases_s == {}  # type: ignore[union-attr]


def test_a_phase_that_is_none_is_told_with_the_nearest(tmp_path: Path) -> None:
    (told,) = errors(tmp_path, f'{START}[start.phases]\nweigths = "2 min"\n')
    assert "start.phases.weigths" in told
    assert "is no phase of a start" in told
    assert "weights" in told.rpartition("mean")[2]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('weights = "2 parsecs"', "start.phases.weights"),
        ("weights = 0", "is not above zero"),
        ('ready = "1 s"', "is no phase of a start"),
        ('capture_decode = "40 min"', "is more than a whole start may take, 25 min"),
    ],
)
def test_a_wrong_budget_is_told_at_its_place(line: str, says: str, tmp_path: Path) -> None:
    (told,) = errors(tmp_path, f"{START}[start.phases]\n{line}\n")
    assert says in told
    assert "rig.toml" in told


def test_phases_that_are_no_table_are_told_with_a_right_line(tmp_path: Path) -> None:
    (told,) = errors(tmp_path, f'{START}phases = "2 min"\n')
    assert "[start.phases]" in told


def test_a_file_that_extends_another_adds_its_phases(tmp_path: Path) -> None:
    rig = load(written(tmp_path, 'extends = "six-3090"\n[start.phases]\nweights = "2 min"\n'))
    assert rig.start is not None
    assert rig.start.phases_s == {"warmup": 20.0, "weights": 120.0}
