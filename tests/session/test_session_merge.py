"""A fleet: outliers against its own middle, missing nodes against a list, the newest run of a node."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from stored_runs import stored

from pytest_sglang.session import merge
from pytest_sglang.session.errors import Refused


def fleet(folder: Path, **odd: dict[str, object]) -> list[Path]:
    return [stored(folder, f"n{number}", host=f"gpu{number:02}", **odd.get(f"n{number}", {})) for number in range(6)]  # type: ignore[arg-type]


def test_a_fleet_that_keeps_its_promises(tmp_path: Path) -> None:
    found = merge.merge(fleet(tmp_path))
    assert found.verdict == "pass"
    assert found.nodes == tuple(f"gpu{number:02}" for number in range(6))
    assert found.findings == ()
    assert found.cells["gpu00"]["decode-throughput at 250 W"].deviation is not None


def test_a_later_simulated_run_does_not_hide_what_a_node_failed_in(tmp_path: Path) -> None:
    bad = stored(tmp_path, "bad", verdict="fail")
    tried = stored(tmp_path, "tried", simulated=True, started="2027-01-01T00:00:00.000Z")
    found = merge.merge([bad, tried])
    assert (found.verdict, found.simulated) == ("fail", False)
    assert merge.merge([tried]).simulated


def test_an_outlier_is_named_and_fails_nothing(tmp_path: Path) -> None:
    found = merge.merge(fleet(tmp_path, n3={"tok_s": 42.5}))
    assert found.verdict == "pass"
    assert next((each.subject, each.severity) for each in found.findings) == ("gpu03", "warn")
    assert found.cells["gpu03"]["decode-throughput at 250 W"].outlier
    assert not found.cells["gpu02"]["decode-throughput at 250 W"].outlier


def test_failures_missing_nodes_and_broken_folders(tmp_path: Path) -> None:
    paths = fleet(tmp_path, n1={"verdict": "fail"})
    assert merge.merge(paths).verdict == "fail"
    good = [path for path in paths if path.name != "n1"]
    short = merge.merge(good, ["gpu00", "gpu01"])
    assert short.missing == ("gpu01",)
    assert short.verdict == "inconclusive"
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{")
    assert merge.merge([*good, tmp_path / "bad"]).verdict == "inconclusive"
    assert merge.merge([tmp_path]).nodes == merge.merge(paths).nodes


def test_the_newest_run_of_a_node_counts(tmp_path: Path) -> None:
    stored(tmp_path, "old", verdict="fail")
    stored(tmp_path, "new", started="2026-11-20T00:00:00.000Z")
    found = merge.merge([tmp_path])
    assert found.verdict == "pass"
    assert found.folders["attic"].endswith("new")


def test_nothing_to_merge(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no run in"):
        merge.merge([tmp_path])


LEFT, RIGHT = ("GPU-aaaaaaaa-0", "GPU-bbbbbbbb-0"), ("GPU-cccccccc-0", "GPU-dddddddd-0")


def test_two_rigs_on_one_host_are_two_nodes(tmp_path: Path) -> None:
    """The later run of the one must not hide what the other failed in."""
    bad = stored(tmp_path, "bad", rig="left", verdict="fail", uuids=LEFT)
    good = stored(tmp_path, "good", rig="right", started="2026-11-20T00:00:00.000Z", uuids=RIGHT)
    found = merge.merge([bad, good], ["attic", "cellar"])
    assert (found.verdict, found.nodes) == ("fail", ("attic left", "attic right"))
    # whoever lists hosts has this one
    assert found.missing == ("cellar",)


def test_two_sets_of_cards_under_one_name_are_two_nodes(tmp_path: Path) -> None:
    bad = stored(tmp_path, "bad", verdict="fail", uuids=LEFT)
    good = stored(tmp_path, "good", started="2026-11-20T00:00:00.000Z", uuids=RIGHT)
    found = merge.merge([bad, good])
    assert (found.verdict, found.nodes) == ("fail", ("attic six-3090 GPU-aaaaaaaa", "attic six-3090 GPU-cccccccc"))


def test_a_rig_whose_card_was_replaced_is_still_one_node(tmp_path: Path) -> None:
    stored(tmp_path, "old", verdict="fail", uuids=LEFT)
    stored(tmp_path, "new", started="2026-11-20T00:00:00.000Z", uuids=(LEFT[0], RIGHT[0]))
    stored(tmp_path, "without", started="2026-11-21T00:00:00.000Z")
    stored(tmp_path, "tried", simulated=True, started="2027-01-01T00:00:00.000Z", uuids=RIGHT)
    found = merge.merge([tmp_path])
    assert (found.verdict, found.nodes) == ("pass", ("attic",))
    assert found.folders["attic"].endswith("without")


def test_three_slow_nodes_of_eight_are_found(tmp_path: Path) -> None:
    slow = {1, 4, 6}
    paths = [
        stored(
            tmp_path, f"n{number}", host=f"gpu{number:02}", tok_s=(39.0 if number in slow else 41.5) + 0.05 * number, noise=0.001
        )
        for number in range(8)
    ]
    found = merge.merge(paths)
    assert {each.subject for each in found.findings} == {"gpu01", "gpu04", "gpu06"}


def test_nodes_that_scatter_have_few_outliers() -> None:
    rng = random.Random(5)
    called = 0
    for _ in range(400):
        values = [100 * (1 + rng.gauss(0, 0.01)) for _ in range(8)]
        cells = {str(number): {"p": merge.Cell(verdict="pass", value=value)} for number, value in enumerate(values)}
        called += bool(merge._outliers(cells, ["p"])[1])
    assert called / 400 < 0.05
    with pytest.raises(ValueError, match="two values"):
        merge.bulk([1.0])


def test_a_node_that_left_checks_out_and_one_that_nobody_listed_are_told(tmp_path: Path) -> None:
    found = merge.merge(fleet(tmp_path), ["gpu00", "gpu01"])
    assert found.verdict == "pass"
    assert found.left_out == {f"gpu{number:02}": 1 for number in range(6)}
    assert found.unlisted == ("gpu02", "gpu03", "gpu04", "gpu05")


def test_nodes_with_different_promises_stand_in_one_table(tmp_path: Path) -> None:
    found = merge.merge([stored(tmp_path, "a", host="a"), stored(tmp_path, "b", host="b", power_w=390.0)])
    assert found.promises == ("decode-throughput at 250 W", "warm-restart", "decode-throughput at 390 W")
    assert "decode-throughput at 390 W" not in found.cells["a"]
