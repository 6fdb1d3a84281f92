"""A tokenizer folder in which each word of the truth server is one token, for the peers that insist on one. Standard library only."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from server import WORDS

CHAT = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %} assistant{% endif %}"


def write(folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` (a word-level model, split at spaces) into ``folder``."""
    special = ["<unk>", "<s>", "</s>"]
    vocabulary = {
        word: number for number, word in enumerate([*special, *(word.decode().strip() for word in WORDS), "user", "assistant"])
    }
    added = [
        {
            "id": vocabulary[name],
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for name in special
    ]
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": 131072,
        "chat_template": CHAT,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
