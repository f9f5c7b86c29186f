import io
import resource

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data.sources import BadImage
from diffusion_jax.data.transforms import ImageDecoder, centre_crop, face_crop
from diffusion_jax.errors import UserError

RED, WHITE = (255, 0, 0), (255, 255, 255)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encode(image: Image.Image | np.ndarray, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, format, **options)
    return file.getvalue()


def box_halve(image: np.ndarray) -> np.ndarray:
    """Mean of pairs along a row, then along a column, each rounded half up: [H, W, C] to [H/2, W/2, C]."""
    image = image.astype(int)
    image = (image[:, ::2] + image[:, 1::2] + 1) // 2
    return ((image[::2] + image[1::2] + 1) // 2).astype(np.uint8)


def cubic_row(length: int, new_length: int) -> np.ndarray:
    """[new_length, length] weights of antialiased Catmull-Rom-like cubic interpolation (a = −1/2)."""
    scale = length / new_length
    support = max(scale, 1.0)
    centres = (np.arange(new_length) + 0.5) * scale
    x = np.abs((np.arange(length) + 0.5 - centres[:, None]) / support)
    a = -0.5
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("height", "width", "top", "left"), [(8, 8, 0, 0), (8, 13, 0, 2), (17, 8, 4, 0)])
def test_an_image_of_the_right_short_side_is_only_cropped(height, width, top, left):
    image = noise(height, width)
    np.testing.assert_array_equal(centre_crop(Image.fromarray(image), 8), image[top : top + 8, left : left + 8])


def test_a_power_of_two_is_halved_by_a_box_filter():
    image = noise(32, 64)
    np.testing.assert_array_equal(centre_crop(Image.fromarray(image), 8), box_halve(box_halve(image))[:, 4:12])


@pytest.mark.parametrize(("height", "width"), [(60, 44), (24, 30), (9, 7)])
def test_the_rest_of_the_way_is_bicubic(height, width):
    """44 → 22 by the box, then 22 → 16; 24 → 16 directly; 7 → 16 enlarges."""
    size = 16
    image = noise(height, width)
    halved = box_halve(image) if min(height, width) >= 2 * size else image
    height, width = halved.shape[:2]
    scale = size / min(height, width)
    rows, columns = cubic_row(height, round(height * scale)), cubic_row(width, round(width * scale))
    expected = np.einsum("yh,hwc->ywc", rows, np.einsum("xw,hwc->hxc", columns, halved.astype(float)).clip(0, 255))
    top, left = (len(rows) - size) // 2, (len(columns) - size) // 2
    expected = expected.clip(0, 255)[top : top + size, left : left + size]
    np.testing.assert_allclose(centre_crop(Image.fromarray(image), size), expected, atol=1.01)


@pytest.mark.parametrize(("height", "width"), [(1, 700), (700, 1), (3, 200), (200, 3), (7, 300), (211, 11)])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_a_thin_image_is_cut_from_the_whole_that_pillow_makes(height, width, channels):
    size = 16
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, *channels), dtype=np.uint8))
    scale = size / min(height, width)
    whole = np.asarray(image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC))
    top, left = ((length - size) // 2 for length in whole.shape[:2])
    np.testing.assert_array_equal(centre_crop(image, size), whole[top : top + size, left : left + size])


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1)])
def test_a_thin_image_takes_no_memory_to_speak_of(shape):
    """Enlarged whole, it would be 5 GB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    centre_crop(Image.fromarray(np.zeros((*shape, 3), np.uint8)), 256)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_a_face_of_celeba_is_the_published_box():
    image = noise(218, 178)
    box = image[57:185, 25:153]
    decode = ImageDecoder(128, crop="celeba")
    np.testing.assert_array_equal(decode(encode(image), "x"), box)
    assert str(decode).endswith("crop=celeba orientation=exif")
    small = face_crop(Image.fromarray(image), 64)
    # Halving by a bilinear filter weighs four pixels (1, 3, 3, 1)/8 along each axis.
    weights = np.array([1, 3, 3, 1]) / 8
    want = np.einsum("i,j,ijc->c", weights, weights, box[9:13, 21:25].astype(float))
    np.testing.assert_allclose(small[5, 11], want, atol=1)
    assert small.shape == (64, 64, 3)


def test_a_photograph_that_is_no_aligned_face_is_named():
    with pytest.raises(UserError, match=r"^a\.png: is 20×10 pixels, and data\.crop=celeba is for .* 178×218"):
        ImageDecoder(64, crop="celeba")(encode(noise(10, 20)), "a.png")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_formats(format):
    image = np.full((20, 30, 3), (200, 100, 50), np.uint8)
    got = ImageDecoder(10)(encode(image, format), "x")
    assert (got.shape, got.dtype) == ((10, 10, 3), np.uint8)
    np.testing.assert_allclose(got, image[:10, :10], atol=4)


def transparent_palette() -> bytes:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([9, 9, 9, *RED])
    image.paste(1, (2, 0, 4, 4))
    return encode(image, transparency=0)


LEVELS_16 = np.tile(np.array([0, 200, 128 * 257, 65535], np.uint16), (4, 1))
ORDINARY = {
    "grey": (encode(np.tile(np.array([0, 1, 128, 255], np.uint8), (4, 1))), [(v,) * 3 for v in (0, 1, 128, 255)]),
    "16-bit grey": (encode(LEVELS_16), [(v,) * 3 for v in (0, 1, 128, 255)]),
    "1-bit": (
        encode(Image.fromarray(np.tile(np.array([0, 255, 0, 255], np.uint8), (4, 1))).convert("1")),
        [(0,) * 3, WHITE] * 2,
    ),
    "transparent": (encode(np.tile(np.array([[*RED, 255], [*RED, 0]] * 2, np.uint8), (4, 1, 1))), [RED, WHITE] * 2),
    "grey and alpha": (encode(np.tile(np.array([[7, 255], [7, 0]] * 2, np.uint8), (4, 1, 1))), [(7, 7, 7), WHITE] * 2),
    "palette": (encode(Image.new("RGB", (4, 4), RED).quantize(2)), [RED] * 4),
    "transparent palette": (transparent_palette(), [WHITE, WHITE, RED, RED]),
    "CMYK": (encode(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG"), [RED] * 4),
}


@pytest.mark.parametrize("mode", ORDINARY)
def test_every_mode_becomes_rgb_or_grey(mode):
    data, row = ORDINARY[mode]
    expected = np.tile(np.array(row, np.uint8), (4, 1, 1))
    got = ImageDecoder(4)(data, mode)
    assert got.shape == (4, 4, 3)
    np.testing.assert_array_equal(got, expected)
    grey = ImageDecoder(4, channels=1)(data, mode)
    assert grey.shape == (4, 4, 1)
    np.testing.assert_allclose(grey[..., 0], expected @ [0.299, 0.587, 0.114], atol=0.51)


def test_exif_orientation_is_applied_unless_told_otherwise():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the image must be turned clockwise
    image = noise(8, 8)
    data = encode(image, exif=exif)
    np.testing.assert_array_equal(ImageDecoder(8)(data, "x"), np.rot90(image, -1))
    np.testing.assert_array_equal(ImageDecoder(8, exif_orientation=False)(data, "x"), image)


def test_an_animation_gives_its_first_frame():
    first, second = noise(6, 6, seed=1), noise(6, 6, seed=2)
    data = encode(Image.fromarray(first), save_all=True, append_images=[Image.fromarray(second)])
    np.testing.assert_array_equal(ImageDecoder(6)(data, "x"), first)


DAMAGED = {
    "truncated JPEG": encode(noise(64, 64), "JPEG")[:900],
    "truncated PNG": encode(noise(64, 64))[:900],
    "truncated WebP": encode(noise(64, 64), "WEBP")[:900],
    "empty": b"",
    "text": b"<html>404 not found</html>",
    "other format": encode(noise(4, 4), "BMP"),
    "PNG with a damaged chunk": encode(noise(64, 64)).replace(b"IHDR", b"IHDX"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_images_are_named(damage):
    with pytest.raises(BadImage, match=r"^cats/7\.jpg: cannot be read \(.+\); repair") as caught:
        ImageDecoder(8)(DAMAGED[damage], "cats/7.jpg")
    assert "\n" not in str(caught.value)


def test_any_damage_gives_an_image_or_a_named_error():
    rng = np.random.default_rng(0)
    whole = [encode(noise(24, 24), format) for format in ("PNG", "JPEG", "WEBP")]
    bad = 0
    for trial in range(600):
        data = np.frombuffer(whole[trial % 3], np.uint8).copy()
        places = rng.integers(0, len(data), 3)
        data[places] = rng.integers(0, 256, 3)
        try:
            assert ImageDecoder(8)(data.tobytes(), "x").shape == (8, 8, 3)
        except BadImage:
            bad += 1
    assert 50 < bad < 600
