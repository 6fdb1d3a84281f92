"""Lets SGLang 0.5.23 run on a CPU without CUDA, triton or AMX. Lies on PYTHONPATH, so that every child process gets it too.

1. triton: SGLang ships a stand-in for Apple machines (sglang/_platform_stubs.py). It is installed here by letting that one file
   believe that it runs on one; torch itself is not imported for it. A real triton, if installed, is left alone.
2. SGLANG_CPU_COMPILE_FIX=1: --enable-torch-compile calls three hooks of the attention backend that only the AMX one has, and then
   describes sgl_kernel operators that are not there. The hooks become empty ones, the description is left out. Without the variable
   SGLang stays as published and crashes at the first of them: a real "dies while capturing" for the tests.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
from unittest import mock


def install_triton_stand_in() -> None:
    """SGLang's own triton stand-in, on a machine where triton is not installed."""
    find = importlib.machinery.PathFinder.find_spec
    sglang = find("sglang")
    if sglang is None or find("triton"):
        return
    path = os.path.join(os.path.dirname(sglang.origin), "_platform_stubs.py")
    spec = importlib.util.spec_from_file_location("_sglang_platform_stubs", path)
    stubs = importlib.util.module_from_spec(spec)
    sys.modules.update({spec.name: stubs, "torch": mock.MagicMock(name="torch")})
    try:
        spec.loader.exec_module(stubs)
        stubs.sys = types.SimpleNamespace(platform="darwin", modules=sys.modules, meta_path=sys.meta_path)
        stubs.platform = types.SimpleNamespace(machine=lambda: "arm64")
        stubs._patch_non_blocking = lambda: None
        stubs.install_platform_stubs()
    finally:
        stubs.sys = sys
        del sys.modules["torch"]


def fix_attention_backend(module: types.ModuleType) -> None:
    """Give the torch_native backend the three hooks of graph capture."""
    backend = module.TorchNativeAttnBackend
    backend.init_cpu_graph_state = lambda self, max_bs, max_num_tokens: None
    backend.get_cpu_graph_seq_len_fill_value = lambda self: 1
    backend.init_forward_metadata_capture_cpu_graph = lambda self, *args: setattr(self, "swa_out_cache_loc", None)


def fix_graph_runner(module: types.ModuleType) -> None:
    """Describe no sgl_kernel operators."""
    module.register_fake_ops = lambda tp_size: None


class CompileFix(importlib.abc.MetaPathFinder):
    """Fixes a module right after it was imported."""

    fixes = {
        "sglang.srt.layers.attention.torch_native_backend": fix_attention_backend,
        "sglang.srt.model_executor.cpu_graph_runner": fix_graph_runner,
    }

    def find_spec(self, name, path, target=None):
        if name not in self.fixes:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module

        def execute_and_fix(module):
            execute(module)
            self.fixes[name](module)

        spec.loader.exec_module = execute_and_fix
        return spec


install_triton_stand_in()
if os.environ.get("SGLANG_CPU_COMPILE_FIX") == "1":
    sys.meta_path.insert(0, CompileFix())
