"""Image files as their pixels: what else is in a JPEG, PNG or WebP may be damaged or huge, and decides nothing."""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")

# What Pillow's three decoders raise on damaged input.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Chunks of a PNG that are not critical and yet belong to its pixels: transparency and the frames of an animation.
PNG_PIXELS = (b"tRNS", b"acTL", b"fcTL", b"fdAT")

# JPEG markers: the application segments that matter to a decoder, JFIF and Adobe's colour transform; those that open
# the scans or end the image; those without a length.
APP0, APP1, APP14, APP15, COMMENT = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
SCAN_OR_END = (0xDA, 0xD9)
STANDALONE = (0x01, *range(0xD0, 0xD8))

ORIENTATION_TAG = 0x0112
TIFF_INTEGERS = {1: "B", 3: "H", 4: "I"}
EXIF_HEAD, XMP_HEAD = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
LONGEST_TEXT = 1 << 20  # bytes of a compressed text that are looked at


class Parts(NamedTuple):
    """An image file taken apart.

    Attributes:
      pixels: the file without its metadata.
      exif: its EXIF block, a small TIFF file; empty if there is none.
      xmp: its XMP packet; empty if there is none.
    """

    pixels: bytes
    exif: bytes = b""
    xmp: bytes = b""


def parts_of(data: bytes) -> Parts:
    """Takes an image file apart; what is damaged or of another format stays as it is in `pixels`."""
    if data.startswith(b"\xff\xd8"):
        return _parts_of_jpeg(data)
    if data.startswith(PNG_SIGNATURE):
        return _parts_of_png(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _parts_of_webp(data)
    return Parts(data)


def size_of(pixels: bytes) -> tuple[int, int]:
    """Width and height of an image, from its head alone; argument and errors as of `open_image`."""
    with Image.open(io.BytesIO(pixels), formats=FORMATS) as image:
        return image.size


def open_image(pixels: bytes) -> Image.Image:
    """Decodes the pixels of a file.

    Args:
      pixels: a JPEG, PNG or WebP file, `Parts.pixels`.

    Returns:
      The image, of any Pillow mode, in memory; of an animation the first frame. A transparent colour is in
      `info["transparency"]`, in the values that the pixels have.

    Raises:
      Image.UnidentifiedImageError: another format.
      Exception: one of `DECODING_ERRORS`, for a damaged file.
    """
    with Image.open(io.BytesIO(pixels), formats=FORMATS) as image:
        image.load()
        colour = image.info.get("transparency")
        if image.format != "PNG" or colour is None or image.mode not in ("L", "RGB"):
            return image
        depth = pixels[24]  # bits of a channel, in the file's head
        if depth == 16:
            return _with_transparent_colour(image, pixels, colour)
        # The file names the colour in its own levels, of which the image's are a multiple.
        most = (1 << depth) - 1
        levels = [(level & most) * 255 // most for level in ([colour] if image.mode == "L" else colour)]
        image.info["transparency"] = levels[0] if image.mode == "L" else tuple(levels)
        return image


def orientation_of(parts: Parts) -> int:
    """The orientation that a file states, as EXIF numbers it: 2 to 8, and 1 for upright, unreadable and unstated."""
    try:
        stated = _tiff_orientation(parts.exif)
    except struct.error:
        stated = None
    if stated is None and (match := re.search(rb'tiff:Orientation(?:="|>)([0-9])', parts.xmp)):
        stated = int(match[1])
    return stated if stated is not None and 2 <= stated <= 8 else 1


def _with_transparent_colour(image: Image.Image, pixels: bytes, colour: tuple[int, int, int]) -> Image.Image:
    """An RGB image with the transparency of a colour of 16 bits per channel, of which Pillow keeps the upper eight."""
    with Image.open(io.BytesIO(pixels), formats=FORMATS) as stored:
        # Read as little-endian, the "upper" byte of each value is its lower one.
        stored.tile = [tile._replace(args="RGB;16L") for tile in stored.tile]
        low = np.asarray(stored).astype(np.uint16)  # H W C
    levels = np.asarray(image).astype(np.uint16) << 8 | low  # H W C
    opaque = (levels != np.asarray(colour, np.uint16)).any(-1)  # H W
    del image.info["transparency"]
    image.putalpha(Image.fromarray(np.where(opaque, 255, 0).astype(np.uint8)))
    return image


def _parts_of_jpeg(data: bytes) -> Parts:
    kept, exif, xmp = [data[:2]], b"", b""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker in SCAN_OR_END:
            break
        end = position + 2
        if marker not in STANDALONE:
            end += int.from_bytes(data[end : end + 2])
        if end > len(data) or end < position + 2:
            break
        body = data[position + 4 : end]
        if marker == APP1 and body.startswith(EXIF_HEAD):
            exif += body[len(EXIF_HEAD) :]
        elif marker == APP1 and body.startswith(XMP_HEAD):
            xmp = body[len(XMP_HEAD) :]
        if not (APP0 < marker <= APP15 or marker == COMMENT) or marker == APP14:
            kept.append(data[position:end])
        position = end
    return Parts(b"".join([*kept, data[position:]]), exif, xmp)


def _parts_of_png(data: bytes) -> Parts:
    kept, exif, xmp = [PNG_SIGNATURE], b"", b""
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        if kind == b"eXIf":
            exif = data[position + 8 : end - 4]
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            name, _, text = data[position + 8 : end - 4].partition(b"\0")
            if name == b"Raw profile type exif" and not exif:
                exif = _exif_in_text(_inflated(text[1:]) if kind == b"zTXt" else text)
            elif name == b"XML:com.adobe.xmp" and kind == b"iTXt":
                packet = text[2:].split(b"\0", 2)[-1]  # after language and translated name
                xmp = _inflated(packet) if text[:1] == b"\1" else packet
        critical = not kind[0] & 0x20
        if critical or kind in PNG_PIXELS:
            kept.append(data[position:end])
        position = end
    return Parts(b"".join([*kept, data[position:]]), exif, xmp)


def _parts_of_webp(data: bytes) -> Parts:
    """Its decoder takes no offence at metadata, so that they stay."""
    found = dict(_riff_chunks(data))
    return Parts(data, found.get(b"EXIF", b""), found.get(b"XMP ", b""))


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        yield kind, data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2


def _tiff_orientation(exif: bytes) -> int | None:
    """The orientation tag in the first directory of a TIFF file; raises struct.error where the file is damaged."""
    tiff = re.sub(rb"^(?:Exif\0\0){1,2}", b"", exif)
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    (first,) = struct.unpack_from(order + "I", tiff, 4)
    (entries,) = struct.unpack_from(order + "H", tiff, first)
    for entry in range(first + 2, first + 2 + 12 * entries, 12):
        tag, kind, _ = struct.unpack_from(order + "HHI", tiff, entry)
        if tag == ORIENTATION_TAG and kind in TIFF_INTEGERS:
            return struct.unpack_from(order + TIFF_INTEGERS[kind], tiff, entry + 8)[0]
    return None


def _exif_in_text(text: bytes) -> bytes:
    """The EXIF block that ImageMagick writes into a PNG as text: three lines of head, then hexadecimal digits."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""


def _inflated(data: bytes) -> bytes:
    """Up to `LONGEST_TEXT` bytes of what zlib compressed; none of a damaged stream."""
    try:
        return zlib.decompressobj().decompress(data, LONGEST_TEXT)
    except zlib.error:
        return b""
