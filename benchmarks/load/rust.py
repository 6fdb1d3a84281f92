"""sglang's Rust load generator without ``import sglang``, which alone costs seconds: the extension is loaded from its file.

Run by an interpreter that has sglang installed; takes the flags of ``python -m sglang.benchmark.rust_client``.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

for folder in sys.path:
    found = sorted(Path(folder, "sglang", "srt", "rust_extensions").glob("_bench*.so"))
    if found:
        break
else:
    sys.exit("sglang with its Rust extension is not installed for this interpreter")
spec = importlib.util.spec_from_file_location("_bench", found[0])
assert spec is not None
assert spec.loader is not None
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.argv[0] = "sglang-bench"
module.run_argv(sys.argv)
