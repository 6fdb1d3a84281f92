"""Root's run and a user's on one rig: they lock each other out, and neither takes away what the other has set aside."""

from __future__ import annotations

import multiprocessing
import os
import pwd
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from session_fakes import DIAL, DeadJournal, dead_owner, set_dial

from pytest_sglang.cache import aside
from pytest_sglang.cache.locate import CachePlace
from pytest_sglang.session import byhand, everybody
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
