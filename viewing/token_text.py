"""The text of single tokens, from tokenizer.json alone."""

import codecs
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from viewing.runs import parents

_DEPTH = 6  # generations of parents to look through
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def tokenizer_file(stage: Path) -> Path | None:
    """The stage's tokenizer.json; while it has none, that of the nearest of its parents."""
    generation = [stage]
    for _ in range(_DEPTH):
        for folder in generation:
            if (folder / "tokenizer.json").is_file():
                return folder / "tokenizer.json"
        generation = [parent for folder in generation for parent in parents(folder)]
    return None


@lru_cache(maxsize=8)
def token_texts(file: Path) -> "TokenTexts":
    return TokenTexts(Tokenizer.from_file(str(file)))


class TokenTexts:
    """Texts of tokens, such that those of a sequence joined are the text of the sequence."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = {id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token}
        self._byte_level = "ByteLevel" in type(tokenizer.decoder).__name__ or "ByteLevel" in repr(tokenizer.decoder)

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """One text per token. A character of several tokens is shown with its last one, the others are ""."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        texts = [decoder.decode(self._bytes(token)) for token in token_ids]
        if texts:
            texts[-1] += decoder.decode(b"", final=True)
        return texts

    def _bytes(self, token: int) -> bytes:
        text = self._tokenizer.id_to_token(token)
        if text is None:  # the model's vocabulary is padded past that of its tokenizer
            return f"<{token}>".encode()
        if token in self._special:
            return text.encode()
        if self._byte_level:
            return bytes(_BYTES[char] for char in text if char in _BYTES)
        if match := _BYTE.fullmatch(text):
            return bytes([int(match[1], 16)])
        return text.replace("▁", " ").encode()


def _bytes_of_characters() -> dict[str, int]:
    """The inverse of byte-level BPE's table: printable bytes are themselves, the others take characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _bytes_of_characters()
