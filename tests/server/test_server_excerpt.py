"""Excerpts of logs: what matters is in them, secrets are not, and no log is too long or too strange."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from pytest_sglang.server import excerpt, redact

LOGS = Path(__file__).parents[1] / "data" / "logs"


def only(text: str) -> excerpt.Excerpt:
    return excerpt.make(excerpt.sections(text, 0.0)[-1])


def recorded(name: str) -> str:
    return (LOGS / f"{name}.log").read_text(encoding="utf-8", errors="replace")


@pytest.mark.parametrize("path", sorted(LOGS.glob("*.log")), ids=lambda path: path.stem)
def test_a_recorded_start_is_told_by_its_stages(path: Path) -> None:
    text = path.read_text(encoding="utf-8", errors="replace")
    found = only(text)
    assert found.lines > 50
    assert len(found.text) < 16_000
    for stage in (
        "server_args=",
        "Load weight begin",
        "Memory pool end",
        "kill_process_tree called" if "cpu" in path.stem else "fired up",
    ):
        assert stage in found.text
    assert (found.lines == found.shown) or " left out …]" in found.text
    # nothing is invented: every line but our own marks stands in the log, as far as it was kept
    for line in found.text.splitlines():
        assert line.startswith("[… ") or line.split(" … (")[0][:80] in text.replace("\x1b[", "[")


def test_a_traceback_is_kept_whole_and_lines_that_are_alike_are_not() -> None:
    text = recorded("sglang-0.5.23-cpu-compile-crash")
    noise = "".join(f"[2026-11-23 23:02:26] WARNING: retry {number} of the store failed\n" for number in range(5000))
    first = text.index("[2026-11-23 23:02:27] Load weight end")
    found = only(text[:first] + noise + text[first:])
    assert "Scheduler hit an exception: Traceback (most recent call last):" in found.text
    assert "AttributeError: 'TorchNativeAttnBackend' object has no attribute 'init_cpu_graph_state'" in found.text
    assert 1 <= found.text.count("WARNING: retry") <= excerpt.ALIKE + 25


def test_each_start_of_a_log_is_one_excerpt_and_older_ones_are_not_read() -> None:
    one, two = recorded("sglang-0.5.11-h200-compile-cold"), recorded("sglang-0.5.11-h200-compile-warm")
    plain = recorded("sglang-0.5.11-h200-plain")
    both = excerpt.sections(plain + one + two, 0.0)
    assert [len(part) for part in both] == [len(excerpt.sections(each, 0.0)[0]) for each in (plain, one, two)]
    warm = next(line.time for line in both[2] if line.time is not None)
    assert warm is not None
    # the newest start, and the one before that the run may have found
    assert len(excerpt.sections(plain + one + two, warm)) == 2


def test_a_log_without_a_start_is_its_end() -> None:
    found = only("".join(f"line {number}\n" for number in range(100)))
    assert "line 99\n" in found.text
    assert "line 0\n" in found.text
    assert excerpt.sections("", 0.0) == []


def test_a_long_log_costs_little_and_says_what_it_left_out() -> None:
    head = recorded("sglang-0.5.11-h200-plain")
    serving = "[2026-11-23 22:30:00] Decode batch, #running-req: 1, #token: 155, token usage: 0.00\n" * 55_000
    last = "[2026-11-23 22:40:00] ERROR the disk is full\n"
    found = only(head + serving + last)
    assert "MB of this log were not looked at …]" in found.text
    assert found.text.endswith("ERROR the disk is full\n")
    assert len(found.text.encode()) <= excerpt.LIMIT_BYTES


def test_one_line_of_a_megabyte_is_cut() -> None:
    found = only(f"[2026-11-23 22:30:00] ERROR {'x' * 1_000_000}\n")
    assert len(found.text) < 2 * excerpt.LONGEST
    assert "998,832 more characters" in found.text or "more characters)" in found.text


def test_more_errors_than_fit_leave_the_middle_out() -> None:
    source = random.Random(3)
    words = ["".join(source.choices("abcdefghij", k=9)) for _ in range(40)]
    lines = [f"[2026-11-23 22:30:00] ERROR {' '.join(source.sample(words, 12))}\n" for _ in range(4000)]
    lines[0], lines[-1] = "[2026-11-23 22:30:00] ERROR first\n", "[2026-11-23 22:30:00] ERROR last\n"
    found = only("".join(lines))
    assert len(found.text.encode()) <= excerpt.LIMIT_BYTES
    assert "ERROR first" in found.text
    assert "ERROR last" in found.text
    assert found.shown > 200


SECRETS = {
    "Authorization: Bearer 5ecret5ecret5ecret": "5ecret5ecret5ecret",
    "headers={'authorization': 'Basic dXNlcjpwYXNzd29yZA=='}": "dXNlcjpwYXNzd29yZA==",
    "[(b'authorization', b'Bearer abcdefgh123')]": "abcdefgh123",
    "cookie: sid=longsessionid; other=x": "longsessionid",
    "x-api-key: k3yk3yk3y": "k3yk3yk3y",
    "HF_TOKEN=hf_abcdefghijklmnopqrst": "hf_abcdefghijklmnopqrst",
    "login with hf_abcdefghijklmnopqrst failed": "hf_abcdefghijklmnopqrst",
    "OPENAI_API_KEY='sk-abcdefghijklmnopqrstuv'": "sk-abcdefghijklmnopqrstuv",
    "AWS_SECRET_ACCESS_KEY: wJalrXUtnFEMI": "wJalrXUtnFEMI",
    "db_password = 'two words'": "two words",
    '{"refresh_token": "zzz111"}': "zzz111",
    "git clone https://me:pa55@example.org/x": "pa55",
    "GET /v1/models?api_key=qqq777&x=1": "qqq777",
    "--hf-token ttt999 --max-total-tokens 4096": "ttt999",
    "server_args=ServerArgs(api_key='mykey', admin_api_key=\"other\")": "mykey",
    "python -m sglang --api-key verysecret --port 1": "verysecret",
}


@pytest.mark.parametrize("line", SECRETS)
def test_secrets_are_taken_out_of_a_line(line: str) -> None:
    found = only(f"[2026-11-23 22:30:00] {line}\n").text
    assert SECRETS[line] not in found
    assert redact.MASK in found


HARMLESS = [
    "Decode batch, #running-req: 1, #token: 155, token usage: 0.00, gen throughput (token/s): 226.56",
    "TOKENIZERS_PARALLELISM=(true | false)",
    "ServerArgs(api_key=None, max_total_tokens=4096, tokenizer_path='/models/x', stop_token='</s>')",
    "MAX_TOKENS=1024, eos_token='</s>', --max-total-tokens 4096 --tokenizer-path /models/x",
    "Set --trust-remote-code to load the model-specific tokenizer",
    "http://127.0.0.1:8001/v1/models",
    "a secret: None, password = null",
]


@pytest.mark.parametrize("line", HARMLESS)
def test_what_is_no_secret_stays(line: str) -> None:
    assert redact.text(line) == line


def test_a_longer_line_takes_longer_in_proportion_to_redact() -> None:
    """No pattern may look at a line again from each of its places: eight times the line would cost 64 times the work."""
    for unit in ("a", "A_", "token=", "Authorization ", "http://a:", "--a-", "x'", "eyJ", "password", "https://"):
        took = []
        for size in (10_000, 80_000):
            began = time.process_time()
            redact.text(unit * (size // len(unit)))
            took.append(time.process_time() - began)
        assert took[1] < 24 * took[0] + 0.5, unit


def test_what_a_request_holds_is_left_out() -> None:
    lines = "[2026-11-23 22:30:00] Receive: obj=GenerateReqInput(text='my private words')\n[2026-11-23 22:30:01] Finish: obj=X, out={'text': 'an answer'}\n"
    found = only(lines + '{"event": "request.received", "text": "my private words"}\n')
    assert "private words" not in found.text
    assert "an answer" not in found.text
    assert found.text.count("left out)") == 3


def test_control_characters_colours_and_broken_text_are_harmless() -> None:
    nasty = "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x00nul \x08back \u202eevil \u200bwide \ud800 \x9b31m </details><script>alert(1)</script>"
    found = only(f"[2026-11-23 22:30:00] ERROR {nasty}\n")
    assert not [each for each in found.text if ord(each) < 32 and each not in "\n\t"]
    assert not {"\x1b", "\x9b", "\u202e", "\u200b", "\ud800", "\x7f"} & set(found.text)
    found.text.encode("utf-8")
    # markup is the page's business: it stays text here
    assert "</details><script>" in found.text


def test_a_progress_bar_is_told_once() -> None:
    bars = "".join(
        f"\rLoading safetensors checkpoint shards: {number:3d}% Completed | {number}/100 [00:01<00:02, 1.2it/s]"
        for number in range(100)
    )
    assert only(f"[2026-11-23 22:30:00] Load weight begin. avail mem=1 GB{bars}\n").text.count("Completed") == 1
