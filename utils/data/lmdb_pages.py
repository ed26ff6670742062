"""LMDB's file format, for reading files that may be damaged: every number is checked before it is followed.

The library trusts its pages, so that one flipped bit, or one page that is missing, may end the process (SIGSEGV,
SIGBUS). LMDB keeps no checksums: what is changed inside a value goes unseen here.

The format is that of LMDB 0.9, as 64-bit machines of little-endian byte order write it: pages of one size, the first
two of them heads, of which the newer counts; then a B+ tree, whose larger values lie on pages of their own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

# Gives that many bytes of the file from an offset on, or fewer where it ends.
Read = Callable[[int, int], bytes]

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_HEADS = 2
_BRANCH, _LEAF, _OVERFLOW, _HEAD = 0x01, 0x02, 0x04, 0x08
_KINDS = 0x6F  # the bits that tell what a page is
_SEVERAL_VALUES = 0x04  # of a tree: keys may have several values
_ELSEWHERE, _TREE, _VALUES = 0x01, 0x02, 0x04  # of an entry: where its value is, or that it is no plain one
_DEEPEST = 32
_LAST_PAGE = 2**47 - 1  # so that offsets are numbers of 64 bits
_LEAST = 10  # bytes that an entry takes of a leaf

_PAGE = Struct("<QHHHH")  # number, unused, kind, end of the entries' places, start of the entries
_LARGE = Struct("<QHHI")  # number, unused, kind, pages
_FILE = Struct("<IIQQ")  # magic, version, unused, size of the map
_DATABASE = Struct(
    "<IHHQQQQQ"
)  # page size (the first's), flags, depth, branches, leaves, overflow pages, entries, root
_LAST = Struct("<QQ")  # last page, transaction
_ENTRY = Struct(
    "<HHHH"
)  # of a leaf: size (low, high), flags, size of the key; of a branch: three parts of a page number
_NUMBER = Struct("<Q")


class DamagedLMDBError(Exception):
    """What is in the file cannot be what LMDB wrote; the message says where."""


class OtherLMDBError(DamagedLMDBError):
    """The file may be whole, and holds something else than one value for each key."""


@dataclass(frozen=True)
class Head:
    """What the newer head says of the file: sizes, and where the tree begins."""

    page_size: int
    depth: int
    branches: int
    leaves: int
    overflow_pages: int
    entries: int
    root: int
    last_page: int

    @property
    def pages_in_use(self) -> int:
        return _HEADS + self.branches + self.leaves + self.overflow_pages


class Entry(NamedTuple):
    """A key, and where its value lies: at an offset of the file; where a page begins there, behind its header."""

    key: bytes
    place: int
    size: int


def read_head(read: Read) -> Head:
    """The newer one of the file's two heads.

    Raises:
        DamagedLMDBError: not an LMDB file.
        OtherLMDBError: one with several values for a key.
    """
    first, transaction = _head(read, 0)
    second, later = _head(read, first.page_size)
    return second if later > transaction else first


def entries(read: Read, head: Head) -> Iterator[Entry]:
    """All entries, in the order of their keys.

    Raises:
        DamagedLMDBError: a page of the tree is not what it should be.
        OtherLMDBError: it holds named sub-databases.
    """
    found = 0
    for page in _leaves(read, head):
        number = _number(page)
        for place in _places(page):
            low, high, flags, key_size = _ENTRY.unpack_from(page, place)
            size, begin = low | high << 16, place + _ENTRY.size + key_size
            if flags == _TREE and size == _DATABASE.size:
                name = page[place + _ENTRY.size : begin].decode(errors="replace")
                raise OtherLMDBError(f"it holds named sub-databases, such as {name!r}; copy the one with the images")
            if flags & (_TREE | _VALUES):
                raise DamagedLMDBError("it holds more than one value for a key")
            large = flags == _ELSEWHERE
            if flags & ~_ELSEWHERE or begin + (_NUMBER.size if large else size) > head.page_size:
                raise DamagedLMDBError(f"an entry of page {number} goes beyond it")
            value = _offset(head, _NUMBER.unpack_from(page, begin)[0]) if large else number * head.page_size + begin
            yield Entry(page[place + _ENTRY.size : begin], value, size)
            found += 1
    if found != head.entries:
        raise DamagedLMDBError(f"it holds {found} values, and its head says {head.entries}")


def read_value(read: Read, head: Head, place: int, size: int) -> bytes:
    """The value of an entry.

    Raises:
        DamagedLMDBError: it does not lie where the entry says.
    """
    begin = place
    if place % head.page_size == 0:
        begin += _LARGE.size
        header = read(place, _LARGE.size)
        number, _, kind, pages = _LARGE.unpack(header) if len(header) == _LARGE.size else (0, 0, 0, 0)
        if (
            number * head.page_size != place
            or kind & _KINDS != _OVERFLOW
            or pages * head.page_size < _LARGE.size + size
        ):
            raise DamagedLMDBError(f"page {place // head.page_size} is not the one that belongs there")
    content = read(begin, size)
    if len(content) < size:
        raise DamagedLMDBError("the file ends before")
    return content


def _head(read: Read, offset: int) -> tuple[Head, int]:
    """The head at an offset, and the transaction that wrote it."""
    content = read(offset, _PAGE.size + _FILE.size + 2 * _DATABASE.size + _LAST.size)
    try:
        kind = _PAGE.unpack_from(content)[2]
        magic, version, _, _ = _FILE.unpack_from(content, _PAGE.size)
        page_size = _DATABASE.unpack_from(content, _PAGE.size + _FILE.size)[0]
        _, flags, depth, branches, leaves, overflow, count, root = _DATABASE.unpack_from(
            content, _PAGE.size + _FILE.size + _DATABASE.size
        )
        last, transaction = _LAST.unpack_from(content, _PAGE.size + _FILE.size + 2 * _DATABASE.size)
    except struct.error as error:
        raise DamagedLMDBError("it is too short") from error
    if magic != _MAGIC or not kind & _HEAD:
        raise DamagedLMDBError("it does not begin as an LMDB does")
    if version != _VERSION:
        raise DamagedLMDBError(f"its format is number {version}, and number {_VERSION} can be read")
    if (
        not 512 <= page_size <= 65536
        or page_size & (page_size - 1)
        or depth > _DEEPEST
        or last > _LAST_PAGE
        or count * _LEAST > leaves * page_size
    ):
        raise DamagedLMDBError("its head is not readable")
    if flags & _SEVERAL_VALUES:
        raise OtherLMDBError("it holds more than one value for a key")
    return Head(page_size, depth, branches, leaves, overflow, count, root, last), transaction


def _leaves(read: Read, head: Head) -> Iterator[bytes]:
    """The leaves of the tree, from left to right."""
    if not head.entries:
        return
    waiting, seen = [(head.root, 1)], 0
    while waiting:
        number, depth = waiting.pop()
        page = _page(read, head, number, _LEAF if depth == head.depth else _BRANCH)
        seen += 1
        if seen > head.branches + head.leaves:
            raise DamagedLMDBError("its tree has more pages than its head says")
        if depth == head.depth:
            yield page
            continue
        children = []
        for place in _places(page):
            low, middle, high, _ = _ENTRY.unpack_from(page, place)
            children.append((low | middle << 16 | high << 32, depth + 1))
        waiting.extend(reversed(children))


def _page(read: Read, head: Head, number: int, kind: int) -> bytes:
    page = read(_offset(head, number), head.page_size)
    if len(page) < head.page_size:
        raise DamagedLMDBError(f"the file ends before page {number}")
    own, _, flags, lower, upper = _PAGE.unpack_from(page)
    if own != number or flags & _KINDS != kind or not _PAGE.size <= lower <= upper <= head.page_size or lower % 2:
        raise DamagedLMDBError(f"page {number} is not the one that belongs there")
    return page


def _offset(head: Head, number: int) -> int:
    """Where a page begins."""
    if not _HEADS <= number <= head.last_page:
        raise DamagedLMDBError(f"it has no page {number}")
    return number * head.page_size


def _number(page: bytes) -> int:
    return _NUMBER.unpack_from(page)[0]


def _places(page: bytes) -> tuple[int, ...]:
    """Where the entries of a page begin."""
    _, _, _, lower, upper = _PAGE.unpack_from(page)
    places: tuple[int, ...] = Struct(f"<{(lower - _PAGE.size) // 2}H").unpack_from(page, _PAGE.size)
    if places and not (upper <= min(places) and max(places) + _ENTRY.size <= len(page)):
        raise DamagedLMDBError(f"an entry of page {_number(page)} lies outside it")
    return places
