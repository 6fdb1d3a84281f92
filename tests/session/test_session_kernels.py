"""Caches put back: all that can be, whatever happens to one of them, and what is told of the others."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_sglang.cache import aside
from pytest_sglang.cache.locate import CachePlace
from pytest_sglang.session import stopping
from pytest_sglang.session.deployment import Deployment
from pytest_sglang.session.errors import Inconclusive, NotPutBack
from pytest_sglang.session.journal import Journal
from pytest_sglang.session.kernels import TritonCache
from pytest_sglang.session.state import Owner
from pytest_sglang.session.undo import undo

NAMES = ("triton", "inductor", "flashinfer")


class Rig:
    """Three caches set aside by a run whose server does not run."""

    def __init__(self, folder: Path, *, active: bool = False) -> None:
        self.folder, self.state = folder, folder / "state"
        self.journal = Journal(self.state, Owner.me("run"))
        self.told: list[Any] = []
        self.stops: list[str] = []
        server = SimpleNamespace(starting=True, lost_by=None)
        controller = SimpleNamespace(
            state=lambda: SimpleNamespace(active=active and not self.stops, result="", pid=1), run_owned=False, kind="systemd"
        )
        self.deployment: Any = SimpleNamespace(
            journal=self.journal,
            rig=SimpleNamespace(start=None),
            simulation=None,
            hardware=None,
            controller=controller,
            server=server,
            started_entry=None,
            stopped_entry=None,
            recorder=SimpleNamespace(findings=self.told.extend, run=SimpleNamespace(run_id="run")),
            server_is_back=lambda: None,
        )
        self.deployment.not_put_back = lambda *more: Deployment.not_put_back(self.deployment, *more)
        self.kernels = TritonCache(self.deployment)
        for name in NAMES:
            (folder / name).mkdir()
            (folder / name / "old").touch()
        places = [CachePlace("triton", folder / name, "test") for name in NAMES]
        for planned in aside.plan_aside(places, token="20260101T000000Z-ab12"):
            entry = self.journal.record(
                "cache_aside", str(planned.original), str(planned.original), str(planned.aside), aside.describe(planned)
            )
            self.kernels.aside.append((entry, planned))
            aside.move(planned)
            (planned.original / "new").touch()

    def files(self) -> dict[str, list[str]]:
        there = [name for name in NAMES if (self.folder / name).is_dir()]
        return {
            name: sorted(each for each in os.listdir(self.folder / name) if not each.startswith(aside.MARKER)) for name in there
        }


def all_of(file: str) -> dict[str, list[str]]:
    return {name: [file] for name in NAMES}


def refuse(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The cache of this name cannot be renamed back."""
    real = os.rename

    def rename(source: Any, target: Any) -> None:
        if str(target).endswith(f"/{name}") and ".aside-" in str(source):
            raise OSError(13, "Permission denied")
        real(source, target)

    monkeypatch.setattr("pytest_sglang.cache.aside.os.rename", rename)


def test_a_cache_that_is_stuck_keeps_no_other_from_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path)
    with monkeypatch.context() as patched:
        refuse(patched, "inductor")
        with pytest.raises(NotPutBack, match=r"/inductor: not put back: Permission denied \(the old cache is in .*aside-"):
            rig.kernels.put_back()
    assert {name: found for name, found in rig.files().items() if name != "inductor"} == {"triton": ["old"], "flashinfer": ["old"]}
    # what is left is somebody's to undo: this run's next try, or that of the next one
    assert [entry.target for entry in rig.journal.open] == [str(tmp_path / "inductor")]
    assert [str(moved.original) for _, moved in rig.kernels.aside] == [str(tmp_path / "inductor")]
    rig.kernels.put_back()
    assert rig.files() == all_of("old")
    assert rig.journal.close() == ()


def test_all_that_are_stuck_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path)
    refuse(monkeypatch, "inductor")
    refuse(monkeypatch, "triton")
    with pytest.raises(NotPutBack) as caught:
        rig.kernels.put_back()
    assert str(caught.value).count("not put back") == 2
    assert rig.files()["flashinfer"] == ["old"]
    rig.journal.close()


def test_caches_under_somebody_s_requests_stay_aside_and_the_remedy_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``undo`` would not: they are settled in the journal, so that nothing renames them under a server that works."""
    rig = Rig(tmp_path, active=True)

    def busy(*_: Any, **__: Any) -> None:
        raise Inconclusive("somebody else's requests are on the server: 2 running")

    monkeypatch.setattr(stopping, "until_quiet", busy)
    rig.kernels.put_back()
    assert rig.files() == all_of("new")
    assert [each.kind for each in rig.told] == ["not-put-back", *["caches-kept"] * 3]
    assert all("pytest-sglang cache restore" in each.remedy for each in rig.told)
    assert rig.journal.close() == ()
    assert undo(rig.state) == []
    monkeypatch.setenv("PYTEST_SGLANG_STATE_DIR", str(rig.state))
    from pytest_sglang.session import byhand

    byhand.restore([CachePlace("triton", tmp_path / name, "test") for name in NAMES], ())
    assert rig.files() == all_of("old")


def test_a_run_that_kept_its_new_caches_once_does_not_keep_those_of_a_start_that_failed(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.kernels._keep = True
    rig.deployment.options = SimpleNamespace(may_go_cold=True, keep_cold_cache=True)
    rig.deployment.controller.subject = "sglang.service"
    rig.kernels.aside.clear()
    rig.kernels._places = ()
    with pytest.raises(RuntimeError, match="it died"), rig.kernels.set_aside():
        raise RuntimeError("it died")
    assert rig.kernels._keep is False
    rig.journal.close()
