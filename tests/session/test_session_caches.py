"""A server's caches looked at, without a server: every fault of the simulated rig's caches is seen, and nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_sglang.cache import aside, survive
from pytest_sglang.cache.integrity import Running
from pytest_sglang.cache.machine import Machine
from pytest_sglang.record.values import CacheDiff, Finding, Startup
from pytest_sglang.rig.model import StartPromise
from pytest_sglang.session import byhand, caches, past, starting
from pytest_sglang.session.cachetool import Opened, named
from pytest_sglang.session.cacheview import CacheView, Source
from pytest_sglang.session.errors import Refused
from pytest_sglang.session.journal import Journal
from pytest_sglang.session.options import RunOptions
from pytest_sglang.session.past import Basis
from pytest_sglang.session.state import Owner, state_dir
from pytest_sglang.session.undo import undo
from pytest_sglang.simulator import systemctl
from pytest_sglang.simulator.rig import SimulatedRig
from pytest_sglang.simulator.unit import Unit
from pytest_sglang.tools import cache as tool

RUNNING = Running(triton="3.6.0", archs=frozenset({"sm_86"}))


class Stopped:
    """The simulated rig's unit as a controller, asked without a process; the server does not run."""

    kind, subject = "systemd", "sglang.service"

    def __init__(self, rig: SimulatedRig) -> None:
        self._unit = Unit(rig.config)

    def show(self) -> dict[str, str]:
        return systemctl._properties(self._unit)

    def state(self) -> Any:
        return SimpleNamespace(active=False, pid=None)

    def environment(self) -> dict[str, str]:
        return self._unit.environment()


class View(CacheView):
    """With the versions and cards that its server would have."""

    def running(self) -> Running:
        return RUNNING


def view_of(rig: SimulatedRig, start: StartPromise | None = None) -> View:
    controller: Any = Stopped(rig)
    simulation: Any = SimpleNamespace(rig=rig)
    view = View(Source(lambda: controller, lambda: None, lambda: (), start, simulation))
    view._version = "0.5.11"
    return view


def opened(rig: SimulatedRig) -> Opened:
    view = view_of(rig)
    return Opened("sglang.service (not running)", view.places, view.machine, (), view, RUNNING, simulated=True)


def made(folder: Path, *faults: str) -> SimulatedRig:
    return SimulatedRig.create(folder / "rig", faults=faults)


# --- every fault ---------------------------------------------------------------------------------------------------------

FOUND: dict[str, tuple[str, ...]] = {
    "": (),
    "cache-in-tmp": ("warn cache-in-tmp",),
    "cache-private-tmp": ("fail cache-in-private-tmp",),
    "cache-in-memory": ("warn cache-in-memory",),
    "cache-aged": ("warn cache-aged",),
    "cache-in-container-layer": ("warn cache-in-container-layer",),
    "cache-other-owner": ("warn cache-other-owner",),
    "cache-read-only": ("warn cache-read-only",),
    "cache-little-space": ("warn cache-little-space",),
    "cache-moved": ("fail cache-moved",),
    "cache-incomplete": ("fail cache-incomplete",),
    "cache-broken": ("fail cache-broken",),
    "cache-leftover": ("info cache-leftover",),
    "cache-duplicate": ("info cache-duplicate",),
    "cache-stale": ("info cache-stale",),
}


@pytest.mark.parametrize("fault", FOUND)
def test_every_fault_is_found_by_its_own_finding_and_a_clean_rig_has_none(tmp_path: Path, fault: str) -> None:
    rig = made(tmp_path, *([fault] if fault else []))
    look = view_of(rig, StartPromise(warm_s=90.0)).look()
    assert tuple(dict.fromkeys(f"{each.severity} {each.kind}" for each in look.findings)) == FOUND[fault]
    assert all(each.detail for each in look.findings)
    for each in look.findings:
        assert each.severity != "warn" or "Environment=" in each.remedy or each.kind in OWN_REMEDIES, each


OWN_REMEDIES = {"cache-in-container-layer", "cache-other-owner", "cache-read-only"}


def test_private_tmp_fails_only_where_a_warm_start_is_promised(tmp_path: Path) -> None:
    rig = made(tmp_path, "cache-private-tmp")
    assert [each.severity for each in view_of(rig).look().findings] == ["warn"]


def test_a_cold_start_is_refused_where_the_renamed_cache_would_be_lost(tmp_path: Path) -> None:
    for fault, said in {
        "cache-in-tmp": "lies in /tmp",
        "cache-private-tmp": "PrivateTmp",
        "cache-in-memory": "kept in memory",
    }.items():
        rig = SimulatedRig.create(tmp_path / fault, faults=[fault])
        view = view_of(rig)
        assert said in aside.refusals(view.places, machine=view.machine)[0]
    view = view_of(made(tmp_path))
    assert aside.refusals(view.places, machine=view.machine) == ()


# --- the tool ------------------------------------------------------------------------------------------------------------


def test_the_table_fits_a_terminal_and_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rig = made(tmp_path, "cache-broken", "cache-stale", "cache-in-tmp")
    subject = opened(rig)
    lines = tool._lines(subject, subject.look(), 5)
    text = "\n".join(lines)
    assert lines[0] == "SIMULATED caches of sglang.service (not running)"
    assert [line for line in lines if len(line) > 80 and str(rig.directory) not in line] == []
    for needle in (
        "with Triton 3.6.0, sm_86",
        "triton_mm ",
        "3.5.1",
        "sm_90",
        "more (--all lists them)",
        "FAIL  cache-broken",
        "INFO  cache-stale",
        "WARN  cache-in-tmp",
        "-> Environment=TORCHINDUCTOR_CACHE_DIR=",
        "autotuned: 10 shapes for NVIDIA GeForce RTX 3090, CUDA 13.0",
        "of it stale",
    ):
        assert needle in text, text


def test_the_json_has_the_agreed_keys(tmp_path: Path) -> None:
    subject = opened(made(tmp_path, "cache-stale"))
    plain = json.loads(json.dumps(tool._plain(subject, subject.look())))
    assert {"caches", "findings", "files", "bytes"} <= set(plain)
    [finding] = plain["findings"]
    assert {"kind", "path", "detail"} <= set(finding)
    assert plain["stale_bytes"] > 10_000
    assert plain["files"] == sum(each["files"] for each in plain["caches"]) > 1000
    named_kernels = {each["name"] for each in plain["kernels"]}
    assert "triton_red_fused_mm_t_0" in named_kernels
    assert {each["arch"] for each in plain["kernels"]} == {"sm_86", "sm_90"}


def test_directories_are_told_by_their_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rig = made(tmp_path)
    with named([rig.config.triton_dir, rig.config.inductor_dir]) as subject:
        assert [place.kind for place in subject.places] == ["triton", "inductor", "fxgraph", "aotautograd"]
        look = subject.look()
    assert (look.stale_bytes, [each.severity for each in look.findings if each.severity == "fail"]) == (0, [])
    with pytest.raises(Refused, match="no such directory"), named([tmp_path / "absent"]):
        pass
    from pytest_sglang.cli import main

    assert main(["cache", str(rig.config.triton_dir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["caches"][0]["kind"] == "triton"
    assert main(["cache", str(tmp_path / "absent")]) == 4
    assert "no such directory" in capsys.readouterr().err


# --- by hand -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lasting(state: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tests' directory taken for one that is kept; gives the state directory."""
    monkeypatch.setattr(aside, "temporary_root", lambda path, environ=None: None)
    monkeypatch.setattr(aside, "in_memory", lambda path: False)
    return state


def test_by_hand_there_and_back_through_the_command_line(
    tmp_path: Path, lasting: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytest_sglang.cli import main

    monkeypatch.setattr(Machine, "here", classmethod(lambda cls, pid=None: cls()))
    cache = made(tmp_path).config.triton_dir
    entries = sorted(path.name for path in cache.iterdir())
    assert main(["cache", "set-aside", str(cache)]) == 0
    told = capsys.readouterr().out
    assert f"set aside: {cache}" in told
    assert "pytest-sglang cache restore" in told
    assert undo(lasting) == []
    assert main(["cache", "drop", str(cache)]) == 4
    assert "nothing has been compiled since" in capsys.readouterr().err
    (cache / "new").write_text("compiled since")
    assert main(["cache", "restore", str(cache), "--json"]) == 0
    [back] = json.loads(capsys.readouterr().out)["caches"]
    assert "kept as" in back["note"]
    assert sorted(path.name for path in cache.iterdir()) == entries
    assert main(["cache", "restore", str(cache)]) == 4
    assert "no cache is set aside" in capsys.readouterr().err
    assert main(["cache", "set-aside", str(cache)]) == 0
    (cache / "new").write_text("compiled since")
    assert main(["cache", "drop", str(cache)]) == 0
    assert [path.name for path in cache.iterdir()] == ["new"]


def test_a_directory_that_its_owner_named_alike_is_not_dropped(tmp_path: Path, lasting: Path) -> None:
    with named([made(tmp_path).config.triton_dir]) as subject:
        byhand.set_aside(subject.places, Machine(), ())
        cache = subject.places[0].path
        (cache / "new").write_text("compiled since")
        kept = cache.with_name(f"{cache.name}.aside-before-upgrade")
        kept.mkdir()
        (kept / "precious").write_text("months of service")
        [gone] = byhand.drop(subject.places, ())
        assert gone.aside != str(kept)
        with pytest.raises(Refused, match="not a name that pytest-sglang gives"):
            byhand.drop(subject.places, ())
        assert (kept / "precious").exists()


def test_what_a_run_sets_aside_has_a_name_of_ours(tmp_path: Path) -> None:
    from pytest_sglang.session.opening import run_id

    for levels in ((), (250.0,), (250.0, 300.0, 390.0), (1.0, 2.0, 3.0, 4.0)):
        for rig in (None, "simulated"):
            assert byhand._OUR_TOKEN.fullmatch(run_id(RunOptions(rootdir=tmp_path, rig=rig, power_levels_w=levels)))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            '[{"State": {"Running": false, "Status": "exited"}, "Config": {"Env": ["HOME=HERE"]}}]',
            "its paths are not this machine's",
        ),
        ("permission denied", "whether the server runs cannot be told"),
    ],
)
def test_the_paths_of_a_container_that_cannot_be_seen_are_not_taken_for_this_machines(
    tmp_path: Path, lasting: Path, answer: str, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytest_sglang.cli import main

    cache = tmp_path / ".triton" / "cache"
    (cache / "AAA").mkdir(parents=True)
    (tmp_path / "docker").write_text(f"#!/bin/sh\necho '{answer.replace('HERE', str(tmp_path))}'\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    rig = tmp_path / "rig.toml"
    rig.write_text('schema = 1\n[rig]\nname = "c"\n[server]\nurl = "http://127.0.0.1:9"\ncontainer = "c"\n')
    for action in ("set-aside", "restore", "drop"):
        assert main(["cache", action, f"--rig={rig}"]) == 4
        assert told in capsys.readouterr().err
    assert [each.name for each in cache.parent.iterdir()] == ["cache"]


def test_a_cache_in_use_is_not_put_back_under_its_user(tmp_path: Path, lasting: Path) -> None:
    with named([made(tmp_path).config.triton_dir]) as subject:
        byhand.set_aside(subject.places, Machine(), ())
        held = subject.places[0].path / "held"
        import subprocess
        import sys

        code = "import sys; held = open(sys.argv[1], 'w'); print(flush=True); input()"
        with subprocess.Popen([sys.executable, "-c", code, str(held)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(Refused, match=f"in use by pid {process.pid}"):
                byhand.restore(subject.places, ())
            process.kill()
        byhand.restore(subject.places, ())


def test_what_a_living_run_has_set_aside_is_that_runs(tmp_path: Path, lasting: Path) -> None:
    with named([made(tmp_path).config.triton_dir]) as subject:
        journal = Journal(state_dir(), Owner.me("some-run"))
        [planned] = aside.plan_aside(subject.places, token="some-run")
        entry = journal.record(
            "cache_aside", str(planned.original), str(planned.original), str(planned.aside), aside.describe(planned)
        )
        aside.move(planned)
        for what in (byhand.restore, byhand.drop):
            with pytest.raises(Refused, match="a run that is not over"):
                what(subject.places, ())
        aside.restore([planned])
        journal.resolve(entry.id, "put back")
        journal.close()


def test_a_kill_in_the_middle_by_hand_is_undone(tmp_path: Path, lasting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with named([made(tmp_path).config.triton_dir]) as subject:
        names = sorted(path.name for path in subject.places[0].path.iterdir())

        class Killed(BaseException):
            pass

        def die(moved: object) -> None:
            raise Killed

        real = aside.move
        monkeypatch.setattr(aside, "move", lambda moved: (real(moved), die(moved)))
        with pytest.raises(Killed):
            byhand.set_aside(subject.places, Machine(), ())
        # a dead process's journal: this very process is the owner, and lives
        assert [each.action for each in undo(lasting, force_owner=True)] == ["undone"]
        assert sorted(path.name for path in subject.places[0].path.iterdir()) == names


def test_a_running_servers_caches_stay() -> None:
    with pytest.raises(Refused, match=r"stop it first \(systemctl stop sglang.service\)"):
        byhand.stopped("systemctl stop sglang.service")
    byhand.stopped(None)


def test_nothing_to_set_aside_is_said(lasting: Path) -> None:
    with pytest.raises(Refused, match="there is no cache to set aside"):
        byhand.set_aside((), Machine(), ())


# --- what changed since the last start -----------------------------------------------------------------------------------

BEFORE = Basis(
    at=1.0,
    argv=("python", "-m", "sglang.launch_server", "--tp", "4", "--torch-compile-max-bs=4", "--enable-metrics"),
    packages={"triton": "3.6.0", "torch": "2.11.0"},
    archs=("sm_86",),
    environment={"TRITON_CACHE_DIR": "/a", "SGLANG_X": "1"},
    places={"triton": "/a", "inductor": "/i"},
)


def test_every_difference_is_named() -> None:
    import msgspec

    assert past.changes(BEFORE, BEFORE) == []
    now = msgspec.structs.replace(
        BEFORE,
        argv=("python", "-m", "sglang.launch_server", "--tp", "2", "--torch-compile-max-bs", "8"),
        packages={"triton": "3.7.0", "torch": "2.11.0"},
        archs=("sm_90",),
        environment={"TRITON_CACHE_DIR": "/b", "TORCHINDUCTOR_FX_GRAPH_CACHE": "0"},
        places={"triton": "/b", "inductor": "/i"},
    )
    assert past.changes(BEFORE, now) == [
        "triton 3.6.0 -> 3.7.0",
        "GPU sm_86 -> sm_90",
        "the triton cache was /a and is /b",
        "arguments: --tp 4 -> 2, --torch-compile-max-bs 4 -> 8, --enable-metrics set -> absent",
        "SGLANG_X 1 -> unset",
        "TORCHINDUCTOR_FX_GRAPH_CACHE unset -> 0",
    ]
    # what could not be looked at is no difference
    assert past.changes(BEFORE, Basis(at=2.0)) == ["SGLANG_X 1 -> unset"]


def test_a_start_is_remembered_from_run_to_run(state: Path, tmp_path: Path) -> None:
    server = SimpleNamespace(url="http://127.0.0.1:30000")
    here: Any = SimpleNamespace(
        controller=SimpleNamespace(subject="x.service"), rig=SimpleNamespace(server=server), simulation=None
    )
    assert past.recall(here) == past.Past()
    kept = past.Past(basis=BEFORE, cold_capture_s=164.0, cold_at=1.0)
    past.keep(here, kept)
    assert past.recall(here) == kept
    next((state / past.FOLDER).iterdir()).write_text("{")
    assert past.recall(here) == past.Past()


# --- judged in layers ----------------------------------------------------------------------------------------------------


def start(**diff: Any) -> Startup:
    return Startup(kind="warm", launched_at=0.0, autotune_runs=0, cache_diff=CacheDiff(before_entries=100, **diff), capture_s=50.0)


def judged(startup: Startup, **promise: Any) -> dict[str | None, str]:
    server = SimpleNamespace(cold_capture_s=164.0)
    found = starting.compiled(startup, StartPromise(**promise), cold=False, server=server)
    return {each.quantity: each.verdict for each in found}


def test_no_recompilation_promises_zero_of_names_runs_graphs_and_rewritten_kernels() -> None:
    everything = {"new_kernels", "autotune_runs", "new_graphs", "recompiled_kernels"}
    clean = judged(start(new_variants=("known",), variants=27), max_new_kernels=0)
    assert clean == dict.fromkeys(everything, "pass")
    assert judged(start(new_kernels=("k",)), max_new_kernels=0)["new_kernels"] == "fail"
    assert judged(start(new_graphs=2, graph_paths=("/c/fxgraph/ab/x",)), max_new_kernels=0)["new_graphs"] == "fail"
    assert judged(start(rewritten=("k",)), max_new_kernels=0)["recompiled_kernels"] == "fail"
    assert judged(start(new_graphs=2), max_new_kernels=5) == {"new_kernels": "pass"}
    assert judged(start(new_graphs=2), max_new_kernels=0, max_new_graphs=2)["new_graphs"] == "pass"
    assert judged(start(new_variants=("a", "b")), max_new_variants=1) == {"new_variants": "fail"}
    assert judged(start(), warm_capture_share=0.3) == {"capture_share": "fail"}
    assert judged(start(), warm_capture_share=0.4) == {"capture_share": "pass"}


def test_caches_that_hold_nothing_before_and_after_prove_nothing() -> None:
    nowhere = Startup(kind="warm", launched_at=0.0, autotune_runs=0, cache_diff=CacheDiff())
    told = judged(nowhere, max_new_kernels=0, max_new_variants=0)
    assert told.pop("autotune_runs") == "pass"
    assert told == dict.fromkeys(("new_kernels", "recompiled_kernels", "new_graphs", "new_variants"), "inconclusive")


def test_a_cause_is_told_once() -> None:
    found = starting.compiled(
        start(new_kernels=("k",), new_graphs=1, graph_paths=("/c/fxgraph/ab/" + "f" * 52 + "/x",)),
        StartPromise(max_new_kernels=0),
        cold=False,
        server=None,
    )
    failed = [each.message for each in found if each.verdict == "fail"]
    assert failed[0].startswith("1 new kernel, promised at most 0 (k): 1 new kernel, caches held 100 entries")
    assert failed[1] == "1 new graph, promised at most 0 (fxgraph fffffffff)"


def test_new_graphs_and_rewritten_kernels_are_no_warm_start() -> None:
    assert starting.classified(start(new_variants=("k",))).kind == "warm"
    assert starting.classified(start(new_graphs=1)).kind != "warm"
    assert starting.classified(start(rewritten=("k",))).kind != "warm"


def test_findings_of_one_kind_are_told_together(tmp_path: Path) -> None:
    look = view_of(made(tmp_path, "cache-stale")).look()
    [stale] = look.findings
    assert isinstance(stale, Finding)
    assert stale.detail.startswith("12 of them, ")
    assert caches._size(999) == "999 B"
    assert survive.LOST_AT_STOP == "cache-in-private-tmp"
