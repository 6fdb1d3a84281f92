"""Before and after: equal things compare, unlike ones are refused with the list, and the one thing under test is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from stored_runs import boots, stored

from pytest_sglang.record.run import RecordError
from pytest_sglang.session import comparison
from pytest_sglang.session.errors import Refused


def only(paths: list[Path]) -> comparison.Comparison:
    found = comparison.of_paths(paths)
    assert len(found) == 1
    return found[0]


def quantity(found: comparison.Comparison, name: str) -> comparison.Quantity:
    return next(each for each in found.quantities if each.name == name)


def test_a_slower_engine_is_told_with_what_changed(tmp_path: Path) -> None:
    before = boots(tmp_path, "old", 6)
    after = boots(tmp_path, "new", 3, tok_s=38.0, engine="0.5.12", month=11)
    found = only([*before, *after])
    assert found.verdict == "fail"
    assert found.under_test == "engine"
    assert [str(each) for each in found.changed] == ["engine: 0.5.11, now 0.5.12"]
    assert len(found.before) == 6
    assert len(found.after) == 3
    decode = quantity(found, "decode at 250 W")
    assert decode.change is not None
    assert decode.change.outcome == "worse"
    assert decode.rounds == (96, 48)
    assert quantity(found, "energy per token at 250 W").change.outcome == "worse"  # type: ignore[union-attr]
    assert quantity(found, "TTFT median at 250 W").change.outcome == "same"  # type: ignore[union-attr]
    launch = quantity(found, "warm start: launch")
    assert launch.change is not None
    assert (launch.change.outcome, launch.judged) == ("same", False)


def test_the_same_again_is_a_pass(tmp_path: Path) -> None:
    paths = boots(tmp_path, "same", 8)
    found = only(paths)
    assert found.verdict == "pass"
    assert found.under_test is None
    assert found.changed == ()


def test_two_single_boots_do_not_decide_a_small_loss(tmp_path: Path) -> None:
    found = only([stored(tmp_path, "a"), stored(tmp_path, "b", tok_s=39.0, engine="0.5.12")])
    assert found.verdict == "inconclusive"
    assert "boots" in quantity(found, "decode at 250 W").change.why  # type: ignore[union-attr]


@pytest.mark.parametrize("differs", [{"output_tokens": 256}, {"rig": "cellar"}, {"arguments": {"model_path": "/models/other"}}])
def test_other_conditions_are_refused_with_the_list(tmp_path: Path, differs: dict[str, object]) -> None:
    found = only([stored(tmp_path, "a"), stored(tmp_path, "b", **differs)])  # type: ignore[arg-type]
    assert found.verdict == "inconclusive"
    assert found.quantities == ()
    assert len(found.refused) == 1


def test_several_changes_are_told_to_be_several(tmp_path: Path) -> None:
    found = only([stored(tmp_path, "a"), stored(tmp_path, "b", engine="0.5.12", driver="590")])
    assert found.under_test is None
    assert "2 things changed together" in found.notes[0]


def test_another_power_level_compares_as_the_thing_under_test(tmp_path: Path) -> None:
    found = only([stored(tmp_path, "a"), stored(tmp_path, "b", power_w=390.0, tok_s=52.0)])
    assert found.under_test == "power"
    assert quantity(found, "decode").change.outcome == "better"  # type: ignore[union-attr]


def test_three_kinds_of_run_give_two_comparisons(tmp_path: Path) -> None:
    paths = [stored(tmp_path, "a"), stored(tmp_path, "b", engine="0.5.12"), stored(tmp_path, "c", engine="0.5.13")]
    assert [each.title_after.split(", ")[2] for each in comparison.of_paths(paths)] == ["SGLang 0.5.12", "SGLang 0.5.13"]


def test_a_slow_down_that_was_there_before_is_told(tmp_path: Path) -> None:
    boots(tmp_path, "first", 8, month=8)
    later = boots(tmp_path, "second", 5, tok_s=37.0, month=9)
    after = boots(tmp_path, "third", 3, tok_s=37.0, engine="0.5.12", month=11)
    found = only([*later, *after])
    assert found.verdict == "pass"
    assert "already before: since 2026-09-01" in " ".join(found.notes)


def test_misuse_is_told(tmp_path: Path) -> None:
    a = stored(tmp_path, "a")
    with pytest.raises(Refused, match="at least two run folders"):
        comparison.of_paths([a])
    with pytest.raises(Refused, match="not a finished run"):
        comparison.of_paths([a, stored(tmp_path, "killed", finished=False)])
    with pytest.raises(RecordError, match="give a run folder"):
        comparison.of_paths([a, tmp_path / "nothing"])
