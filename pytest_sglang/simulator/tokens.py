"""A small tokenizer that needs no model: a frequent word is one token, everything else one a byte; decoding gives the text back."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_WORDS = (Path(__file__).parent / "recorded" / "words.txt").read_text(encoding="ascii").split()
_VOCABULARY = [*_WORDS, *(f" {word}" for word in _WORDS)]
_FIRST_BYTE, _FIRST_WORD = 3, 259
BOS, EOS = 1, 2
_IDS = {text: _FIRST_WORD + number for number, text in enumerate(_VOCABULARY)}
SPACED = range(_FIRST_WORD + len(_WORDS), _FIRST_WORD + 2 * len(_WORDS))
"""Words with a space before them."""
_PIECE = re.compile(r" ?[A-Za-z]+|[^A-Za-z ]+| +")


def encode(text: str) -> list[int]:
    """Token ids of ``text``."""
    ids: list[int] = []
    for piece in _PIECE.findall(text):
        if piece in _IDS:
            ids.append(_IDS[piece])
        else:
            ids += [_FIRST_BYTE + byte for byte in piece.encode()]
    return ids


def decode(ids: Iterable[int]) -> str:
    """Text of token ids; ids beyond the vocabulary give a word of it, control tokens nothing."""
    parts = bytearray()
    for token in ids:
        if token >= _FIRST_WORD:
            parts += _VOCABULARY[(token - _FIRST_WORD) % len(_VOCABULARY)].encode()
        elif token >= _FIRST_BYTE:
            parts.append(token - _FIRST_BYTE)
    return parts.decode("utf-8", "replace")
