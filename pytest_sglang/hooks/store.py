"""After a run: its name as a baseline, and the index of all runs. Neither can change the verdict."""

from __future__ import annotations

from pytest_sglang.hooks.active import Active


def keep(active: Active) -> None:
    """Save the baseline where that was asked for, write reports/index.html anew; a failure is told in a line."""
    from pytest_sglang.report import history
    from pytest_sglang.session import baseline

    if active.recorder is None:
        return
    wish, folder = active.options.baseline, active.recorder.folder
    try:
        if wish is not None and wish.save:
            active.baseline_line = baseline.save(folder, active.recorder.run, wish.name)
        history.write_index(folder.parent, coming=folder)
    except OSError as error:
        active.baseline_line = f"{active.baseline_line} (index of runs not written: {error})".strip()
