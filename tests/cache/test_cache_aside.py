"""Caches are set aside and put back without loss, whatever comes between."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cache_trees import triton_entry, write

from pytest_sglang.cache import aside, mounts, users
from pytest_sglang.cache.aside import AsideError, Moved
from pytest_sglang.cache.locate import CachePlace
from pytest_sglang.cache.machine import Machine


def places_of(*paths: Path) -> tuple[CachePlace, ...]:
    return tuple(CachePlace(path.name, path, "test", "TRITON_CACHE_DIR") for path in paths)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    triton_entry(tmp_path / "cache", "old")
    (tmp_path / "cache").chmod(0o2750)
    return tmp_path / "cache"


def test_the_cache_is_emptied_and_comes_back(cache: Path) -> None:
    inode = cache.stat().st_ino
    [moved] = aside.set_aside(places_of(cache), token="run 1/x")
    assert moved.aside == cache.with_name("cache.aside-run-1-x")
    assert stat.S_IMODE(cache.stat().st_mode) == 0o2750
    assert [path.name for path in cache.iterdir()] == [".pytest-sglang-run-1-x"]
    write(cache / "grown")
    assert aside.restore([moved]) == ()
    assert cache.stat().st_ino == inode
    assert [path.name for path in cache.parent.iterdir()] == ["cache"]
    assert aside.restore([moved]) == ()


def test_the_new_directory_gets_the_old_ones_owner(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = []
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(os, "chown", lambda path, user, group: owners.append((Path(path).name, user, group)))
    [planned] = aside.plan_aside(places_of(cache), token="t")
    aside.move(planned)
    assert owners == [("cache.new-t", cache.stat().st_uid, cache.stat().st_gid)]


def test_labels_go_along(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {cache: {"security.selinux": b"cache_t"}}
    monkeypatch.setattr(os, "listxattr", lambda path: list(labels[path]))
    monkeypatch.setattr(os, "getxattr", lambda path, name: labels[path][name])
    monkeypatch.setattr(os, "setxattr", lambda path, name, value: labels.setdefault(path, {}).update({name: value}))
    [moved] = aside.set_aside(places_of(cache), token="t")
    assert labels[moved.fresh] == {"security.selinux": b"cache_t"}


def test_a_file_system_without_labels_is_no_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> list[str]:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "listxattr", refuse)
    assert aside.set_aside(places_of(cache), token="t")


def test_the_plan_touches_nothing_and_takes_inner_caches_along(cache: Path) -> None:
    (cache / "inductor" / "triton").mkdir(parents=True)
    places = places_of(cache / "inductor" / "triton", cache, cache / "inductor", cache.parent / "absent")
    [moved] = aside.plan_aside(places, token="t")
    assert (moved.original, moved.kind, moved.children) == (cache, "cache", False)
    assert [path.name for path in cache.parent.iterdir()] == ["cache"]


def test_a_linked_cache_is_renamed_where_it_really_is(cache: Path) -> None:
    link = cache.parent / "link"
    link.symlink_to(cache)
    [moved] = aside.set_aside(places_of(link), token="t")
    assert moved.original == cache
    assert link.is_symlink()
    aside.restore([moved])
    assert len(list(link.iterdir())) == 1


def test_a_rename_is_described_for_the_journal_in_plain_types(cache: Path) -> None:
    [moved] = aside.plan_aside(places_of(cache), token="t")
    context = json.loads(json.dumps(aside.describe(moved)))
    assert aside.described(str(moved.original), str(moved.aside), context) == moved
    with pytest.raises(ValueError, match="lacks 'kind'"):
        aside.described("/a", "/b", {})


def test_somebody_elses_directory_at_the_original_path_is_kept(cache: Path) -> None:
    [moved] = aside.set_aside(places_of(cache), token="t")
    cache.rename(cache.with_name("elsewhere"))
    write(cache / "theirs")
    write(cache.with_name("cache.found-t") / "earlier")
    [note] = aside.restore([moved])
    assert note == f"{cache} was not made by this run: kept as {cache}.found-t-2"
    assert (cache.with_name("cache.found-t-2") / "theirs").exists()
    assert len(list(cache.iterdir())) == 1


def test_putting_back_what_was_never_moved_does_nothing(cache: Path) -> None:
    plan = aside.plan_aside(places_of(cache), token="t")
    assert aside.restore(plan) == ()
    assert len(list(cache.iterdir())) == 1


def test_the_same_name_twice_is_refused(cache: Path) -> None:
    [moved] = aside.set_aside(places_of(cache), token="t")
    with pytest.raises(AsideError, match="exists: a cache was set aside under this name before"):
        aside.move(moved)
    assert moved.aside.exists()


def test_all_or_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = cache.with_name("second")
    triton_entry(second, "k")
    real = os.rename

    def rename(old: Path, new: Path) -> None:
        if str(old) == str(second):
            raise OSError(18, "Invalid cross-device link")
        real(old, new)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(AsideError, match=r"second: cannot be set aside: Invalid cross-device link \(the old cache is .*second\)"):
        aside.set_aside(places_of(cache, second), token="t")
    assert sorted(path.name for path in cache.parent.iterdir()) == ["cache", "second"]
    assert len(list(cache.iterdir())) == 1


def test_one_cache_that_cannot_be_put_back_leaves_none_of_the_others_out(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = cache.with_name("second")
    triton_entry(second, "k")
    done = aside.set_aside(places_of(cache, second), token="t")
    real = os.rename

    def rename(old: Path, new: Path) -> None:
        if str(new) == str(second):
            raise OSError(30, "Read-only file system")
        real(old, new)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", rename)
        with pytest.raises(AsideError, match=r"second: not put back: Read-only file system .the old cache is in .*second.aside-t"):
            aside.restore(done)
    assert len(list(cache.iterdir())) == 1
    assert aside.restore(done) == ()
    assert len(list(second.iterdir())) == 1


def test_what_cannot_be_removed_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [moved] = aside.set_aside(places_of(cache), token="t")
    monkeypatch.setattr(aside.shutil, "rmtree", lambda path, ignore_errors: None)
    [note] = aside.restore([moved])
    assert note.startswith(f"{moved.grown} could not be removed wholly")


def test_a_mount_points_children_are_moved_inside_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "is_mount_point", lambda path: True)
    (cache / "lost+found").mkdir()
    [moved] = aside.set_aside(places_of(cache), token="t")
    assert (moved.children, moved.aside.parent) == (True, cache)
    assert sorted(path.name for path in cache.iterdir()) == [".pytest-sglang-aside-t", "lost+found"]
    triton_entry(cache, "old")
    write(cache / "grown")
    assert aside.restore([moved]) == ()
    assert sorted(path.name for path in cache.iterdir() if not path.name.startswith("A")) == ["lost+found"]
    assert len(list(cache.iterdir())) == 2


def test_a_half_moved_mount_point_keeps_what_a_server_wrote_meanwhile(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "is_mount_point", lambda path: True)
    write(cache / "x").write_text("old")
    [moved] = aside.plan_aside(places_of(cache), token="t")
    # as after a kill in the middle: some children are moved, the others not
    moved.aside.mkdir()
    (cache / "x").rename(moved.aside / "x")
    (cache / "x").write_text("theirs")
    [note] = aside.restore([moved])
    assert (cache / "x").read_text() == "old"
    assert (moved.found / "x").read_text() == "theirs"
    assert "was not made by this run" in note


@pytest.mark.parametrize("how", ["rename", "children"])
def test_killed_at_any_point_the_old_cache_is_byte_identical_afterwards(tmp_path: Path, how: str) -> None:
    driver = Path(__file__).with_name("kill_points.py")
    done = subprocess.run(
        [sys.executable, str(driver), str(tmp_path), how], capture_output=True, text=True, timeout=600, check=True
    )
    lines = [line.split(" ", 2) for line in done.stdout.splitlines()]
    assert len({line[0] for line in lines}) >= 20
    assert [line for line in lines if not line[2].startswith("identical")] == []


# --- refusals ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the tests' directory for one that is kept."""
    monkeypatch.setattr(aside, "temporary_root", lambda path: None)
    monkeypatch.setattr(aside, "in_memory", lambda path: False)


@pytest.mark.usefixtures("kept")
def test_a_cache_of_our_own_may_be_set_aside(cache: Path) -> None:
    assert aside.refusals(places_of(cache, cache / "inner", cache.parent / "absent")) == ()


def test_a_temporary_directory_is_refused_and_the_variable_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "temporary_root", lambda path: Path("/tmp"))
    [reason] = aside.refusals(places_of(cache))
    assert reason.startswith(f"{cache} lies in /tmp: a reboot would take the renamed cache with it (set TRITON_CACHE_DIR to")
    assert aside.refusals(places_of(cache), allow_temporary=True) == ()


def test_a_file_system_in_memory_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "temporary_root", lambda path: None)
    monkeypatch.setattr(aside, "in_memory", lambda path: True)
    [reason] = aside.refusals(places_of(cache))
    assert "is kept in memory" in reason


@pytest.mark.usefixtures("kept")
def test_a_private_temporary_directory_is_refused_even_where_temporary_ones_are_allowed(cache: Path) -> None:
    private = CachePlace("inductor", cache, "default", "TORCHINDUCTOR_CACHE_DIR", through="/proc/1/root")
    [reason] = aside.refusals((private,), allow_temporary=True)
    assert "PrivateTmp=yes" in reason
    assert "set TORCHINDUCTOR_CACHE_DIR" in reason
    assert aside.plan_aside((private,), token="t") == []


@pytest.mark.usefixtures("kept")
def test_a_home_directory_is_no_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: cache / "sg")
    [reason] = aside.refusals(places_of(cache))
    assert reason == f"{cache} is not a directory for a cache alone: {cache}/sg lies in it (give the cache a directory of its own)"


@pytest.mark.usefixtures("kept")
def test_another_users_cache_needs_that_user(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    [reason] = aside.refusals(places_of(cache))
    assert reason.endswith("run as that user or as root")


@pytest.mark.usefixtures("kept")
def test_an_owner_without_a_name_is_no_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> object:
        raise KeyError(uid)

    monkeypatch.setattr(aside.pwd, "getpwuid", unknown)
    assert aside.refusals(places_of(cache)) == ()


@pytest.mark.usefixtures("kept")
def test_a_parent_that_is_not_writable_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != cache.parent)
    [reason] = aside.refusals(places_of(cache))
    assert reason.startswith(f"{cache.parent} is not writable")


@pytest.mark.usefixtures("kept")
def test_a_mount_point_inside_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = mounts.Mount(cache / "triton", "ext4", frozenset({"rw"}))
    monkeypatch.setattr(aside, "mounts", lambda: (inside,))
    [reason] = aside.refusals(places_of(cache))
    assert f"mount point inside ({cache}/triton)" in reason


HOLDS = "import os,sys; file = open(sys.argv[1]); print(flush=True); input()"
MAPS = """
import mmap, os, sys
with open(sys.argv[1], "rb") as file:
    held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    os.close(os.dup(file.fileno()))
print(flush=True)
input()
"""
CHILD = """
import subprocess, sys
with subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1]], stdin=sys.stdin, stdout=sys.stdout) as child:
    child.wait()
"""


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("code", [HOLDS, MAPS, "import os; os.chdir(__import__('sys').argv[2]); print(flush=True); input()"])
def test_a_cache_in_use_is_refused_and_the_process_named(cache: Path, code: str) -> None:
    used = next(cache.rglob("*.cubin"))
    with subprocess.Popen(
        [sys.executable, "-c", code, str(used), str(cache)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        [reason] = aside.refusals(places_of(cache))
        assert f"is in use by pid {process.pid} (" in reason
        assert reason.endswith("): stop it first")
        assert aside.refusals(places_of(cache), ignore_pids=[process.pid]) == ()
        process.kill()


@pytest.mark.usefixtures("kept")
def test_the_servers_children_are_passed_over_with_it(cache: Path) -> None:
    used = next(cache.rglob("*.cubin"))
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(used), HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        assert len(users.users_of([cache])) == 1
        assert aside.refusals(places_of(cache), ignore_pids=[process.pid]) == ()
        process.stdin.write(b"\n")
        process.stdin.close()


def test_a_machine_without_proc_tells_no_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> list[str]:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "listdir", refuse)
    assert users.users_of([Path("/c")]) == ()


def test_no_folders_have_no_users() -> None:
    assert users.users_of([]) == ()


def test_a_process_that_ends_while_it_is_looked_at_uses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "_pids", lambda: [2**22 + 1])
    assert users.users_of([tmp_path]) == ()
    assert users._command(2**22 + 1) == "gone"


def test_the_names_beside_a_cache_are_told_apart() -> None:
    moved = Moved(Path("/c/cache"), Path("/c/cache.aside-t"), "triton", "t")
    assert {str(moved.grown), str(moved.found), str(moved.fresh)} == {"/c/cache.grown-t", "/c/cache.found-t", "/c/cache.new-t"}


# --- by name, without any record -----------------------------------------------------------------------------------------


def test_what_is_set_aside_is_found_by_its_name(cache: Path) -> None:
    [moved] = aside.set_aside(places_of(cache), token="run")
    assert aside.standing(places_of(cache, cache.parent / "absent")) == [moved]
    write(cache.with_name("cache.aside-file"))
    assert aside.standing(places_of(cache)) == [moved]
    aside.restore([moved])
    assert aside.standing(places_of(cache)) == []


def test_what_is_set_aside_in_a_mount_point_is_found_inside_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "is_mount_point", lambda path: True)
    [moved] = aside.set_aside(places_of(cache), token="run")
    assert aside.standing(places_of(cache)) == [moved]


@pytest.mark.parametrize("mount", [False, True])
def test_put_back_by_hand_keeps_what_has_grown(cache: Path, monkeypatch: pytest.MonkeyPatch, mount: bool) -> None:
    if mount:
        monkeypatch.setattr(aside, "is_mount_point", lambda path: True)
    [moved] = aside.set_aside(places_of(cache), token="run")
    write(cache / "months" / "of service")
    notes = aside.swap_back(moved)
    assert len(list(cache.glob("*/*.cubin"))) == 1
    if mount:
        assert (cache / "months" / "of service").exists() or (moved.found / "months" / "of service").exists()
    else:
        assert notes == (f"{cache} was not made by this run: kept as {moved.found}",)
        assert (moved.found / "months" / "of service").exists()


def test_an_old_cache_is_dropped_only_when_there_is_a_new_one(cache: Path) -> None:
    [moved] = aside.set_aside(places_of(cache), token="run")
    with pytest.raises(AsideError, match=r"is empty: nothing has been compiled since, so .*\.aside-run is all there is"):
        aside.drop(moved)
    write(cache / "new")
    aside.drop(moved)
    assert [path.name for path in cache.iterdir()] == ["new"]
    assert [path.name for path in cache.parent.iterdir()] == ["cache"]


def test_precompiled_headers_are_no_reason_to_refuse_and_stay(cache: Path) -> None:
    headers = CachePlace("headers", cache, "default")
    assert aside.refusals((headers,)) == ()
    assert aside.plan_aside((headers,), token="t") == []
    assert aside.standing((headers,)) == []


def test_a_machine_tells_what_is_temporary(cache: Path) -> None:
    outer = cache.parent
    disk = mounts.Mount(Path("/"), "ext4", frozenset({"rw"}))
    (outer / "tmp").mkdir()
    inner = outer / "tmp" / "inductor"
    inner.mkdir()
    assert aside.refusals(places_of(cache), machine=Machine((disk,), outer=outer)) == ()
    [reason] = aside.refusals(places_of(inner), machine=Machine((disk,), outer=outer))
    assert f"{inner} lies in /tmp: a reboot would take the renamed cache with it" in reason
    private = mounts.Mount(Path("/tmp"), "ext4", frozenset({"rw"}), "/tmp/systemd-private-1/tmp")
    [reason] = aside.refusals(places_of(inner), machine=Machine((disk, private), outer=outer))
    assert "of the unit's own (PrivateTmp=yes): stopping the unit would take the renamed cache with it" in reason
    memory = mounts.Mount(Path("/cache"), "tmpfs", frozenset({"rw"}))
    [reason] = aside.refusals(places_of(cache), machine=Machine((disk, memory), outer=outer))
    assert "is kept in memory: a reboot would take" in reason


def test_killed_at_random_points_the_next_run_puts_everything_back(tmp_path: Path) -> None:
    driver = Path(__file__).with_name("kill_random.py")
    done = subprocess.run(
        [sys.executable, str(driver), str(tmp_path), "20"], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 caches not identical afterwards" in done.stdout
