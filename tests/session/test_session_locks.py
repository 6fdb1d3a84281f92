from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from session_fakes import DIAL, Victim, dead_journal, dead_owner, read_dial, set_dial

from pytest_sglang.session import everybody
from pytest_sglang.session.locks import LockHeld, RigLocks, holder, lock_path
from pytest_sglang.session.state import Owner, StateError

NAMES = ["gpu GPU-11111111-aaaa", "gpu GPU-22222222-bbbb", "server http://127.0.0.1:8001"]


def test_a_second_run_gets_lock_held_naming_the_first(state: Path, dials: list[Path], victims: Callable[..., Victim]) -> None:
    first = victims("first-run", dials[0]).wait_changed()
    with pytest.raises(LockHeld) as caught:
        RigLocks(state, [f"dial {dials[0]}"]).acquire(Owner.me("second"))
    message = str(caught.value)
    assert f"pid {first.process.pid}, for " in message
    assert "first-run" in message
    assert f"kill -INT {first.process.pid}" in message
    assert caught.value.owner is not None
    assert caught.value.owner.run_id == "first-run"
    held = holder(state, f"dial {dials[0]}")
    assert held is not None
    assert held.owner.pid == first.process.pid


def test_the_kernel_lets_go_when_the_run_is_killed(state: Path, dials: list[Path], victims: Callable[..., Victim]) -> None:
    first = victims("first-run", dials[0]).wait_changed()
    first.kill()
    # what the dead run left is undone before its lock is taken over, whoever is quicker: its guard or this run
    with RigLocks(state, [f"dial {dials[0]}"]).acquire(Owner.me("second")):
        assert read_dial(dials[0]) == 350


def test_the_dead_run_s_changes_are_undone_under_shared_locks_whose_holder_is_not_told(
    state: Path, dials: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second process-id namespace: the new run's own shared lock must not keep it from settling what it takes over."""
    monkeypatch.setattr(everybody, "shared_dir", lambda: tmp_path)
    monkeypatch.setattr(everybody, "_pid_of", lambda descriptor: None)
    monkeypatch.setattr(everybody, "_has_open", lambda *_: None)
    dying = RigLocks(state, NAMES[:1]).acquire(dead_owner())
    dying.forget()
    journal = dead_journal(state)
    journal.covers(NAMES[:1])
    journal.record(DIAL, str(dials[0]), 350, 250)
    journal.close()
    set_dial(dials[0], 250)
    with RigLocks(state, NAMES[:1], tmp_path).acquire(Owner.me("next")):
        assert read_dial(dials[0]) == 350


def test_all_or_nothing(state: Path) -> None:
    with RigLocks(state, [NAMES[1]]).acquire(Owner.me("first")):
        with pytest.raises(LockHeld, match="GPU-22222222-bbbb is in use"):
            RigLocks(state, NAMES).acquire(Owner.me("second"))
        assert [holder(state, name) is None for name in NAMES] == [True, False, True]
        RigLocks(state, [NAMES[0], NAMES[2]]).acquire(Owner.me("third")).release()


def test_every_lock_names_its_owner_and_is_empty_after_an_orderly_end(state: Path) -> None:
    locks = RigLocks(state, NAMES).acquire(Owner.me("run"))
    for name in NAMES:
        content = json.loads(lock_path(state, name).read_text())
        assert content["name"] == name
        assert content["owner"]["pid"] == os.getpid()
    locks.release()
    locks.release()
    assert [lock_path(state, name).read_text() for name in NAMES] == [""] * 3


def test_names_that_read_alike_have_files_of_their_own(state: Path) -> None:
    one, other = lock_path(state, "server http://rig:8001"), lock_path(state, "server http://rig/8001")
    assert one != other
    assert one.name.startswith("server-http-rig-8001-")
    assert "/" not in lock_path(state, "x" * 300 + "/../y").name
    assert len(lock_path(state, "x" * 300).name) < 100


def test_a_forked_child_does_not_keep_the_lock(state: Path) -> None:
    locks = RigLocks(state, NAMES).acquire(Owner.me("run"))
    context = multiprocessing.get_context("fork")
    up, done = context.Event(), context.Event()

    def work() -> None:
        up.set()
        done.wait(20)

    child = context.Process(target=work)
    child.start()
    try:
        assert up.wait(20)
        # only closed, as the kernel does when the run is killed
        locks.forget()
        RigLocks(state, NAMES).acquire(Owner.me("next")).release()
    finally:
        done.set()
        child.join()


def test_letting_go_does_not_wait_for_a_child_that_has_just_been_forked(state: Path) -> None:
    locks = RigLocks(state, NAMES[:1]).acquire(Owner.me("run"))
    copy = os.dup(next(iter(locks._descriptors.values())))
    locks.release()
    RigLocks(state, NAMES[:1]).acquire(Owner.me("next")).release()
    os.close(copy)


def test_a_forked_childs_end_leaves_the_parents_lock_alone(state: Path) -> None:
    with RigLocks(state, NAMES).acquire(Owner.me("run")):
        child = multiprocessing.get_context("fork").Process(target=int)
        child.start()
        child.join()
        with pytest.raises(LockHeld):
            RigLocks(state, NAMES).acquire(Owner.me("second"))


def test_a_lock_without_readable_content_is_still_held(state: Path) -> None:
    with RigLocks(state, NAMES[:1]).acquire(Owner.me("run")):
        lock_path(state, NAMES[0]).write_text("{cut")
        with pytest.raises(LockHeld, match=r"in use by another run \(who it is: fuser /.*lock\)") as caught:
            RigLocks(state, NAMES[:1]).acquire(Owner.me("second"))
        assert caught.value.owner is None


def test_a_lock_held_by_what_a_dead_run_left_behind_says_so(state: Path) -> None:
    with (
        RigLocks(state, NAMES[:1]).acquire(dead_owner()),
        pytest.raises(LockHeld, match=r"by a run that is dead, pid .* left behind still holds the lock \(which one: fuser"),
    ):
        RigLocks(state, NAMES[:1]).acquire(Owner.me("second"))


def test_what_the_last_owner_left_is_undone_before_the_lock_is_ours(state: Path, dials: list[Path]) -> None:
    dying = RigLocks(state, NAMES[:1]).acquire(dead_owner())
    dying.forget()
    journal = dead_journal(state)
    journal.record(DIAL, str(dials[0]), 100, 350)
    journal.close()
    with RigLocks(state, NAMES).acquire(Owner.me("next")):
        assert read_dial(dials[0]) == 100


def test_an_unusable_state_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="PYTEST_SGLANG_STATE_DIR"):
        RigLocks(tmp_path / "file", NAMES).acquire(Owner.me("run"))
    (tmp_path / "state" / "locks").mkdir(parents=True)
    lock_path(tmp_path / "state", NAMES[0]).mkdir()
    with pytest.raises(StateError, match="Is a directory"):
        RigLocks(tmp_path / "state", NAMES).acquire(Owner.me("run"))
    assert holder(tmp_path / "nowhere", NAMES[0]) is None


def test_nobody_holds_a_lock_that_was_let_go(state: Path) -> None:
    RigLocks(state, NAMES).acquire(Owner.me("run")).release()
    assert holder(state, NAMES[0]) is None
