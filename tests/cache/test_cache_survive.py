"""Will the caches survive? Mounts, temporary directories, owners, space."""

from __future__ import annotations

import os
import pwd
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from pytest_sglang.cache import mounts, survive, tmpfiles
from pytest_sglang.cache.locate import CachePlace
from pytest_sglang.cache.machine import Machine, Space, quota_left, quota_of
from pytest_sglang.cache.mounts import Mount
from pytest_sglang.cache.tmpfiles import Rule
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
    assert KNOWN[0] == Mount(Path("/"), "ext4", frozenset({"rw", "relatime", "errors=remount-ro"}), "/", "/dev/vda")
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
        self.rules: tuple[Rule, ...] = ()
        self.space = Space(100 * 2**30, 10**6, "free space on /")
        self.contained = False
        self.owner, self.mode = 1000, 0o40755
        monkeypatch.setattr(survive, "_is_dir", lambda place: not str(place.path).endswith("absent"))
        monkeypatch.setattr(survive, "_status", lambda path: os.stat_result((self.mode, 0, 0, 1, self.owner, 0, 0, 0, 0, 0)))
        monkeypatch.setattr(pwd, "getpwnam", self.user)

    def user(self, name: str) -> pwd.struct_passwd:
        if name == "nobody-knows":
            raise KeyError(name)
        return pwd.struct_passwd((name, "x", {"sglang": 1000, "root": 0}.get(name, 1001), 0, "", "/", "/"))

    def findings(
        self, places: Sequence[CachePlace], environ: dict[str, str] | None = None, unit: dict[str, str] | None = None
    ) -> list[Finding]:
        machine = Machine(self.known, self.rules, self.contained, spaces=(("/", self.space),))
        return survive.findings(tuple(places), environ or {}, unit=unit, machine=machine)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def inductor(path: str = "/tmp/torchinductor_sg", through: str = "") -> CachePlace:
    return CachePlace("inductor", Path(path), "default", "TORCHINDUCTOR_CACHE_DIR", through)


def test_a_cache_in_tmp_is_a_finding_with_the_line_for_the_unit(world: World) -> None:
    places = (inductor(), CachePlace("fxgraph", Path("/tmp/torchinductor_sg/fxgraph"), "default"), inductor("/tmp/absent"))
    assert world.findings(places, {"HOME": "/home/sg"}) == [
        Finding(
            "cache-in-tmp",
            "warn",
            "/tmp/torchinductor_sg",
            "inductor cache: it lies in /tmp, which many systems empty at boot: the start after that is a cold one",
            "Environment=TORCHINDUCTOR_CACHE_DIR=/home/sg/.cache/sglang/inductor",
        )
    ]


def test_the_rule_that_empties_tmp_is_named(world: World) -> None:
    world.rules = tuple(tmpfiles.parse("D /tmp 1777 root root -\nq /var/tmp 1777 root root 30d", "tmp.conf"))
    [boot] = world.findings((inductor(),))
    assert boot.detail == "inductor cache: /tmp is emptied at every boot (tmp.conf:1): the start after that is a cold one"
    [aged] = world.findings((inductor("/var/tmp/x"),))
    assert (aged.kind, "touched for 30 days" in aged.detail, "tmp.conf:2" in aged.detail) == ("cache-in-tmp", True, True), (
        aged.detail
    )


def test_a_rule_elsewhere_ages_a_cache_too(world: World) -> None:
    world.rules = tuple(tmpfiles.parse("e /home/*/.cache - - - 10d", "homes.conf"))
    [finding] = world.findings((inductor("/home/sg/.cache/sglang/inductor"),), {"HOME": "/home/sg"})
    assert finding.kind == "cache-aged"
    assert finding.remedy == "Environment=TORCHINDUCTOR_CACHE_DIR=/var/lib/sglang/inductor"


def test_a_service_without_a_kept_home_gets_a_directory_of_its_own(world: World) -> None:
    [finding] = world.findings((inductor(),))
    assert finding.remedy == "Environment=TORCHINDUCTOR_CACHE_DIR=/var/lib/sglang/inductor"
    flashinfer = CachePlace("flashinfer", Path("/dev/shm/f"), "default", "FLASHINFER_WORKSPACE_BASE")
    [finding] = world.findings((flashinfer,), {"HOME": "/tmp/x"})
    assert finding.remedy == "Environment=FLASHINFER_WORKSPACE_BASE=/var/lib/sglang"
    assert "which a reboot empties" in finding.detail


def test_private_tmp_is_worse_than_tmp(world: World) -> None:
    for finding in (
        *world.findings((inductor(),), unit={"PrivateTmp": "yes"}),
        *world.findings((inductor("/srv/x", through="/proc/7/root"),)),
    ):
        assert finding.kind == "cache-in-private-tmp"
    assert world.findings((inductor(),), unit={"PrivateTmp": "no"})[0].kind == "cache-in-tmp"
    assert world.findings((inductor("/srv/x"),), unit={"PrivateTmp": "yes"}) == []
    world.known += (Mount(Path("/tmp"), "ext4", frozenset({"rw"}), "/tmp/systemd-private-4c-sglang.service-k/tmp"),)
    assert world.findings((inductor(),))[0].kind == "cache-in-private-tmp"


def test_a_cache_in_memory_is_found_elsewhere_too(world: World) -> None:
    world.known += (Mount(Path("/srv"), "tmpfs", frozenset({"rw"})),)
    [finding] = world.findings((inductor("/srv/x"),))
    assert (finding.kind, "/srv is kept in memory" in finding.detail) == ("cache-in-memory", True)


def test_a_containers_own_layer_needs_a_volume(world: World) -> None:
    world.known, world.contained = (Mount(Path("/"), "overlay", frozenset({"rw"})),), True
    [finding] = world.findings((inductor("/root/.cache/x", through="/proc/7/root"),))
    assert (finding.kind, finding.remedy) == ("cache-in-container-layer", "docker run -v sglang-inductor:/root/.cache/x")
    world.known += (Mount(Path("/root/.cache"), "ext4", frozenset({"rw"})),)
    world.rules = tuple(tmpfiles.parse("D /root - - - -", "x.conf"))
    assert world.findings((inductor("/root/.cache/x"),)) == []


def test_a_read_only_file_system_is_a_finding(world: World) -> None:
    world.known += (Mount(Path("/srv"), "ext4", frozenset({"ro"})),)
    [finding] = world.findings((inductor("/srv/x"),))
    assert (finding.kind, finding.remedy) == ("cache-read-only", "mount -o remount,rw /srv")
    [finding] = world.findings((inductor("/srv/x"),), unit={"ProtectSystem": "strict"})
    assert finding.remedy == "ReadWritePaths=/srv/x"


@pytest.mark.parametrize(
    ("user", "mode", "found"),
    [
        ("other", 0o40755, True),
        ("1001", 0o40755, True),
        ("sglang", 0o40755, False),
        ("root", 0o40755, False),
        ("other", 0o41777, False),
        ("nobody-knows", 0o40755, False),
        ("", 0o40755, False),
    ],
)
def test_another_owner_than_the_service_user_is_a_finding(world: World, user: str, mode: int, found: bool) -> None:
    world.mode = mode
    kinds = [finding.kind for finding in world.findings((inductor("/srv/x"),), unit={"User": user})]
    assert kinds == (["cache-other-owner"] if found else [])


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (Space(2**30, 10**6, "free space on /"), "only 1.0 GiB and 1000000 files are left (free space on /)"),
        (Space(2**40, 100, "free space on /"), "100 files"),
        (Space(2**29, None, "quota of user id 7"), "only 0.5 GiB are left (quota of user id 7)"),
    ],
)
def test_little_space_is_a_finding(world: World, space: Space, said: str) -> None:
    world.space = space
    [finding] = world.findings((inductor("/srv/x"),))
    assert finding.kind == "cache-little-space"
    assert said in finding.detail
    assert "Environment=TORCHINDUCTOR_CACHE_DIR=/var/lib/sglang/inductor" in finding.remedy


def test_on_this_machine_a_real_directory_is_judged(tmp_path: Path) -> None:
    found = survive.findings((inductor(str(tmp_path)), inductor(str(tmp_path / "absent"))), dict(os.environ))
    assert {finding.subject for finding in found} <= {str(tmp_path)}


def test_a_directory_that_may_not_be_looked_at_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert survive.findings((inductor(),), {}, machine=Machine()) == []


# --- the machine ---------------------------------------------------------------------------------------------------------


def test_a_simulated_machine_has_its_own_root(tmp_path: Path) -> None:
    machine = Machine(KNOWN, outer=tmp_path)
    assert machine.seen(tmp_path / "data" / "ram" / "x") == Path("/data/ram/x")
    assert machine.seen(Path("/elsewhere")) == Path("/elsewhere")
    mount = machine.mount(tmp_path / "data" / "ram" / "x")
    assert mount is not None
    assert mount.type == "tmpfs"


def test_this_machine_is_read_as_it_is(tmp_path: Path) -> None:
    machine = Machine.here(os.getpid())
    assert machine.mount(tmp_path) is not None
    assert not machine.contained
    space = machine.space(tmp_path, tmp_path, None)
    assert space is not None
    assert abs(space.bytes - shutil.disk_usage(tmp_path).free) < 2**30
    assert machine.space(tmp_path / "x", tmp_path / "absent", None) is None


def test_a_process_in_another_namespace_has_mounts_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = (Mount(Path("/"), "overlay", frozenset({"rw"}), "/", "overlay"),)
    monkeypatch.setattr(os, "readlink", lambda path: f"mnt:[{'1' if 'self' in str(path) else '2'}]")
    monkeypatch.setattr("pytest_sglang.cache.machine.mounted.mounts", lambda pid=None: theirs if pid else KNOWN)
    machine = Machine.here(77)
    assert (machine.mounts, machine.contained) == (theirs, True)
    assert machine.in_container_layer(Path("/root/.triton"))
    assert machine.removed(Path("/tmp/x")) == (None, None)


@pytest.mark.parametrize(
    ("hard_kib", "soft_kib", "used", "hard_files", "files", "left"),
    [
        (2048, 0, 1024, 0, 0, Space(2048 * 1024 - 1024, None, "quota of user id 7")),
        (2048, 1024, 2**20, 10, 4, Space(0, 6, "quota of user id 7")),
        (0, 0, 5, 0, 0, None),
    ],
)
def test_a_quota_is_read_from_the_kernels_block(
    hard_kib: int, soft_kib: int, used: int, hard_files: int, files: int, left: Space | None
) -> None:
    block = struct.pack("<8QI", hard_kib, soft_kib, used, hard_files, 0, files, 0, 0, 63)
    assert quota_of(block, 7) == left


def test_a_file_system_without_quotas_has_none() -> None:
    assert quota_left("tmpfs", 0) is None
    assert quota_left("/dev/no-such-device", 0) is None
