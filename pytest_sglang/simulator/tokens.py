"""A small tokenizer that needs no model: frequent words are one token, everything else one token a byte. Decoding gives the text back."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from zlib import crc32

_WORDS = (
    "the of and to in is it that for was on are as with his they at be this have from or one had by word but not what all were we when "
    "your can said there use an each which she do how their if will up other about out many then them these so some her would make like "
    "him into time has look two more write go see number no way could people my than first water been call who oil its now find long down "
    "day did get come made may part over new sound take only little work know place year live me back give most very after thing our just "
    "name good sentence man think say great where help through much before line right too mean old any same tell boy follow came want show "
    "also around form three small set put end does another well large must big even such because turn here why ask went men read need land "
    "different home us move try kind hand picture again change off play spell air away animal house point page letter mother answer found "
    "study still learn should world def return import class self value key list test data model token server power rig kernel cache"
).split()
_VOCABULARY = [*_WORDS, *(f" {word}" for word in _WORDS)]
_FIRST_BYTE, _FIRST_WORD = 3, 259
BOS, EOS = 1, 2
_IDS = {text: _FIRST_WORD + number for number, text in enumerate(_VOCABULARY)}
_SPACED = range(_FIRST_WORD + len(_WORDS), _FIRST_WORD + 2 * len(_WORDS))
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


class Answer:
    """The tokens that follow a prompt: the same for the same prompt, as greedy decoding gives them."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._noise = random.Random(crc32(repr(list(prompt)).encode()))
        self.natural_length = self._noise.randint(24, 400)
        """Tokens until the model would end by itself."""

    def next(self) -> int:
        """The next token: a word with a space before it, so that every token shows as text."""
        return self._noise.choice(_SPACED)
