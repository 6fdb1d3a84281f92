"""reports/ as a store: fast, whole, and never broken by what else lies there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from stored_runs import boots, stored

from pytest_sglang.cli import main
from pytest_sglang.record import run as records
from pytest_sglang.report import history as shown
from pytest_sglang.session import baseline, history, store
from pytest_sglang.session.errors import Refused


def test_broken_and_foreign_folders_are_skipped_with_a_line(tmp_path: Path) -> None:
    stored(tmp_path, "good")
    later = '{"schema": 9, "run_id": {"of": "another kind"}}'
    for name, text in (
        ("cut", "{"),
        ("list", "[]"),
        ("later", later),
        ("other", '{"schema": 9, "run_id": "x", "started": "", "simulated": false}'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    (tmp_path / "empty").mkdir()
    (tmp_path / "index.html").write_text("")
    found, skipped = store.runs(tmp_path)
    assert [each.run_id for each in found] == ["good"]
    assert [Path(each.path).parent.name for each in skipped] == ["cut", "later", "list", "other"]
    assert skipped[1].reason == skipped[3].reason == "schema 9, this version reads 1"
    assert store.runs(tmp_path / "nowhere") == ([], [])


def test_short_and_whole_reading_agree(tmp_path: Path) -> None:
    path = stored(tmp_path, "one")
    short, whole = store.runs(tmp_path)[0][0], records.read(path)
    assert store.whole(short) == whole
    assert short.measured("decode-throughput", 250.0) == (whole.checks[0].measured["decode_tok_s"].value, "tok/s")
    assert short.measured("decode-throughput", 390.0) is None
    assert short.measured("nothing") is None


def test_retention_keeps_the_newest_and_the_baselines(tmp_path: Path) -> None:
    paths = boots(tmp_path, "run", 6)
    stored(tmp_path, "going-on", finished=False)
    (paths[0] / store.KEPT).write_text("default\n")
    assert store.prune(tmp_path, 2, dry_run=True) == paths[1:4]
    assert all(path.exists() for path in paths)
    assert store.prune(tmp_path, 2) == paths[1:4]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["going-on", "run-00", "run-04", "run-05"]
    with pytest.raises(ValueError, match="at least 1"):
        store.prune(tmp_path, 0)


def test_retention_leaves_what_is_not_a_plain_run_of_ours(tmp_path: Path) -> None:
    paths = boots(tmp_path / "reports", "run", 6)
    renamed = paths[0].rename(tmp_path / "reports" / "before the upgrade")
    elsewhere = paths[1].rename(tmp_path / "run-01")
    paths[1].symlink_to(elsewhere)
    used = records.read(paths[5])
    gain = {"compile_baseline": "reports/run-02", "nvlink_baseline": "reports/run-03/run.json"}
    records.write(msgspec.structs.replace(used, rig={**used.rig, "gain": gain}), paths[5])
    assert store.prune(tmp_path / "reports", 1) == [paths[4]]
    assert all(each.exists() for each in (renamed, elsewhere, paths[2], paths[3], paths[5]))
    assert paths[1].is_symlink()


def test_a_clean_up_that_is_cut_off_leaves_no_half_run_and_is_ended_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    boots(tmp_path, "run", 3)

    def cut(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", cut)
        assert main(["history", str(tmp_path), "--keep=2"]) == 4
    assert f"{tmp_path}/.removed-run-00: Permission denied" in capsys.readouterr().err
    assert [each.run_id for each in store.runs(tmp_path)[0]] == ["run-01", "run-02"]
    assert store.prune(tmp_path, 2) == []
    assert sorted(each.name for each in tmp_path.iterdir()) == ["run-01", "run-02"]


def test_a_place_that_cannot_be_written_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored(tmp_path, "one")
    (tmp_path / "file").write_text("")
    assert main(["merge", str(tmp_path), "-o", str(tmp_path / "file")]) == 4
    assert capsys.readouterr().err == f"pytest-sglang merge: {tmp_path / 'file'}: File exists\n"


def test_a_folder_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(tmp_path, "good")
    (tmp_path / "theirs").mkdir()

    def refusing(real: Callable[[Path], object]) -> Callable[[Path], object]:
        def asked(path: Path) -> object:
            if path.parent.name == "theirs":
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        return asked

    for name in ("is_file", "read_bytes"):
        monkeypatch.setattr(Path, name, refusing(getattr(Path, name)))
    found, skipped = store.runs(tmp_path)
    assert [each.run_id for each in found] == ["good"]
    assert [each.reason for each in skipped] == ["Permission denied"]


def test_two_runs_that_end_at_once_leave_an_index_with_both(tmp_path: Path) -> None:
    """Each marks its run finished and writes the index, as a run does at its end; the last writer has read both."""
    for name in ("first", "second"):
        stored(tmp_path, name, finished=False)
    barrier = threading.Barrier(2)

    def end(name: str) -> None:
        run = records.read(tmp_path / name)
        barrier.wait()
        records.write(msgspec.structs.replace(run, finished=run.started, verdict="pass"), tmp_path / name)
        shown.write_index(tmp_path)

    for _ in range(3):
        ends = [threading.Thread(target=end, args=(name,)) for name in ("first", "second")]
        for each in ends:
            each.start()
        for each in ends:
            each.join()
        assert "NOT FINISHED" not in (tmp_path / "index.html").read_text()


def test_a_run_links_its_own_page_that_comes_after_the_index(tmp_path: Path) -> None:
    mine, other = stored(tmp_path, "mine"), stored(tmp_path, "other")
    assert 'href="mine/report.html"' in shown.write_index(tmp_path, coming=mine).read_text()
    assert 'href="other/report.html"' not in (tmp_path / "index.html").read_text()
    (other / "report.html").write_text("here")
    assert 'href="other/report.html"' in shown.write_index(tmp_path).read_text()


def test_an_index_that_somebody_else_holds_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(tmp_path, "one")
    monkeypatch.setattr(shown, "WAIT_S", 0.2)
    with shown.locked(tmp_path):
        assert shown.write_index(tmp_path).is_file()


def test_retention_of_one_rig_leaves_the_others_alone_and_simulated_runs_push_no_real_one_out(tmp_path: Path) -> None:
    mine, theirs = boots(tmp_path, "run", 3), [stored(tmp_path, f"cellar-{number}", rig="cellar") for number in range(3)]
    for number in range(3):
        stored(tmp_path, f"try-{number}", simulated=True, started="2027-01-01T00:00:00.000Z")
    assert main(["history", str(tmp_path), "--keep=1", "--rig=cellar"]) == 0
    assert [path.exists() for path in theirs] == [False, False, True]
    assert all(path.exists() for path in mine)
    store.prune(tmp_path, 3)
    assert all(path.exists() for path in mine)


def test_a_simulated_run_takes_no_name_from_a_real_baseline(tmp_path: Path) -> None:
    real, tried = stored(tmp_path, "real"), stored(tmp_path, "tried", simulated=True)
    baseline.save(real, records.read(real), "default")
    baseline.save(tried, records.read(tried), "default")
    for folder, simulated in ((real, False), (tried, True)):
        assert baseline.names_of(folder) == ["default"]
        found = baseline.find(tmp_path, "six-3090", "default", simulated=simulated)
        assert found is not None
        assert found.run_id == folder.name


def test_trends_have_values_verdicts_and_steps(tmp_path: Path) -> None:
    boots(tmp_path, "a", 6, month=8)
    boots(tmp_path, "b", 6, tok_s=36.0, month=9, verdict="fail")
    trends = {each.label: each for each in history.trends(store.runs(tmp_path)[0])}
    decode = trends["decode-throughput at 250 W"]
    assert len(decode.values) == 12
    assert decode.step is not None
    assert decode.step_at is not None
    assert decode.step_at.run_id == "b-00"
    assert (decode.limit, decode.op, decode.unit) == (38.0, ">=", "tok/s")
    assert trends["warm-restart"].step is None
    assert trends["warm-restart"].step_at is None


def test_a_baseline_has_one_name_and_one_place(tmp_path: Path) -> None:
    first, second = boots(tmp_path, "run", 2)
    assert baseline.save(first, records.read(first), "default") == "baseline 'default' saved: run-00"
    assert "saved: run-01" in baseline.save(second, records.read(second), "default")
    assert baseline.names_of(first) == []
    assert baseline.names_of(second) == ["default"]
    found = baseline.find(tmp_path, "six-3090", "default")
    assert found is not None
    assert found.run_id == "run-01"
    assert baseline.find(tmp_path, "cellar", "default") is None
    failed = stored(tmp_path, "bad", verdict="fail")
    assert "not saved" in baseline.save(failed, records.read(failed), "default")
    assert baseline.names_of(second) == ["default"]


@pytest.mark.parametrize(("text", "save", "name"), [("save", True, "default"), ("compare=old-1", False, "old-1")])
def test_the_option(text: str, save: bool, name: str) -> None:
    wish = baseline.parse(text)
    assert wish is not None
    assert (wish.save, wish.name) == (save, name)
    assert baseline.parse(None) is None


@pytest.mark.parametrize("text", ["keep", "save=a/b", "compare=../x"])
def test_a_wrong_option_shows_a_right_one(text: str) -> None:
    with pytest.raises(Refused, match="--sglang-baseline=compare=before-upgrade"):
        baseline.parse(text)


WRITER = """
import sys
from pathlib import Path
import msgspec
from pytest_sglang.record import run as records
from pytest_sglang.report import history as shown
folder = Path(sys.argv[1])
run = records.read(folder)
print("go", flush=True)
number = 0
while True:
    number += 1
    records.write(msgspec.structs.replace(run, duration_s=float(number)), folder)
"""


def test_kill_9_while_writing_leaves_a_whole_record(tmp_path: Path) -> None:
    path = stored(tmp_path, "one")
    for pause_s in (0.0, 0.003, 0.011, 0.02, 0.05):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(pause_s)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert records.read(path).run_id == "one"
