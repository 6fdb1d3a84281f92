"""Which rig file is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_sglang.rig import find
from pytest_sglang.rig.load import RigError


def test_packaged_names_are_files() -> None:
    assert "six-3090" in find.packaged()
    assert all(path.is_file() for path in find.packaged().values())


def test_rig_toml_in_the_root_comes_before_the_one_in_acceptance(tmp_path: Path) -> None:
    (tmp_path / "acceptance").mkdir()
    (tmp_path / "acceptance" / "rig.toml").touch()
    assert find.find(None, tmp_path) == tmp_path / "acceptance" / "rig.toml"
    (tmp_path / "rig.toml").touch()
    assert find.find(None, tmp_path) == tmp_path / "rig.toml"


def test_nothing_found_says_where_was_looked_and_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(RigError) as caught:
        find.find(None, tmp_path)
    assert str(caught.value) == (
        f"rig.toml: not in {tmp_path} and not in {tmp_path}/acceptance "
        "(packaged: six-3090, or write one: pytest-sglang init -o rig.toml)"
    )


def test_named_file_is_meant_from_the_working_directory_then_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, here = tmp_path / "root", tmp_path / "here"
    root.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    (root / "attic.toml").touch()
    assert find.find("attic.toml", root) == root / "attic.toml"
    (here / "attic.toml").touch()
    assert find.find("attic.toml", root) == Path("attic.toml")
    (here / "rigs").mkdir()
    (here / "rigs" / "rig.toml").touch()
    assert find.find("rigs", root) == Path("rigs/rig.toml")


def test_packaged_name_is_found_and_a_file_of_that_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find.find("six-3090", tmp_path) == find.packaged()["six-3090"]
    (tmp_path / "six-3090").touch()
    assert find.find("six-3090", tmp_path) == Path("six-3090")


@pytest.mark.parametrize(("option", "meant"), [("six-390", "six-3090"), ("simulate", "simulated")])
def test_unknown_name_is_told_with_the_nearest(option: str, meant: str, tmp_path: Path) -> None:
    with pytest.raises(RigError) as caught:
        find.find(option, tmp_path)
    assert str(caught.value) == (
        f"--rig={option} is neither a file nor the name of a packaged rig (packaged: six-3090); did you mean '{meant}'?"
    )
