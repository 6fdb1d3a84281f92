from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pytest_sglang.session import state as module
from pytest_sglang.session.state import Owner, StateError, boot_id, ensure, started_ticks, state_dir


def test_the_variable_overrides_the_state_directory_and_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_SGLANG_STATE_DIR", "here")
    assert state_dir() == tmp_path / "here"


def test_root_has_a_machine_wide_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_SGLANG_STATE_DIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert state_dir() == Path("/var/lib/pytest-sglang")


@pytest.mark.parametrize(
    ("xdg", "expected"), [("/xdg", "/xdg"), ("relative", "/home/rig/.local/state"), ("", "/home/rig/.local/state")]
)
def test_others_have_it_below_xdg_state_home(monkeypatch: pytest.MonkeyPatch, xdg: str, expected: str) -> None:
    monkeypatch.delenv("PYTEST_SGLANG_STATE_DIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/rig")
    monkeypatch.setenv("XDG_STATE_HOME", xdg)
    assert state_dir() == Path(expected) / "pytest-sglang"


@pytest.mark.parametrize(("user", "mode"), [(0, 0o755), (1000, 0o700)])
def test_it_is_made_with_the_users_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, user: int, mode: int) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert ensure(tmp_path / "state").stat().st_mode & 0o777 == mode


def test_a_directory_that_cannot_be_made_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"file/state: Not a directory \(set PYTEST_SGLANG_STATE_DIR to"):
        ensure(tmp_path / "file" / "state")


def test_a_child_is_alive_until_it_dies_and_a_zombie_is_dead() -> None:
    child = subprocess.Popen(["sleep", "30"])
    try:
        owner = Owner(child.pid, started_ticks(child.pid) or -1, "sleep 30", "run", boot_id(), os.geteuid())
        assert owner.alive()
        child.kill()
        deadline = time.monotonic() + 5
        while owner.alive():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert Path(f"/proc/{child.pid}").exists(), "not reaped yet: this was the zombie"
    finally:
        child.kill()
        child.wait()
    assert not owner.alive()


def test_another_start_time_or_another_boot_is_another_process() -> None:
    me = Owner.me("run")
    assert me.alive()
    assert not me._replace(started=me.started + 1).alive()
    assert not me._replace(boot_id="another").alive()


def test_a_command_with_blanks_and_brackets_does_not_confuse_the_start_time(tmp_path: Path) -> None:
    program = tmp_path / "a (b) c"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([str(program), "30"])
    try:
        ticks = started_ticks(child.pid)
        assert ticks is not None
        assert abs(ticks - (started_ticks(os.getpid()) or 0)) < 100 * 3600
        assert ticks >= (started_ticks(os.getpid()) or 0)
    finally:
        child.kill()
        child.wait()


def test_an_owner_survives_json_and_a_damaged_one_is_refused() -> None:
    me = Owner.me("run")
    assert Owner.from_plain(me.plain()) == me
    with pytest.raises(ValueError, match="not an owner"):
        Owner.from_plain({"pid": 1})
    with pytest.raises(ValueError, match="not an owner"):
        Owner.from_plain(None)


def test_it_names_its_age_and_command() -> None:
    text = Owner(77, 1, "pytest acceptance/", "run-7", "b").describe(time.time() - 720)
    assert text == "pid 77, for 12 min 00 s: pytest acceptance/ (run run-7)"


def test_no_boot_id_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(boot_id()) == 36
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(OSError()))
    assert boot_id() == ""


def test_a_truncated_stat_line_is_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "1 (x) S 1")
    assert started_ticks(1) is None


def test_the_module_is_light() -> None:
    heavy = ("msgspec", "httpx", "psutil", "numpy", "subprocess")
    code = f"import sys; import pytest_sglang.session.guard; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(module.__file__).parents[2]
    )
    assert done.stdout.strip() == "[]"
