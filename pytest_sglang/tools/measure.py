"""``pytest-sglang measure``: how fast is this server, as one line a figure."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import TYPE_CHECKING

from pytest_sglang.tools import shared

if TYPE_CHECKING:
    from pytest_sglang.load.figures import Spread
    from pytest_sglang.session.measure import Measured, Progress, Workload

BEGAN = time.monotonic()
DEFAULT_REQUESTS = 8
REQUESTS_A_STREAM = 4
_LINE_EVERY_S = 30.0


def add(tools: shared.SubCommands) -> None:
    """Its options."""
    parser = tools.add_parser(
        "measure",
        help="measure a running server: decode rate, latencies, one line a figure",
        description="Sends requests of exactly the asked length to a running server and says how fast they were. Changes nothing. "
        "Exit codes: 0 measured, 1 a request failed, 2 interrupted, 4 wrong usage or no server, 6 the figures cannot be trusted.",
    )
    parser.add_argument("url", metavar="URL", nargs="?", help="the server (default: the rig file's), e.g. http://127.0.0.1:30000")
    count = _count
    parser.add_argument("--streams", type=count, default=1, metavar="N", help="requests under way at a time (default: 1)")
    parser.add_argument("--tokens", type=count, default=128, metavar="M", help="output tokens of each request (default: 128)")
    parser.add_argument("--requests", type=count, metavar="R", help="requests in all (default: 4 a stream, at least 8)")
    parser.add_argument("--api", choices=("chat", "completions", "native"), default="completions", help="(default: completions)")
    parser.add_argument("--model", metavar="NAME", help="served name that must be there (default: the first one)")
    parser.add_argument("--prompt-tokens", type=count, default=64, metavar="P", help="tokens of each prompt (default: 64)")
    parser.add_argument(
        "--prompts",
        choices=("unique", "cached", "random-ids"),
        default="unique",
        help="real text that begins differently each time; the same text each time; random token ids (default: unique)",
    )
    parser.add_argument("--seed", type=int, metavar="S", help="the same prompts again (default: others each time)")
    parser.add_argument("--api-key-env", metavar="NAME", help="environment variable that holds the server's API key")
    parser.add_argument("--insecure", action="store_true", help="take any TLS certificate")
    parser.add_argument("--timeout", metavar="TIME", default="5 min", help="give a request up after this time (default: '5 min')")
    parser.add_argument("--rig", metavar="PATH", help="rig file whose server is measured, or 'simulated'")
    parser.add_argument("--fault", metavar="NAME", action="append", default=[], help="fault of the simulated rig, repeatable")
    parser.add_argument("--json", action="store_true", help="machine-readable output")


def run(arguments: argparse.Namespace) -> int:
    """Exit code."""
    from pytest_sglang.record import units
    from pytest_sglang.session import measure

    timeout_s = units.parse(arguments.timeout, "s")
    screen = _Screen(quiet=arguments.json)
    with measure.target(arguments.url, arguments.rig, tuple(arguments.fault), arguments.api_key_env) as found:
        measured = measure.measure(_workload(arguments, found.url, found.api_key, timeout_s), screen.show, began=BEGAN)
    screen.clear()
    prefix = "SIMULATED " if found.simulated else ""
    if arguments.json:
        print(json.dumps({"simulated": found.simulated, **measured.plain()}))
    else:
        print("\n".join(f"{prefix}{line}" for line in lines(measured)))
    return exit_code(measured)


def exit_code(measured: Measured) -> int:
    """Interrupted, failed, not to be trusted, fine: in this order."""
    if measured.interrupted:
        return shared.EXIT_INTERRUPTED
    if measured.figures.failed_requests:
        return shared.EXIT_FAIL
    return shared.EXIT_INCONCLUSIVE if measured.inconclusive else shared.EXIT_OK


def _workload(arguments: argparse.Namespace, url: str, api_key: str | None, timeout_s: float) -> Workload:
    from pytest_sglang.session.measure import Workload

    return Workload(
        url=url,
        api=arguments.api,
        model=arguments.model,
        api_key=api_key,
        streams=arguments.streams,
        tokens=arguments.tokens,
        requests=arguments.requests or max(DEFAULT_REQUESTS, REQUESTS_A_STREAM * arguments.streams),
        prompt_tokens=arguments.prompt_tokens,
        prompts=arguments.prompts,
        seed=arguments.seed if arguments.seed is not None else int.from_bytes(os.urandom(4)),
        timeout_s=timeout_s,
        verify_tls=not arguments.insecure,
    )


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1 (write e.g. 8)")
    return number


# --- what a person sees ------------------------------------------------------------------------------------------------------


def lines(measured: Measured) -> list[str]:
    """One line a figure."""
    found, work = measured.figures, measured.workload
    whole = found.requests - found.failed_requests
    title = (
        f"{measured.model or 'unknown model'} at {work.url}, {work.api}: {work.streams} stream{'s' if work.streams > 1 else ''}, "
    )
    out = [title + f"{work.prompt_tokens}{'' if measured.prompt_tokens_exact else ' (estimated)'} + {work.tokens} tokens a request"]
    if measured.interrupted:
        out.append(f"interrupted after {found.requests} of {work.requests} requests; what was under way is not counted")
    if whole:
        out += [
            _line("decode", found.decode_tok_s, "tok/s"),
            f"{'aggregate':<11}{_number(found.aggregate_tok_s, 'tok/s'):>14}",
            _line("TTFT", found.ttft_ms, "ms"),
            _line("ITL", found.itl_ms, "ms"),
            _line("TPOT", found.tpot_ms, "ms"),
            _line("end to end", found.end_to_end_ms, "ms"),
        ]
    out.append(f"{'requests':<11}{whole} whole, {found.failed_requests} failed")
    out += [f"{'':<11}{count} x {reason}" for reason, count in found.failures.items()]
    server = "" if measured.server_tokens is None else f", {measured.server_tokens:,} by the server's counter"
    accepted = "" if found.accept_length is None else f", {found.accept_length:.2f} accepted a verification"
    if whole:
        out.append(f"{'tokens':<11}{found.output_tokens:,} by the answers{server}{accepted}")
        merged = f"{100 * found.merged_share:.1f} % of the events merged"
        stamped = "the kernel's time stamps" if found.stamps == "kernel" else "the client's own time stamps"
        out.append(f"{'client lag':<11}{_number(found.client_lag_ms, 'ms')}, {stamped}, {merged}")
    out += [f"{'not known':<11}{each}" for each in measured.unknown]
    return out + [f"INCONCLUSIVE: {each}" for each in measured.inconclusive]


def _line(label: str, spread: Spread, unit: str) -> str:
    begin = f"{label:<11}{_number(spread.median, unit):>14}   "
    if spread.unfair is not None:
        return f"{begin}unsure: {spread.unfair}"
    shares = []
    for name, needed in spread.needed.items():
        value = getattr(spread, name)
        if name != "p50":
            shares.append(f"{name} {f'- (n < {needed})' if value is None else _number(value, unit)}")
    return f"{begin}{shares[0]:<18} {shares[1]:<18} n {spread.n:,}"


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
    return f"{value:,.{digits}f} {unit}"


class _Screen:
    """One moving line on a terminal's standard error; elsewhere a line every 30 s."""

    def __init__(self, *, quiet: bool) -> None:
        self._tty = sys.stderr.isatty()
        self._quiet = quiet and not self._tty
        self._last = time.monotonic()
        self._drawn = False

    def show(self, progress: Progress) -> None:
        """Called four times a second."""
        if self._quiet:
            return
        rate = "" if progress.tok_s is None else f", {progress.tok_s:.1f} tok/s"
        failed = f", {progress.failed} failed" if progress.failed else ""
        text = f"{progress.done} of {progress.requests} requests{failed}, {progress.tokens:,} tokens{rate}"
        if self._tty:
            import shutil

            sys.stderr.write("\r\x1b[2K" + text[: shutil.get_terminal_size().columns - 1])
            sys.stderr.flush()
            self._drawn = True
        elif time.monotonic() - self._last >= _LINE_EVERY_S:
            self._last = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """The end: the line makes room for the result."""
        if self._drawn:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
