"""TensorBoard's event files of scalars, written without TensorFlow, torch or protobuf.

A file is a sequence of TFRecords (length, masked CRC-32C of the length, data, masked CRC-32C of the data; TensorFlow,
core/lib/io/record_writer.h). The data are Event messages (core/util/event.proto), of which four fields are needed.
"""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

_VERSION = b"brain.Event:2"
_START = b"\x3a\x02\x08\x01"  # session_log {status: START}: readers drop what they have of this step and later ones


class EventFile:
    """Appends scalars to one event file, after what it has. A record that a kill cut off is removed first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.last_step = -1  # of the scalars in the file; -1: none
        whole = 0
        for end, data in _records(path):
            whole = end
            self.last_step = max(self.last_step, _step(data))
        if path.exists() and path.stat().st_size > whole:
            with path.open("r+b") as file:
                file.truncate(whole)
        if not whole:
            self._append(b"\x09" + struct.pack("<d", 0.0) + b"\x1a" + _sized(_VERSION))

    def scalars(self, step: int, values: Mapping[str, float], wall_time: float) -> None:
        summary = b"".join(
            b"\x0a" + _sized(b"\x0a" + _sized(k.encode()) + b"\x15" + _float(v)) for k, v in values.items()
        )
        self._append(_head(step, wall_time) + b"\x2a" + _sized(summary))
        self.last_step = max(self.last_step, step)

    def restart(self, step: int, wall_time: float) -> None:
        """What the file has of this step and later ones is void: the steps are taken again."""
        self._append(_head(step, wall_time) + _START)
        self.last_step = step - 1

    def _append(self, event: bytes) -> None:
        length = struct.pack("<Q", len(event))
        with self._path.open("ab") as file:
            file.write(length + _masked_crc(length) + event + _masked_crc(event))


def _head(step: int, wall_time: float) -> bytes:
    return b"\x09" + struct.pack("<d", wall_time) + b"\x10" + _varint(step)


def _float(value: float) -> bytes:
    """float32, where what is too large for it is infinite."""
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", float("inf") if value > 0 else float("-inf"))


def _sized(data: bytes) -> bytes:
    return _varint(len(data)) + data


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _records(path: Path) -> Iterator[tuple[int, bytes]]:
    """(offset of its end, data) of every whole record of a file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        while len(head := file.read(12)) == 12:
            (length,) = struct.unpack("<Q", head[:8])
            if head[8:] != _masked_crc(head[:8]):
                return
            data = file.read(length)
            if file.read(4) != _masked_crc(data) or len(data) < length:
                return
            yield file.tell(), data


def _step(event: bytes) -> int:
    """Step of an event that this module wrote; -1 for one without."""
    if event[9:10] != b"\x10":
        return -1
    step, shift, at = 0, 0, 10
    while True:
        byte, at = event[at], at + 1
        step |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return step - 1 if event[at : at + len(_START)] == _START else step


def _crc_table() -> list[int]:
    """CRC-32C (Castagnoli), reflected polynomial 0x82F63B78."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _crc_table()


def _masked_crc(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
