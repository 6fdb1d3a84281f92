"""Counters of the simulated server, as the Prometheus text of 0.5.11 names them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

_EDGES_S = (0.001, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)


@dataclass
class Histogram:
    """Seconds, cumulative buckets."""

    total_s: float = 0.0
    counts: list[int] = field(default_factory=lambda: [0] * (len(_EDGES_S) + 1))

    def add(self, seconds: float) -> None:
        """One observation."""
        self.total_s += seconds
        self.counts[next((n for n, edge_s in enumerate(_EDGES_S) if seconds <= edge_s), len(_EDGES_S))] += 1

    def lines(self, name: str, labels: str) -> list[str]:
        """Its sum, buckets and count."""
        found, so_far = [f"{name}_sum{{{labels}}} {self.total_s}"], 0
        for edge, count in zip([*map(str, _EDGES_S), "+Inf"], self.counts, strict=True):
            so_far += count
            found.append(f'{name}_bucket{{le="{edge}",{labels}}} {float(so_far)}')
        return [*found, f"{name}_count{{{labels}}} {float(so_far)}"]


class Metrics:
    """Everything counted since the start."""

    def __init__(self) -> None:
        self.prompt_tokens = self.generated_tokens = self.cached_tokens = self.requests = self.aborted = 0
        self.realtime: Counter[str] = Counter()
        self.passes: Counter[str] = Counter()
        self.responses: Counter[tuple[str, str, int]] = Counter()
        self.first_token = Histogram()
        self.between = Histogram()
        self.whole = Histogram()
        self.queued = Histogram()

    def text(self, model: str, gauges: dict[str, float]) -> str:
        """The page behind /metrics."""
        labels = f'engine_type="unified",model_name="{model}"'
        ranked = f'{labels},moe_ep_rank="0",pp_rank="0",tp_rank="0"'
        lines: list[str] = []

        def family(name: str, kind: str, about: str, samples: list[str]) -> None:
            lines.extend([f"# HELP sglang:{name} {about}", f"# TYPE sglang:{name} {kind}", *samples])

        for name, value in gauges.items():
            family(name, "gauge", f"The {name.replace('_', ' ')}.", [f"sglang:{name}{{{ranked}}} {float(value)}"])
        for name, counter, about in (
            ("cuda_graph_passes_total", self.passes, "Total number of forward passes categorized by CUDA graph."),
            ("realtime_tokens_total", self.realtime, "Total number of tokens processed (updated on each log interval)."),
        ):
            samples = [f'sglang:{name}{{{ranked},mode="{mode}"}} {float(value)}' for mode, value in counter.items()]
            family(name, "counter", about, samples)
        for name, number, about in (
            ("prompt_tokens_total", self.prompt_tokens, "Number of prefill tokens processed."),
            ("generation_tokens_total", self.generated_tokens, "Number of generation tokens processed."),
            ("cached_tokens_total", self.cached_tokens, "Number of cached prompt tokens."),
            ("num_requests_total", self.requests, "Number of requests processed."),
            ("num_aborted_requests_total", self.aborted, "Number of requests aborted."),
        ):
            family(name, "counter", about, [f"sglang:{name}{{{labels}}} {float(number)}"])
        samples = [
            f'sglang:http_responses_total{{endpoint="{path}",method="{method}",status_code="{status}"}} {float(count)}'
            for (path, method, status), count in sorted(self.responses.items())
        ]
        family("http_responses_total", "counter", "Total number of HTTP responses by endpoint and status code", samples)
        for name, histogram in (
            ("time_to_first_token_seconds", self.first_token),
            ("inter_token_latency_seconds", self.between),
            ("e2e_request_latency_seconds", self.whole),
            ("queue_time_seconds", self.queued),
        ):
            family(name, "histogram", f"Histogram of {name.replace('_', ' ')}.", histogram.lines(f"sglang:{name}", labels))
        return "\n".join(lines) + "\n"
