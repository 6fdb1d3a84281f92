"""What the repository's own test run needs, nothing else."""

import pytest

pytest_plugins = ["pytester"]


def pytest_configure(config):
    """Runs that a test starts are runs of their own, and no workers of this one (pytest-benchmark would be off in them)."""
    import os

    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
        os.environ.pop(name, None)


LONG_FIRST = ("acceptance", "systemd", "docs", "server", "session", "report")
"""Folders of tests that wait for whole runs: begun first, so that no worker is left alone with one at the end."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Long ones first; in between as they came."""

    def place(item):
        folder = item.path.parent.name
        return LONG_FIRST.index(folder) if folder in LONG_FIRST and "tests" in item.path.parts else len(LONG_FIRST)

    items.sort(key=place)
