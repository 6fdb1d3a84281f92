"""The last starts before a run: which runs they are taken from, and that nothing in the report directory can disturb it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stored_runs import stored

from pytest_sglang.record import run as records
from pytest_sglang.record.clock import SystemClock
from pytest_sglang.record.run import Run
from pytest_sglang.session import earlier, store
from pytest_sglang.session.recorder import Recorder

PHASES = [{"id": "launch", "begin_s": 0.0, "end_s": 5.0}, {"id": "weights", "begin_s": 5.0, "end_s": 30.0}]


def start(kind: str, ready_s: float | None = 40.0, **more: Any) -> dict[str, Any]:
    return {
        "label": f"{kind} start",
        "budget_s": None,
        "startup": {"kind": kind, "ready_s": ready_s, "launched_at_is": "launch", "phases": PHASES, "cache_diff": None, **more},
    }


def kept(folder: Path, day: int, *starts: dict[str, Any], **more: Any) -> Path:
    """A finished run of that day in November, in a folder as runs name theirs."""
    fields = {name: more.pop(name) for name in ("faults", "earlier_starts") if name in more}
    name = f"2026-11-{day:02}T01-00-00Z-250W-{more.pop('tail', '00')}"
    path = stored(folder, name, started=f"2026-11-{day:02}T01:00:00.000Z", warm_s=None, **more)
    run = records.read(path)
    environment = {**run.environment, "faults": fields.get("faults", [])}
    changed = msgspec.structs.replace(
        run, startups=starts, environment=environment, earlier_starts=fields.get("earlier_starts", {})
    )
    records.write(changed, path)
    return path


def now(**fields: Any) -> Run:
    base = {"run_id": "now", "started": "2026-11-20T01:00:00.000Z", "simulated": False, "rig": {"name": "six-3090"}}
    return Run(**{**base, **fields})


def found(folder: Path, run: Run | None = None) -> dict[str, float]:
    return {kind: each["ready_s"] for kind, each in earlier.starts(folder, run or now()).items()}


def test_the_newest_of_each_kind(tmp_path: Path) -> None:
    kept(tmp_path, 1, start("warm", 41.0), start("cold", 901.0))
    kept(tmp_path, 2, start("warm", 42.0))
    told = earlier.starts(tmp_path, now())
    assert {kind: each["ready_s"] for kind, each in told.items()} == {"warm": 42.0, "cold": 901.0}
    assert told["cold"]["run_id"] == "2026-11-01T01-00-00Z-250W-00"
    assert told["cold"]["started"] == "2026-11-01T01:00:00.000Z"
    assert told["warm"]["phases"] == PHASES
    assert told["warm"]["version"] == "0.5.11"


def test_only_finished_earlier_runs_of_the_same_rig_and_never_itself(tmp_path: Path) -> None:
    kept(tmp_path, 1, start("warm", 41.0))
    kept(tmp_path, 2, start("warm", 42.0), finished=False)
    kept(tmp_path, 3, start("warm", 43.0), simulated=True)
    kept(tmp_path, 4, start("warm", 44.0), rig="cellar")
    kept(tmp_path, 21, start("warm", 45.0))
    itself = kept(tmp_path, 19, start("warm", 46.0))
    run = now(run_id=itself.name, started="2026-11-19T01:00:00.000Z")
    assert found(tmp_path, run) == {"warm": 41.0}
    assert found(tmp_path, now(rig={"name": "cellar"})) == {"warm": 44.0}
    assert found(tmp_path, now(simulated=True)) == {"warm": 43.0}
    assert found(tmp_path, now(rig={"name": "other"})) == {}
    assert found(tmp_path / "nowhere") == {}


def test_a_run_with_faults_is_never_taken_even_where_there_is_nothing_else(tmp_path: Path) -> None:
    kept(tmp_path, 2, start("warm", 400.0), faults=["cache-cold"])
    assert found(tmp_path) == {}
    kept(tmp_path, 1, start("warm", 41.0))
    assert found(tmp_path) == {"warm": 41.0}
    assert found(tmp_path, now(environment={"faults": ["cache-cold"]})) == {"warm": 41.0}


@pytest.mark.parametrize("more", [{"ready_s": None}, {"phases": []}, {"launched_at_is": "first line"}])
def test_a_start_without_a_whole_time_line_is_none(tmp_path: Path, more: dict[str, Any]) -> None:
    kept(tmp_path, 1, start("warm", 41.0))
    kept(tmp_path, 2, start("warm", **more))
    assert found(tmp_path) == {"warm": 41.0}


def test_broken_and_foreign_files_are_passed_over(tmp_path: Path) -> None:
    kept(tmp_path, 1, start("warm", 41.0))
    for day, text in ((2, "{"), (3, '{"schema": 7}'), (4, "[]"), (5, "")):
        broken = tmp_path / f"2026-11-{day:02}T01-00-00Z"
        broken.mkdir()
        (broken / "run.json").write_text(text)
    (tmp_path / "2026-11-06T01-00-00Z").mkdir()
    odd = kept(tmp_path, 7)
    foreign = json.loads((odd / "run.json").read_text())
    foreign["startups"] = [{"label": "x", "startup": {"kind": "warm", "ready_s": "soon", "phases": 7}}]
    foreign["earlier_starts"] = {"warm": 7, "cold": {"phases": 7}}
    (odd / "run.json").write_text(json.dumps(foreign))
    kept(tmp_path, 8, {"label": "y", "startup": {"cache_diff": 7}, "budget_s": None})
    assert found(tmp_path) == {"warm": 41.0}


def test_each_run_knows_the_starts_before_it_so_that_one_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = {"run_id": "long-ago", "started": "2025-01-01T00:00:00.000Z", "ready_s": 901.0, "phases": PHASES, "sizes": []}
    first = kept(tmp_path, 1, start("warm", 41.0), earlier_starts={"cold": cold})
    for number in range(300):
        shutil.copytree(first, tmp_path / f"2025-11-02T01-00-{number % 60:02}Z-250W-{number:04}")
        shutil.copytree(first, tmp_path / f"2026-11-10T01-00-{number % 60:02}Z-300W-{number:04}")
        path = tmp_path / f"2026-11-10T01-00-{number % 60:02}Z-300W-{number:04}" / "run.json"
        path.write_text(path.read_text().replace('"name": "six-3090"', '"name": "cellar"'))
    read: list[Path] = []
    whole = store.read
    monkeypatch.setattr(store, "read", lambda path: read.append(path) or whole(path))
    assert found(tmp_path) == {"warm": 41.0, "cold": 901.0}
    assert [path.parent for path in read] == [first]


def test_without_any_start_the_search_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(earlier.LOOKED_AT + 20):
        kept(tmp_path, 1, tail=f"{number:02}", rounds=2)
    read: list[Path] = []
    whole = store.read
    monkeypatch.setattr(store, "read", lambda path: read.append(path) or whole(path))
    assert found(tmp_path) == {}
    assert len(read) <= earlier.LOOKED_AT + 1


def test_a_folder_of_another_name_goes_by_the_time_of_its_file(tmp_path: Path) -> None:
    kept(tmp_path, 2, start("warm", 42.0))
    for name, epoch, ready_s in (("before", 1793_500_000, 41.0), ("after", 1794_500_000, 43.0)):
        path = kept(tmp_path, 1, start("warm", ready_s), tail=name).rename(tmp_path / name)
        os.utime(path / "run.json", (epoch, epoch))
    # November 2026 begins at 1793491200
    assert found(tmp_path) == {"warm": 43.0}


def test_the_size_of_the_caches_is_kept_from_run_to_run(tmp_path: Path) -> None:
    diff = {"bytes": 5, "caches": [], "before": [{"cache": "triton", "path": "/c", "bytes": 100}], "unreadable": []}
    sizes: list[list[int]] = []
    for day in (1, 2, 3):
        told = earlier.starts(tmp_path, now(started=f"2026-11-{day:02}T01:00:00.000Z"))
        sizes.append([each["bytes"] for each in told.get("warm", {}).get("sizes", [])])
        diff = {**diff, "bytes": diff["bytes"] + 1}
        kept(tmp_path, day, start("warm", cache_diff=diff), earlier_starts=told)
    assert sizes == [[], [106], [106, 107]]
    assert earlier.cache_bytes({"cache_diff": {**diff, "unreadable": ["/c: Permission denied"]}}) is None
    assert earlier.cache_bytes({"cache_diff": {"bytes": 5}}) is None
    assert earlier.cache_bytes({}) is None


def test_it_stands_in_the_record_when_the_run_ends(tmp_path: Path) -> None:
    kept(tmp_path, 1, start("warm", 41.0))
    own = tmp_path / "2026-11-20T01-00-00Z"
    own.mkdir()
    recorder = Recorder(own, now(), SystemClock())
    recorder.write()
    assert records.read(own).earlier_starts == {}
    recorder.finish(0, interrupted=False)
    recorder.write()
    assert records.read(own).earlier_starts["warm"]["ready_s"] == 41.0
