"""What real_gpu.sh asks of the plugin: locate, snapshot and compare the caches of the server that it has started."""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from pytest_sglang.cache import contents, diff, integrity, locate, snapshot, witness
from pytest_sglang.cache.locate import CachePlace
from pytest_sglang.record import run as records

READY_WITHIN_S = 420.0


def ask(path: str, body: object = None, timeout_s: float = 300.0) -> tuple[int, Any]:
    """Status and JSON of one request; 0 where nobody answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{os.environ['PORT']}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            text = answer.read().decode()
            return answer.status, json.loads(text) if text.startswith(("{", "[")) else text
    except urllib.error.HTTPError as error:
        return error.code, None
    except OSError:
        return 0, None


def generate(tokens: int) -> bool:
    """One exact generation."""
    body = {"model": "any", "prompt": "def main", "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    status, answer = ask("/v1/completions", body)
    return status == 200 and answer["usage"]["completion_tokens"] == tokens


def places_of(pid: int | None) -> tuple[CachePlace, ...]:
    """The server's caches: before it runs by this very environment, then by its own, its version and its open files."""
    from pytest_sglang.session.cacheview import places_by_default
    from pytest_sglang.session.cacheview import places_of as of_process

    if pid is None:
        return places_by_default(dict(os.environ), None, None)
    info = ask("/server_info", timeout_s=30.0)[1]
    version = info.get("version") if isinstance(info, dict) else None
    return of_process(dict(locate.environment_of(pid) or {}), version, pid)


def watch(pid: int, out: Path, stage: str, start: str) -> int:
    """Before, ready, after two requests; the differences are kept in OUT."""
    before = snapshot.take(places_of(None))
    began = time.monotonic()
    while not (ask("/health", timeout_s=30.0)[0] == 200 and generate(16)):
        if not Path(f"/proc/{pid}").exists() or time.monotonic() - began > READY_WITHIN_S:
            print(f"not ready after {time.monotonic() - began:.0f} s")
            return 1
        time.sleep(0.5)
    ready_s = time.monotonic() - began
    places = places_of(pid)
    known = {str(each.place.path) for each in before.places}
    more = [str(place.path) for place in places if str(place.path) not in known]
    at_ready = snapshot.take(places, before)
    exact = [generate(64), generate(64)]
    after = snapshot.take(places, at_ready)
    added, late = diff.added(before, after), diff.added(at_ready, after)
    (out / f"places-{stage}.pickle").write_bytes(pickle.dumps((pid, places)))
    told = {"ready_s": ready_s, "exact": exact, "added": records.plain(added), "after_ready": records.plain(late)}
    (out / f"added-{stage}-{start}.json").write_text(json.dumps(told, indent=1))
    print(
        f"ready (health 200 and an exact completion) after {ready_s:.1f} s; completions exact: {exact}; not located before: {more or 'none'}"
    )
    for place in places:
        print(f"  {place.kind:16} {place.path}  [{place.why}]")
    seen = witness.seen([pid, *_children(pid)])
    print(
        f"  open files: {sorted({f'{each.kind} {each.root}' for each in seen}) or 'none'}; elsewhere: {witness.elsewhere(seen, places) or 'none'}"
    )
    print(
        f"new: {len(added.new_kernels)} kernel names, {added.variants} variants of {len(added.new_variants)} known names, "
        f"{added.new_graphs} graphs, {added.new_autotune} tuning results, {len(added.rewritten)} compiled again in place, "
        f"{added.files} files, {added.bytes / 1e6:.1f} MB; before: {added.before_entries} entries; "
        f"hits {added.hits} of {added.hits_told} that can be told; after ready: {late.files} files"
    )
    for cache in added.caches:
        for what, names in (("new", cache.new_kernels), ("variants", cache.new_variants)):
            for name, number in names.items():
                print(f"  {cache.cache:16} {what:9} {number:4} x {name}")
    return 0


def _children(pid: int) -> list[int]:
    import psutil

    return [each.pid for each in psutil.Process(pid).children(recursive=True)]


def compare(out: Path, stage: str, start: str) -> int:
    """The count of find -newer against the snapshot's; exit code 1 where they differ."""
    _, places = pickle.loads((out / f"places-{stage}.pickle").read_bytes())
    roots = [f"{place.path}/" for place in places if place.kind != locate.HEADERS]
    lines = (out / f"newer-{stage}-{start}.txt").read_text().splitlines()
    inside = [line for line in lines if line.startswith(tuple(roots))]
    added = json.loads((out / f"added-{stage}-{start}.json").read_text())["added"]
    # find also names files that were there and were written again: the snapshot counts those as changed, not as new
    rewritten = sum(1 for line in inside if line.endswith(".best_config") or "/cache/" in line)
    print(
        f"find -newer: {len(inside)} files in the caches, {len(lines) - len(inside)} elsewhere; of those in the caches {rewritten} are tuning results"
    )
    print(
        f"snapshot:    {added['files']} new files; difference {len(inside) - added['files']} (tuning results written again: {added['new_autotune']})"
    )
    outside = sorted({line.rpartition("/")[0] for line in lines if line not in set(inside)})
    print(f"  elsewhere: {outside[:8]}")
    return 0 if 0 <= len(inside) - added["files"] <= added["new_autotune"] else 1


def what_is_there(out: Path, stage: str) -> int:
    """Kernels by name and integrity of everything."""
    _, places = pickle.loads((out / f"places-{stage}.pickle").read_bytes())
    taken = snapshot.take(places)
    kernels = list(contents.kernels(taken))
    print(f"=== {stage}: in the caches")
    for group in contents.grouped(kernels):
        print(
            f"  {group.entries:5} x {group.name}  {group.arch} triton {group.triton} ptx {group.ptx} ptxas {group.ptxas} warps {group.warps} stages {group.stages}"
        )
    for system in contents.systems(taken):
        print(f"  autotuned: {system.choices} shapes for {system.gpu}, CUDA {system.cuda}")
    problems = [*integrity.problems(taken), *integrity.duplicates(kernels)]
    print(f"problems: {len(problems)}")
    for problem in problems[:20]:
        print(f"  {problem.kind} {problem.path}: {problem.detail}")
    return 0


if __name__ == "__main__":
    action, *words = sys.argv[1:]
    if action == "watch":
        raise SystemExit(watch(int(words[0]), Path(words[1]), words[2], words[3]))
    if action == "compare":
        raise SystemExit(compare(Path(words[0]), words[1], words[2]))
    raise SystemExit(what_is_there(Path(words[0]), words[1]))
