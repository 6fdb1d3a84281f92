"""A project that does not use the plugin pays nothing for it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

HEAVY = ("httpx", "pynvml", "msgspec", "numpy", "matplotlib", "scipy", "psutil", "jinja2", "starlette", "uvicorn")


def test_import_costs_at_most_5_ms_over_pytest() -> None:
    """Processor time, and the least of several: what else the machine does meanwhile is not the plugin's cost."""
    code = "import pytest, time; t = time.process_time(); import pytest_sglang.plugin; print((time.process_time() - t) * 1000)"
    costs_ms: list[float] = []
    while len(costs_ms) < 20 and min(costs_ms, default=math.inf) > 5.0:
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        costs_ms.append(float(ran.stdout))
    assert min(costs_ms) <= 5.0, costs_ms


def test_import_starts_no_process() -> None:
    code = (
        "import sys, pytest; seen = []\n"
        "sys.addaudithook(lambda event, args: seen.append(event) if event in ('subprocess.Popen', 'os.fork', 'os.posix_spawn') else None)\n"
        "import pytest_sglang.plugin; print(seen)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_collecting_a_foreign_project_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "test_foreign.py").write_text("def test_nothing():\n    pass\n")
    (tmp_path / "conftest.py").write_text(
        "import json, sys\n"
        "def pytest_unconfigure(config):\n"
        f"    heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    open('loaded.json', 'w').write(json.dumps([heavy, [m for m in sys.modules if m.startswith('pytest_sglang')]]))\n"
    )
    others = [
        "randomly",
        "xdist",
        "cov",
        "html",
        "metadata",
        "benchmark",
        "anyio",
        "hypothesispytest",
        "rerunfailures",
        "playwright",
    ]
    arguments = [each for name in others for each in ("-p", f"no:{name}")]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    heavy, ours = json.loads((tmp_path / "loaded.json").read_text())
    assert heavy == []
    assert not [name for name in ours if name.startswith(("pytest_sglang.session", "pytest_sglang.rig", "pytest_sglang.hooks"))]


def test_switched_off_it_is_gone(tmp_path: Path) -> None:
    (tmp_path / "test_foreign.py").write_text("def test_nothing():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:sglang", "--power=250", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 4
    assert "unrecognized arguments: --power=250" in done.stderr
