from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pytest_sglang.server.http import ControlPlane, Unreachable, Unreadable

Answers = dict[str, tuple[int, object]]
LOADS = {"loads": [{"num_running_reqs": 1, "num_waiting_reqs": 2}, {"num_running_reqs": 4, "num_waiting_reqs": 0}]}
METRICS = """# HELP sglang:num_running_reqs x
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="m",tp_rank="0"} 2.0
sglang:num_running_reqs{model_name="m",tp_rank="1"} 1.0
sglang:num_queue_reqs{model_name="m"} 3.0
sglang:startup_time_seconds{model_name="m",phase="load_weight"} 0.5
sglang:cache_hit_rate NaN
sglang:broken x
"""


@pytest.fixture
def serve() -> Iterator[Callable[[Answers], tuple[str, list[tuple[str, str, dict[str, str], str]]]]]:
    servers: list[ThreadingHTTPServer] = []

    def start(answers: Answers) -> tuple[str, list[tuple[str, str, dict[str, str], str]]]:
        seen: list[tuple[str, str, dict[str, str], str]] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                return

            def _any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
                seen.append((self.command, self.path, dict(self.headers), body))
                status, answer = answers.get(self.path, (404, {"detail": "Not Found"}))
                data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = _any  # noqa: N815

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}", seen

    yield start
    for each in servers:
        each.shutdown()
        each.server_close()


Serve = Callable[[Answers], tuple[str, list[tuple[str, str, dict[str, str], str]]]]


def _completion(tokens: int, finish: str, matched: object = None) -> dict[str, object]:
    choice = {"index": 0, "text": "x", "finish_reason": finish, "matched_stop": matched}
    return {"choices": [choice], "usage": {"completion_tokens": tokens}}


def test_an_exact_completion_is_asked_for_without_eos_and_is_ok(serve: Serve) -> None:
    url, seen = serve({"/v1/completions": (200, _completion(16, "length"))})
    with ControlPlane(url, "sesame") as plane:
        done = plane.complete(16)
    assert (done.ok, done.tokens, done.finish_reason, done.why) == (True, 16, "length", "")
    body = json.loads(seen[0][3])
    assert (body["max_tokens"], body["ignore_eos"], body["temperature"], body["stream"]) == (16, True, 0, False)
    assert {name.lower(): value for name, value in seen[0][2].items()}["authorization"] == "Bearer sesame"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((200, _completion(13, "stop", 2)), "asked for exactly 16 tokens, got 13 with finish reason stop (2)"),
        ((200, _completion(16, "stop", "NaN happened")), "got 16 with finish reason stop (NaN happened)"),
        ((200, _completion(12, "length")), "got 12 with finish reason length"),
        ((200, {"error": {"message": "x"}}), "not a completion"),
        ((200, "not json"), "not a completion"),
        ((200, []), "not a completion"),
        ((503, "shutting down"), "HTTP 503: shutting down"),
    ],
)
def test_a_completion_that_is_not_exact_says_why(serve: Serve, answer: tuple[int, object], why: str) -> None:
    url, _ = serve({"/v1/completions": answer})
    with ControlPlane(url) as plane:
        done = plane.complete(16)
    assert not done.ok
    assert why in done.why


def test_a_closed_port_gives_values_and_no_exception(port: int) -> None:
    with ControlPlane(f"http://127.0.0.1:{port}") as plane:
        assert plane.health() is None
        assert plane.ready_flag() is None
        assert isinstance(plane.models(), Unreadable)
        assert isinstance(plane.model_info(), Unreadable)
        assert isinstance(plane.server_info(), Unreadable)
        assert plane.running_requests() is None
        assert plane.metrics() is None
        assert plane.flush() is False
        assert not plane.complete(1).ok
        assert plane.count_tokens("12345") == 2
        with pytest.raises(Unreachable, match=str(port)):
            plane.request("GET", "/health")


def test_running_requests_are_summed_over_ranks_from_loads_or_metrics(serve: Serve) -> None:
    url, _ = serve({"/v1/loads": (200, LOADS), "/metrics": (200, METRICS)})
    with ControlPlane(url) as plane:
        assert plane.running_requests() == 7
    url, _ = serve({"/metrics": (200, METRICS)})
    with ControlPlane(url) as plane:
        assert plane.running_requests() == 6
    url, _ = serve({"/v1/loads": (200, {"loads": [{"num_running_reqs": None}]}), "/metrics": (200, "")})
    with ControlPlane(url) as plane:
        assert plane.running_requests() is None


def test_metrics_are_summed_and_phases_kept_apart(serve: Serve) -> None:
    url, _ = serve({"/metrics": (200, METRICS)})
    with ControlPlane(url) as plane:
        found = plane.metrics()
    assert found is not None
    assert found["sglang:num_running_reqs"] == 3.0
    assert found['sglang:startup_time_seconds{phase="load_weight"}'] == 0.5
    assert "sglang:cache_hit_rate" not in found


def test_the_ready_flag_is_unknown_to_old_servers(serve: Serve) -> None:
    for answers, flag in [({}, None), ({"/ready": (503, "")}, False), ({"/ready": (200, "")}, True)]:
        url, _ = serve(answers)  # type: ignore[arg-type]
        with ControlPlane(url) as plane:
            assert plane.ready_flag() is flag


def test_infos_are_redacted_and_old_names_are_tried(serve: Serve) -> None:
    url, _ = serve({"/get_server_info": (200, {"api_key": "sesame", "tp_size": 4}), "/get_model_info": (200, {"model_path": "m"})})
    with ControlPlane(url) as plane:
        info, model = plane.server_info(), plane.model_info()
    assert info == {"api_key": "<redacted>", "tp_size": 4}
    assert model == {"model_path": "m"}


def test_what_cannot_be_read_says_why(serve: Serve) -> None:
    url, _ = serve({"/v1/models": (401, {"error": "Unauthorized"}), "/server_info": (200, "no json"), "/model_info": (200, [1])})
    with ControlPlane(url) as plane:
        models, info, model = plane.models(), plane.server_info(), plane.model_info()
    assert isinstance(models, Unreadable)
    assert "server.api_key_env" in models.reason
    assert isinstance(info, Unreadable)
    assert "not JSON" in info.reason
    assert isinstance(model, Unreadable)
    assert not models


def test_models_flush_and_token_counts(serve: Serve) -> None:
    url, _ = serve(
        {
            "/v1/models": (200, {"data": [{"id": "a"}, {"id": "b"}]}),
            "/flush_cache": (200, "Cache flushed."),
            "/tokenize": (200, {"tokens": [1, 2], "count": 2}),
        }
    )
    with ControlPlane(url + "/") as plane:
        assert plane.models() == ["a", "b"]
        assert plane.flush()
        assert plane.count_tokens("ab") == 2
    url, _ = serve({"/v1/models": (200, {"data": None})})
    with ControlPlane(url) as plane:
        assert isinstance(plane.models(), Unreadable)
