"""PNG files with 16 bits per channel, which Pillow reads with 8 unless they are grey."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Colour type -> channels: RGB, grey with alpha, RGBA.
CHANNELS = {2: 3, 4: 2, 6: 4}

# As Pillow refuses larger ones.
MOST_PIXELS, MOST_SIDE = 178_956_970, 1 << 17

Array = np.ndarray[Any, np.dtype[Any]]


def is_deep_colour(data: bytes) -> bool:
    """Tell whether a file is a PNG of 16 bits in several channels, not interlaced."""
    if len(data) < 29 or not data.startswith(SIGNATURE):
        return False
    depth, colour, _, _, interlaced = data[24:29]
    return depth == 16 and colour in CHANNELS and not interlaced


def read_deep_colour(data: bytes) -> Array:
    """Return the pixels [rows, columns, channels] in 16 bits.

    References:
        W3C, Portable Network Graphics, third edition, §9 (filters).
    """
    columns, rows, _, colour = struct.unpack(">IIBB", data[16:26])
    channels = CHANNELS[colour]
    if not (0 < columns <= MOST_SIDE and 0 < rows <= MOST_SIDE and rows * columns <= MOST_PIXELS):
        raise ValueError(f"it has {rows}×{columns} pixels")
    width, step = columns * channels * 2, channels * 2
    packed = b"".join(body for kind, body in _chunks(data) if kind == b"IDAT")
    stream = zlib.decompressobj().decompress(packed, rows * (width + 1) + 1)
    if len(stream) != rows * (width + 1):
        raise ValueError(f"expected {rows * (width + 1)} bytes of pixels, got {len(stream)}")
    above = bytearray(width)
    lines = []
    for start in range(0, len(stream), width + 1):
        above = _unfilter(
            stream[start], bytearray(stream[start + 1 : start + 1 + width]), above, step
        )
        lines.append(above)
    pixels = np.frombuffer(b"".join(lines), dtype=">u2").astype(np.uint16)
    return pixels.reshape(rows, columns, channels)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    stream = io.BytesIO(data[len(SIGNATURE) :])
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        body = stream.read(length)
        if zlib.crc32(kind + body) != int.from_bytes(stream.read(4), "big"):
            raise ValueError(f"chunk {kind!r} is damaged")
        yield kind, body


def _unfilter(kind: int, line: bytearray, above: bytearray, step: int) -> bytearray:
    """Return one line of bytes, its filter undone; ``step`` is the bytes per pixel."""
    if kind == 0:
        return line
    if kind == 2:
        total = np.frombuffer(line, np.uint8) + np.frombuffer(above, np.uint8)
        return bytearray(total.tobytes())
    if kind not in (1, 3, 4):
        raise ValueError(f"filter {kind} is none of PNG's")
    for place in range(len(line)):
        left = line[place - step] if place >= step else 0
        corner = above[place - step] if place >= step else 0
        if kind == 1:
            guess = left
        elif kind == 3:
            guess = (left + above[place]) // 2
        else:
            guess = _paeth(left, above[place], corner)
        line[place] = (line[place] + guess) & 255
    return line


def _paeth(left: int, above: int, corner: int) -> int:
    guess = left + above - corner
    distances = abs(guess - left), abs(guess - above), abs(guess - corner)
    nearest = min(distances)
    if distances[0] == nearest:
        return left
    return above if distances[1] == nearest else corner
