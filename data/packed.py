"""Text that may be large or hostile: compressed within a ground truth, and read from pickles without unpickling."""

import base64
import binascii
import pickletools
import zlib

MAX_BYTES = 1 << 28  # of what is decompressed, which no test of a contest comes near
PACKED = "zlib+base64:"  # how packed text begins
_PACK_FROM = 1 << 16  # characters; shorter text stays readable

_STRINGS = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"})
_AROUND = frozenset({"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "STOP"})


def pack(text: str) -> str:
    """The text, compressed where it is long; `unpack` gives it back."""
    if len(text) < _PACK_FROM:
        return text
    return PACKED + base64.b64encode(zlib.compress(text.encode(), level=1)).decode("ascii")


def unpack(text: str) -> str:
    """The inverse of `pack`. Raises ValueError for what `pack` cannot have written, or is over MAX_BYTES."""
    if not text.startswith(PACKED):
        return text
    return inflate(text[len(PACKED) :]).decode()


def inflate(text: str) -> bytes:
    """The bytes behind base64 of zlib's format. Raises ValueError, also for more than MAX_BYTES."""
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(base64.b64decode(text, validate=True), MAX_BYTES)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise ValueError(f"no base64 of zlib data ({error})") from None
    if not stream.eof:
        raise ValueError(f"cut off, or more than {MAX_BYTES} bytes")
    return data


def text_of_pickle(data: bytes) -> str:
    """The str of a pickle that holds nothing else, read opcode by opcode: nothing is built, imported or called.

    Raises ValueError for every other pickle, whatever it would do.
    """
    text: str | None = None
    end: int | None = None
    try:
        for opcode, argument, place in pickletools.genops(data):
            end = place
            if opcode.name in _STRINGS and text is None:
                text = argument
            elif opcode.name not in _AROUND:
                raise ValueError(f"opcode {opcode.name}")
    except ValueError as error:  # those of pickletools too
        raise ValueError(f"a pickle of something else than one text ({error}) is not opened") from None
    if text is None or end != len(data) - 1:
        raise ValueError("a pickle of something else than one text is not opened")
    return text
