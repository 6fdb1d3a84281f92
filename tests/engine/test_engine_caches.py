"""Compile caches of a real SGLang with torch.compile: where they are, what starts add, that setting aside loses nothing.

Two starts, about 100 s and 60 s on two cores.
"""

from __future__ import annotations

import pwd
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from engine_servers import Engine, Server

from pytest_sglang.cache import aside, contents, diff, integrity, locate, snapshot, witness
from pytest_sglang.cache.integrity import Problem
from pytest_sglang.cache.locate import CachePlace
from pytest_sglang.cache.snapshot import Snapshot
from pytest_sglang.cache.witness import Seen
from pytest_sglang.record.values import CacheDiff
from pytest_sglang.server.processes import tree
from pytest_sglang.session.fingerprint import packages_of


class Start(NamedTuple):
    """What was seen of one start."""

    added: CacheDiff
    found_newer: int
    after_requests: CacheDiff
    ready_s: float
    refused: tuple[str, ...]
    refused_without_server: tuple[str, ...]
    pid: int
    elsewhere: tuple[Seen, ...]
    seen: tuple[Seen, ...]
    problems: tuple[Problem, ...]
    kernels: int
    packages: dict[str, str]


class Starts(NamedTuple):
    """A cold start, the cache set aside and put back, a warm start."""

    home: Path
    places: tuple[CachePlace, ...]
    cold: Start
    emptied: Snapshot
    notes: tuple[str, ...]
    warm: Start


def places_of(server: Server) -> tuple[CachePlace, ...]:
    environ = locate.environment_of(server.process.pid)
    assert environ is not None
    version = server.call("GET", "/server_info")[1]["version"]
    # neither the home nor the user of this process: the environment has to tell
    found = locate.locate(version=version, environ=environ, home=Path("/nowhere"), tmpdir=Path("/tmp"), user="nobody")
    return without_headers(found)


def without_headers(places: tuple[CachePlace, ...]) -> tuple[CachePlace, ...]:
    """Precompiled headers lie in /tmp, whatever the home is, and are shared with every other torch of this user."""
    return tuple(place for place in places if place.kind != locate.HEADERS)


def one_start(servers: Engine, home: Path, places: tuple[CachePlace, ...]) -> tuple[Start, tuple[CachePlace, ...]]:
    places = places or without_headers(
        locate.locate(version="0.5.23", environ={"HOME": str(home)}, home=home, tmpdir=Path("/tmp"), user=pwd.getpwuid(0).pw_name)
    )
    stamp = home / "before"
    stamp.touch()
    before = snapshot.take(places)
    with servers.compiled(home) as server:
        ready = snapshot.take(places, before)
        asked = {"model": "any", "prompt": "def main", "max_tokens": 64, "temperature": 0, "ignore_eos": True}
        for _ in range(2):
            assert server.call("POST", "/v1/completions", asked)[0] == 200
        newer = subprocess.run(
            ["find", str(home / ".cache"), "-type", "f", "-newer", str(stamp)], capture_output=True, text=True, check=True
        )
        pids = [each.pid for each in tree(server.process.pid)]
        seen, after = witness.seen(pids), snapshot.take(places, ready)
        start = Start(
            added=diff.added(before, ready),
            found_newer=len(newer.stdout.splitlines()),
            after_requests=diff.added(ready, after),
            ready_s=server.ready_s,
            refused=aside.refusals(places, allow_temporary=True),
            refused_without_server=aside.refusals(places, allow_temporary=True, ignore_pids=[server.process.pid]),
            pid=server.process.pid,
            elsewhere=witness.elsewhere(seen, places),
            seen=seen,
            problems=tuple(integrity.problems(after)),
            kernels=sum(1 for _ in contents.kernels(after)),
            packages={name: version for pid in pids for name, version in packages_of(pid).items()},
        )
        return start, places_of(server)


@pytest.fixture(scope="module")
def starts(servers: Engine, tmp_path_factory: pytest.TempPathFactory) -> Starts:
    home = tmp_path_factory.mktemp("compiled")
    cold, places = one_start(servers, home, ())
    moved = aside.set_aside(places, token="engine")
    emptied = snapshot.take(places)
    notes = aside.restore(moved)
    warm, _ = one_start(servers, home, places)
    return Starts(home, places, cold, emptied, notes, warm)


def test_every_file_that_a_start_writes_lies_in_a_place_that_is_known(starts: Starts) -> None:
    assert starts.cold.found_newer == starts.cold.added.files > 0
    assert starts.warm.found_newer == starts.warm.added.files


def test_a_cold_start_compiles_kernels_and_graphs(starts: Starts) -> None:
    added = starts.cold.added
    assert added.before_entries == 0
    assert len(added.new_kernels) >= 20
    assert added.new_graphs >= 10
    assert {cache.cache for cache in added.caches} == {"inductor", "fxgraph"}


def test_a_warm_start_compiles_nothing_and_its_new_files_are_told(starts: Starts) -> None:
    added = starts.warm.added
    assert (added.new_kernels, added.new_variants, added.new_graphs) == ((), (), 0)
    assert added.files > 0
    assert added.before_entries == len(starts.cold.added.new_kernels) + starts.cold.added.new_graphs
    assert starts.warm.ready_s < starts.cold.ready_s


def test_nothing_is_compiled_after_ready(starts: Starts) -> None:
    assert starts.cold.after_requests.files == starts.warm.after_requests.files == 0


def test_setting_aside_empties_and_putting_back_makes_the_next_start_a_warm_one(starts: Starts) -> None:
    assert starts.notes == ()
    assert snapshot.kernels(starts.emptied) == {}
    assert starts.warm.added.new_kernels == ()


def test_a_cache_in_use_is_not_set_aside(starts: Starts) -> None:
    assert len(starts.cold.refused) >= 1
    assert all("is in use by pid" in reason for reason in starts.cold.refused)
    assert starts.cold.refused_without_server == ()


def test_the_files_that_the_server_has_open_lie_where_the_table_says(starts: Starts) -> None:
    for start in (starts.cold, starts.warm):
        assert "inductor" in {each.kind for each in start.seen}
        assert start.elsewhere == ()


def test_real_kernels_are_whole_and_the_running_versions_are_seen(starts: Starts) -> None:
    for start in (starts.cold, starts.warm):
        assert [each for each in start.problems if each.kind != "cache-leftover"] == []
        assert start.kernels >= 20
        assert start.packages["sglang"] == "0.5.23"
        assert start.packages["torch"].startswith("2.")


def test_a_warm_start_is_told_by_what_it_reads_where_the_file_system_keeps_that(starts: Starts) -> None:
    added = starts.warm.added
    assert added.hits <= added.hits_told <= added.before_entries
    if added.hits_told:
        assert added.hits > 0
