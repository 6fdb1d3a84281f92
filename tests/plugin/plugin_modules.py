"""For runs of pytest inside the test's own process: everything of the plugin is imported before.

pytester forgets what was imported during such a run, but a package keeps its modules as attributes: the next run would get one half of
them anew and the other half from there, and an exception of one half is not caught by the other.
"""

from __future__ import annotations

import importlib
import pkgutil

import pytest_sglang

PARTS = ("hooks", "session", "rig", "record", "judge", "gpu", "server", "load", "cache", "report")

HEAVY = ("numpy", "scipy.special", "matplotlib.figure", "matplotlib.backends.backend_svg")
"""Libraries that a run imports late; compiled modules cannot be loaded twice in one process."""


def import_all() -> None:
    """Import every module that a run may need; to be called before pytester is made, which forgets whatever comes later."""
    for part in PARTS:
        package = importlib.import_module(f"{pytest_sglang.__name__}.{part}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if not module.name.endswith((".reaper", ".sampler", "__main__")):
                importlib.import_module(module.name)
    for heavy in HEAVY:
        importlib.import_module(heavy)
