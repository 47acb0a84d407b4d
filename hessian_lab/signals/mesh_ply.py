"""PLY, in text and in binary. Parsers raise ValueError with the rest of a sentence."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hessian_lab.signals.mesh_text import Polygons

Array = np.ndarray[Any, np.dtype[Any]]

MOST_HEADER_BYTES = 1 << 16
FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"},
}
LISTS = ("vertex_indices", "vertex_index")


@dataclass(frozen=True)
class Property:
    """A column of an element: a number, or a list with the type of its length."""

    name: str
    kind: str
    length: str = ""


@dataclass(frozen=True)
class Element:
    """A table of a PLY file."""

    name: str
    count: int
    properties: list[Property] = field(default_factory=list)

    @property
    def least_bytes(self) -> int:
        """The bytes of a row whose lists are empty."""
        kinds = (one.length or one.kind for one in self.properties)
        return sum(np.dtype(kind).itemsize for kind in kinds)

    @property
    def has_lists(self) -> bool:
        """Whether rows may differ in length."""
        return any(one.length for one in self.properties)

    def place(self, *names: str) -> int:
        """Return the column of one of these names."""
        for place, one in enumerate(self.properties):
            if one.name in names:
                return place
        raise ValueError(f"its element {self.name} has no property {' or '.join(names)}")


def parse_ply(data: bytes) -> Polygons:
    """Return the polygons of a PLY file: its elements ``vertex`` and ``face``.

    Before a table is read, its count is compared with the bytes that are left.

    Raises:
        ValueError: If it is no PLY file, lacks one of the two, or ends too early.

    References:
        G. Turk, The PLY Polygon File Format, 1994.
    """
    order, elements, body = _header(data)
    rows = _TextRows(body) if order == "" else _BinaryRows(body, order)
    vertices: Array | None = None
    polygons: tuple[Array, Array] | None = None
    for element in elements:
        if element.name == "vertex":
            columns = [element.place(name) for name in "xyz"]
            if any(element.properties[column].length for column in columns):
                raise ValueError("a coordinate of its vertices is a list")
            vertices = rows.numbers(element, columns)
        elif element.name == "face":
            column = element.place(*LISTS)
            indices = element.properties[column]
            if not indices.length or indices.kind.startswith("f"):
                raise ValueError(f"its {indices.name} are no list of whole numbers")
            polygons = rows.lists(element, column)
        elif vertices is None or polygons is None:
            rows.skip(element)
    if vertices is None or polygons is None:
        raise ValueError(f"it has no element {'vertex' if vertices is None else 'face'}")
    return vertices, *polygons


def _header(data: bytes) -> tuple[str, list[Element], bytes]:
    """Return the byte order ("" is text), the elements, and what follows the header."""
    if data[:3] != b"ply":
        raise ValueError("it does not begin with 'ply'")
    end = data.find(b"end_header", 0, MOST_HEADER_BYTES)
    if end < 0:
        raise ValueError("its header has no end")
    body = data[end + len(b"end_header") :]
    body = body[2:] if body[:2] == b"\r\n" else body[1:]
    order: str | None = None
    elements: list[Element] = []
    for line in data[3:end].decode("latin-1").splitlines():
        words = line.split()
        if words[:1] == ["format"] and len(words) > 1 and words[1] in FORMATS:
            order = FORMATS[words[1]]
        elif words[:1] == ["element"]:
            elements.append(_element(words))
        elif words[:1] == ["property"]:
            if not elements:
                raise ValueError("its header has a property of no element")
            elements[-1].properties.append(_property(words))
    if order is None:
        raise ValueError(f"its format is none of {', '.join(FORMATS)}")
    return order, elements, body


def _element(words: list[str]) -> Element:
    if len(words) != 3 or not (words[2].isascii() and words[2].isdigit()):
        raise ValueError("an element of its header has no count")
    return Element(words[1], int(words[2]))


def _property(words: list[str]) -> Property:
    if len(words) == 3 and words[1] in TYPES:
        return Property(words[2], TYPES[words[1]])
    if len(words) == 5 and words[1] == "list" and words[2] in TYPES and words[3] in TYPES:
        length, kind = TYPES[words[2]], TYPES[words[3]]
        if length.startswith("f"):
            raise ValueError("a list of its header has a length that is no whole number")
        return Property(words[4], kind, length)
    raise ValueError(f"its header has a property of unknown type: {' '.join(words[1:])[:40]!r}")


def _whole(word: bytes) -> int:
    try:
        number = int(word)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 63:
        raise ValueError(f"a list of its rows has {word.decode('latin-1')[:20]!r} in it")
    return number


class _TextRows:
    """The rows of a PLY file in text, one per line."""

    def __init__(self, body: bytes) -> None:
        self.lines = [words for line in body.splitlines() if (words := line.split())]
        self.start = 0

    def numbers(self, element: Element, columns: list[int]) -> Array:
        """Return some columns [count, columns] of the next element."""
        rows = []
        for words in self._take(element):
            values = list(self._values(element, words))
            try:
                rows.append([float(values[column][0]) for column in columns])
            except ValueError:
                raise ValueError("its vertices must have three numbers each") from None
        return np.array(rows, dtype=np.float64).reshape(-1, len(columns))

    def lists(self, element: Element, column: int) -> tuple[Array, Array]:
        """Return a column of lists of the next element: the entries in a row, and their numbers."""
        flat: list[int] = []
        sizes = []
        for words in self._take(element):
            entries = list(self._values(element, words))[column]
            flat += [_whole(word) for word in entries]
            sizes.append(len(entries))
        return np.array(flat, dtype=np.int64), np.array(sizes, dtype=np.int64)

    def skip(self, element: Element) -> None:
        """Pass by the next element."""
        self._take(element)

    def _take(self, element: Element) -> list[list[bytes]]:
        there = len(self.lines) - self.start
        count = element.count if element.properties else 0
        if count > there:
            raise ValueError(f"it has {there} lines for {count} rows of {element.name}")
        self.start += count
        return self.lines[self.start - count : self.start]

    @staticmethod
    def _values(element: Element, words: list[bytes]) -> Iterator[list[bytes]]:
        start = 0
        for one in element.properties:
            size = 1
            if one.length:
                size = _whole(words[start]) if start < len(words) else -1
                start += 1
            if not 0 <= size <= len(words) - start:
                raise ValueError(f"a row of its {element.name} is too short")
            yield words[start : start + size]
            start += size


class _BinaryRows:
    """The rows of a binary PLY file."""

    def __init__(self, body: bytes, order: str) -> None:
        self.body = body
        self.order = order
        self.start = 0

    def numbers(self, element: Element, columns: list[int]) -> Array:
        """Return some columns [count, columns] of the next element."""
        self._require(element)
        if element.has_lists:
            kinds = [element.properties[column].kind for column in columns]
            rows = [
                [
                    self._read(kind, row[column][0], 1)[0]
                    for kind, column in zip(kinds, columns, strict=True)
                ]
                for row in self._walk(element)
            ]
            return np.array(rows, dtype=np.float64).reshape(-1, len(columns))
        table = self._table(element, [one.kind for one in element.properties])
        return np.stack([table[f"f{column}"].astype(np.float64) for column in columns], axis=1)

    def lists(self, element: Element, column: int) -> tuple[Array, Array]:
        """Return a column of lists of the next element: the entries in a row, and their numbers."""
        self._require(element)
        alike = self._alike(element, column)
        if alike is not None:
            return alike.reshape(-1), np.full(len(alike), alike.shape[1], dtype=np.int64)
        places = [place for row in self._walk(element) for place in row[column]]
        starts, sizes = np.array(places, dtype=np.int64).reshape(-1, 2).T
        return self._gathered(element.properties[column].kind, starts, sizes), sizes

    def skip(self, element: Element) -> None:
        """Pass by the next element."""
        self._require(element)
        if not element.has_lists:
            self.start += element.count * element.least_bytes
            return
        for _ in self._walk(element):
            pass

    def _require(self, element: Element) -> None:
        there = len(self.body) - self.start
        needed = element.count * element.least_bytes
        if needed > there:
            raise ValueError(
                f"it has {there} bytes for {element.count} rows of {element.name}, which take "
                f"{needed} or more"
            )

    def _alike(self, element: Element, column: int) -> Array | None:
        """Return the lists [count, size] if there are no others, all as long as the first."""
        lists = [one for one in element.properties if one.length]
        if len(lists) > 1 or not element.count:
            return None
        size = next(iter(self._walk(element)))[column][1]
        (one,) = lists
        kinds = [
            [one.length, f"({size},){self.order}{one.kind}"] if each is one else [each.kind]
            for each in element.properties
        ]
        start = self.start
        try:
            table = self._table(element, [kind for group in kinds for kind in group])
        except ValueError:
            return None
        if not (table[f"f{column}"] == size).all():
            self.start = start
            return None
        return table[f"f{column + 1}"].astype(np.int64).reshape(element.count, size)

    def _table(self, element: Element, kinds: list[str]) -> Array:
        """Return the rows as records of ``kinds``, and pass by them."""
        types = [kind if "(" in kind else self.order + kind for kind in kinds]
        record = np.dtype([(f"f{place}", kind) for place, kind in enumerate(types)])
        table = np.frombuffer(self.body, record, count=element.count, offset=self.start)
        self.start += element.count * record.itemsize
        return table

    def _walk(self, element: Element) -> Iterator[list[tuple[int, int]]]:
        """Yield where each entry of each row starts, and its size; pass by them at the end."""
        start = self.start
        for _ in range(element.count if element.properties else 0):
            row = []
            for one in element.properties:
                size = 1
                if one.length:
                    size = int(self._read(one.length, start, 1)[0])
                    start += np.dtype(one.length).itemsize
                end = start + size * np.dtype(one.kind).itemsize
                if size < 0 or end > len(self.body):
                    raise ValueError(f"it ends within its {element.name}")
                row.append((start, size))
                start = end
            yield row
        self.start = start

    def _gathered(self, kind: str, starts: Array, sizes: Array) -> Array:
        """Return the numbers of lists that start at some bytes, one list after another."""
        record = np.dtype(self.order + kind)
        before = np.cumsum(sizes) - sizes
        within = np.arange(sizes.sum()) - np.repeat(before, sizes)
        first = np.repeat(starts, sizes) + record.itemsize * within
        letters = np.frombuffer(self.body, np.uint8)[first[:, None] + np.arange(record.itemsize)]
        numbers: Array = letters.view(record)[:, 0].astype(np.int64)
        return numbers

    def _read(self, kind: str, start: int, size: int) -> Array:
        if start + size * np.dtype(kind).itemsize > len(self.body):
            raise ValueError("it ends too early")
        return np.frombuffer(self.body, self.order + kind, count=size, offset=start)
