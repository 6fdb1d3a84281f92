"""Which rig file is meant, and which of the offered checks it does not promise."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pytest_sglang.rig import find, load
from pytest_sglang.rig.model import Rig
from pytest_sglang.session import checks
from pytest_sglang.session.errors import Refused
from pytest_sglang.session.options import SIMULATED, RunOptions

SIMULATED_PROMISE = "six-3090"


def resolve(options: RunOptions) -> Rig:
    """The rig file of this run with the command line's overrides. Raises RigError, or Refused for a promise without a source."""
    if options.rig == SIMULATED:
        rig = load.load(find.packaged()[SIMULATED_PROMISE])
    else:
        rig = load.load(_path(options))
    if options.url is not None or options.log is not None:
        if rig.server is None:
            raise Refused(
                f"{rig.path}: no [server] table, so --sglang-url and --sglang-log have nothing to override (add [server] with model = ...)"
            )
        server = rig.server
        if options.url is not None:
            if not options.url.startswith(("http://", "https://")):
                raise Refused(f"--sglang-url={options.url}: not a URL (write e.g. --sglang-url=http://127.0.0.1:30000)")
            server = msgspec.structs.replace(server, url=options.url.rstrip("/"))
        if options.log is not None:
            server = msgspec.structs.replace(server, log=str(Path(options.log).resolve()))
        rig = msgspec.structs.replace(rig, server=server)
    return rig


def named(options: RunOptions) -> bool:
    """Whether a rig file is named or lies in its usual place; nothing but the file system is looked at."""
    return options.rig is not None or any((options.rootdir / place).is_file() for place in find.PLACES)


def _path(options: RunOptions) -> Path:
    try:
        return find.find(options.rig, options.rootdir)
    except load.RigError as error:
        if options.rig is not None:
            raise
        from pytest_sglang.session.sources import survey

        raise Refused(nothing_to_judge(str(error), survey(options.url))) from None


def nothing_to_judge(rig_file: str, found: list[str]) -> str:
    """The one message for a machine without rig file or hardware: what was looked for, what was found, how to try it."""
    return "\n".join(
        [
            "nothing to judge: no rig file says what is promised.",
            f"  looked for: {rig_file}",
            *(f"  {line}" for line in found),
            "  to judge this machine:       pytest-sglang init -o rig.toml, then edit the promises",
            "  to try the simulated rig:    pytest acceptance/ --power=250 --rig=simulated",
        ]
    )


def left_out(rig: Rig, options: RunOptions, offered: set[str]) -> tuple[str, ...]:
    """Offered standard checks that do not exist in this run: not promised by the rig file, or not asked for."""
    compares = options.baseline is not None and not options.baseline.save
    kept = {*checks.promised(rig), *((checks.BASELINE,) if compares else ())}
    return tuple(spec.id for spec in checks.STANDARD.values() if spec.id in offered and spec.id not in kept)
