from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from session_fakes import dead_journal, environment

from pytest_sglang.session import journal as module
from pytest_sglang.session.journal import Entry, Journal, JournalError, open_entries, path_of, read
from pytest_sglang.session.state import Owner, StateError


@pytest.fixture
def journal(state: Path) -> Journal:
    return Journal(state, Owner.me("run-1"))


def test_a_run_that_changes_nothing_leaves_nothing(state: Path, journal: Journal) -> None:
    assert journal.close() == ()
    assert open_entries(state) == []
    assert not state.exists()


def test_an_entry_is_on_disk_before_record_returns(state: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    entry = journal.record("power_limit", "GPU-1", 350.0, 250.0, {"nvml": "real"})
    assert synced == [str(state / "journal"), str(state), str(journal.path)]
    (file,) = open_entries(state)
    assert file.open == (entry,)
    assert file.owner == Owner.me("run-1")
    assert file.run_id == "run-1"
    journal.resolve(entry.id, "put back")
    assert synced[3:] == [str(journal.path)]


def test_a_resolved_journal_is_deleted_and_an_open_one_stays(state: Path, journal: Journal) -> None:
    first = journal.record("power_limit", "GPU-1", 350.0, 250.0)
    second = journal.record("power_limit", "GPU-2", 350.0, 250.0)
    journal.resolve(second.id, "put back")
    assert journal.open == (first,)
    assert journal.close() == (first,)
    assert [each.open for each in open_entries(state)] == [(first,)]
    other = Journal(state, Owner.me("run-2"))
    other.resolve(other.record("power_limit", "GPU-3", 1, 2).id, "put back")
    assert other.close() == other.close() == ()
    assert [each.run_id for each in open_entries(state)] == ["run-1"]


def test_resolving_twice_writes_once_and_an_unknown_id_is_refused(journal: Journal) -> None:
    entry = journal.record("power_limit", "GPU-1", 350.0, 250.0)
    journal.resolve(entry.id, "put back")
    size = journal.path.stat().st_size
    journal.resolve(entry.id, "again")
    assert journal.path.stat().st_size == size
    with pytest.raises(JournalError, match=r"no entry 9 \(entries: \[1\]\)"):
        journal.resolve(9, "?")


def test_what_is_put_back_settles_the_later_changes_of_the_same_thing(journal: Journal) -> None:
    context = {"kind": "systemd"}
    stop = journal.record("server", "sglang.service", {"active": True}, {"active": False}, context)
    other = journal.record("power_limit", "GPU-1", 350.0, 250.0)
    first = journal.record("server", "sglang.service", {"active": False}, {"active": True}, context)
    second = journal.record("server", "sglang.service", {"active": False}, {"active": True}, context)
    journal.resolve(second.id, "stopped again")
    assert journal.open == (stop, other, first), "an earlier change is not settled by a later one"
    journal.resolve(stop.id, "started again, ready")
    assert journal.open == (other,), "the guard must not stop the server that was given back"
    assert read(journal.path).resolved[first.id] == "settled with entry 1: started again, ready"


def test_changes_made_in_threads_are_all_there(state: Path, journal: Journal) -> None:
    threads = [threading.Thread(target=journal.record, args=("power_limit", f"GPU-{number}", 1, 2)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (file,) = open_entries(state)
    assert sorted(entry.id for entry in file.open) == list(range(1, 17))
    assert {entry.target for entry in file.open} == {f"GPU-{number}" for number in range(16)}


def _record_in_child(journal: Journal, answers: multiprocessing.Queue[str]) -> None:
    try:
        journal.record("power_limit", "GPU-2", 1, 2)
        answers.put("written")
    except JournalError as error:
        answers.put(str(error))
    journal.close()


def test_a_forked_child_can_neither_write_nor_delete(state: Path, journal: Journal) -> None:
    journal.resolve(journal.record("power_limit", "GPU-1", 1, 2).id, "put back")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_record_in_child, args=(journal, answers))
    child.start()
    assert "make changes in the run's own process" in answers.get(timeout=10)
    child.join()
    assert len(open_entries(state)) == 1


@pytest.mark.parametrize("cut", [1, 7, 60])
def test_a_journal_with_a_cut_last_line_is_read_up_to_it(state: Path, journal: Journal, cut: int) -> None:
    first = journal.record("power_limit", "GPU-1", 350.0, 250.0)
    journal.record("power_limit", "GPU-2", 350.0, 250.0)
    data = journal.path.read_bytes()
    journal.path.write_bytes(data[: -1 - cut])
    file = read(journal.path)
    assert file.entries == (first,)
    assert file.damaged == 1


def test_a_line_written_behind_a_cut_one_is_not_spoiled_by_it(state: Path) -> None:
    journal = dead_journal(state)
    entry = journal.record("power_limit", "GPU-1", 350.0, 250.0)
    journal.record("power_limit", "GPU-2", 350.0, 250.0)
    journal.path.write_bytes(journal.path.read_bytes()[:-20])
    descriptor = os.open(journal.path, os.O_RDWR | os.O_APPEND)
    module.append_resolution(descriptor, entry.id, "undone")
    os.close(descriptor)
    file = read(journal.path)
    assert file.open == ()
    assert file.resolved == {entry.id: "undone"}
    assert file.damaged == 1


def test_blocks_of_zeros_and_other_lines_are_counted_not_raised(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    lines = [
        b"\x00" * 64,
        b"[]",
        b'{"line": "change"}',
        b'{"line": "later invention"}',
        b"\xff\xfe",
        b'{"line": "change", "id": 1, "owner": 3}',
        b"",
    ]
    path.write_bytes(b"\n".join(lines))
    file = read(path)
    assert file.entries == ()
    assert file.owner is None
    assert file.damaged == 4


def test_the_locks_of_a_run_are_kept(state: Path, journal: Journal) -> None:
    journal.covers(["gpu GPU-1", "server http://127.0.0.1:8001"])
    assert open_entries(state)[0].locks == ("gpu GPU-1", "server http://127.0.0.1:8001")


def test_journals_come_oldest_first_and_one_can_be_asked_for(state: Path) -> None:
    for age, name in ((30, "b"), (10, "a"), (20, "c")):
        journal = dead_journal(state, name)
        journal.record("power_limit", "GPU-1", 1, 2)
        os.utime(journal.path, (1e9 - age, 1e9 - age))
    assert [each.run_id for each in open_entries(state)] == ["b", "c", "a"]
    assert [each.run_id for each in open_entries(state, "c")] == ["c"]
    assert open_entries(state, "gone") == []


def test_another_users_journal_is_not_read(state: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.record("power_limit", "GPU-1", 1, 2)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert open_entries(state) == []


@pytest.mark.parametrize("run_id", ["", "../x", ".hidden", "a/b"])
def test_a_run_id_that_is_no_file_name_is_refused(state: Path, run_id: str) -> None:
    with pytest.raises(JournalError, match="cannot be a file name"):
        path_of(state, run_id)


def test_a_journal_that_cannot_be_written_forbids_the_change(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="PYTEST_SGLANG_STATE_DIR"):
        Journal(tmp_path / "file", Owner.me("run")).record("power_limit", "GPU-1", 1, 2)


def test_a_full_disk_forbids_the_change_and_says_which(state: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    journal.record("power_limit", "GPU-1", 1, 2)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(JournalError, match="No space left on device, so power_limit of GPU-2 was not changed"):
        journal.record("power_limit", "GPU-2", 1, 2)
    assert [each.target for each in journal.open] == ["GPU-1"]


def test_a_value_that_is_no_json_is_refused_before_anything_is_written(state: Path, journal: Journal) -> None:
    with pytest.raises(TypeError):
        journal.record("cache_aside", "/cache", Path("/cache"), Path("/aside"))
    assert journal.open == ()
    assert all(not each.entries and not each.damaged for each in open_entries(state))


def test_a_folder_that_cannot_be_read_is_named(state: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.record("power_limit", "GPU-1", 1, 2)

    def refuse(*_: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(StateError, match=r"run-1\.jsonl: Permission denied"):
        open_entries(state)


def test_kill_9_during_a_burst_of_entries_loses_at_most_the_last(state: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from pytest_sglang.session.journal import Journal; from pytest_sglang.session.state import Owner\n"
        "journal = Journal(Path(sys.argv[1]), Owner.me('burst'))\n"
        "while True: print(journal.record('power_limit', 'GPU', 1, 2).id, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(state)], stdout=subprocess.PIPE, text=True, env=environment(state))
    assert process.stdout is not None
    for _ in range(50):
        process.stdout.readline()
    process.kill()
    told = [int(line) for line in process.stdout.read().split("\n")[:-1]] or [50]
    process.stdout.close()
    process.wait()
    ids = [entry.id for entry in read(path_of(state, "burst")).entries]
    assert ids == list(range(1, len(ids) + 1))
    assert ids[-1] in (max(told), max(told) + 1)


def test_an_entry_survives_json(journal: Journal) -> None:
    entry = journal.record("server", "sglang.service", {"active": True}, {"active": False}, {"kind": "systemd"})
    assert Entry.from_plain(json.loads(json.dumps(entry.plain()))) == entry
    assert entry.owner.boot_id == entry.boot_id
