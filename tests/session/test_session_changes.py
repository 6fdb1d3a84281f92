from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from session_fakes import dead_journal, environment, until
from session_rig import UUID, limit_w, make_card, make_unit, unit_calls, unit_state

from pytest_sglang.session import changes, undoers
from pytest_sglang.session.changes import UndoError, undo_entry
from pytest_sglang.session.journal import Entry, Journal, open_entries
from pytest_sglang.session.state import Owner
from pytest_sglang.session.undo import undo

ACTIVE, STOPPED = {"active": True}, {"active": False}


def left(state: Path, kind: str, target: str, before: Any, after: Any, context: dict[str, Any], age_s: float = 3600.0) -> Entry:
    """A change of a dead run, made ``age_s`` ago."""
    journal = dead_journal(state)
    entry = journal.record(kind, target, before, after, context)
    journal.path.write_text(json.dumps({**json.loads(journal.path.read_text()), "at": time.time() - age_s}) + "\n")
    journal.close()
    return entry


def only(state: Path, **options: Any) -> tuple[str, str]:
    (outcome,) = undo(state, **options)
    return outcome.action, outcome.detail


# --- power limit --------------------------------------------------------------------------------------------------------


def test_a_power_limit_is_put_back_in_watts(state: Path, tmp_path: Path) -> None:
    card = tmp_path / "card"
    left(state, "power_limit", UUID, 350.0, 250.0, make_card(card, 250.4))
    assert only(state) == ("undone", f"power limit of {UUID} is 350 W again (the run had made it 250 W)")
    assert limit_w(card) == 350.0


def test_a_power_limit_that_somebody_set_since_stays(state: Path, tmp_path: Path) -> None:
    card = tmp_path / "card"
    left(state, "power_limit", UUID, 350.0, 250.0, make_card(card, 280))
    assert only(state)[0] == "not ours any more"
    assert limit_w(card) == 280.0


def test_a_reboot_has_reset_the_power_limit(state: Path, tmp_path: Path) -> None:
    card = tmp_path / "card"
    left(state, "power_limit", UUID, 350.0, 250.0, make_card(card, 250))
    (file,) = open_entries(state)
    file.path.write_text(file.path.read_text().replace(file.entries[0].boot_id, "the boot before"))
    assert only(state)[0] == "nothing to do"
    assert limit_w(card) == 250.0


def before_this_boot(state: Path) -> None:
    """As if a power cut had come since."""
    (file,) = open_entries(state)
    file.path.write_text(file.path.read_text().replace(file.entries[0].boot_id, "the boot before"))


def test_a_server_that_the_boot_has_started_is_not_stopped(state: Path, tmp_path: Path) -> None:
    left(state, "server", "sglang.service", STOPPED, ACTIVE, make_unit(tmp_path / "unit", "active"))
    before_this_boot(state)
    assert only(state, dry_run=True)[0] == "nothing to do"
    assert only(state)[0] == "nothing to do"
    assert unit_state(tmp_path / "unit") == "active"
    assert not (tmp_path / "unit" / "calls").exists()


def test_caches_are_not_put_back_under_a_server_that_the_boot_has_started(state: Path, tmp_path: Path) -> None:
    cache, kept = tmp_path / "cache", tmp_path / "cache.aside-t"
    cache.mkdir()
    kept.mkdir()
    (kept / "old").touch()
    left(state, "cache_aside", str(cache), str(cache), str(kept), {"kind": "triton", "token": "t", "children": False})
    before_this_boot(state)
    code = "import sys; held = open(sys.argv[1], 'w'); print(flush=True); input()"
    command = [sys.executable, "-c", code, str(cache / "held")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        action, detail = only(state)
        process.kill()
    assert action == "failed"
    assert f"in use by pid {process.pid}" in detail
    assert (kept / "old").exists()
    assert only(state)[0] == "undone"
    assert (cache / "old").exists()


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        ({"unreadable": True}, "its power limit cannot be read: Not Supported"),
        ({"refuses": True}, "power limit 350 W refused: Insufficient Permissions (run as root"),
        ({"no_driver": True}, "the kernel driver is not loaded"),
    ],
)
def test_a_power_limit_that_cannot_be_put_back_says_why(state: Path, tmp_path: Path, trouble: dict[str, Any], told: str) -> None:
    card = tmp_path / "card"
    left(state, "power_limit", UUID, 350.0, 250.0, make_card(card, 250, **trouble))
    action, detail = only(state)
    assert action == "failed"
    assert told in detail
    assert detail.endswith("(before the run: 350.0; the run made it: 250.0)")


def test_a_card_that_is_gone_is_named(state: Path, tmp_path: Path) -> None:
    left(state, "power_limit", "GPU-gone", 350.0, 250.0, make_card(tmp_path / "card", 250))
    action, detail = only(state)
    assert action == "failed"
    assert "GPU-gone: no such GPU answers at present (nvidia-smi -L" in detail


def test_others_than_root_set_a_real_cards_limit_by_sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry(1, "power_limit", UUID, 349.5, 250.0, "", Owner.me("run"), 0.0, {"nvml": "real"})
    sudo = tmp_path / "sudo"
    sudo.write_text(f'#!/bin/sh\nprintf %s "$*" > {tmp_path}/asked\n')
    sudo.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    changes.undoer(entry).undo(entry)
    assert (tmp_path / "asked").read_text() == f"-n nvidia-smi -i {UUID} -pl 349.5"
    sudo.write_text("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    with pytest.raises(UndoError, match=r"-pl 349\.5: exit status 1: sudo: a password is required \(run it by hand as root\)"):
        changes.undoer(entry).undo(entry)
    sudo.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UndoError, match="No such file or directory"):
        changes.undoer(entry).undo(entry)


def test_a_command_without_an_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(command: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(command, 20)

    monkeypatch.setattr(subprocess, "run", slow)
    with pytest.raises(UndoError, match="nvidia-smi -pl: no answer within 20 s"):
        undoers._run(["nvidia-smi", "-pl"])


# --- server -------------------------------------------------------------------------------------------------------------


def test_an_owners_server_that_was_stopped_is_started(state: Path, tmp_path: Path) -> None:
    left(state, "server", "sglang.service", ACTIVE, STOPPED, make_unit(tmp_path / "unit", "inactive"))
    assert only(state) == ("undone", "server sglang.service is active again (the run had made it stopped)")
    assert unit_state(tmp_path / "unit") == "active"


def test_a_server_that_the_run_started_again_is_left_running(state: Path, tmp_path: Path) -> None:
    left(state, "server", "sglang.service", ACTIVE, STOPPED, make_unit(tmp_path / "unit", "active"))
    assert only(state)[0] == "nothing to do"
    assert not (tmp_path / "unit" / "calls").read_text().count("st")


def test_a_server_that_the_run_started_cold_is_stopped(state: Path, tmp_path: Path) -> None:
    left(state, "server", "sglang.service", STOPPED, ACTIVE, make_unit(tmp_path / "unit", "active"))
    assert only(state)[0] == "undone"
    assert unit_state(tmp_path / "unit") == "inactive"


def test_the_cold_server_is_stopped_before_the_owners_is_started(state: Path, tmp_path: Path) -> None:
    context = make_unit(tmp_path / "unit", "active", stop_s=0.2)
    journal = dead_journal(state)
    journal.record("server", "sglang.service", ACTIVE, STOPPED, context)
    journal.record("server", "sglang.service", STOPPED, ACTIVE, context)
    assert [(each.entry.id, each.action) for each in undo(state)] == [(2, "undone"), (1, "undone")]
    assert unit_calls(tmp_path / "unit") == ["stop", "start"]
    assert unit_state(tmp_path / "unit") == "active"


def test_not_seen_is_not_stopped(state: Path, tmp_path: Path) -> None:
    left(state, "server", "sglang.service", STOPPED, ACTIVE, make_unit(tmp_path / "unit", "active"))
    (tmp_path / "unit" / "broken").write_text("")
    action, detail = only(state)
    assert action == "failed"
    assert "whether sglang.service runs cannot be told: could not ask systemctl: Failed to connect to bus" in detail
    (tmp_path / "unit" / "broken").unlink()
    assert only(state)[0] == "undone"


def test_a_start_that_is_refused_or_without_effect_is_told(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undoers.Server, "start_looks_s", 0.6)
    left(state, "server", "sglang.service", ACTIVE, STOPPED, make_unit(tmp_path / "unit", "inactive"))
    (tmp_path / "unit" / "refuses").write_text("")
    action, detail = only(state)
    assert action == "failed"
    assert "sglang.service could not be started: systemctl start sglang.service failed: Access denied" in detail
    (tmp_path / "unit" / "refuses").unlink()
    (tmp_path / "unit" / "dead").write_text("")
    action, detail = only(state)
    assert action == "failed"
    assert "was started, but is not active 1 s later: inactive (running)" in detail


class Slow:
    """A controller whose start command waits for readiness."""

    def __init__(self) -> None:
        self.active = False

    def start(self) -> None:
        time.sleep(20.0)

    def state(self) -> Any:
        class State:
            active, result, detail = self.active, "", ""

        return State()


def test_a_start_command_that_waits_for_readiness_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_sglang.server import control

    monkeypatch.setattr(control, "from_description", lambda _: Slow())
    monkeypatch.setattr(undoers.Server, "start_looks_s", 0.4)
    entry = Entry(1, "server", "sglang.service", ACTIVE, STOPPED, "", Owner.me("run"), 0.0, {})
    begin = time.monotonic()
    undoers.Server({}).undo(entry)
    assert time.monotonic() - begin < 10.0


def test_a_description_that_nobody_knows_is_a_failure(state: Path) -> None:
    left(state, "server", "sglang.service", ACTIVE, STOPPED, {"kind": "upstart"})
    assert "not a description of a server's controller" in only(state)[1]


@pytest.fixture
def stopping_run(state: Path, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """A run that stops its server, and is killed while it waits for that."""
    code = (
        "import json, sys; from pathlib import Path\n"
        "from pytest_sglang.server.control import from_description\n"
        "from pytest_sglang.session.guard import Guard; from pytest_sglang.session.journal import Journal\n"
        "from pytest_sglang.session.state import Owner\n"
        "state, context = Path(sys.argv[1]), json.loads(sys.argv[2])\n"
        "journal, guard = Journal(state, Owner.me('run-1')), Guard.start(state, 'run-1', state / 'log')\n"
        "journal.record('server', 'sglang.service', {'active': True}, {'active': False}, context)\n"
        "print('stopping', flush=True); from_description(context).stop(60)\n"
    )
    context = make_unit(tmp_path / "unit", "active", stop_s=2.5)
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, str(state), json.dumps(context)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(state)))
        assert started[0].stdout is not None
        assert started[0].stdout.readline() == "stopping\n"
        return started[0]

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_kill_9_in_the_middle_of_a_stop_brings_the_owners_server_back(
    state: Path, tmp_path: Path, stopping_run: Callable[[], subprocess.Popen[str]]
) -> None:
    process = stopping_run()
    until(lambda: unit_state(tmp_path / "unit") == "deactivating")
    process.kill()
    process.wait()
    # at this moment the unit is still active: "as before" would be the wrong answer
    until(lambda: unit_calls(tmp_path / "unit") == ["stop", "start"], limit_s=10)
    until(lambda: unit_state(tmp_path / "unit") == "active")
    until(lambda: open_entries(state) == [])


def test_a_stop_that_takes_longer_than_it_is_watched_is_followed_by_a_start(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that hangs on SIGTERM has systemd's 90 s: still active when the guard stops watching, it is none that came back."""
    monkeypatch.setattr(undoers.Server, "start_looks_s", 0.5)
    context = make_unit(tmp_path / "unit", "deactivating")
    left(state, "server", "sglang.service", {"active": True, "pid": 4100}, STOPPED, context, age_s=74.0)
    assert only(state)[0] == "undone"
    assert unit_calls(tmp_path / "unit") == ["start"]
    (tmp_path / "unit" / "state").write_text("inactive")
    until(lambda: unit_state(tmp_path / "unit") == "active")


@pytest.mark.parametrize(
    ("pid", "age_s"),
    [
        pytest.param("4200", 1.0, id="another process serves already"),
        pytest.param("4100", 9.0, id="nobody was ever asked to stop it"),
    ],
)
def test_a_server_that_serves_again_is_not_watched_for_the_length_of_a_stop(
    state: Path, tmp_path: Path, pid: str, age_s: float
) -> None:
    context = make_unit(tmp_path / "unit", "active")
    (tmp_path / "unit" / "pid").write_text(pid)
    left(state, "server", "sglang.service", {"active": True, "pid": 4100}, STOPPED, context, age_s=age_s)
    began = time.monotonic()
    assert only(state)[0] == "nothing to do"
    assert time.monotonic() - began < 5
    assert unit_calls(tmp_path / "unit") == []


def test_a_stop_that_was_asked_for_is_awaited_although_the_old_process_still_serves(state: Path, tmp_path: Path) -> None:
    context = make_unit(tmp_path / "unit", "deactivating")
    (tmp_path / "unit" / "pid").write_text("4100")
    left(state, "server", "sglang.service", {"active": True, "pid": 4100}, STOPPED, context, age_s=20.0)
    threading.Timer(1.0, (tmp_path / "unit" / "state").write_text, ["inactive"]).start()
    assert only(state)[0] == "undone"
    assert unit_calls(tmp_path / "unit") == ["start"]
    assert unit_state(tmp_path / "unit") == "active"


# --- caches and directories ----------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> tuple[Path, Any]:
    """A cache with one kernel, and the plan to set it aside."""
    from pytest_sglang.cache import aside
    from pytest_sglang.cache.locate import CachePlace

    place = tmp_path / "triton"
    place.mkdir()
    (place / "kernel").write_text("compiled long ago")
    (planned,) = aside.plan_aside([CachePlace("triton", place, "test")], token="run-1")
    return place, planned


def journal_aside(state: Path, planned: Any) -> None:
    from pytest_sglang.cache import aside

    left(state, "cache_aside", str(planned.original), str(planned.original), str(planned.aside), aside.describe(planned))


def test_a_cache_that_was_set_aside_comes_back_and_the_cold_one_goes(state: Path, cache: tuple[Path, Any]) -> None:
    from pytest_sglang.cache import aside

    place, planned = cache
    journal_aside(state, planned)
    aside.move(planned)
    (place / "kernel").write_text("compiled by the cold start")
    (place / "other").write_text("")
    assert only(state, dry_run=True)[0] == "would undo"
    assert only(state) == ("undone", f"cache {place} is {place} again (the run had made it {planned.aside})")
    assert [(each.name, each.read_text()) for each in place.iterdir()] == [("kernel", "compiled long ago")]
    assert list(place.parent.glob("triton*")) == [place]


def test_a_crash_before_the_rename_leaves_no_new_directory(state: Path, cache: tuple[Path, Any]) -> None:
    place, planned = cache
    journal_aside(state, planned)
    planned.fresh.mkdir()
    assert only(state)[0] == "nothing to do"
    assert not planned.fresh.exists()
    assert (place / "kernel").read_text() == "compiled long ago"


def test_a_cache_that_is_gone_with_its_copy_is_told(state: Path, cache: tuple[Path, Any]) -> None:
    place, planned = cache
    journal_aside(state, planned)
    place.rename(place.with_name("elsewhere"))
    action, detail = only(state)
    assert action == "failed"
    assert "neither the cache nor its renamed copy" in detail


def test_a_directory_is_removed_by_its_own_remover(state: Path, tmp_path: Path) -> None:
    rig = tmp_path / "rig"
    (rig / "cache").mkdir(parents=True)
    left(state, "directory", str(rig), None, str(rig), {"call": "shutil:rmtree", "argument": str(rig)})
    assert only(state, dry_run=True)[0] == "would undo"
    assert only(state) == ("undone", f"directory {rig} is absent again (the run had made it {rig})")
    assert not rig.exists()


def test_a_remover_that_is_not_there_is_named(state: Path, tmp_path: Path) -> None:
    left(state, "directory", str(tmp_path), None, str(tmp_path), {"call": "shutil:no_such_thing"})
    assert "cannot open 'shutil:no_such_thing' (a journal names it as module:attribute)" in only(state)[1]


def test_a_kind_can_be_registered(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from session_fakes import Dial

    monkeypatch.setattr(changes, "_REGISTERED", {})
    changes.register("dial", Dial)
    path = state.parent / "dial"
    path.write_text("250")
    journal = Journal(state, Owner.me("me"))
    assert undo_entry(journal.record("dial", str(path), 350, 250)).startswith(f"dial {path} is 350 again")
