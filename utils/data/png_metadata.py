"""PNGs whose pixels are whole, and whose metadata Pillow refuses for its size."""

from __future__ import annotations

import zlib

from PIL.PngImagePlugin import MAX_TEXT_CHUNK, MAX_TEXT_MEMORY

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def without_large_metadata(png: bytes) -> bytes:
    """The PNG without its colour profile, which nothing here uses, and without texts beyond Pillow's limits.

    Texts within them stay: some hold the image's orientation. All else stays as it is, whole or damaged. Whatever the
    PNG claims to hold, at most MAX_TEXT_CHUNK bytes are unpacked at a time, and about MAX_TEXT_MEMORY in all.
    """
    content, kept, room, place = memoryview(png), [memoryview(png)[:8]], MAX_TEXT_MEMORY, 8
    while place < len(png):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")  # length, kind, body, checksum
        kind, wanted = png[place + 4 : place + 8], True
        if end <= len(png) and kind == b"iCCP":
            wanted = False
        elif end <= len(png) and kind in (b"tEXt", b"zTXt", b"iTXt"):
            size = _text_size(kind, png[place + 8 : end - 4]) if room > 0 else None
            room -= MAX_TEXT_CHUNK if size is None else size
            wanted = size is not None and room >= 0
        if wanted:
            kept.append(content[place:end])
        place = end
    return b"".join(kept)


def _text_size(kind: bytes, body: bytes) -> int | None:
    """Bytes of a chunk's text, unpacked; None if that is more than Pillow unpacks."""
    text = body.partition(b"\0")[2]
    if kind == b"zTXt":
        packed = text[1:]
    elif kind == b"iTXt" and text[:1] != b"\0":
        packed = text[2:].split(b"\0", 2)[-1]
    else:
        return len(text)
    unpacking = zlib.decompressobj()
    try:
        size = len(unpacking.decompress(packed, MAX_TEXT_CHUNK))
    except zlib.error:  # Pillow passes over it
        return 0
    return None if unpacking.unconsumed_tail else size
