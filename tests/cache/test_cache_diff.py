"""Snapshots and what a start added: on listings of real caches and on single entries."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cache_trees import DATA, age, triton_entry, write

from pytest_sglang.cache import diff, mounts, snapshot
from pytest_sglang.cache.locate import CachePlace, locate

OLD, NEW = 1_795_000_000.0, 1_795_100_000.0


def place(kind: str, path: Path) -> CachePlace:
    return CachePlace(kind, path, "test", kind.upper())


def test_the_h200s_second_start_made_variants_of_known_kernels_and_nothing_new(
    h200: tuple[tuple[CachePlace, ...], Callable[[str], Path]],
) -> None:
    places, path_of = h200
    new = [path_of(line) for line in (DATA / "h200-sglang-0.5.11-new-in-warm.txt").read_text().splitlines()]
    # the two records are of different days: some of these entries were made on both
    for folder in {path.parent for path in new if path.exists()}:
        shutil.rmtree(folder)
    before = snapshot.take(places)
    for path in new:
        write(path, 100)
    found = diff.added(before, snapshot.take(places))
    assert found.new_kernels == ()
    [cache] = found.caches
    assert cache.cache == "inductor_triton"
    assert cache.new_variants == {
        "triton_poi_fused_copy_copy__1": 5,
        "triton_red_fused__to_copy_add_mean_mm_mul_pow_rsqrt_t_1": 5,
        "triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0": 12,
        "triton_red_fused_mm_t_0": 5,
    }
    assert (found.files, found.bytes, found.new_graphs, found.unreadable) == (216, 21600, 0, ())


def test_the_h200s_caches_are_told_apart(h200: tuple[tuple[CachePlace, ...], Callable[[str], Path]]) -> None:
    places, _ = h200
    taken = snapshot.take(places)
    files = {each.place.kind: each.files for each in taken.places if each.exists}
    assert files == {"triton": 28, "inductor": 442, "inductor_triton": 5958, "fxgraph": 30, "aotautograd": 123, "tvm_ffi": 40}
    what = [entry.what for each in taken.places for entry in each.entries.values()]
    # 744 of Inductor's Triton, 3 of Triton's own, 5 of tvm-ffi
    assert what.count("kernel") == 744 + 3 + 5
    assert what.count("autotune") == 26 + 1
    assert all(entry.complete for each in taken.places for entry in each.entries.values())
    names = snapshot.kernels(taken)
    assert names["_fwd_kernel_stage2"] == 1
    assert names["sgl_kernel_jit_clamp_position_int64_t"] == 1
    assert max(each.newest or 0 for each in taken.places) == pytest.approx(taken.taken_at, abs=60)


def test_a_cpus_warm_start_shows_its_new_files_and_no_new_kernel(tmp_path: Path) -> None:
    places = locate(version="0.5.23", environ={}, home=tmp_path, tmpdir=tmp_path / "tmp", user="u")
    taken = [snapshot.take(places)]
    for start in ("cold", "second", "third"):
        for line in (DATA / "cpu-sglang-0.5.23.tsv").read_text().splitlines():
            appeared, size, path = line.split("\t")
            if appeared == start:
                write(tmp_path / path, int(size))
        taken.append(snapshot.take(places))
    cold, second, third = (diff.added(taken[number], taken[number + 1]) for number in range(3))
    assert (len(cold.new_kernels), cold.new_graphs, cold.files, cold.before_entries) == (32, 24, 190, 0)
    assert all(name.startswith("cpp_c") for name in cold.new_kernels)
    for warm in (second, third):
        assert (warm.new_kernels, warm.new_variants, warm.new_graphs, warm.files) == ((), (), 0, 28)
        assert warm.before_entries == 32 + 24


def test_a_name_known_in_another_ranks_cache_is_a_variant(tmp_path: Path) -> None:
    places = (place("inductor", tmp_path / "i"), place("inductor_triton", tmp_path / "i" / "triton"))
    triton_entry(tmp_path / "i" / "triton" / "0", "known")
    before = snapshot.take(places)
    triton_entry(tmp_path / "i" / "triton" / "1", "known")
    triton_entry(tmp_path / "i" / "triton" / "1", "fresh", 1)
    triton_entry(tmp_path / "i" / "triton" / "1", "fresh", 2)
    found = diff.added(before, snapshot.take(places))
    assert (found.new_kernels, found.new_variants) == (("fresh",), ("known",))
    [cache] = found.caches
    assert (cache.new_kernels, cache.new_variants, cache.files) == ({"fresh": 2}, {"known": 1}, 24)


def test_a_cache_that_was_not_there_is_all_new(tmp_path: Path) -> None:
    places = (place("triton", tmp_path / "t"),)
    before = snapshot.take(places)
    assert (before.places[0].exists, before.places[0].newest, before.unreadable) == (False, None, ())
    triton_entry(tmp_path / "t", "first")
    found = diff.added(before, snapshot.take(places))
    assert (found.new_kernels, found.before_entries) == (("first",), 0)


def test_nothing_new_gives_no_caches(tmp_path: Path) -> None:
    places = (place("triton", tmp_path / "t"),)
    triton_entry(tmp_path / "t", "first")
    found = diff.added(snapshot.take(places), snapshot.take(places))
    assert (found.caches, found.files, found.bytes, found.before_entries) == ((), 0, 0, 1)


def test_an_entry_that_vanished_hides_no_new_one(tmp_path: Path) -> None:
    places = (place("triton", tmp_path / "t"),)
    old = triton_entry(tmp_path / "t", "old")
    before = snapshot.take(places)
    shutil.rmtree(old)
    triton_entry(tmp_path / "t", "new", 1)
    assert diff.added(before, snapshot.take(places)).new_kernels == ("new",)


def test_an_entry_written_again_in_place_was_compiled_again(tmp_path: Path) -> None:
    places = (place("triton", tmp_path / "t"),)
    folder = triton_entry(tmp_path / "t", "moved")
    age(folder.iterdir(), OLD)
    before = snapshot.take(places)
    age([folder / "__grp__moved.json"], NEW)
    found = diff.added(before, snapshot.take(places))
    assert (found.new_kernels, found.new_variants, found.files, found.bytes) == ((), ("moved",), 0, 0)


def test_tuning_results_and_graphs_are_counted(tmp_path: Path) -> None:
    places = (place("inductor", tmp_path), place("fxgraph", tmp_path / "fxgraph"), place("aotautograd", tmp_path / "aotautograd"))
    tuned = write(tmp_path / "cache" / ("0" * 64))
    age([tuned], OLD)
    before = snapshot.take(places)
    write(tmp_path / "si" / ("1" * 64 + ".best_config"))
    age([tuned], NEW)
    write(tmp_path / "fxgraph" / "ab" / ("f" + "a" * 51) / "graph")
    write(tmp_path / "aotautograd" / ("a" * 52) / "graph")
    found = diff.added(before, snapshot.take(places))
    assert found.new_graphs == 2
    assert {each.cache: (each.new_autotune, each.new_graphs) for each in found.caches} == {
        "inductor": (2, 0),
        "fxgraph": (0, 1),
        "aotautograd": (0, 1),
    }


def test_what_a_start_wrote_is_told_by_time_where_nobody_watched(tmp_path: Path) -> None:
    places = (place("triton", tmp_path / "t"),)
    for number, kernel in enumerate(("known", "other")):
        age(triton_entry(tmp_path / "t", kernel, number).iterdir(), OLD)
    age(triton_entry(tmp_path / "t", "known", 2).iterdir(), NEW)
    age(triton_entry(tmp_path / "t", "fresh", 3).iterdir(), NEW)
    found = diff.since(snapshot.take(places), NEW - 1)
    assert (found.new_kernels, found.new_variants, found.before_entries, found.files) == (("fresh",), ("known",), 2, 16)
    assert diff.since(snapshot.take(places), NEW + 1).caches == ()


def test_incomplete_entries_and_leftovers_are_seen(tmp_path: Path) -> None:
    folder = triton_entry(tmp_path, "broken")
    (folder / "__grp__broken.json").unlink()
    write(folder / "tmp.pid_12_ab" / "broken.cubin")
    (tmp_path / ("B" * 52)).mkdir()
    entries = snapshot.take((place("triton", tmp_path),)).places[0].entries
    assert entries[folder.name].complete is False
    assert entries[folder.name].kernel == "broken"
    assert entries[f"{folder.name}/tmp.pid_12_ab/broken.cubin"].what == "leftover"
    assert len(entries) == 2


def test_two_kinds_in_one_directory_are_read_once(tmp_path: Path) -> None:
    triton_entry(tmp_path, "k")
    taken = snapshot.take((place("triton", tmp_path), place("inductor", tmp_path)))
    assert [each.files for each in taken.places] == [8]


def test_a_file_in_the_place_of_a_cache_is_unreadable(tmp_path: Path) -> None:
    write(tmp_path / "t")
    taken = snapshot.take((place("triton", tmp_path / "t"), place("inductor", tmp_path / "t" / "i")))
    assert taken.unreadable == (f"triton cache {tmp_path}/t: not a directory",)
    assert diff.added(taken, taken).unreadable == taken.unreadable


def test_what_may_not_be_read_is_told_and_not_taken_for_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    triton_entry(tmp_path / "t", "k")
    (tmp_path / "t" / "closed").mkdir()
    real_scandir, real_stat = os.scandir, os.stat

    def scandir(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return real_scandir(path)

    def stat(path: str | Path, **options: bool) -> os.stat_result:
        if str(path).endswith("away"):
            raise PermissionError(13, "Permission denied")
        return real_stat(path, **options)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "stat", stat)
    taken = snapshot.take((place("triton", tmp_path / "t"), place("inductor", tmp_path / "away")))
    assert taken.unreadable == (
        f"triton cache {tmp_path}/t/closed: Permission denied",
        f"inductor cache {tmp_path}/away: Permission denied",
    )
    assert snapshot.kernels(taken) == {"k": 1}


def test_what_vanishes_under_the_walk_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    triton_entry(tmp_path, "k")
    (tmp_path / "gone").mkdir()
    write(tmp_path / "file")
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path) == str(tmp_path):
            with real(path) as listing:
                items = list(listing)
            (tmp_path / "gone").rmdir()
            (tmp_path / "file").unlink()

            class Listing(list[object]):
                def __enter__(self) -> list[object]:
                    return self

                def __exit__(self, *args: object) -> None:
                    pass

            return Listing(items)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    taken = snapshot.take((place("triton", tmp_path),))
    assert (taken.unreadable, snapshot.kernels(taken), len(taken.places[0].entries)) == ((), {"k": 1}, 1)


def test_a_growing_cache_changes_the_sign_of_progress(tmp_path: Path) -> None:
    places = (place("inductor", tmp_path / "i"), place("triton", tmp_path / "away"))
    write(tmp_path / "i" / "ab" / "x.py")
    before = snapshot.newest(places)
    assert snapshot.newest(places) == before
    write(tmp_path / "i" / "ab" / "y.py")
    after = snapshot.newest(places)
    assert after != before
    triton_entry(tmp_path / "i" / "triton" / "0", "k")
    assert snapshot.newest(places) > after


def test_roots_are_the_outermost_directories_with_links_resolved(tmp_path: Path) -> None:
    for name in ("base/triton", "base/inductor", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "other")
    places = [place(name, tmp_path / name) for name in ("base", "base/triton", "base/inductor", "link", "other", "absent")]
    places.append(CachePlace("private", tmp_path / "base", "test", through="/proc/1/root"))
    assert snapshot.roots(places) == [tmp_path / "base", tmp_path / "other"]


# --- a second look, and hits ---------------------------------------------------------------------------------------------


def settled(folder: Path) -> Path:
    """As an entry is that nobody has touched for a while."""
    age([*folder.iterdir(), folder], OLD)
    return folder


def test_a_second_snapshot_equals_a_fresh_one(tmp_path: Path) -> None:
    places = (
        place("triton", tmp_path / "t"),
        place("inductor", tmp_path / "i"),
        place("inductor_triton", tmp_path / "i" / "triton"),
    )
    entries = [settled(triton_entry(tmp_path / "t", f"k{number % 3}", number)) for number in range(12)]
    settled(triton_entry(tmp_path / "i" / "triton" / "0", "k"))
    table = write(tmp_path / "i" / "ab" / "x.py", 10)
    before = snapshot.take(places)
    triton_entry(tmp_path / "t", "new", 50)
    shutil.rmtree(entries[0])
    write(entries[1] / "tmp.pid_1_x" / "k.cubin")
    (entries[2] / "k2.cubin").rename(entries[2] / "gone.cubin")
    write(tmp_path / "beside").rename(entries[3] / "k0.cubin")
    with open(table, "ab") as file:
        file.write(b"in place")
    assert snapshot.take(places, before).places == snapshot.take(places).places
    assert snapshot.take(places, before).places != before.places


def test_an_unchanged_entry_is_not_listed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        settled(triton_entry(tmp_path, "k", number))
    triton_entry(tmp_path, "recent", 7)
    before = snapshot.take((place("triton", tmp_path),))
    listed: list[str] = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path).name) or real(path))
    snapshot.take((place("triton", tmp_path),), before)
    # one that changed within the last seconds may have changed again within the same tick
    assert sorted(listed) == sorted([tmp_path.name, next(path.parent.name for path in tmp_path.glob("*/recent.json"))])


def test_a_group_file_written_in_place_is_seen_although_its_directory_is_not_touched(tmp_path: Path) -> None:
    folder = settled(triton_entry(tmp_path, "k"))
    before = snapshot.take((place("triton", tmp_path),))
    age([folder / "__grp__k.json"], NEW)
    found = diff.added(before, snapshot.take((place("triton", tmp_path),), before))
    assert (found.rewritten, found.new_variants) == (("k",), ("k",))


def test_kernels_that_were_read_are_hits_where_that_can_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = (place("triton", tmp_path / "t"), place("fxgraph", tmp_path / "fx"))
    for number in range(3):
        settled(triton_entry(tmp_path / "t", "k", number))
    graphs = [write(tmp_path / "fx" / "ab" / ("f" + "a" * 51) / str(number)) for number in range(2)]
    age(graphs, OLD)
    monkeypatch.setattr(snapshot, "_keeping", lambda place, known: "relative")
    before = snapshot.take(places)
    read = [next((tmp_path / "t").glob("*/__grp__k.json")), graphs[0]]
    for path in read:
        os.utime(path, ns=(int(NEW * 1e9), path.stat().st_mtime_ns))
    found = diff.added(before, snapshot.take(places, before))
    assert (found.hits, found.hits_told, found.files) == (2, 5, 0)
    # read once within the last day: the file system does not keep the time of the next reading
    again = snapshot.take(places)
    for path in read:
        os.utime(path, ns=(int(time.time() * 1e9), int(OLD * 1e9)))
    recent = snapshot.take(places)
    monkeypatch.setattr(snapshot, "_keeping", lambda place, known: "never")
    assert diff.added(snapshot.take(places), again).hits_told == 0
    assert diff.added(recent, recent).hits == 0


@pytest.mark.parametrize(
    ("options", "keeping"), [("rw,noatime", "never"), ("ro,relatime", "never"), ("rw,relatime", "relative"), ("rw", "always")]
)
def test_the_mount_decides_whether_readings_are_kept(tmp_path: Path, options: str, keeping: str) -> None:
    known = [mounts.Mount(Path("/"), "ext4", frozenset(options.split(",")))]
    assert snapshot._keeping(place("triton", tmp_path), known) == keeping


def test_a_file_system_that_keeps_every_reading_tells_every_hit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "_keeping", lambda place, known: "always")
    settled(triton_entry(tmp_path, "k"))
    taken = snapshot.take((place("triton", tmp_path),))
    assert [entry.tells for entry in taken.places[0].entries.values()] == [True]


def test_new_graphs_are_named(tmp_path: Path) -> None:
    places = (place("fxgraph", tmp_path / "fxgraph"),)
    before = snapshot.take(places)
    paths = [write(tmp_path / "fxgraph" / "ab" / ("f" + "a" * 51) / str(number)) for number in range(3)]
    found = diff.added(before, snapshot.take(places))
    assert sorted(found.graph_paths) == sorted(str(path) for path in paths)
