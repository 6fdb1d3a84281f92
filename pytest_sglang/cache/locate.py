"""Where a server's compiled kernels are: its environment, then its version's defaults. ``~/.triton/cache`` alone would be wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple


class CachePlace(NamedTuple):
    """One cache directory. ``why`` tells what decided the path, ``variable`` which environment variable would move it.

    ``through``: where another mount namespace's root is seen from here (``/proc/PID/root``), empty for our own view.
    """

    kind: str
    path: Path
    why: str
    variable: str = ""
    through: str = ""

    @property
    def here(self) -> Path:
        """The path under which this process can read it."""
        return Path(self.through + str(self.path)) if self.through else self.path


class Rule(NamedTuple):
    """One row of a layout: variables (name, what is appended to its value) in the order in which they win, else the default."""

    kind: str
    variables: tuple[tuple[str, str], ...]
    default: str
    """A template of {home} {tmp} {user} and of the kinds above it in the table."""


HEADERS = "headers"
"""Kind of Inductor's precompiled C++ headers: no kernels, made again in seconds."""

_BASE = Rule("sglang", (("SGLANG_CACHE_DIR", ""),), "{home}/.cache/sglang")
_TRITON = (("TRITON_CACHE_DIR", ""), ("TRITON_HOME", "/.triton/cache"))
_INDUCTOR = (("TORCHINDUCTOR_CACHE_DIR", ""),)
_CUDA = (("CUDA_CACHE_PATH", ""),)
_FLASHINFER = (("FLASHINFER_WORKSPACE_BASE", "/.cache/flashinfer"),)
_DEEP_GEMM = (("SGLANG_DG_CACHE_DIR", ""), ("DG_JIT_CACHE_DIR", ""))
_TVM_FFI = Rule("tvm_ffi", (("TVM_FFI_CACHE_DIR", ""),), "{home}/.cache/tvm-ffi")
_INSIDE_INDUCTOR = (
    Rule("inductor_triton", (), "{inductor}/triton"),
    Rule("fxgraph", (), "{inductor}/fxgraph"),
    Rule("aotautograd", (), "{inductor}/aotautograd"),
    # torch 2.11 and 2.13 _inductor/codecache.py: the default directory, whatever TORCHINDUCTOR_CACHE_DIR says
    Rule(HEADERS, (), "{tmp}/torchinductor_{user}/precompiled_headers"),
)

LAYOUTS: tuple[tuple[tuple[int, ...], str, tuple[Rule, ...]], ...] = (
    # sources: sglang/srt/environ.py third_party_cache_defaults() and kernels/jit/utils/compile/cache.py of 0.5.23
    (
        (0, 5, 18),
        "0.5.18 and later",
        (
            _BASE,
            Rule("triton", (("TRITON_CACHE_DIR", ""),), "{sglang}/triton"),
            Rule("inductor", _INDUCTOR, "{sglang}/inductor"),
            *_INSIDE_INDUCTOR,
            Rule("cuda", _CUDA, "{sglang}/nv"),
            Rule("flashinfer", _FLASHINFER, "{sglang}/.cache/flashinfer"),
            Rule("flashinfer_tuning", (), "{sglang}/flashinfer/autotune"),
            Rule("deep_gemm", _DEEP_GEMM, "{sglang}/deep_gemm"),
            Rule("tilelang", (("TILELANG_CACHE_DIR", ""),), "{sglang}/tilelang"),
            Rule("cute_aot", (("SGLANG_CUTE_AOT_CACHE_DIR", ""),), "{sglang}/cute_aot"),
            # does not follow SGLANG_CACHE_DIR
            Rule("sglang_jit", (("SGLANG_JIT_CACHE_DIR", ""),), "{home}/.cache/sglang/jit"),
            _TVM_FFI,
        ),
    ),
    # sources: triton 3.6 knobs.py, torch 2.11 _inductor/runtime/cache_dir_utils.py, flashinfer jit/env.py, sglang 0.5.10 and 0.5.11
    (
        (0,),
        "before 0.5.18",
        (
            _BASE,
            Rule("triton", _TRITON, "{home}/.triton/cache"),
            Rule("inductor", _INDUCTOR, "{tmp}/torchinductor_{user}"),
            *_INSIDE_INDUCTOR,
            Rule("cuda", _CUDA, "{home}/.nv/ComputeCache"),
            Rule("flashinfer", _FLASHINFER, "{home}/.cache/flashinfer"),
            Rule("deep_gemm", _DEEP_GEMM, "{home}/.cache/deep_gemm"),
            Rule("tilelang", (("TILELANG_CACHE_DIR", ""),), "{home}/.tilelang/cache"),
            _TVM_FFI,
        ),
    ),
)
"""(first version, name, rules), newest first. What 0.5.18 redirects at import is a default: a variable from outside wins."""


def locate(
    *,
    version: str | None,
    environ: Mapping[str, str],
    home: Path,
    tmpdir: Path,
    user: str,
    cwd: Path = Path("/"),
) -> tuple[CachePlace, ...]:
    """Every place where this SGLang keeps compiled kernels, whether it exists or not; some lie inside others.

    ``environ`` is the server's at its start, ``home``, ``tmpdir`` and ``user`` are what holds where it says nothing, ``cwd`` is
    what relative paths count from. A version that is not known gives the places of every layout.
    """
    asked = _numbers(version)
    found: dict[tuple[str, Path], CachePlace] = {}
    for since, name, rules in LAYOUTS:
        if asked is not None and asked < since:
            continue
        for place in _apply(rules, name, environ, home, tmpdir, user, cwd):
            found.setdefault((place.kind, place.path), place)
        if asked is not None:
            break
    return tuple(found.values())


def _apply(
    rules: tuple[Rule, ...], layout: str, environ: Mapping[str, str], home: Path, tmpdir: Path, user: str, cwd: Path
) -> Iterator[CachePlace]:
    known = {"home": environ.get("HOME") or str(home), "tmp": _tmpdir(environ, tmpdir), "user": _user(environ, user)}
    for rule in rules:
        variable = rule.variables[0][0] if rule.variables else ""
        for name, suffix in rule.variables:
            if environ.get(name):
                path, why = environ[name] + suffix, name
                break
        else:
            path, why = rule.default.format_map(known), f"default of SGLang {layout}"
        if path.startswith("~"):
            path = known["home"] + path[1:]
        known[rule.kind] = os.path.normpath(os.path.join(cwd, path))
        yield CachePlace(rule.kind, Path(known[rule.kind]), why, variable)


def _tmpdir(environ: Mapping[str, str], default: Path) -> str:
    """What Python's tempfile.gettempdir() takes."""
    return next((environ[name] for name in ("TMPDIR", "TEMP", "TMP") if environ.get(name)), str(default))


def _user(environ: Mapping[str, str], default: str) -> str:
    """The name in ``torchinductor_<user>``: getpass.getuser(), which believes four variables before the user database."""
    name = next((environ[name] for name in ("LOGNAME", "USER", "LNAME", "USERNAME") if environ.get(name)), default)
    return re.sub(r'[\\/:*?"<>|]', "_", name)


def _numbers(version: str | None) -> tuple[int, ...] | None:
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", version or "")
    return None if match is None else tuple(int(part or 0) for part in match.groups())


def environment_of(pid: int) -> dict[str, str] | None:
    """The environment with which process ``pid`` was started; None where it cannot be read.

    setproctitle blanks the environment of SGLang's schedulers and detokenizer, wholly or up to a variable that was set late: what
    is left there is completed by the nearest parent of the same user that is not blanked, since children inherit. Variables that
    a process sets itself never show in it (in its children they do): defaults by version are ``locate``'s.
    """
    owner, left = _owner(pid), dict[str, str]()
    while pid > 1 and owner is not None and _owner(pid) == owner:
        try:
            raw = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return None
        left = {**_environ(raw), **left}
        if _VARIABLE.match(raw):
            return left
        pid = parent_of(pid)
    return None


_VARIABLE = re.compile(rb"([A-Za-z_][A-Za-z0-9_.]*)=([^\0]*)(?:\0|$)")


def _environ(raw: bytes) -> dict[str, str]:
    """/proc/PID/environ as a mapping; what a title left behind there is no variable."""
    matches = (_VARIABLE.fullmatch(item) for item in raw.split(b"\0"))
    return {os.fsdecode(match[1]): os.fsdecode(match[2]) for match in matches if match is not None}


def _owner(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def parent_of(pid: int) -> int:
    """The parent's pid; 0 for a process that is gone. Source: proc_pid_stat(5), field 4."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(stat[stat.rfind(")") + 2 :].split()[1])


def as_seen_by(pid: int, places: tuple[CachePlace, ...]) -> tuple[CachePlace, ...]:
    """``places`` with ``through`` set where process ``pid`` means another directory than we: PrivateTmp, a container."""
    root = f"/proc/{pid}/root"
    try:
        if os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt"):
            return places
    except OSError:
        # without the right to look, the other view cannot be read either
        return places
    return tuple(place._replace(through=root) if not _same(root + str(place.path), str(place.path)) else place for place in places)


def _same(theirs: str, ours: str) -> bool:
    """Whether two paths mean the same directory; where neither exists, their nearest existing parents decide."""
    while True:
        one, other = _identity(theirs), _identity(ours)
        if one is not None or other is not None:
            return one == other
        if ours == "/":
            return True
        theirs, ours = os.path.dirname(theirs), os.path.dirname(ours)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
