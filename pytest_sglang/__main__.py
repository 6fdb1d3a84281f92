"""``python -m pytest_sglang`` is ``pytest-sglang``."""

from pytest_sglang.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
