"""The client against a server whose send times are known."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from statistics import mean, median
from typing import Any

import msgspec
import pytest
from load_truth import Script, Served, Truth, tls_context, truth_server

from pytest_sglang.judge import limits
from pytest_sglang.load import client as client_module
from pytest_sglang.load import connection as connection_module
from pytest_sglang.load import stamps
from pytest_sglang.load.answer import EXACT, MERGED, TAIL
from pytest_sglang.load.client import Client, Target, run_round
from pytest_sglang.load.connection import ConnectError
from pytest_sglang.load.measure import measure
from pytest_sglang.load.prompts import Prompt
from pytest_sglang.load.stream import EventParser
from pytest_sglang.record.values import Round


def prompts(n: int) -> list[Prompt]:
    return [Prompt(text=f"{number}: Grüße", tokens=4, exact=True) for number in range(n)]


def one_round(
    truth: Truth, *, streams: int = 1, tokens: int = 20, api: Any = "completions", **more: Any
) -> tuple[Round, list[dict[str, Any]]]:
    raw: list[dict[str, Any]] = []
    target = Target(url=truth.url, api=api, model="m", api_key=more.pop("api_key", None), verify_tls=more.pop("verify_tls", True))
    done = run_round(target, prompts(streams), tokens, index=3, timeout_s=more.pop("timeout_s", 20.0), on_request=raw.append)
    return done, raw


@pytest.mark.parametrize("api", ["completions", "chat", "native"])
def test_one_stream_is_measured_as_it_was_sent(api: str) -> None:
    with truth_server(Script(ttft_s=0.03, itl_s=0.005)) as truth:
        done, raw = one_round(truth, tokens=40, api=api)
        served = truth.served[0]
    assert done.failures == ()
    assert done.invalid_because is None
    assert done.index == 3
    assert done.output_tokens == 40
    assert within(done, raw[0], served)
    assert done.ttft_s[0] >= (served.sends[0][1] - served.received_ns) / 1e9
    assert done.ttft_s[0] < 0.3
    assert done.end_to_end_tok_s is not None
    assert done.end_to_end_tok_s < done.decode_tok_s
    assert done.aggregate_tok_s == pytest.approx(done.decode_tok_s, rel=1e-6)
    assert raw[0]["tokens"] == 40
    assert raw[0]["prompt_tokens"] == 5
    assert raw[0]["cached_tokens"] == 2
    assert [event[0] for event in raw[0]["events"]] == list(range(1, 41))
    assert 0 <= done.client_lag_s < 0.2


def test_kernel_stamps_are_within_a_fraction_of_a_millisecond_of_the_send() -> None:
    if not kernel_stamps():
        pytest.skip("no SO_TIMESTAMPNS on this system")
    with truth_server(Script(ttft_s=0.01, itl_s=0.003)) as truth:
        _, raw = one_round(truth, tokens=100)
        sends = {tokens: (before, after) for tokens, before, after in truth.served[0].sends}
    assert raw[0]["stamps"] == "kernel"
    arrived_ns = {tokens: raw[0]["sent_s"] * 1e9 + ms * 1e6 for tokens, ms, mark in raw[0]["events"] if mark == EXACT}
    assert len(arrived_ns) > 50
    # an epoch in seconds is a float good to a quarter of a microsecond; the soft interrupt of a busy machine may come later
    late_ns = sorted(at - sends[tokens][0] for tokens, at in arrived_ns.items())
    assert late_ns[0] > -1000
    assert late_ns[len(late_ns) // 2] < 500_000
    inside = sum(at <= sends[tokens][1] + 1000 for tokens, at in arrived_ns.items())
    assert inside / len(arrived_ns) > 0.9


def test_a_busy_client_measures_the_same_with_kernel_stamps() -> None:
    if not kernel_stamps():
        pytest.skip("no SO_TIMESTAMPNS on this system")
    real_take = connection_module.Connection._take

    class Slow(connection_module.Connection):
        def _take(self, data: bytes, at_ns: int, drained: bool) -> None:
            threading.Event().wait(0.012)
            real_take(self, data, at_ns, drained)

    with truth_server(Script(ttft_s=0.02, itl_s=0.005)) as truth, pytest.MonkeyPatch.context() as patch:
        patch.setattr(client_module, "Connection", Slow)
        done, raw = one_round(truth, tokens=40)
    assert raw[0]["merged_events"] > 5
    assert raw[0]["read_late_ms"] > 2
    counts, times = zip(*[(count, ms) for count, ms, mark in raw[0]["events"] if mark != MERGED], strict=True)
    sends = {tokens: (before, after) for tokens, before, after in truth.served[0].sends}
    true_s = (sends[counts[-1]][0] - sends[counts[0]][0]) / 1e9
    assert (times[-1] - times[0]) / 1e3 == pytest.approx(true_s, abs=0.01)
    assert done.client_lag_s < 0.1


def within(done: Round, raw: dict[str, Any], served: Served) -> bool:
    """The rate lies between what the times before and after each send allow; a busy machine reads first and last tokens with others."""
    events, rate = raw["events"], done.decode_tok_s
    first = max(count for count, ms, _ in events if ms == events[0][1])
    low, high = served.decode_tok_s(first, with_closing=events[-1][2] == TAIL)
    return rate is not None and low * 0.999 < rate < high * 1.001


def kernel_stamps() -> bool:
    with socket.socket() as sock:
        return stamps.ask_kernel(sock)


def test_sixteen_streams_run_together_on_connections_opened_before() -> None:
    with truth_server(Script(ttft_s=0.05, itl_s=0.01)) as truth:
        done, raw = one_round(truth, streams=16, tokens=25)
        served = truth.served
    assert len(served) == 16
    assert len({each.connection for each in served}) == 16
    assert max(each.received_ns for each in served) - min(each.received_ns for each in served) < 500_000_000
    assert done.failures == ()
    assert done.output_tokens == 400
    assert len(done.ttft_s) == 16
    low, high = (mean(each) for each in zip(*[each.decode_tok_s() for each in served], strict=True))
    assert done.decode_tok_s is not None
    assert low * 0.999 < done.decode_tok_s < high * 1.001
    assert done.aggregate_tok_s == pytest.approx(16 * done.decode_tok_s, rel=0.15)
    assert len({each["request"] for each in raw}) == 16


def test_merged_events_give_no_token_latency_but_all_tokens() -> None:
    with truth_server(Script(itl_s=0.004, burst=4)) as truth:
        done, raw = one_round(truth, tokens=40)
    assert done.failures == ()
    assert done.output_tokens == 40
    assert raw[0]["merged_events"] == 30
    assert done.itl_s == ()
    # the last event may come in one read with the end of the answer
    assert done.merged_share == pytest.approx(0.75, abs=0.02)
    assert done.unsure_ttft == 1
    assert len(done.unsure_itl_s) == 40 - 1
    assert median(done.unsure_itl_s) == pytest.approx(0.016, abs=0.004)
    assert within(done, raw[0], truth.served[0])


def test_several_tokens_an_event_share_its_gap() -> None:
    with truth_server(Script(itl_s=0.008, tokens_an_event=4)) as truth:
        done, _ = one_round(truth, tokens=40)
    # an event that was read together with the next one has no time of its own
    assert 8 <= len(done.itl_s) <= 36
    assert done.shared_tokens == len(done.itl_s)
    assert median(done.itl_s) == pytest.approx(0.002, abs=0.0005)


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        (Script(cut_after=5), "the server closed the connection before the end of the stream"),
        (Script(error_after=5), "error event inside HTTP 200: out of room"),
        (Script(fewer=3), "17 tokens instead of 20"),
        (Script(fewer=3, finish="stop"), "finish reason stop after 17 of 20 tokens"),
        (Script(finish="stop", matched="NaN happened"), "the model computed NaN: finish reason stop, matched 'NaN happened'"),
        (Script(done=False), "the stream ended without [DONE]"),
        (Script(usage="none"), "the server told no token count (no usage in the stream)"),
        (Script(hang_after=5), "no whole answer in time"),
        (Script(status=401, body='{"error":"Unauthorized"}'), "HTTP 401: Unauthorized"),
        (Script(status=400, body='{"object":"error","message":"too  long","code":400}'), "HTTP 400: too long"),
        (Script(status=400, body='{"error":{"message":"native"}}'), "HTTP 400: native"),
        (Script(status=503, body=""), "HTTP 503: no message"),
        (Script(body='{"text": "no stream"}', content_type="application/json"), "no event stream: content type application/json"),
        (Script(headers="content-encoding: gzip\r\n"), "the answer is compressed (gzip) though it was asked not to be"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_a_request_that_did_not_end_whole_is_no_sample(script: Script, failure: str) -> None:
    script.ttft_s, script.itl_s = 0.002, 0.001
    with truth_server(script) as truth:
        done, raw = one_round(truth, timeout_s=0.6)
    assert done.failures == (failure,)
    assert done.invalid_because == f"1 of 1 requests failed: {failure}"
    assert done.decode_tok_s is None
    assert done.end_to_end_tok_s is None
    assert done.ttft_s == ()
    assert done.itl_s == ()
    assert raw[0]["failure"] == failure


def test_nobody_at_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = run_round(Target(url=f"http://127.0.0.1:{port}"), prompts(2), 5, index=1, timeout_s=1)
    assert done.failures == (f"cannot connect to 127.0.0.1:{port}: Connection refused",) * 2
    assert done.decode_tok_s is None


def test_something_that_is_no_http_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(1000)
                sock.sendall(b"220 smtp ready\r\n")

        thread = threading.Thread(target=talk)
        thread.start()
        done = run_round(Target(url=f"http://127.0.0.1:{listener.getsockname()[1]}"), prompts(1), 5, index=1, timeout_s=2)
        thread.join()
    assert done.failures[0].startswith("not an HTTP event stream: ")


def test_an_answer_framed_by_the_end_of_the_connection() -> None:
    events = (
        'data: {"choices":[{"index":0,"text":"a","finish_reason":"length"}],"usage":{"completion_tokens":1}}\n\ndata: [DONE]\n\n'
    )
    head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    assert raw_answer(head + events).failures == ()
    assert raw_answer(head + events[:-1]).failures == ("the stream ended inside an event",)
    assert raw_answer("").failures == ("the server closed the connection before the end of the stream",)


def raw_answer(text: str) -> Round:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(10_000)
                sock.sendall(text.encode())

        thread = threading.Thread(target=talk)
        thread.start()
        done = run_round(Target(url=f"http://127.0.0.1:{listener.getsockname()[1]}"), prompts(1), 1, index=1, timeout_s=2)
        thread.join()
    return done


def test_the_request_asks_for_exactly_what_is_counted() -> None:
    with truth_server(Script(ttft_s=0, itl_s=0)) as truth:
        for api in ("completions", "chat", "native"):
            one_round(truth, tokens=3, api=api, api_key="secret")
    completions, chat, native = truth.served
    assert completions.path == "/v1/completions"
    assert completions.body == {
        "model": "m",
        "prompt": "0: Grüße",
        "max_tokens": 3,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    assert chat.path == "/v1/chat/completions"
    assert chat.body["messages"] == [{"role": "user", "content": "0: Grüße"}]
    assert chat.body["max_completion_tokens"] == 3
    assert native.path == "/generate"
    assert native.body == {
        "text": "0: Grüße",
        "sampling_params": {"max_new_tokens": 3, "ignore_eos": True, "temperature": 0},
        "stream": True,
    }
    for each in truth.served:
        assert each.headers["authorization"] == "Bearer secret"
        assert each.headers["accept-encoding"] == "identity"


def test_the_key_is_not_shown() -> None:
    assert "geheim" not in repr(Target(url="http://127.0.0.1:1", api_key="geheim"))


@pytest.mark.parametrize(
    ("url", "address", "path"),
    [
        ("http://127.0.0.1:8001", ("127.0.0.1", 8001, False), b"POST /v1/completions "),
        ("http://127.0.0.1:8001/v1/", ("127.0.0.1", 8001, False), b"POST /v1/completions "),
        ("https://rig/proxy", ("rig", 443, True), b"POST /proxy/v1/completions "),
        ("http://rig", ("rig", 80, False), b"POST /v1/completions "),
    ],
)
def test_urls(url: str, address: tuple[str, int, bool], path: bytes) -> None:
    target = Target(url=url)
    assert target.address == address
    assert target.request("x", 1).startswith(path)


def test_wrong_urls_keys_and_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="is not the url of a server"):
        run_round(Target(url="rig:8001"), prompts(1), 1, index=1, timeout_s=1)
    with pytest.raises(ValueError, match="line break"):
        Target(url="http://rig", api_key="a\r\nX: y").head()
    with pytest.raises(ValueError, match="without prompts"):
        run_round(Target(url="http://rig"), [], 1, index=1, timeout_s=1)
    with pytest.raises(ValueError, match="at least 1"):
        Client(Target(url="http://rig"), 0)


def test_closed_loop_keeps_connections_and_the_order_of_prompts() -> None:
    with truth_server(Script(ttft_s=0.002, itl_s=0.001)) as truth, Client(Target(url=truth.url), 3) as client:
        seen = []
        exchanges = client.run(prompts(10), 5, timeout_s=5, on_exchange=seen.append)
        assert [each.prompt_characters for each in exchanges] == [8] * 10
        assert len(seen) == 10
        assert all(each.answer.failure is None for each in exchanges)
        assert truth.connections == 3
        client.run(prompts(2), 5, timeout_s=5)
        assert truth.connections == 3


def test_a_server_that_closes_after_each_answer_costs_new_connections_only() -> None:
    with truth_server(Script(ttft_s=0.002, itl_s=0.001, keep_alive=False)) as truth, Client(Target(url=truth.url), 2) as client:
        exchanges = client.run(prompts(6), 5, timeout_s=5)
    assert [each.answer.failure for each in exchanges] == [None] * 6
    assert truth.connections == 6


def test_a_server_that_dies_between_requests_fails_the_rest_quickly() -> None:
    with truth_server(Script(ttft_s=0.002, itl_s=0.001, keep_alive=False)) as truth, Client(Target(url=truth.url), 1) as client:
        client.connect()

        def gone(*_: object) -> None:
            raise ConnectError("cannot connect to there: Connection refused")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(client_module, "Connection", gone)
            exchanges = client.run(prompts(3), 5, timeout_s=5)
    assert [each.answer.failure for each in exchanges] == [None, *["cannot connect to there: Connection refused"] * 2]


def test_connections_that_the_server_closed_meanwhile_are_replaced_and_not_blamed() -> None:
    with truth_server(Script(ttft_s=0.002, itl_s=0.001)) as truth, Client(Target(url=truth.url), 2) as client:
        client.run(prompts(2), 5, timeout_s=5)
        truth.drop_connections()
        exchanges = client.run(prompts(2), 5, timeout_s=5)
        assert [each.answer.failure for each in exchanges] == [None, None]
        assert truth.connections == 4


def test_a_reset_connection_is_a_failure_wherever_it_happens() -> None:
    with truth_server(Script(ttft_s=0.002, itl_s=0.001, reset_after=5)) as truth:
        done, _ = one_round(truth)
    assert done.failures == ("connection lost: Connection reset by peer",)
    with truth_server(Script(reset_after=0)) as truth:
        large = Prompt(text="word " * 4_000_000, tokens=4_000_000, exact=False)
        done = run_round(Target(url=truth.url), [large, large], 3, index=1, timeout_s=20)
    assert len(done.failures) == 2
    assert all(why.startswith("connection lost") for why in done.failures)


def test_a_request_that_cannot_even_be_sent_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead(connection_module.Connection):
        def begin(self, request: bytes, output_tokens: int, timeout_s: float) -> None:
            self.sock.shutdown(socket.SHUT_WR)
            super().begin(request, output_tokens, timeout_s)

    monkeypatch.setattr(client_module, "Connection", Dead)
    with truth_server() as truth:
        done, _ = one_round(truth, streams=2)
    assert done.failures == ("connection lost while sending: Broken pipe",) * 2


def test_a_long_error_page_is_cut() -> None:
    with truth_server(Script(status=502, body="<html>" + "x" * 1_000_000)) as truth:
        done, _ = one_round(truth)
    assert done.failures[0].startswith("HTTP 502: <html>xxx")
    assert len(done.failures[0]) < 250


def test_a_large_prompt_is_sent_in_pieces() -> None:
    with truth_server(Script(ttft_s=0.002, itl_s=0.001)) as truth:
        large = Prompt(text="word " * 2_000_000, tokens=2_000_000, exact=False)
        done = run_round(Target(url=truth.url), [large], 3, index=1, timeout_s=20)
        assert done.failures == ()
        assert len(truth.served[0].body["prompt"]) == 10_000_000


def test_an_interrupt_closes_every_connection() -> None:
    with truth_server(Script(ttft_s=0.002, itl_s=0.001)) as truth, Client(Target(url=truth.url), 2) as client:

        def interrupt(_: object) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            client.run(prompts(4), 50, timeout_s=5, on_exchange=interrupt)
        assert sum(each.open for each in client._connections) <= 1


def test_user_space_stamps_where_the_kernel_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamps, "ask_kernel", lambda sock: False)
    with truth_server(Script(ttft_s=0.02, itl_s=0.005)) as truth:
        done, raw = one_round(truth, tokens=30)
    assert raw[0]["stamps"] == "user"
    assert done.client_lag_s >= done.stamp_lag_s >= 0
    low, high = truth.served[0].decode_tok_s(with_closing=raw[0]["events"][-1][2] == TAIL)
    share = done.stamp_lag_s * done.decode_tok_s / 29 if done.decode_tok_s else 1.0
    assert low * (0.99 - share) < done.decode_tok_s < high * (1.01 + 2 * share)


def test_a_client_that_comes_late_says_so_where_the_kernel_does_not_stamp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamps, "ask_kernel", lambda sock: False)
    real_take = connection_module.Connection._take

    class Slow(connection_module.Connection):
        def _take(self, data: bytes, at_ns: int, drained: bool) -> None:
            threading.Event().wait(0.03)
            real_take(self, data, at_ns, drained)

    monkeypatch.setattr(client_module, "Connection", Slow)
    with truth_server(Script(ttft_s=0.02, itl_s=0.005)) as truth:
        done, raw = one_round(truth, tokens=40)
    assert done.stamps == "user"
    assert done.stamp_lag_s > 0.02
    assert done.itl_lag_s > 0.02
    assert done.client_lag_s >= done.stamp_lag_s
    assert raw[0]["lag_ms"] > 20


def test_waking_late_is_lag_and_waking_in_time_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000_000_000]
    monkeypatch.setattr(stamps, "now_ns", lambda: now[0])
    lag = stamps.WakeLag()
    assert lag.timeout_s() == 0.005
    now[0] += 2_300_000  # bytes came first
    lag.woken(now[0])
    assert lag.late_ns == []
    assert lag.timeout_s() == 0.003  # what is left, in the whole milliseconds that epoll knows
    now[0] += 3_000_000
    lag.woken(now[0])
    assert lag.late_ns == [0]
    lag.timeout_s()
    now[0] += 45_000_000  # the core was taken away
    lag.woken(now[0])
    assert lag.late_ns == [0, 40_000_000]


def test_an_event_whose_read_went_on_has_no_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[int, bool]] = []
    real_take = connection_module.Connection._take

    def noted(self: connection_module.Connection, data: bytes, at_ns: int, drained: bool) -> None:
        reads.append((len(data), drained))
        real_take(self, data, at_ns, drained)

    monkeypatch.setattr(connection_module, "READ_BYTES", 700)
    monkeypatch.setattr(connection_module.Connection, "_take", noted)
    with truth_server(Script(itl_s=0.004, burst=4)) as truth:
        done, raw = one_round(truth, tokens=16)
    assert any(not drained for _, drained in reads)
    assert done.failures == ()
    assert done.itl_s == ()
    assert done.merged_share > 0.5
    assert [event[2] for event in raw[0]["events"]].count(EXACT) <= 4
    # every token's gap is accounted for: as a sample, or as one of unknown length
    assert len(done.itl_s) + len(done.unsure_itl_s) == 16 - 1


def test_tls_works_with_user_space_stamps(tmp_path: Path) -> None:
    with truth_server(Script(ttft_s=0.02, itl_s=0.004), tls_context(tmp_path)) as truth:
        done, raw = one_round(truth, tokens=30, verify_tls=False)
        refused, _ = one_round(truth, tokens=30)
        truth.script = Script(itl_s=0.004, burst=4, one_send=False)
        burst, _ = one_round(truth, tokens=40, verify_tls=False)
    assert done.failures == ()
    assert raw[0]["stamps"] == "user"
    assert done.output_tokens == 30
    assert done.stamps == "user"
    assert "CERTIFICATE_VERIFY_FAILED" in refused.failures[0]
    # several records that lie ready are one read
    assert burst.failures == ()
    assert burst.merged_share > 0.2


def test_a_clock_that_was_set_during_the_round_makes_it_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    offsets = iter([1_000_000_000, 1_012_000_000])
    monkeypatch.setattr(stamps, "clock_offset_ns", lambda: next(offsets))
    with truth_server(Script(ttft_s=0.002, itl_s=0.001)) as truth:
        done, _ = one_round(truth)
    assert done.invalid_because == "the machine's clock was set by +12.0 ms during the round"


def test_a_clock_that_was_set_forth_and_back_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def offset() -> int:
        looks.append(0)
        return -7_000_000 if len(looks) == 2 else 0

    monkeypatch.setattr(stamps, "clock_offset_ns", offset)
    with truth_server(Script(ttft_s=0.3, itl_s=0.03)) as truth:
        done, _ = one_round(truth, tokens=20)
    assert len(looks) > 3
    assert done.invalid_because == "the machine's clock was set by -7.0 ms during the round"


def test_clock_offset_is_steady_and_small_noise_is_no_step() -> None:
    watch = stamps.ClockWatch()
    watch.look()
    assert watch.step is None


def test_kernel_stamps_are_not_claimed_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as sock:
        monkeypatch.setattr("sys.platform", "darwin")
        assert not stamps.ask_kernel(sock)
        monkeypatch.undo()
    assert not stamps.ask_kernel(sock)


def test_data_without_a_stamp_is_said_to_have_none() -> None:
    left, right = socket.socketpair()
    with left, right:
        left.send(b"x")
        assert stamps.receive(right, 10) == (b"x", None)


def test_an_injected_lag_leaves_the_verdict_open(monkeypatch: pytest.MonkeyPatch) -> None:
    real_take = connection_module.Connection._take

    class Slow(connection_module.Connection):
        def _take(self, data: bytes, at_ns: int, drained: bool) -> None:
            threading.Event().wait(0.02)
            real_take(self, data, at_ns, drained)

    def verdict(limit_share: float) -> str | None:
        with truth_server(Script(ttft_s=0.005, itl_s=0.01)) as truth:
            found = measure(
                lambda index: one_round(truth, tokens=25)[0],
                lambda done: None,
                warmups=0,
                max_rounds=3,
                foreign=lambda: 1,
                own_streams=1,
                on_round=lambda done: None,
            )
        assert found.decode_tok_s is not None
        sure = msgspec.structs.replace(found, ci_low=found.decode_tok_s * 0.999, ci_high=found.decode_tok_s * 1.001)
        return limits.min_throughput(sure, min_tok_s=found.decode_tok_s * limit_share).inconclusive_because

    assert verdict(0.97) is None or not kernel_stamps()
    monkeypatch.setattr(stamps, "ask_kernel", lambda sock: False)
    monkeypatch.setattr(client_module, "Connection", Slow)
    late = verdict(0.97)
    assert late is not None
    assert late.startswith("the client's own lag of ")


def test_ctrl_c_inside_the_parser_is_not_taken_for_a_broken_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: EventParser, data: bytes) -> list[bytes]:
        raise KeyboardInterrupt

    monkeypatch.setattr(EventParser, "feed", interrupted)
    with truth_server(Script(ttft_s=0.002, itl_s=0.001)) as truth, pytest.raises(KeyboardInterrupt):
        one_round(truth)
