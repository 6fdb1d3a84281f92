"""The server's HTTP control plane: is it ready, who does it say it is, how busy is it, one exact completion. Not for load."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any, Self

from pytest_sglang.record.values import Value
from pytest_sglang.server import redact

if TYPE_CHECKING:
    import httpx

_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)", re.MULTILINE)
_PROMPT = "def main"


class Unreachable(Exception):
    """No answer: refused, timed out, cut. Raised by ``ControlPlane.request`` only; everything else answers with a value."""


class Unreadable(Value, frozen=True):
    """What could not be read, and why; never an empty or a zero reading."""

    reason: str

    def __bool__(self) -> bool:
        return False


class Answer(Value, frozen=True):
    """An HTTP answer: status, body, seconds from sending to the last byte."""

    status: int
    body: str
    seconds: float


class Probe(Value, frozen=True):
    """One look at ``/health`` or ``/ready``. ``status`` None: refused or no answer in time (then ``why``)."""

    status: int | None
    seconds: float
    why: str = ""


class Completion(Value, frozen=True, kw_only=True):
    """One completion. ``tokens`` by the server's own count; ``ok``: exactly the asked length, ended by ``length``; else ``why``."""

    asked: int
    tokens: int | None = None
    finish_reason: str | None = None
    matched_stop: str | int | None = None
    seconds: float = 0.0
    ok: bool = False
    why: str = ""
    text: str = ""
    status: int | None = None


class ControlPlane:
    """Small requests to one server, each with a time-out. A context manager; safe to use from two threads."""

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = 5.0, *, verify_tls: bool = True) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self.api_key = api_key
        self._verify_tls = verify_tls
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._opened: httpx.Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    @property
    def _client(self) -> httpx.Client:
        if self._opened is None:
            import httpx

            # a proxy from the environment must never stand between us and the server
            self._opened = httpx.Client(
                base_url=self.url, headers=self._headers, trust_env=False, timeout=self.timeout_s, verify=self._verify_tls
            )
        return self._opened

    def request(self, method: str, path: str, *, body: object = None, timeout_s: float | None = None) -> Answer:
        """One request. Raises Unreachable."""
        import httpx

        begin = time.monotonic()
        try:
            answer = self._client.request(method, path, json=body, timeout=timeout_s or self.timeout_s)
        except httpx.TimeoutException:
            raise Unreachable(f"{self.url}{path}: no answer within {timeout_s or self.timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise Unreachable(f"{self.url}{path}: {str(error) or type(error).__name__}") from None
        return Answer(answer.status_code, answer.text, time.monotonic() - begin)

    # --- ready? ------------------------------------------------------------------------------------------------------------

    def health(self, timeout_s: float = 25.0) -> int | None:
        """Status of ``/health``: 200 serving (it generates a token: at least 1 s), 503 starting or draining; None: no answer.

        SGLang itself gives up after 20 s (SGLANG_HEALTH_CHECK_TIMEOUT) with 503.
        """
        return self.probe("/health", timeout_s).status

    def probe(self, path: str, timeout_s: float = 25.0) -> Probe:
        """One look at ``path`` with its duration."""
        begin = time.monotonic()
        try:
            answer = self.request("GET", path, timeout_s=timeout_s)
        except Unreachable as error:
            return Probe(None, time.monotonic() - begin, str(error))
        return Probe(answer.status, answer.seconds)

    def ready_flag(self) -> bool | None:
        """``/ready`` (0.5.20 and later): a flag, no generation. None where the server does not know it or does not answer."""
        status = self.probe("/ready", self.timeout_s).status
        return None if status not in (200, 503) else status == 200

    # --- who? --------------------------------------------------------------------------------------------------------------

    def models(self) -> list[str] | Unreadable:
        """Served names (``/v1/models``). An answer is no readiness: it comes from the moment at which the port opens."""
        found = self._json("/v1/models")
        if isinstance(found, Unreadable):
            return found
        data = found.get("data")
        if not isinstance(data, list):
            return Unreadable(f"{self.url}/v1/models: no list of models in the answer")
        return [str(each.get("id")) for each in data if isinstance(each, dict)]

    def model_info(self) -> dict[str, Any] | Unreadable:
        """``/model_info``, with the name that 0.4 had as fall-back."""
        found = self._json("/model_info")
        return self._json("/get_model_info") if isinstance(found, Unreadable) else found

    def server_info(self) -> dict[str, Any] | Unreadable:
        """``/server_info``, secrets redacted. A round trip to the scheduler, which stalls at start-up: only after readiness."""
        found = self._json("/server_info")
        if isinstance(found, Unreadable) and "HTTP 404" in found.reason:
            found = self._json("/get_server_info")
        if isinstance(found, Unreadable):
            return found
        hidden: dict[str, Any] = redact.info(found)
        return hidden

    def _json(self, path: str) -> dict[str, Any] | Unreadable:
        try:
            answer = self.request("GET", path)
        except Unreachable as error:
            return Unreadable(str(error))
        if answer.status in (401, 403):
            return Unreadable(f"{self.url}{path}: HTTP {answer.status}: an API key is needed (server.api_key_env in the rig file)")
        if answer.status != 200:
            return Unreadable(f"{self.url}{path}: HTTP {answer.status}")
        try:
            found = json.loads(answer.body)
        except ValueError:
            return Unreadable(f"{self.url}{path}: the answer is not JSON")
        return found if isinstance(found, dict) else Unreadable(f"{self.url}{path}: the answer is no JSON object")

    # --- busy? -------------------------------------------------------------------------------------------------------------

    def running_requests(self) -> int | None:
        """Requests that run or wait, over all data-parallel ranks: from ``/v1/loads``, else from the metrics, else None."""
        found = self._json("/v1/loads")
        loads = [] if isinstance(found, Unreadable) else found.get("loads")
        if isinstance(loads, list) and loads:
            counts = [each.get(key) for each in loads if isinstance(each, dict) for key in ("num_running_reqs", "num_waiting_reqs")]
            known = [count for count in counts if isinstance(count, (int, float))]
            if counts and len(known) == len(counts):
                return int(sum(known))
        metrics = self.metrics()
        if metrics is None or "sglang:num_running_reqs" not in metrics:
            return None
        return int(metrics["sglang:num_running_reqs"] + metrics.get("sglang:num_queue_reqs", 0.0))

    def metrics(self) -> dict[str, float] | None:
        """Prometheus samples summed over their labels, those with a ``phase`` or ``mode`` also apart: ``name{phase="x"}``.

        None where there are none: SGLang has them with --enable-metrics only, else 404.
        """
        try:
            answer = self.request("GET", "/metrics")
        except Unreachable:
            return None
        if answer.status != 200:
            return None
        found: dict[str, float] = {}
        for match in _SAMPLE.finditer(answer.body):
            try:
                value = float(match["value"])
            except ValueError:
                continue
            phase = re.search(r'(?:phase|mode)="[^"]*"', match["labels"] or "")
            for name in (match["name"], f"{match['name']}{{{phase[0]}}}" if phase else None):
                if name is not None and value == value:
                    found[name] = found.get(name, 0.0) + value
        return found

    def flush(self) -> bool:
        """Empty the prefix cache; False where the server refuses (requests run, HTTP 400) or does not answer."""
        try:
            return self.request("POST", "/flush_cache").status == 200
        except Unreachable:
            return False

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text`` by the server's own tokenizer; four characters a token where it does not tell."""
        try:
            answer = self.request("POST", "/tokenize", body={"model": "default", "prompt": text})
            found = json.loads(answer.body)["count"] if answer.status == 200 else None
        except (Unreachable, ValueError, KeyError, TypeError):
            found = None
        return found if isinstance(found, int) else -(-len(text) // 4)

    # --- one exact completion ----------------------------------------------------------------------------------------------

    def complete(self, tokens: int, timeout_s: float = 60.0, *, prompt: str = _PROMPT, model: str = "default") -> Completion:
        """A completion of exactly ``tokens`` tokens (ignore_eos, temperature 0), not streamed.

        SGLang does not check the ``model`` field of a request: a wrong name answers 200 and is echoed back.
        """
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0, "stream": False}
        try:
            answer = self.request("POST", "/v1/completions", body=body, timeout_s=timeout_s)
        except Unreachable as error:
            return Completion(asked=tokens, why=str(error))
        if answer.status != 200:
            return Completion(asked=tokens, why=f"HTTP {answer.status}: {redact.text(answer.body)[:200]}", status=answer.status)
        return _completion(tokens, answer)


def _completion(asked: int, answer: Answer) -> Completion:
    """Judge the answer: an error may hide in a 200; NaN ends with ``stop`` and a matched text; clamping with too few tokens."""
    try:
        data = json.loads(answer.body)
        choice = data["choices"][0]
        tokens, finish = int(data["usage"]["completion_tokens"]), choice.get("finish_reason")
        matched, text = choice.get("matched_stop"), str(choice.get("text", ""))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        why = f"not a completion: {redact.text(answer.body)[:200]!r}"
        return Completion(asked=asked, why=why, seconds=answer.seconds, status=answer.status)
    why = ""
    if finish != "length" or tokens != asked:
        why = f"asked for exactly {asked} tokens, got {tokens} with finish reason {finish}"
        if matched is not None:
            why += f" ({matched})"
    return Completion(
        asked=asked,
        tokens=tokens,
        finish_reason=finish,
        matched_stop=matched,
        seconds=answer.seconds,
        ok=not why,
        why=why,
        text=text,
        status=answer.status,
    )
