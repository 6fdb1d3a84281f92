"""Faults that a simulated rig can have: each is one thing that goes wrong on real rigs, and one check must notice it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class Fault:
    """``of_a_start``: acts from the rig's second start on, so that the rig is found warm and serving; else from the beginning."""

    name: str
    summary: str
    of_a_start: bool = False
    harmless: bool = False
    """Looks like a fault and is none: every promise is kept."""


SERVER = (
    Fault("never-ready", "the next starts hang inside graph capture: no log, no CPU, no cache file, no port", of_a_start=True),
    Fault("dies-loading", "the next starts run out of GPU memory while they load weights", of_a_start=True),
    Fault("wrong-model", "another model is served than the promised one"),
    Fault("sigterm-ignored", "the server does not end on SIGTERM: its unit kills it when the stop time-out (5 s) is over"),
    Fault("orphaned-scheduler", "a stop ends the main process alone: its scheduler survives re-parented and keeps the GPU memory"),
    Fault("inflated-usage", "answers tell of 10 % more tokens than were generated; the counters do not"),
    Fault("early-stop", "every generation ends three tokens early, although ignore_eos is set"),
    Fault("nan-tokens", "/health is 200, but every generation ends at once with NaN in place of a token"),
    Fault("dies-serving", "a scheduler is killed while it decodes, and SGLang ends its own tree"),
    Fault(
        "misleading-crash", "the next starts die in graph capture; the last traceback in the log is not the cause", of_a_start=True
    ),
    Fault("stopped", "the next starts are stopped by SIGSTOP inside graph capture", of_a_start=True),
    Fault(
        "hung-engine", "after the next starts the port is open and /v1/models answers, but the warm-up never ends", of_a_start=True
    ),
    Fault("port-opens-early", "the next starts open their port 26 s before they are ready", of_a_start=True),
    Fault("compiles-after-ready", "after the next starts the first two requests run twenty times slower", of_a_start=True),
    Fault("impostor", "when the next starts come to their port, an old server still listens on it", of_a_start=True),
    Fault(
        "garbled-answers",
        "the next starts that find their kernels in the caches take stale ones: wrong tokens, as fast and sure as ever",
        of_a_start=True,
    ),
    Fault("wrong-p2p", "now and then a sum over the cards comes out wrong, and with it a token"),
    Fault("unit-flaps", "the next starts die while they load weights, and systemd starts them again and again", of_a_start=True),
    Fault("log-silent", "the next starts write nothing while they compile, but cache files appear", of_a_start=True, harmless=True),
    Fault("log-rotates", "the log is rotated (copytruncate) in the middle of the next starts", of_a_start=True, harmless=True),
    Fault("near-ties", "where the two best tokens are nearly tied, now one and now the other is chosen", harmless=True),
    Fault("random-timing", "every phase of a start takes a random time within the promise", harmless=True),
)
"""In the server's life and in its answers."""

HARDWARE = (
    Fault("slow-decode", "decoding is 20 % slower, nothing else differs"),
    Fault("power-limit-lost", "GPU 2 falls back to its default power limit, at the beginning and within 1 s of any set"),
    Fault("power-limit-clamped", "GPU 3 takes any power limit, and enforces 220 W at most"),
    Fault("persistence-off", "persistence mode of GPU 1 is off: its limit is lost when the driver unloads"),
    Fault("thermal-slowdown", "GPU 2 breathes hot air: within seconds of a load it is at 93 °C and lowers its clocks by a quarter"),
    Fault("power-brake", "whenever GPU 1 is loaded, an outside power brake halves its clocks"),
    Fault("energy-counter-reset", "the energy counter of GPU 0 begins again at zero 0.7 s into every load"),
    Fault("energy-counter-missing", "no card has an energy counter (Not Supported), as cards before Volta"),
    Fault("energy-unreadable", "GPU 2 has neither an energy counter nor an instantaneous power reading"),
    Fault("nvlink-dead", "every link between GPU 2 and GPU 3 is inactive, and decoding loses what NVLink gains"),
    Fault("nvlink-partial", "one of the four links between GPU 2 and GPU 3 is inactive: the bridge sits half"),
    Fault("nvlink-crossed", "the bridges join GPU 0 with 2 and 1 with 3, not 0 with 1 and 2 with 3"),
    Fault("nvlink-errors", "link 1 of GPU 0 sends data again and again while it works"),
    Fault("server-misplaced", "the server runs on GPUs 0, 1, 2, 4: one whole pair and two halves"),
    Fault("pcie-x4", "GPU 1 has four PCIe lanes"),
    Fault("pcie-gen1", "GPU 1 stays at PCIe generation 1 under load"),
    Fault("pcie-replays", "GPU 1 sends PCIe packets again and again while it works"),
    Fault("rank-idle", "GPU 2 holds its share of the model and does nothing while the others decode"),
    Fault("counters-hidden", "GPU 1 answers Unknown Error when asked what PCIe and NVLink have sent again"),
    Fault("counters-missing", "no card counts what PCIe and NVLink have sent again (Not Supported)", harmless=True),
    Fault("memory-hidden", "the driver tells neither the memory in use nor the processes on a card (Not Supported)"),
    Fault("ecc-errors", "GPU 1, a card with ECC here, counts uncorrected memory errors while it works"),
    Fault("row-remap-pending", "GPU 1, a card with ECC here, has a memory row to remap"),
    Fault("xid-79", "GPU 2 falls off the bus after 5 s of load: GPU is lost, Xid 79 in the kernel log"),
    Fault("foreign-process", "another program computes on GPU 1"),
    Fault("not-supported", "the cards answer NotSupported to PCIe link, energy counter, clocks reasons and more"),
    Fault("driver-mismatch", "library and kernel module of the driver have different versions: NVML does not open"),
    Fault("kernel-log-hidden", "this user may not read the kernel log"),
)
"""In cards, power, links, driver."""

CACHES = (
    Fault("cache-cold", "the compile caches are emptied whenever the server stops, as PrivateTmp=yes would", of_a_start=True),
    Fault(
        "cache-upgraded",
        "Triton is upgraded from 3.6.0 to 3.7.0 before the next start: nothing in the caches fits",
        of_a_start=True,
    ),
    Fault(
        "cache-flags-changed",
        "the next start has --torch-compile-max-bs 8 instead of 4: kernels for it are compiled",
        of_a_start=True,
    ),
    Fault("cache-relocated", "the next start is given other cache directories, which are empty", of_a_start=True),
    Fault("cache-unused", "the next start does not use the caches (TORCHINDUCTOR_FORCE_DISABLE_CACHES=1)", of_a_start=True),
    Fault("cache-autotune-lost", "the tuning results vanish when the server stops, the kernels stay", of_a_start=True),
    Fault("cache-graphs-lost", "the fx graph and AOT autograd caches vanish when the server stops", of_a_start=True),
    Fault("cache-late", "kernels are compiled at the first requests after the server is ready", of_a_start=True),
    Fault("cache-in-tmp", "Inductor's cache is in /tmp, which systemd-tmpfiles empties at boot"),
    Fault("cache-private-tmp", "Inductor's cache is in the unit's own /tmp (PrivateTmp=yes), which goes at every stop"),
    Fault("cache-in-memory", "the caches are on a tmpfs"),
    Fault("cache-aged", "a rule of systemd-tmpfiles removes what nobody touched for 10 days from the caches"),
    Fault("cache-in-container-layer", "the caches are in a container's own layer, without a volume"),
    Fault("cache-other-owner", "the unit runs as a user who does not own the caches"),
    Fault("cache-read-only", "the caches' file system is mounted read-only"),
    Fault("cache-little-space", "a disk quota leaves 0.5 GiB to the server's user"),
    Fault("cache-moved", "the caches were moved here from another directory: group files point to the old one"),
    Fault("cache-incomplete", "a cubin is missing although its group file names it"),
    Fault("cache-broken", "one cubin is cut off, one is empty, one entry's metadata are no JSON"),
    Fault("cache-leftover", "a killed compiler left unfinished files"),
    Fault("cache-duplicate", "Inductor's own tree holds kernels a second time"),
    Fault("cache-stale", "kernels of Triton 3.5.1 and of sm_90 are in the caches"),
)
"""In compile caches."""

FAULTS: dict[str, Fault] = {fault.name: fault for fault in (*SERVER, *HARDWARE, *CACHES)}


def check(names: Iterable[str]) -> tuple[str, ...]:
    """These names. Raises ValueError for an unknown one, naming the nearest known."""
    names = tuple(names)
    for name in names:
        if name not in FAULTS:
            near = get_close_matches(name, FAULTS, n=1)
            hint = f", did you mean {near[0]}?" if near else ""
            raise ValueError(f"no fault {name!r}{hint} (known: {', '.join(FAULTS)})")
    return names
