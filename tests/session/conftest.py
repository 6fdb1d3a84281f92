"""A state directory of the test's own: no test ever looks at the machine's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from session_fakes import Victim, set_dial


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "state"
    monkeypatch.setenv("PYTEST_SGLANG_STATE_DIR", str(directory))
    return directory


@pytest.fixture
def dials(tmp_path: Path) -> list[Path]:
    """Three dials at 350, 351, 352."""
    made = [tmp_path / f"dial{number}" for number in range(3)]
    for number, path in enumerate(made):
        set_dial(path, 350 + number)
    return made


@pytest.fixture
def victims(state: Path, tmp_path: Path) -> Iterator[Callable[..., Victim]]:
    """Starts runs to be killed; whatever is left of them is ended."""
    made: list[Victim] = []

    def start(run_id: str, *dials: Path, **env: str) -> Victim:
        log = env.pop("VICTIM_LOG", str(tmp_path / "reports" / run_id / "guard.log"))
        made.append(Victim(state, run_id, *(str(each) for each in dials), env={"VICTIM_LOG": log, **env}))
        return made[-1]

    yield start
    for victim in made:
        victim.close()
