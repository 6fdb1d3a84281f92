from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from session_fakes import DIAL, Victim, dead_journal, dead_owner, read_dial, set_dial, until

from pytest_sglang.session import undo as module
from pytest_sglang.session import undoers
from pytest_sglang.session.changes import UndoError
from pytest_sglang.session.everybody import SharedHolder
from pytest_sglang.session.journal import Journal, open_entries, path_of
from pytest_sglang.session.locks import RigLocks
from pytest_sglang.session.state import Owner, started_ticks
from pytest_sglang.session.undo import Outcome, bounded, mentions, undo


def leave(state: Path, *changes: tuple[Path, Any, Any], context: dict[str, Any] | None = None, run_id: str = "dead-run") -> Path:
    """A dead run's journal, and the dials as it left them."""
    journal = dead_journal(state, run_id)
    for path, before, after in changes:
        journal.record(DIAL, str(path), before, after, context)
        set_dial(path, after)
    journal.close()
    return journal.path


def rewrite(path: Path, **fields: Any) -> None:
    """Change fields of every entry in a journal."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**line, **fields}) + "\n" for line in lines))


def actions(outcomes: list[Outcome]) -> list[tuple[int, str]]:
    return [(each.entry.id, each.action) for each in outcomes]


def test_the_journal_of_a_living_run_that_has_changed_nothing_yet_stays(state: Path, dials: list[Path]) -> None:
    journal = Journal(state, Owner.me("living"))
    journal.covers(["gpu GPU-1"])
    # a run may measure for long before its first change: another run, which looks for leftovers, must not take its journal away
    os.utime(journal.path, (time.time() - 3600,) * 2)
    assert undo(state) == []
    assert journal.path.exists()
    journal.record(DIAL, str(dials[0]), 350, 250)
    assert [len(file.open) for file in open_entries(state, "living")] == [1]
    journal.close()


def test_a_dead_runs_changes_are_undone_newest_first_and_its_journal_goes(state: Path, dials: list[Path]) -> None:
    path = leave(state, (dials[0], 350, 250), (dials[1], 351, 250), (dials[0], 250, 390))
    told: list[Outcome] = []
    outcomes = undo(state, tell=told.append)
    assert actions(outcomes) == [(3, "undone"), (2, "undone"), (1, "undone")]
    assert told == outcomes
    assert [read_dial(each) for each in dials[:2]] == [350, 351]
    assert outcomes[0].detail.endswith("is 250 again (the run had made it 390)")
    assert not path.exists()
    assert undo(state) == []


def test_a_change_that_somebody_else_has_changed_since_is_left_alone(state: Path, dials: list[Path]) -> None:
    path = leave(state, (dials[0], 350, 250), (dials[1], 351, 250))
    set_dial(dials[0], 300)
    outcomes = undo(state)
    assert actions(outcomes) == [(2, "undone"), (1, "not ours any more")]
    assert "is 300, not 250 as the run had made it: somebody else has changed it since" in outcomes[1].detail
    assert read_dial(dials[0]) == 300
    assert not path.exists()


def test_a_change_that_was_announced_but_never_made_is_nothing_to_do(state: Path, dials: list[Path]) -> None:
    leave(state, (dials[0], 350, 250))
    set_dial(dials[0], 350)
    assert actions(undo(state)) == [(1, "nothing to do")]
    assert read_dial(dials[0]) == 350


def test_hands_off_while_the_owner_lives(state: Path, dials: list[Path], victims: Callable[..., Victim]) -> None:
    victim = victims("alive", dials[0]).wait_changed()
    outcomes = undo(state)
    assert actions(outcomes) == [(1, "owner alive")]
    assert f"its run is alive, pid {victim.process.pid}, for " in outcomes[0].detail
    assert read_dial(dials[0]) == 250
    assert actions(undo(state, dry_run=True)) == [(1, "owner alive")]
    assert actions(undo(state, force_owner=True)) == [(1, "undone")]
    assert read_dial(dials[0]) == 350


def test_hands_off_while_a_later_run_works_on_the_same_rig(state: Path, dials: list[Path], victims: Callable[..., Victim]) -> None:
    broken = dials[0].with_name("broken")
    broken.write_text("")
    path = leave(state, (dials[0], 350, 250), context={"broken": str(broken)})
    with open(path, "a") as file:
        file.write(json.dumps({"line": "locks", "names": ["gpu GPU-1", f"dial {dials[1]}"]}) + "\n")
    assert actions(undo(state)) == [(1, "failed")]
    broken.unlink()
    later = victims("later-run", dials[1]).wait_changed()
    outcomes = [each for each in undo(state) if each.entry.owner.run_id == "dead-run"]
    assert actions(outcomes) == [(1, "owner alive")]
    assert f"dial {dials[1]} is in use by a later run, pid {later.process.pid}" in outcomes[0].detail
    assert read_dial(dials[0]) == 250
    later.tell("resolve")
    later.tell("close")
    later.close()
    assert actions(undo(state)) == [(1, "undone")]


def test_our_own_locks_do_not_keep_us_from_undoing(state: Path, dials: list[Path]) -> None:
    path = leave(state, (dials[0], 350, 250))
    with open(path, "a") as file:
        file.write(json.dumps({"line": "locks", "names": ["gpu GPU-1"]}) + "\n")
    with RigLocks(state, ["gpu GPU-1"]).acquire(Owner.me("me")):
        assert actions(undo(state)) == [(1, "undone")]


@pytest.mark.parametrize(
    ("pid", "alive", "action"),
    [(1, True, "owner alive"), (None, True, "owner alive"), (1, False, "undone"), (os.getpid(), True, "undone")],
    ids=["alive", "hidden", "dead", "ours"],  # the same names in every worker
)
def test_only_a_living_other_process_that_took_the_shared_lock_counts(
    state: Path, dials: list[Path], monkeypatch: pytest.MonkeyPatch, pid: int | None, alive: bool, action: str
) -> None:
    """``dead_owner`` has this process's pid: a lock in that name is the dead run's own, kept by its child."""
    path = leave(state, (dials[0], 350, 250))
    with open(path, "a") as file:
        file.write(json.dumps({"line": "locks", "names": ["gpu GPU-1"]}) + "\n")
    monkeypatch.setattr(module.everybody, "shared_holder", lambda name: SharedHolder(pid, alive))
    assert actions(undo(state)) == [(1, action)]


@pytest.mark.parametrize("held", [["gpu GPU-1"], []])
def test_a_shared_lock_that_the_caller_holds_is_no_other_run(
    state: Path, dials: list[Path], monkeypatch: pytest.MonkeyPatch, held: list[str]
) -> None:
    """Where the kernel does not tell who holds it, one's own lock would look like a stranger's."""
    path = leave(state, (dials[0], 350, 250))
    with open(path, "a") as file:
        file.write(json.dumps({"line": "locks", "names": ["gpu GPU-1"]}) + "\n")
    monkeypatch.setattr(module.everybody, "shared_holder", lambda name: SharedHolder(None))
    assert actions(undo(state, held=held)) == [(1, "undone" if held else "owner alive")]


def test_a_dry_run_says_what_would_happen_and_changes_nothing(state: Path, dials: list[Path]) -> None:
    path = leave(state, (dials[0], 350, 250), (dials[1], 351, 250), (dials[0], 250, 390))
    set_dial(dials[1], 300)
    before = path.read_bytes()
    outcomes = undo(state, dry_run=True)
    assert actions(outcomes) == [(3, "would undo"), (2, "not ours any more"), (1, "would undo")]
    assert outcomes[0].detail.endswith("is 390 and would be 250 again")
    assert path.read_bytes() == before
    assert [read_dial(each) for each in dials[:2]] == [390, 300]


def test_a_dry_run_names_what_cannot_be_looked_at(state: Path, dials: list[Path]) -> None:
    leave(state, (dials[0], 350, 250))
    dials[0].unlink()
    (outcome,) = undo(state, dry_run=True)
    assert outcome.action == "failed"
    assert "FileNotFoundError" in outcome.detail


def test_a_run_can_be_chosen(state: Path, dials: list[Path]) -> None:
    leave(state, (dials[0], 350, 250), run_id="one")
    leave(state, (dials[1], 351, 250), run_id="two")
    assert [each.entry.owner.run_id for each in undo(state, run_id="two")] == ["two"]
    assert [read_dial(each) for each in dials[:2]] == [250, 351]


def test_a_reboot_resets_what_it_resets_and_only_that(state: Path, dials: list[Path]) -> None:
    rewrite(leave(state, (dials[0], 350, 250), context={"lost_by_reboot": True}, run_id="limits"), boot_id="the boot before")
    rewrite(leave(state, (dials[1], 351, 250), run_id="caches"), boot_id="the boot before")
    foreseen = {each.entry.owner.run_id: each.action for each in undo(state, dry_run=True)}
    assert foreseen == {"limits": "nothing to do", "caches": "would undo"}
    done = {each.entry.owner.run_id: each for each in undo(state)}
    assert done["limits"].action == "nothing to do"
    assert "rebooted" in done["limits"].detail
    assert done["caches"].action == "undone"
    assert [read_dial(each) for each in dials[:2]] == [250, 351]
    assert open_entries(state) == []


def test_an_owner_of_another_boot_is_dead_even_when_its_pid_lives(state: Path, dials: list[Path]) -> None:
    path = leave(state, (dials[0], 350, 250))
    rewrite(path, owner={**Owner.me("dead-run").plain(), "boot_id": "the boot before"}, boot_id="the boot before")
    assert actions(undo(state)) == [(1, "undone")]


def test_a_failure_stays_in_the_journal_names_both_values_and_leaves_the_rest_to_be_undone(state: Path, dials: list[Path]) -> None:
    broken = dials[0].with_name("broken")
    broken.write_text("")
    journal = dead_journal(state)
    for path, context in ((dials[0], {}), (dials[1], {"broken": str(broken)}), (dials[2], {})):
        journal.record(DIAL, str(path), read_dial(path), 250, context)
        set_dial(path, 250)
    outcomes = undo(state)
    assert actions(outcomes) == [(3, "undone"), (2, "failed"), (1, "undone")]
    assert "the dial is stuck (before the run: 351; the run made it: 250)" in outcomes[1].detail
    assert [entry.id for file in open_entries(state) for entry in file.open] == [2]
    broken.unlink()
    assert actions(undo(state)) == [(2, "undone")]
    assert read_dial(dials[1]) == 351


def test_an_older_change_waits_for_the_newer_one_of_the_same_thing(state: Path, dials: list[Path]) -> None:
    broken = dials[0].with_name("broken")
    broken.write_text("")
    leave(state, (dials[0], 350, 250), (dials[0], 250, 350), context={"broken": str(broken)})
    outcomes = undo(state)
    assert actions(outcomes) == [(2, "failed"), (1, "failed")]
    assert "waits for a later change" in outcomes[1].detail
    broken.unlink()
    assert actions(undo(state)) == [(2, "undone"), (1, "undone")]
    assert read_dial(dials[0]) == 350


def test_an_undo_without_effect_is_a_failure(state: Path, dials: list[Path]) -> None:
    leave(state, (dials[0], 350, 250), context={"deaf": True})
    (outcome,) = undo(state)
    assert outcome.action == "failed"
    assert "is 250, although 350 was put back" in outcome.detail


def test_a_look_that_hangs_is_given_up_and_the_others_are_undone(state: Path, dials: list[Path]) -> None:
    journal = dead_journal(state)
    for path, context in ((dials[0], {}), (dials[1], {"hang_s": 20.0, "limit_s": 0.2})):
        journal.record(DIAL, str(path), read_dial(path), 250, context)
        set_dial(path, 250)
    begin = time.monotonic()
    outcomes = undo(state)
    assert time.monotonic() - begin < 10.0
    assert actions(outcomes) == [(2, "failed"), (1, "undone")]
    assert "no answer within 0 s" in outcomes[0].detail


def test_an_unknown_kind_is_not_touched_and_says_what_to_do(state: Path) -> None:
    journal = dead_journal(state)
    journal.record("fan_speed", "GPU-1", 30, 100)
    journal.record("no_such_module_anywhere:Undoer", "GPU-1", 30, 100)
    outcomes = undo(state)
    assert [each.action for each in outcomes] == ["failed", "failed"]
    assert "cannot open 'no_such_module_anywhere:Undoer'" in outcomes[0].detail
    assert "knows no change of kind 'fan_speed'" in outcomes[1].detail


def test_a_change_still_under_way_is_waited_for(state: Path, dials: list[Path]) -> None:
    leave(state, (dials[0], 350, 250), context={"settle_s": 3.0})
    set_dial(dials[0], 350)
    timer = threading.Timer(0.6, set_dial, (dials[0], 250))
    timer.start()
    assert actions(undo(state)) == [(1, "undone")]
    timer.join()
    assert read_dial(dials[0]) == 350


def test_a_long_wait_comes_when_everything_else_is_undone(state: Path, dials: list[Path]) -> None:
    journal = dead_journal(state)
    journal.record(DIAL, str(dials[0]), 350, 250)
    journal.record(DIAL, str(dials[1]), 351, 250, {"settle_s": 8.0})
    set_dial(dials[0], 250)
    rewrite(journal.path, at=time.time() - 1.5)
    outcomes: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if outcome.entry.id == 1:
            # only now does the second change arrive, made by something that outlived the run
            set_dial(dials[1], 250)

    undo(state, tell=tell)
    assert actions(outcomes) == [(1, "undone"), (2, "undone")]
    assert [read_dial(each) for each in dials[:2]] == [350, 351]
    assert open_entries(state) == []


def test_a_long_wait_that_cannot_be_looked_at_fails_at_once(state: Path, dials: list[Path]) -> None:
    leave(state, (dials[0], 350, 250), context={"settle_s": 60.0})
    dials[0].unlink()
    begin = time.monotonic()
    assert actions(undo(state)) == [(1, "failed")]
    assert time.monotonic() - begin < 30.0


def test_a_settling_time_that_is_over_is_not_waited_for(state: Path, dials: list[Path]) -> None:
    rewrite(leave(state, (dials[0], 350, 250), context={"settle_s": 60.0}), at=time.time() - 3600)
    set_dial(dials[0], 350)
    begin = time.monotonic()
    assert actions(undo(state)) == [(1, "nothing to do")]
    assert time.monotonic() - begin < 30.0


def test_a_clock_that_was_set_back_does_not_make_it_wait_for_ever(state: Path, dials: list[Path]) -> None:
    rewrite(leave(state, (dials[0], 350, 250), context={"settle_s": 60.0}), at=time.time() + 86400)
    set_dial(dials[0], 350)
    begin = time.monotonic()
    assert actions(undo(state)) == [(1, "nothing to do")]
    assert time.monotonic() - begin < 30.0


def test_two_processes_undo_a_run_once(state: Path, dials: list[Path]) -> None:
    leave(state, (dials[0], 350, 250), (dials[1], 351, 250), context={"hang_s": 0.3})
    results: list[list[Outcome]] = []
    threads = [threading.Thread(target=lambda: results.append(undo(state))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(each) for each in results) == [0, 0, 2]
    assert (dials[0].parent / "order").read_text() == "2\n1\n"


def test_a_claim_that_is_not_let_go_is_told(state: Path, dials: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    path = leave(state, (dials[0], 350, 250))
    monkeypatch.setattr(module, "CLAIM_WAIT_S", 0.2)
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (outcome,) = undo(state)
    assert outcome.action == "failed"
    assert "another process has been undoing it for more than 0 s (which one: fuser" in outcome.detail


def test_a_journal_that_vanishes_meanwhile_is_no_error(state: Path, dials: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = leave(state, (dials[0], 350, 250))
    found = open_entries(state)
    path.unlink()
    monkeypatch.setattr(module.journal, "open_entries", lambda *_: found)
    assert undo(state) == []


def test_a_journal_cut_in_its_first_line_goes_when_it_is_old(state: Path, dials: list[Path]) -> None:
    path = leave(state, (dials[0], 350, 250))
    path.write_bytes(path.read_bytes()[:40])
    assert undo(state) == []
    assert path.exists(), "it may be a run that is writing its first line"
    os.utime(path, (1e9, 1e9))
    assert undo(state) == []
    assert not path.exists()
    assert read_dial(dials[0]) == 250


def test_a_journal_that_is_fully_resolved_but_was_not_deleted_goes(state: Path, dials: list[Path]) -> None:
    journal = dead_journal(state)
    journal.resolve(journal.record(DIAL, str(dials[0]), 350, 250).id, "put back")
    journal.close()
    assert undo(state) == []
    assert not journal.path.exists()


def test_a_removed_directory_takes_the_changes_inside_with_it(state: Path, dials: list[Path], tmp_path: Path) -> None:
    rig = tmp_path / "rig"
    rig.mkdir()
    inside = rig / "dial"
    set_dial(inside, 390)
    journal = dead_journal(state)
    journal.record("directory", str(rig), None, str(rig), {"call": "shutil:rmtree", "argument": str(rig)})
    journal.record(DIAL, str(inside), 350, 390)
    journal.record(DIAL, str(dials[0]), 350, 390)
    set_dial(dials[0], 390)
    assert actions(undo(state, dry_run=True)) == [(1, "would undo"), (3, "would undo"), (2, "nothing to do")]
    outcomes = undo(state)
    assert actions(outcomes) == [(1, "undone"), (2, "nothing to do"), (3, "undone")]
    assert f"belonged to {rig}, which is removed" in outcomes[1].detail
    assert not rig.exists()
    assert read_dial(dials[0]) == 350


def test_a_directory_that_cannot_be_removed_leaves_the_changes_inside_to_be_undone(state: Path, tmp_path: Path) -> None:
    rig = tmp_path / "rig"
    rig.mkdir()
    set_dial(rig / "dial", 390)
    journal = dead_journal(state)
    journal.record("directory", str(rig), None, str(rig), {"call": "os:rmdir", "argument": str(rig)})
    journal.record(DIAL, str(rig / "dial"), 350, 390)
    assert actions(undo(state)) == [(1, "failed"), (2, "undone")]


def test_the_newest_run_is_undone_first(state: Path, dials: list[Path]) -> None:
    os.utime(leave(state, (dials[0], 350, 250), run_id="older"), (1e9, 1e9))
    leave(state, (dials[0], 250, 390), run_id="newer")
    assert [each.entry.owner.run_id for each in undo(state)] == ["newer", "older"]
    assert read_dial(dials[0]) == 350


def test_a_process_tree_is_ended_with_what_its_children_left_behind(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undoers.Process, "grace_s", 0.5)
    # deaf to SIGTERM: one in another session but still a child, one whose parent is gone, one plain child
    script = "trap '' TERM; setsid sleep 606.1 & sh -c 'sleep 606.2 & exec true'; sleep 606.3 & echo up; wait"
    process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        until(lambda: len(_sleepers()) == 3)
        journal = dead_journal(state)
        after = {"pid": process.pid, "started": started_ticks(process.pid)}
        journal.record("process", str(process.pid), None, after)
        assert actions(undo(state, dry_run=True)) == [(1, "would undo")]
        assert len(_sleepers()) == 3
        assert actions(undo(state)) == [(1, "undone")]
        assert not _sleepers()
        process.wait(timeout=5)
        process.stdout.close()
    finally:
        for pid in (*_sleepers(), process.pid):
            subprocess.run(["kill", "-9", str(pid)], stderr=subprocess.DEVNULL, check=False)


def _sleepers() -> list[int]:
    import psutil

    found = []
    for each in psutil.process_iter():
        try:
            words = each.cmdline()
        except psutil.Error:
            continue
        if words[:1] == ["sleep"] and words[1].startswith("606."):
            found.append(each.pid)
    return found


def test_a_process_whose_pid_was_given_anew_is_not_touched(state: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    try:
        journal = dead_journal(state)
        journal.record("process", str(process.pid), None, {"pid": process.pid, "started": 17})
        assert actions(undo(state)) == [(1, "nothing to do")]
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_a_living_run_undoes_its_own_entry(state: Path, dials: list[Path]) -> None:
    from pytest_sglang.session.changes import undo_entry

    journal = Journal(state, Owner.me("me"))
    entry = journal.record(DIAL, str(dials[0]), 350, 250)
    set_dial(dials[0], 250)
    assert undo_entry(entry).endswith("is 350 again (the run had made it 250)")
    assert read_dial(dials[0]) == 350
    assert undo_entry(entry).endswith("is 350, as it was before the run")
    journal.close()
    assert path_of(state, "me").exists()


def test_bounded_hands_through_result_and_failure() -> None:
    assert bounded(lambda: 7, 5.0) == 7
    with pytest.raises(ZeroDivisionError):
        bounded(lambda: 1 // 0, 5.0)
    with pytest.raises(UndoError, match="no answer within 0 s"):
        bounded(lambda: time.sleep(1), 0.05)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/tmp/rig", True),
        ("/tmp/rig/clock", True),
        (["python", "-m", "x", "--dir=/tmp/rig"], True),
        ({"deep": [{"argument": "/tmp/rig/a"}]}, True),
        ("/tmp/rig2", False),
        ("/tmp/rig2/clock", False),
        (None, False),
        (17, False),
    ],
)
def test_what_is_inside_a_directory(value: Any, expected: bool) -> None:
    assert mentions(value, "/tmp/rig") is expected


def test_an_unknown_boot_is_not_another_boot(state: Path, dials: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Journal(state, dead_owner()._replace(pid=os.getpid())).record(DIAL, str(dials[0]), 1, 2)
    assert not module.rebooted(entry)
    assert module.rebooted(entry._replace(boot_id="another"))
    assert not module.rebooted(entry._replace(boot_id=""))
    monkeypatch.setattr(module, "boot_id", lambda: "")
    assert not module.rebooted(entry._replace(boot_id="another"))
