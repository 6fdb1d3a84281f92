"""Tables and plots of docs/benchmarks.md from the raw results: everything between ``<!-- NAME -->`` and ``<!-- /NAME -->`` is written."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
TARGET_NAMES = {
    "wrong": "wrong <= 1 %",
    "undecided": "undecided <= 5 %",
    "median 5": "5 rounds in the median",
    "95 % within 8": "95 % within 8",
}
SCENARIOS = {
    "grid": "256 streams that emit together every 20 ms, 512 requests of 200 tokens",
    "busy": "The same, half of the client's core taken by another process",
    "full": "64 streams as fast as the client takes them, 1,024 requests of 256 tokens",
    "start": "One request",
}


def block(name: str, text: str) -> None:
    """Put ``text`` between the marks of ``name``."""
    page = PAGE.read_text()
    written, count = re.subn(
        rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda found: f"{found[1]}\n{text}\n\n{found[2]}", page, flags=re.DOTALL
    )
    if count != 1:
        sys.exit(f"{PAGE}: no place for {name}")
    PAGE.write_text(written)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None, form: str) -> str:
    """``value``, or a dash where there is none."""
    return "–" if value is None else format(value, form)


def said_true(row: dict[str, Any], quantity: str, form: str = ".2f") -> str:
    """What was said, and what was."""
    return f"{number(row.get(f'{quantity}_said_ms'), form)} / {number(row.get(f'{quantity}_true_ms'), form)}"


def load(found: dict[str, Any], elsewhere: Sequence[tuple[str, str, str, str]]) -> None:
    """The measuring client."""
    marks = {True: "holds", False: "**missed**", None: "not run"}
    wanted = [[each["target"], number(each["measured"], ".3g"), each["limit"], marks[each["holds"]]] for each in found["targets"]]
    parts = [f"Measured {found['made']}, kernel {found['machine']['kernel']}, Python {found['machine']['python']}."]
    worst = max(row["other_load"] for row in found["rows"] if row["scenario"] != "busy")
    if found["machine"].get("before_others"):
        parts.append(
            "The machine was not quiet: server and client went before all other processes (`run.py --first`), which used what was left."
        )
    elif worst > 0.05:
        parts.append(
            f"**Other processes took up to {worst:.0%} of the client's core: these figures are noisy, run it on a quiet machine.**"
        )
    parts.append(table(["target", "measured", "limit", ""], wanted))
    head = [
        "client",
        "TTFT p99 said / true, ms",
        "ITL mean",
        "ITL p99",
        "tokens/s",
        "CPU s",
        "CPU µs a token",
        "MB",
        "others on its core",
    ]
    for name, title in SCENARIOS.items():
        rows = [
            [
                row["peer"],
                said_true(row, "ttft_p99"),
                said_true(row, "itl_mean", ".3f"),
                said_true(row, "itl_p99"),
                number(row["tok_s"], ",.0f"),
                number(row["cpu_s"], ".2f"),
                number(row.get("cpu_us_a_token"), ".1f"),
                number(row["peak_mb"], ".0f"),
                number(row["other_load"], ".0%"),
            ]
            for row in found["rows"]
            if row["scenario"] == name
        ]
        if name == "grid":
            rows += [
                [f"{peer} (a study of November 2026)", ttft, "–", itl, "–", cpu, "–", "–", "–"]
                for peer, ttft, itl, cpu in elsewhere
            ]
        if rows:
            parts.append(f"**{title}**\n\n{table(head, rows)}")
    block("load", "\n\n".join(parts))
    plot_load(found["rows"])


def statistics(found: dict[str, Any]) -> None:
    """The stopping rule."""
    rows = [
        [
            row["case"],
            f"{row['wrong']:.2%}",
            f"{row['undecided']:.1%}",
            f"{row['rounds_mean']:.1f}, {row['rounds_median']:.0f}, {row['rounds_p95']:.0f}",
            "–" if row["kind"] in ("limit", "crosses") else f"{row['mean_of_5_wrong']:.1%}",
            ", ".join(f"{'' if holds else '**missed** '}{TARGET_NAMES[name]}" for name, holds in row["targets"].items()) or "none",
        ]
        for row in found["cases"]
    ]
    head = [
        "case (rate beside the limit)",
        "wrong",
        "undecided",
        "rounds: mean, median, 95 %",
        "a mean of 5 is wrong",
        "targets that hold",
    ]
    told = f"{found['runs_a_case']:,} simulated acceptance runs a case, seed {found['seed']}."
    block("statistics", f"{told}\n\n{table(head, rows)}")
    plot_statistics(found["curves"])


def report(found: dict[str, Any]) -> None:
    """The page of 2,000 checks in a browser."""
    rows = [
        [name, f"{each['bytes'] / 1e6:.2f}", *(number(each[key], ",.0f") for key in ("paint_ms", "load_ms", "cpu_ms"))]
        for name, each in found["pages"].items()
    ]
    cores = found["machine"]["cores"]
    busy = f" **The machine was not quiet (load average {found['load_average']:g} on {cores} cores): CPU time tells more than the clock.**"
    told = (
        f"{found['checks']:,} checks, {found['not_passing']} of them not passing, six excerpts of logs; Chromium {found['browser']}, medians of "
        f"{found['loads']} loads, {found['made']}.{busy if found['load_average'] > cores / 2 else ''}"
    )
    head = ["page", "MB", "first contentful paint, ms", "load event ended, ms", "CPU of the page's process until then, ms"]
    block("report", f"{told}\n\n{table(head, rows)}")


def _figure(columns: int, height: float) -> Any:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "pytest-sglang", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(9, height), layout="constrained")
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, name: str) -> None:
    figure.savefig(ROOT / "docs" / name, metadata={"Date": None})


def plot_statistics(curves: list[dict[str, Any]]) -> None:
    """Verdict and rounds over the true rate."""
    figure, (left, right) = _figure(2, 3.4)
    noisy = [row for row in curves if row["noise"] == 0.03]
    rates = [100 * row["rate"] for row in noisy]
    for name, colour in (("pass", "#2e7d32"), ("fail", "#c62828")):
        left.plot(rates, [row[name] for row in noisy], color=colour, label=name)
    left.plot(rates, [1 - row["pass"] - row["fail"] for row in noisy], color="#757575", label="undecided")
    left.plot(rates, [row["mean_of_5_pass"] for row in noisy], color="#2e7d32", linestyle=":", label="pass, by a mean of 5 rounds")
    left.set(title="noise 3 %", xlabel="true rate beside the limit, %", ylabel="share of runs")
    left.set_ylim(-0.03, 1.42)
    left.legend(frameon=False, loc="upper center", ncols=2)
    for noise, colour in ((0.01, "#1565c0"), (0.03, "#ef6c00")):
        rows = [row for row in curves if row["noise"] == noise]
        right.plot(rates, [row["rounds_mean"] for row in rows], color=colour, label=f"noise {noise:.0%}")
    right.set(title="rounds until decided (mean)", xlabel="true rate beside the limit, %", ylim=(0, 31))
    right.legend(frameon=False)
    _save(figure, "benchmarks-statistics.svg")


def plot_load(rows: list[dict[str, Any]]) -> None:
    """Error and cost beside the peers."""
    grid = [row for row in rows if row["scenario"] == "grid"]
    names = [row["peer"] for row in grid]
    figure, (left, right) = _figure(2, 2.4)
    left.barh(names, [row["itl_p99_off_ms"] or 0 for row in grid], color="#1565c0")
    left.set(title="ITL p99 off the truth, ms")
    right.barh(names, [row["cpu_us_a_token"] for row in grid], color="#ef6c00")
    right.set(title="CPU µs a token", yticklabels=[])
    for axes in (left, right):
        axes.invert_yaxis()
    _save(figure, "benchmarks-load.svg")


def main() -> None:
    """Write what there are results for."""
    sys.path.insert(0, str(ROOT / "benchmarks" / "load"))
    from peers import ELSEWHERE

    if (RESULTS / "load.json").exists():
        load(json.loads((RESULTS / "load.json").read_text()), ELSEWHERE)
    if (RESULTS / "statistics.json").exists():
        statistics(json.loads((RESULTS / "statistics.json").read_text()))
    if (RESULTS / "report.json").exists():
        report(json.loads((RESULTS / "report.json").read_text()))


if __name__ == "__main__":
    main()
