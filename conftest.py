"""What the repository's own test run needs, nothing else."""

pytest_plugins = ["pytester"]
