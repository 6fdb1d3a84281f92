from __future__ import annotations

import pytest

from pytest_sglang.server import redact


@pytest.mark.parametrize(
    "text",
    [
        "ServerArgs(model='m', api_key='sesame', tp=1)",
        "{'model': 'm', 'api_key': 'sesame', 'tp': 1}",
        '{"admin_api_key": "sesame", "tp": 1}',
        "ServerArgs(ssl_keyfile_password='sesa\\'me sesame', tp=1)",
        "sglang serve --api-key sesame --tp-size 1",
        "sglang serve --admin-api-key=sesame --tp-size 1",
        "['sglang', 'serve', '--api-key', 'sesame']",
        "ServerArgs(api_key='sesame and the line is cut",
    ],
)
def test_secrets_leave_log_text(text: str) -> None:
    hidden = redact.text(text)
    assert "sesame" not in hidden
    assert redact.MASK in hidden


def test_text_without_secrets_stays_as_it_is() -> None:
    text = "ServerArgs(api_key=None, tokenizer_path='x', tp_size=4) --tp-size 4"
    assert redact.text(text) == text


def test_secrets_leave_infos_at_any_depth() -> None:
    info = {
        "api_key": "sesame",
        "admin_api_key": None,
        "launch_command": "python -m sglang.launch_server --api-key sesame",
        "argv": ["sglang", "serve", "--api-key", "sesame"],
        "internal_states": [{"ssl_keyfile_password": "sesame", "tp_size": 4}],
    }
    hidden = redact.info(info)
    assert "sesame" not in repr(hidden)
    assert hidden["admin_api_key"] is None
    assert hidden["internal_states"][0]["tp_size"] == 4


def test_secrets_leave_command_lines_and_environments() -> None:
    assert redact.argv(["a", "--api-key", "sesame", "--ssl-keyfile-password=sesame"]) == (
        "a",
        "--api-key",
        redact.MASK,
        f"--ssl-keyfile-password={redact.MASK}",
    )
    assert redact.environment({"HF_TOKEN": "sesame", "HOME": "/x"}) == {"HF_TOKEN": redact.MASK, "HOME": "/x"}
