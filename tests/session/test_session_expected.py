from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_sglang.record import run as records
from pytest_sglang.record.run import Run
from pytest_sglang.record.values import Startup
from pytest_sglang.rig.model import ServerPromise
from pytest_sglang.session import expected
from pytest_sglang.session.expected import Expected

SERVER = ServerPromise(url="http://127.0.0.1:30000", model="/models/m", tp=4, torch_compile=True)


def write(folder: Path, name: str, age_s: float, starts: list[tuple[str, float | None]], **more: Any) -> Path:
    """A run of these starts (kind, ready_s), so many seconds old."""
    fields: dict[str, Any] = {"rig": {"name": "home", "server": records.plain(SERVER)}, "simulated": False, **more}
    launched_is = fields.pop("launched_at_is", "launch")
    startups = tuple(
        {
            "label": f"{kind} {number}",
            "startup": records.plain(Startup(kind=kind, launched_at=1.0, ready_s=ready_s, launched_at_is=launched_is)),  # type: ignore[arg-type]
            "budget_s": None,
        }
        for number, (kind, ready_s) in enumerate(starts)
    )
    path = records.write(Run(run_id=name, started="x", startups=startups, **fields), _made(folder / name))
    os.utime(path, (1e9 - age_s, 1e9 - age_s))
    return path


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def read(folder: Path, **more: Any) -> Expected:
    return expected.read(folder, **{"rig": "home", "server": SERVER, "simulated": False, **more})


def test_the_last_start_of_each_kind_counts(tmp_path: Path) -> None:
    write(tmp_path, "oldest", 300, [("cold", 1400.0), ("warm", 70.0)])
    write(tmp_path, "older", 200, [("cold", 1300.0), ("warm", 80.0)])
    write(tmp_path, "newest", 100, [("warm", 90.0), ("warm", 95.0), ("warm", None)])
    assert read(tmp_path) == Expected(cold_s=1300.0, warm_s=95.0)
    assert read(tmp_path).of(cold=True) == 1300.0
    assert read(tmp_path).of(cold=False) == 95.0


@pytest.mark.parametrize(
    "other",
    [
        {"rig": {"name": "work", "server": records.plain(SERVER)}},
        {"rig": {"name": "home", "server": records.plain(msgspec.structs.replace(SERVER, tp=2))}},
        {"rig": {"name": "home", "server": records.plain(msgspec.structs.replace(SERVER, model="/models/other"))}},
        {"rig": {"name": "home", "server": None}},
        {"rig": {}},
        {"simulated": True},
        {"launched_at_is": "first line"},
    ],
)
def test_starts_of_something_else_do_not_count(tmp_path: Path, other: dict[str, Any]) -> None:
    write(tmp_path, "other", 100, [("warm", 70.0)], **other)
    assert read(tmp_path) == Expected()


def test_the_port_may_differ(tmp_path: Path) -> None:
    write(tmp_path, "one", 100, [("warm", 70.0)])
    assert read(tmp_path, server=msgspec.structs.replace(SERVER, url="http://127.0.0.1:30001")).warm_s == 70.0


def test_what_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "good", 300, [("warm", 70.0)])
    write(tmp_path, "odd", 200, [("warm", 80.0)]).write_text('{"schema": 1}')
    write(tmp_path, "old schema", 100, [("warm", 90.0)]).write_text('{"schema": 99}')
    (_made(tmp_path / "broken") / "run.json").write_bytes(b"\xff{")
    (_made(tmp_path / "list") / "run.json").write_text("[]")
    assert read(tmp_path).warm_s == 70.0
    assert read(tmp_path / "nowhere") == Expected()


def test_starts_of_this_run_are_newer_than_any_record() -> None:
    history = [
        Startup(kind="cold", launched_at=1.0, ready_s=1200.0),
        Startup(kind="warm", launched_at=2.0, ready_s=60.0),
        Startup(kind="warm", launched_at=3.0, ready_s=None),
        Startup(kind="partial", launched_at=4.0, ready_s=600.0),
    ]
    assert Expected(cold_s=1.0, warm_s=2.0).after(history) == Expected(cold_s=1200.0, warm_s=60.0)
    assert Expected(cold_s=1.0).after(()) == Expected(cold_s=1.0)
