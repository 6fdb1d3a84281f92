"""Will the caches survive? Mounts, temporary directories, owners, space."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

import pytest

from pytest_sglang.cache import mounts, survive
from pytest_sglang.cache.locate import CachePlace
from pytest_sglang.cache.mounts import Mount
from pytest_sglang.record.values import Finding

MOUNTINFO = """\
22 1 254:1 / / rw,relatime - ext4 /dev/vda rw,errors=remount-ro
30 22 0:25 / /dev/shm rw,nosuid - tmpfs tmpfs rw
40 22 254:2 / /data rw,relatime shared:5 - xfs /dev/vdb rw
41 40 254:2 /sub /data/with\\040space rw - xfs /dev/vdb rw
42 40 254:3 / /data/ro ro - ext4 /dev/vdc rw
43 40 0:31 / /data/ram rw - tmpfs tmpfs rw
44 22 254:9 / /data rw,relatime - zfs pool/data rw
short line
"""
KNOWN = mounts.mounts(MOUNTINFO)


def test_mounts_are_read() -> None:
    assert KNOWN[0] == Mount(Path("/"), "ext4", frozenset({"rw", "relatime", "errors=remount-ro"}))
    assert KNOWN[3].point == Path("/data/with space")
    assert len(KNOWN) == 7


def test_the_deepest_and_latest_mount_holds_a_path() -> None:
    assert mounts.mount_of(Path("/home/x"), KNOWN) == KNOWN[0]
    assert mounts.mount_of(Path("/data/c/d"), KNOWN) == KNOWN[6]
    assert mounts.mount_of(Path("/data/ram"), KNOWN) == KNOWN[5]
    assert mounts.mount_of(Path("/x"), ()) is None
    assert mounts.in_memory(Path("/data/ram/x"), KNOWN)
    assert not mounts.in_memory(Path("/x"), ())
    assert mounts.is_mount_point(Path("/data/ram"), KNOWN)
    assert not mounts.is_mount_point(Path("/data/ram/x"), KNOWN)
    assert mounts.mounts_inside(Path("/data"), KNOWN) == (Path("/data/ram"), Path("/data/ro"), Path("/data/with space"))


def test_this_machines_own_mounts_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mounts.mount_of(Path.home()) is not None
    assert mounts.is_mount_point(Path("/proc"))
    assert Path("/proc") in mounts.mounts_inside(Path("/"))
    assert not mounts.in_memory(Path("/proc"))

    def refuse(path: Path, **options: str) -> str:
        raise OSError(2, "No such file or directory")

    monkeypatch.setattr(Path, "read_text", refuse)
    assert mounts.mounts() == ()


@pytest.mark.parametrize(
    ("path", "environ", "expected"),
    [
        ("/tmp/torchinductor_u", {}, "/tmp"),
        ("/var/tmp/x", {}, "/var/tmp"),
        ("/dev/shm/x", {}, "/dev/shm"),
        ("/run/user/0/x", {}, "/run"),
        ("/tmp", {}, "/tmp"),
        ("/tmpx/y", {}, None),
        ("/home/u/.cache/sglang", {}, None),
        ("/scratch/x", {"TMPDIR": "/scratch"}, "/scratch"),
        ("/scratch/x", {"TMPDIR": ""}, None),
    ],
)
def test_temporary_directories(path: str, environ: dict[str, str], expected: str | None) -> None:
    assert mounts.temporary_root(Path(path), environ) == (None if expected is None else Path(expected))


def test_our_own_temporary_directory_counts_where_no_environment_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts.tempfile, "gettempdir", lambda: "/scratch")
    assert mounts.temporary_root(Path("/scratch/x")) == Path("/scratch")


# --- findings ------------------------------------------------------------------------------------------------------------


class World:
    """What the findings ask of the machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.known: tuple[Mount, ...] = (Mount(Path("/"), "ext4", frozenset({"rw"})),)
        self.free = 100 * 2**30
        self.owner, self.mode = 1000, 0o40755
        monkeypatch.setattr(survive, "_is_dir", lambda place: not str(place.path).endswith("absent"))
        monkeypatch.setattr(survive, "mounts", lambda: self.known)
        monkeypatch.setattr(survive, "in_memory", lambda path: mounts.in_memory(path, self.known))
        monkeypatch.setattr(os, "stat", lambda path: os.stat_result((self.mode, 0, 0, 1, self.owner, 0, 0, 0, 0, 0)))
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 0, self.free))  # type: ignore[attr-defined]
        monkeypatch.setattr(pwd, "getpwnam", self.user)

    def user(self, name: str) -> pwd.struct_passwd:
        if name == "nobody-knows":
            raise KeyError(name)
        return pwd.struct_passwd((name, "x", {"sglang": 1000, "root": 0}.get(name, 1001), 0, "", "/", "/"))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def inductor(path: str = "/tmp/torchinductor_sg", through: str = "") -> CachePlace:
    return CachePlace("inductor", Path(path), "default", "TORCHINDUCTOR_CACHE_DIR", through)


def test_a_cache_in_tmp_is_a_finding_with_the_line_for_the_unit(world: World) -> None:
    places = (inductor(), CachePlace("fxgraph", Path("/tmp/torchinductor_sg/fxgraph"), "default"), inductor("/tmp/absent"))
    assert survive.findings(places, {"HOME": "/home/sg"}) == [
        Finding(
            "cache-in-tmp",
            "warn",
            "/tmp/torchinductor_sg",
            "inductor cache: it lies in /tmp, which a reboot empties: the start after that is a cold one",
            "Environment=TORCHINDUCTOR_CACHE_DIR=/home/sg/.cache/sglang/inductor",
        )
    ]


def test_a_service_without_a_kept_home_gets_a_directory_of_its_own(world: World) -> None:
    [finding] = survive.findings((inductor(),), {})
    assert finding.remedy == "Environment=TORCHINDUCTOR_CACHE_DIR=/var/lib/sglang/inductor"
    flashinfer = CachePlace("flashinfer", Path("/var/tmp/f"), "default", "FLASHINFER_WORKSPACE_BASE")
    [finding] = survive.findings((flashinfer,), {"HOME": "/tmp/x"})
    assert finding.remedy == "Environment=FLASHINFER_WORKSPACE_BASE=/var/lib/sglang"
    assert "systemd-tmpfiles" in finding.detail


def test_private_tmp_is_worse_than_tmp(world: World) -> None:
    for finding in (
        *survive.findings((inductor(),), {}, unit={"PrivateTmp": "yes"}),
        *survive.findings((inductor("/srv/x", through="/proc/7/root"),), {}),
    ):
        assert finding.kind == "cache-in-private-tmp"
    assert survive.findings((inductor(),), {}, unit={"PrivateTmp": "no"})[0].kind == "cache-in-tmp"
    assert survive.findings((inductor("/srv/x"),), {}, unit={"PrivateTmp": "yes"}) == []


def test_a_cache_in_memory_is_found_elsewhere_too(world: World) -> None:
    world.known += (Mount(Path("/srv"), "tmpfs", frozenset({"rw"})),)
    [finding] = survive.findings((inductor("/srv/x"),), {})
    assert finding.kind == "cache-in-memory"


def test_a_read_only_file_system_is_a_finding(world: World) -> None:
    world.known += (Mount(Path("/srv"), "ext4", frozenset({"ro"})),)
    [finding] = survive.findings((inductor("/srv/x"),), {})
    assert (finding.kind, finding.remedy) == ("cache-read-only", "mount -o remount,rw /srv")


@pytest.mark.parametrize(
    ("user", "mode", "found"),
    [
        ("other", 0o40755, True),
        ("sglang", 0o40755, False),
        ("root", 0o40755, False),
        ("other", 0o41777, False),
        ("nobody-knows", 0o40755, False),
        ("", 0o40755, False),
    ],
)
def test_another_owner_than_the_service_user_is_a_finding(world: World, user: str, mode: int, found: bool) -> None:
    world.mode = mode
    kinds = [finding.kind for finding in survive.findings((inductor("/srv/x"),), {}, unit={"User": user})]
    assert kinds == (["cache-other-owner"] if found else [])


def test_little_space_is_a_finding(world: World) -> None:
    world.free = 2**30
    [finding] = survive.findings((inductor("/srv/x"),), {})
    assert (finding.kind, finding.remedy) == ("cache-little-space", "free space on /")
    world.known = ()
    assert survive.findings((inductor("/srv/x"),), {})[0].remedy == "free space on /srv/x"


def test_on_this_machine_a_real_directory_is_judged(tmp_path: Path) -> None:
    found = survive.findings((inductor(str(tmp_path)), inductor(str(tmp_path / "absent"))), dict(os.environ))
    assert {finding.subject for finding in found} <= {str(tmp_path)}


def test_a_directory_that_may_not_be_looked_at_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert survive.findings((inductor(),), {}) == []
