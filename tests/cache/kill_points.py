"""Kill a set-aside, cold start and restore at every point at which the file system changes, and see what is left.

usage: python kill_points.py FOLDER children|rename      (prints one line for each point: its number and what was found)
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from pytest_sglang.cache import aside
from pytest_sglang.cache.locate import CachePlace

CHANGES = frozenset({"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.chown", "os.utime", "os.setxattr"})
countdown = 0


def hook(event: str, arguments: tuple[object, ...]) -> None:
    """Die, as by kill -9, in front of the change at which the countdown ends."""
    global countdown
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if countdown and (event in CHANGES or writes):
        countdown -= 1
        if countdown == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def digest(root: Path) -> str:
    """Everything about a tree: names, kinds, modes, contents."""
    found = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        content = b"" if path.is_dir() or path.is_symlink() else path.read_bytes()
        found.update(
            f"{path.relative_to(root)} {path.lstat().st_mode} {path.lstat().st_mtime_ns if path.is_file() else 0}".encode()
        )
        found.update(content)
    return found.hexdigest()


def make(root: Path) -> None:
    """Two caches, one inside the other, and a third apart."""
    for name in ("base/inductor/ab/x.py", "base/inductor/triton/0/E/k.cubin", "base/triton/E/k.json", "other/deep/er/file"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "base/triton/link").symlink_to("E")
    (root / "base").chmod(0o750)


def cold_start(root: Path) -> None:
    """What a server writes into the emptied caches, names of the old ones among them."""
    for name in ("base/inductor/ab/x.py", "base/new/dir/file", "other/deep/er/file", "other/fresh"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("grown")


def killed(work: Callable[[], None], point: int) -> bool:
    """Do ``work`` in a child that dies at ``point``; whether it died."""
    global countdown
    child = os.fork()
    if not child:
        countdown = point
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def main(folder: Path, how: str) -> None:
    """Every point of the whole cycle; at each, every third point of the restore that follows."""
    if how == "children":
        aside.is_mount_point = lambda path: True  # type: ignore[attr-defined]
    sys.addaudithook(hook)
    point, dying = 0, True
    while dying:
        point += 1
        again, dying_again = -2, True
        while dying_again:
            root = folder / f"{point}-{again}"
            make(root)
            places = [CachePlace(name, root / name, "test") for name in ("base", "base/triton", "base/inductor", "other", "absent")]
            before = digest(root)
            plan = aside.plan_aside(places, token="run-1")

            def cycle(root: Path = root, plan: list[aside.Moved] = plan) -> None:
                for moved in plan:
                    aside.move(moved)
                cold_start(root)
                aside.restore(plan)

            dying = killed(cycle, point)
            # the journal is all that the next run has
            kept = [aside.described(str(each.original), str(each.aside), aside.describe(each)) for each in plan]
            again += 3
            dying_again = killed(lambda kept=kept: aside.restore(kept), again) and dying  # type: ignore[misc]
            notes = aside.restore(kept)
            left = "identical" if digest(root) == before else "differs: " + " ".join(sorted(str(path) for path in root.rglob("*")))
            print(point, again, left, *notes, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
