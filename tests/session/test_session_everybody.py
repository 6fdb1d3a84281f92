"""Root's run and a user's on one rig: they lock each other out, and neither takes away what the other has set aside."""

from __future__ import annotations

import multiprocessing
import os
import pwd
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from session_fakes import DIAL, DeadJournal, dead_owner, read_dial, set_dial, until

from pytest_sglang.cache import aside
from pytest_sglang.cache.locate import CachePlace
from pytest_sglang.session import byhand, everybody, guard, locks
from pytest_sglang.session import undo as undo_module
from pytest_sglang.session.errors import Refused
from pytest_sglang.session.everybody import SharedHolder
from pytest_sglang.session.journal import Journal
from pytest_sglang.session.locks import LockHeld, RigLocks
from pytest_sglang.session.state import Owner, StateError
from pytest_sglang.session.undo import undo

NAME = "server http://127.0.0.1:8001"
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory like /run/lock, and the machine's own out of sight. Other users must reach it, which pytest's own they do not."""
    with tempfile.TemporaryDirectory(prefix="pytest-sglang-lock-") as name:
        folder = Path(name)
        folder.chmod(0o1777)
        monkeypatch.setattr(everybody, "shared_dir", lambda: folder)
        yield folder


class Someone:
    """Another process, of another user where that is possible, which works while it is entered."""

    def __init__(self, work: Callable[[], Any], user: int | None = None) -> None:
        context = multiprocessing.get_context("fork")
        self._answer, theirs = context.Pipe()
        self._done = context.Event()

        def run() -> None:
            if user is not None:
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            kept = work()
            theirs.send(kept)
            self._done.wait(30)

        self._process = context.Process(target=run)

    def __enter__(self) -> Any:
        self._process.start()
        self.pid = self._process.pid
        assert self._answer.poll(20)
        self.said = self._answer.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._process.join(20)


# --- locks ------------------------------------------------------------------------------------------------------------------------


def test_two_state_directories_do_not_make_two_rigs(shared: Path, tmp_path: Path) -> None:
    def work() -> None:
        RigLocks(tmp_path / "root", [NAME], shared).acquire(Owner.me("first"))

    with Someone(work) as first:
        with pytest.raises(LockHeld) as caught:
            RigLocks(tmp_path / "user", ["gpu GPU-1", NAME], shared).acquire(Owner.me("second"))
        assert f"another run, pid {first.pid} of " in str(caught.value)
        assert str(everybody.shared_path(shared, NAME)) in str(caught.value)
    # what was taken before the refusal is free again, and so is all of it when the other has ended
    RigLocks(tmp_path / "user", ["gpu GPU-1", NAME], shared).acquire(Owner.me("second")).release()


@as_root
@pytest.mark.parametrize("users", [(None, NOBODY), (NOBODY, None)])
def test_the_file_may_be_anybody_s(shared: Path, users: tuple[int | None, int | None]) -> None:
    """fs.protected_regular and a umask must not lock out the second user for good."""
    path = everybody.shared_path(shared, NAME)

    def take() -> Any:
        os.umask(0o077)
        taken = everybody.take(path)
        return taken if isinstance(taken, SharedHolder) else "taken"

    with Someone(take, users[0]) as first:
        assert first.said == "taken"
        with Someone(take, users[1]) as second:
            assert second.said == SharedHolder(first.pid)
            who = "root" if users[0] is None else pwd.getpwuid(NOBODY).pw_name
            assert second.said.describe().startswith(f"pid {first.pid} of {who}")
    with Someone(take, users[1]) as second:
        assert second.said == "taken"


def test_a_link_is_not_followed_and_a_pipe_is_not_waited_for(shared: Path, tmp_path: Path) -> None:
    precious, path = tmp_path / "precious", everybody.shared_path(shared, NAME)
    precious.write_text("x")
    precious.chmod(0o600)
    path.symlink_to(precious)
    with pytest.raises(StateError, match="a symbolic link, which is not followed"):
        everybody.take(path)
    assert (precious.read_text(), precious.stat().st_mode & 0o777) == ("x", 0o600)
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StateError, match="a symbolic link"):
        everybody.take(path)
    assert not (tmp_path / "nowhere").exists()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StateError, match="not a plain file"):
        everybody.take(path)


def test_a_lock_file_that_was_removed_is_no_lock(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cleaned out of /tmp between opening and locking it: the next one would lock another file."""
    path = everybody.shared_path(shared, NAME)
    real, removed = everybody._open, []

    def open_and_lose(path: Path) -> int:
        descriptor = real(path)
        if not removed:
            path.unlink()
            removed.append(path)
        return descriptor

    monkeypatch.setattr(everybody, "_open", open_and_lose)
    taken = everybody.take(path)
    assert isinstance(taken, int)
    assert os.path.samestat(os.fstat(taken), path.stat())
    os.close(taken)


def test_only_a_directory_where_nobody_takes_another_s_file_away_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_SGLANG_STATE_DIR", raising=False)
    free, link = tmp_path / "free", tmp_path / "link"
    free.mkdir()
    free.chmod(0o777)
    link.symlink_to("/tmp")
    monkeypatch.setattr(everybody, "SHARED", (tmp_path / "none", free, link))
    assert everybody.shared_dir() is None
    monkeypatch.setattr(everybody, "SHARED", (free, Path("/tmp")))
    assert everybody.shared_dir() == Path("/tmp")
    monkeypatch.setenv("PYTEST_SGLANG_STATE_DIR", str(tmp_path))
    assert everybody.shared_dir() is None


def test_a_dead_run_is_not_undone_under_another_user_s(shared: Path, state: Path, tmp_path: Path) -> None:
    dial = tmp_path / "dial"
    set_dial(dial, 250)
    dead = DeadJournal(state, dead_owner())
    dead.covers([NAME])
    dead.record(DIAL, str(dial), 350, 250)
    dead.close()

    def work() -> None:
        # kept open until the process ends
        everybody.take(everybody.shared_path(shared, NAME))

    with Someone(work) as other:
        (outcome,) = undo(state)
        assert outcome.action == "owner alive"
        assert f"in use by another run, pid {other.pid}" in outcome.detail
    assert [each.action for each in undo(state)] == ["undone"]


@pytest.fixture
def heir(shared: Path) -> Iterator[tuple[int, int]]:
    """A lock whose taker is dead while its child keeps the descriptor: both pids."""
    ours, theirs = os.pipe()
    taker = os.fork()
    if taker == 0:
        everybody.take(everybody.shared_path(shared, NAME))
        child = os.fork()
        if child == 0:
            os.close(ours)
            os.close(theirs)
            time.sleep(60)
        else:
            os.write(theirs, str(child).encode())
        os._exit(0)
    os.waitpid(taker, 0)
    child = int(os.read(ours, 20))
    os.close(ours)
    os.close(theirs)
    yield taker, child
    os.kill(child, signal.SIGKILL)


def test_a_lock_that_a_dead_process_s_child_keeps_is_no_run(
    shared: Path, state: Path, tmp_path: Path, heir: tuple[int, int]
) -> None:
    """Killed with -9 while a child had inherited the descriptor: the changes of the dead would stay as long as that child lives."""
    held = everybody.shared_holder(NAME)
    assert held is not None
    assert not held.alive
    leave(state, tmp_path / "dial")
    assert [each.action for each in undo(state)] == ["undone"]
    with pytest.raises(LockHeld, match=r"was in use by a run that is dead.*left behind still holds the lock \(which one: fuser /"):
        RigLocks(state, [NAME], shared).acquire(Owner.me("next"))


@pytest.mark.parametrize("heirs", [True, False])
def test_within_a_pid_namespace_the_heir_is_found(
    shared: Path, heir: tuple[int, int], monkeypatch: pytest.MonkeyPatch, heirs: bool
) -> None:
    """The kernel tells no pid of a dead taker there, and none of a living one in another namespace either."""
    monkeypatch.setattr(everybody, "_pid_of", lambda descriptor: None)
    if not heirs:
        monkeypatch.setattr(everybody, "_has_open", lambda *_: None)
    assert everybody.shared_holder(NAME) == SharedHolder(None, alive=not heirs)


def test_a_pid_that_was_given_anew_does_not_hold_what_its_last_bearer_took(
    shared: Path, heir: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Someone(lambda: None) as other:
        monkeypatch.setattr(everybody, "_pid_of", lambda descriptor: other.pid)
        assert everybody.shared_holder(NAME) == SharedHolder(other.pid, alive=False)


@as_root
def test_a_living_user_s_lock_counts_also_where_that_process_is_out_of_sight(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look() -> SharedHolder | None:
        monkeypatch.setattr(everybody, "started_ticks", lambda pid: None)
        monkeypatch.setattr(everybody, "Path", lambda text: Path(str(text).replace("/proc/", "/proc/hidden/", 1)))
        monkeypatch.setattr(everybody, "_pid_of", lambda descriptor: root.pid)
        return everybody.shared_holder(NAME)

    with Someone(lambda: everybody.take(everybody.shared_path(shared, NAME))) as root, Someone(look, NOBODY) as user:
        assert user.said == SharedHolder(root.pid)


# --- guards -----------------------------------------------------------------------------------------------------------------------


def leave(state: Path, dial: Path, broken: Path | None = None) -> Path:
    """What a dead run leaves on the rig NAME: the dial at 250, which was at 350."""
    set_dial(dial, 250)
    dead = DeadJournal(state, dead_owner())
    dead.covers([NAME])
    dead.record(DIAL, str(dial), 350, 250, {"broken": str(broken)} if broken is not None else None)
    dead.close()
    return dial


def test_the_guard_waits_for_another_user_s_run_and_then_undoes(
    shared: Path, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guard, "OTHERS_LOOK_S", 0.02)
    dial = leave(state, tmp_path / "dial")
    looked = 0
    real = undo_module.undo

    def count(*arguments: Any, **named: Any) -> Any:
        nonlocal looked
        looked += 1
        return real(*arguments, **named)

    monkeypatch.setattr(undo_module, "undo", count)
    with Someone(lambda: everybody.take(everybody.shared_path(shared, NAME))) as other:
        work = threading.Thread(target=guard.undo_all, args=(state, "dead-run"), daemon=True)
        work.start()
        until(lambda: looked > 10 or not work.is_alive())
        assert work.is_alive(), "it must not give up"
        assert read_dial(dial) == 250
    work.join(20)
    assert not work.is_alive(), "nothing is open: it ends"
    assert read_dial(dial) == 350
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2, "the waiting is told once"
    assert f"in use by another run, pid {other.pid}" in lines[0]
    assert lines[0].endswith("(this guard waits for its end)")
    assert "undone: " in lines[1]


def test_nobody_measures_while_the_guard_undoes(
    shared: Path, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between two tries the rig is half restored; the other user cannot read the journal that says so."""
    monkeypatch.setattr(guard, "RETRY_AFTER_S", (0.5,) * 60)
    broken = tmp_path / "broken"
    broken.touch()
    dial, path = leave(state, tmp_path / "dial", broken), str(everybody.shared_path(shared, NAME))
    work = threading.Thread(target=guard.undo_all, args=(state, "dead-run"), daemon=True)
    work.start()
    until((state / "guard.log").exists)
    code = f"from pathlib import Path; from pytest_sglang.session import everybody; print(everybody.take(Path({path!r})))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    broken.unlink()
    work.join(20)
    assert other.stdout.strip() == str(SharedHolder(os.getpid())), other.stderr
    assert read_dial(dial) == 350
    assert everybody.shared_holder(NAME) is None
    RigLocks(tmp_path / "other", [NAME], shared).acquire(Owner.me("next")).release()
    assert "undone" in capsys.readouterr().err


class Guarding:
    """A process that looks like the guard of the dead run, and holds the shared lock for a while."""

    def __init__(self, path: Path, seconds: float) -> None:
        code = f"import fcntl, sys, time; f = open({str(path)!r}, 'a'); fcntl.flock(f, 2); print(flush=True); time.sleep({seconds})"
        command = [sys.executable, "-c", code, everybody.GUARD_MODULE, "--run", "dead-run"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)

    def __enter__(self) -> Guarding:
        assert self.process.stdout is not None
        self.process.stdout.readline()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_a_new_run_waits_for_the_guard_and_is_refused_when_that_takes_long(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = everybody.shared_path(shared, NAME)
    with Guarding(path, 1.0):
        RigLocks(tmp_path / "other", [NAME], shared).acquire(Owner.me("next")).release()
    monkeypatch.setattr(locks, "GUARD_WAIT_S", 0.2)
    with Guarding(path, 60.0) as one, pytest.raises(LockHeld, match=f"is being put back by its guard, pid {one.process.pid}"):
        RigLocks(tmp_path / "other", [NAME], shared).acquire(Owner.me("next"))


def test_its_own_guard_does_not_keep_a_dead_run_from_being_undone_by_hand(shared: Path, state: Path, tmp_path: Path) -> None:
    with Guarding(everybody.shared_path(shared, NAME), 60.0):
        leave(state, tmp_path / "dial")
        assert [each.action for each in undo(state)] == ["undone"]


def test_the_command_names_the_living_run_with_exit_code_4(
    shared: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pytest_sglang import cli

    leave(state, tmp_path / "dial")
    with Someone(lambda: everybody.take(everybody.shared_path(shared, NAME))) as other:
        assert cli.main(["undo"]) == 4
        assert f"in use by another run, pid {other.pid}" in capsys.readouterr().out


# --- journals ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def theirs(tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory of another user."""
    folder = tmp_path / "their-state"
    monkeypatch.setattr(everybody, "directories", lambda: [folder])
    return folder


def set_aside(journal: Journal, cache: Path) -> None:
    """The cache, set aside by the run of this journal; the server has compiled anew."""
    cache.mkdir()
    (cache / "old").touch()
    (planned,) = aside.plan_aside([CachePlace("triton", cache, "test")], token="20260101T000000Z-ab12")
    journal.record("cache_aside", str(planned.original), str(planned.original), str(planned.aside), aside.describe(planned))
    aside.move(planned)
    (cache / "new").touch()


@pytest.mark.parametrize("alive", [True, False])
def test_what_another_user_s_run_has_set_aside_is_not_dropped(theirs: Path, tmp_path: Path, alive: bool) -> None:
    """``pytest-sglang cache drop`` of a user in the middle of root's cold start: the only whole caches would be gone."""
    cache = tmp_path / "triton"
    journal = DeadJournal(theirs, Owner.me("roots-run") if alive else dead_owner("roots-run"))
    set_aside(journal, cache)
    me = everybody.user_name(os.geteuid())
    why = f"a run of {me} that is not over" if alive else f"a run of {me} that died"
    with pytest.raises(Refused, match=why):
        byhand.drop([CachePlace("triton", cache, "test")], ())
    with pytest.raises(Refused, match=why):
        byhand.restore([CachePlace("triton", cache, "test")], ())
    assert [each.name for each in tmp_path.glob("triton.aside-*/old")] == ["old"]
    journal.close()


def test_what_another_user_s_dead_run_has_left_is_told(theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pytest_sglang import cli

    assert everybody.left_by_others() == []
    journal = DeadJournal(theirs, dead_owner("their-run"))
    set_aside(journal, tmp_path / "triton")
    journal.close()
    (told,) = everybody.left_by_others()
    assert told.startswith("a dead run of ")
    assert f"cache_aside of {tmp_path / 'triton'}" in told
    assert told.endswith("pytest-sglang undo")
    assert cli.main(["undo"]) == 0
    assert f"not yours to undo: {told}" in capsys.readouterr().out
    assert (tmp_path / "triton" / "new").exists(), "it is looked at, and not executed"


@pytest.mark.parametrize(
    ("names", "fields", "starts"),
    [
        ([NAME, "gpu GPU-1"], {}, False),
        (["gpu GPU-2"], {}, True),  # another rig
        ([NAME], {"boot_id": "an-earlier-boot"}, True),  # a reboot has settled it
    ],
)
def test_no_run_starts_on_what_another_user_s_dead_run_has_left(
    shared: Path, theirs: Path, state: Path, tmp_path: Path, names: list[str], fields: dict[str, str], starts: bool
) -> None:
    journal = DeadJournal(theirs, dead_owner("their-run")._replace(**fields))
    journal.covers([NAME])
    journal.record(DIAL, str(tmp_path / "dial"), 350, 250)
    journal.close()
    if starts:
        RigLocks(state, names, shared).acquire(Owner.me("next")).release()
        return
    with pytest.raises(
        LockHeld, match=rf"{NAME} is not as its owner left it: a dead run of .*\(run their-run\).*pytest-sglang undo"
    ):
        RigLocks(state, names, shared).acquire(Owner.me("next"))
    assert everybody.shared_holder(NAME) is None, "its guard must get the lock"
    RigLocks(state, names).acquire(Owner.me("simulated")).release()
    journal.path.unlink()
    RigLocks(state, names, shared).acquire(Owner.me("next")).release()


def test_a_living_run_of_another_user_is_nothing_that_was_left(theirs: Path, tmp_path: Path) -> None:
    journal = Journal(theirs, Owner.me("living"))
    set_aside(journal, tmp_path / "triton")
    assert everybody.left_by_others() == []
    journal.resolve(1, "put back")
    journal.close()


@as_root
def test_root_s_journal_can_be_read_by_others_and_a_user_s_cannot(shared: Path) -> None:
    def write(folder: str) -> Callable[[], int]:
        def work() -> int:
            os.umask(0o022)
            journal = Journal(shared / folder, Owner.me("run"))
            journal.record(DIAL, "dial", 1, 2)
            return journal.path.stat().st_mode & 0o777

        return work

    with Someone(write("root")) as root, Someone(write("user"), NOBODY) as user:
        assert (root.said, user.said) == (0o644, 0o600)
