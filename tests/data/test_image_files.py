import io
import pathlib
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from diffusion_jax.data.image_files import orientation_of, parts_of
from diffusion_jax.data.sources import BadImage
from diffusion_jax.data.transforms import ImageDecoder
from diffusion_jax.evaluation.image_folder import ImageFiles

ODD = pathlib.Path(__file__).parent.parent / "golden/odd_images"


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encode(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(depth: int, colour_type: int, rows: list[bytes], width: int, transparent: bytes, interlace: int = 0) -> bytes:
    """A PNG by hand, unfiltered."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, interlace)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", head), chunk(b"tRNS", transparent), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("path", sorted(ODD.glob("*.jpg")), ids=lambda path: path.stem)
def test_exif_that_cannot_be_written_anew_does_not_decide(path):
    data = path.read_bytes()
    with Image.open(path) as plain:
        upright = np.asarray(plain.transpose(Image.Transpose.ROTATE_270))  # they all state orientation 6
    size = min(upright.shape[:2])
    got = ImageDecoder(size)(data, path.name)
    top, left = ((length - size) // 2 for length in upright.shape[:2])
    np.testing.assert_array_equal(got, upright[top : top + size, left : left + size])


@pytest.mark.parametrize("name", ["png_icc_3MB.png", "png_text_3MB.png"])
def test_megabytes_of_text_do_not_decide(name, monkeypatch):
    data = (ODD / name).read_bytes()
    got = ImageDecoder(48)(data, name)
    for limit in ("MAX_TEXT_CHUNK", "MAX_TEXT_MEMORY"):
        monkeypatch.setattr(PngImagePlugin, limit, 1 << 30)
    with Image.open(io.BytesIO(data)) as plain:
        assert plain.size == (64, 48)
        np.testing.assert_array_equal(got, np.asarray(plain.convert("RGB"))[:, 8:56])


def test_samples_with_megabytes_of_text_are_measured(tmp_path):
    (tmp_path / "1.png").write_bytes((ODD / "png_text_3MB.png").read_bytes())
    assert next(ImageFiles(tmp_path).batches())["image"].shape == (1, 48, 64, 3)


@pytest.mark.parametrize("depth", [16, 2, 4])
def test_a_transparent_grey_of_any_depth_becomes_white(depth):
    image = ImageDecoder(32)((ODD / f"grey{depth}_transparent.png").read_bytes(), "x")
    assert (image[20:] == 255).all() and (depth != 16 or (image[:12] == 195).all())


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_only_the_transparent_level_becomes_white(depth):
    """Two rows of the levels 0 and 1 of `depth` bits, of which 1 is transparent: the other stays black."""
    width = 8
    zero = bytes(width * depth // 8)
    one = b"\0\1" * width if depth == 16 else bytes([sum(1 << i for i in range(0, 8, depth))] * (width * depth // 8))
    image = ImageDecoder(8, channels=1)(png(depth, 0, [zero, one] * 4, width, b"\0\1"), "x")[..., 0]
    assert (image[::2] == 0).all() and (image[1::2] == 255).all()


def test_a_transparent_colour_of_sixteen_bits_is_one_of_65536():
    """The colours (4660, 22136, 8) and (4660, 22136, 9) share their upper bytes; one of them is transparent."""
    seen, unseen = (struct.pack(">HHH", 0x1234, 0x5678, last) for last in (8, 9))
    image = ImageDecoder(2)(png(16, 2, [seen * 2, unseen * 2], 2, unseen), "x")
    np.testing.assert_array_equal(image, [[[0x12, 0x56, 0]] * 2, [[255] * 3] * 2])


def test_a_transparent_colour_of_eight_bits():
    image = ImageDecoder(2)(png(8, 2, [b"\1\2\3\4\5\6"] * 2, 2, b"\0\4\0\5\0\6"), "x")
    np.testing.assert_array_equal(image, [[[1, 2, 3], [255] * 3]] * 2)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_that_of_pillow(format, orientation):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif[0x0112] = orientation
    exif[0x011A] = 72.0
    data = encode(Image.fromarray(noise(8, 8)), format, exif=exif)
    with Image.open(io.BytesIO(data)) as stored:
        want = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    np.testing.assert_array_equal(ImageDecoder(8)(data, "x"), want)


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'


def texts(**values: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for name, value in values.items():
        info.add_text(name, value, zip=True)
    return info


def png_with_packet(compressed: bool) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=compressed)
    return encode(Image.fromarray(noise(8, 8)), "PNG", pnginfo=info)


def png_with_exif_as_text() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 3
    block = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    text = f"\nexif\n{len(block):8}\n{block.hex()}\n"
    return encode(Image.fromarray(noise(8, 8)), "PNG", pnginfo=texts(**{"Raw profile type exif": text}))


STATED_OTHERWISE = {
    "packet in JPEG": encode(Image.fromarray(noise(8, 8)), "JPEG", xmp=XMP),
    "packet in WebP": encode(Image.fromarray(noise(8, 8)), "WEBP", xmp=XMP),
    "packet in PNG": png_with_packet(False),
    "compressed packet in PNG": png_with_packet(True),
    "EXIF as text in PNG": png_with_exif_as_text(),
}


@pytest.mark.parametrize("where", STATED_OTHERWISE)
def test_orientation_that_is_stated_elsewhere(where):
    data = STATED_OTHERWISE[where]
    assert orientation_of(parts_of(data)) == 3
    with Image.open(io.BytesIO(data)) as stored:
        want = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    np.testing.assert_array_equal(ImageDecoder(8)(data, "x"), want)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_any_damage_to_exif_gives_an_upright_image(format):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    block = exif.tobytes()
    image = Image.fromarray(noise(8, 8))
    want = ImageDecoder(8)(encode(image, format), "x")
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(100):
            damaged = bytearray(block)
            damaged[6 + rng.integers(len(block) - 6)] = rng.integers(256)
            damaged = damaged[: rng.integers(6, len(block) + 1)]
            if b"\x01\x12" in damaged or b"\x12\x01" in damaged:
                continue
            data = encode(image, format, exif=bytes(damaged))
            np.testing.assert_array_equal(ImageDecoder(8)(data, "x"), want)


def test_a_checksum_of_text_does_not_decide():
    data = encode(Image.fromarray(noise(8, 8)), "PNG", pnginfo=texts(title="x" * 40))
    place = data.index(b"zTXt") + 20
    damaged = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    np.testing.assert_array_equal(ImageDecoder(8)(damaged, "x"), noise(8, 8))
    place = data.index(b"IDAT") + 20
    with pytest.raises(BadImage):
        ImageDecoder(8)(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], "x")
