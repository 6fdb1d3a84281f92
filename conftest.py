"""What the repository's own test run needs, nothing else."""

pytest_plugins = ["pytester"]


def pytest_configure(config):
    """Runs that a test starts are runs of their own, and no workers of this one (pytest-benchmark would be off in them)."""
    import os

    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID"):
        os.environ.pop(name, None)
