"""The procedural data set: the same scenes for ever, annotations that agree with the pixels, an exact recogniser."""

import pickle

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter

from diffusion_jax.data import DataConfig, batches, open_source
from diffusion_jax.data.shape_scenes import BRIGHTEST_GROUND, COLOURS, KINDS, TEXTURES, Shape, cover, draw_scene
from diffusion_jax.data.shapes import Shapes, recognise, shows
from diffusion_jax.errors import UserError

EVERYTHING = ("boxes", "caption", "mask", "segmentation")


def test_scenes_never_change():
    """Numbers published on `shapes` must mean the same in a later release, so these words and coordinates are fixed."""
    two, far = draw_scene(0, 2, 4), draw_scene(0, 2**48, 4)
    assert two.caption == "a red star below a green triangle on a striped background"
    expected = [
        (0.175964178, 0.498411494, 0.587906368, 0.890170205),
        (0.328924729, 0.062931315, 0.68899587, 0.375624674),
    ]
    np.testing.assert_allclose([shape.box for shape in two.shapes], expected, atol=1e-9)
    np.testing.assert_allclose(two.background.phase, 0.461047878, atol=1e-9)
    assert far.caption == "a large blue triangle on a cloudy background"
    np.testing.assert_allclose(far.hole, (0.035594, 0.08677, 0.317727, 0.595615), atol=1e-6)
    pixels = [[43, 46, 51], [40, 44, 48], [40, 44, 48], [40, 44, 48]]
    np.testing.assert_allclose(Shapes("test", 16)[3]["image"][8, ::5].astype(int), pixels, atol=1)
    assert draw_scene(1, 2, 4).caption != two.caption


def test_pixels_are_the_scene_at_every_size():
    large, small = Shapes("train", 128)[5]["image"], Shapes("train", 32)[5]["image"]
    shrunk = large.reshape(32, 4, 32, 4, 3).mean((1, 3))
    assert np.abs(shrunk - small).mean() < 3
    assert large.dtype == np.uint8 and large.shape == Shapes("train", 128).image_shape == (128, 128, 3)
    grey = Shapes("train", 32, channels=1)[5]["image"]
    np.testing.assert_allclose(grey[..., 0], small @ [0.299, 0.587, 0.114], atol=0.51)


def test_annotations_agree_with_the_pixels():
    source = Shapes("train", 64, shapes=4, annotations=EVERYTHING)
    numbers, seen = set(), set()
    for index in range(60):
        record, scene = source[index], source.scene(index)
        count = len(scene.shapes)
        numbers.add(count)
        seen |= {shape.kind for shape in scene.shapes} | {shape.colour for shape in scene.shapes}
        seen.add(scene.background.texture)
        assert record["label"] == record["box_labels"][0] == KINDS.index(scene.shapes[0].kind)
        assert np.all(record["box_labels"][count:] == -1) and np.all(record["boxes"][count:] == -1)
        assert [shape.radius for shape in scene.shapes] == sorted((s.radius for s in scene.shapes), reverse=True)
        painted = np.zeros((64, 64), bool)
        for shape, box in zip(scene.shapes, record["boxes"], strict=False):
            assert box.min() >= 0 and box.max() <= 1
            assert shows(record["image"], shape) > 0.7
            assert f"{shape.colour} {shape.kind}" in record["caption"]
            left, top, right, bottom = np.rint(box * 64).astype(int)
            inside = record["segmentation"][top:bottom, left:right] == 1 + KINDS.index(shape.kind)
            # The box is tight: the kind touches all four sides of it, to within the pixel that antialiasing takes.
            for side in (inside[:2], inside[-2:], inside[:, :2], inside[:, -2:]):
                assert side.any()
            painted[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1] = True
        assert np.all(record["segmentation"][~painted] == 0)
        assert 0.04 < record["mask"].mean() < 0.4 and set(np.unique(record["mask"])) == {0, 1}
    assert numbers == {1, 2, 3, 4} and seen == {*KINDS, *COLOURS, *TEXTURES}


@pytest.mark.parametrize("size", [32, 64])
def test_the_class_of_every_image_can_be_seen(size):
    source = Shapes("test", size)
    for index in range(150):
        shape, found = source.scene(index).shapes[0], recognise(source[index]["image"])
        assert found is not None and (found.kind, found.colour) == (shape.kind, shape.colour)
        np.testing.assert_allclose(found.box, shape.box, atol=2 / size)


def test_brightness_parts_shapes_from_backgrounds():
    source, around = Shapes("train", 64, shapes=3, annotations=("segmentation",)), np.ones((3, 3))
    for index in range(150):
        record = source[index]
        bright, shape = record["image"].max(-1) > 255 * BRIGHTEST_GROUND, record["segmentation"] > 0
        # Pixels on an outline are mixed of both.
        assert not np.any(bright & ~binary_dilation(shape, around)) and not np.any(
            binary_erosion(shape, around) & ~bright
        )


def test_the_class_can_be_seen_in_a_blurred_image():
    source = Shapes("test", 64)
    for index in range(60):
        shape, blurred = source.scene(index).shapes[0], gaussian_filter(source[index]["image"], (1.5, 1.5, 0))
        found = recognise(blurred)
        assert found is not None and found.kind == shape.kind
        np.testing.assert_allclose((found.x, found.y), (shape.x, shape.y), atol=2 / 64)


def test_the_recogniser_sees_nothing_where_nothing_is():
    rng = np.random.default_rng(0)
    assert recognise(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)) is None
    assert recognise(np.full((32, 32, 3), 90, np.uint8)) is None
    half = Shapes("test", 64)[0]["image"].copy()
    half[::2] = 90
    assert recognise(half) is None
    wrong = Shape("circle", "white", 0.5, 0.5, 0.2)
    assert shows(np.full((32, 32, 3), 90, np.uint8), wrong) == 0


def test_splits_are_apart_and_together():
    train, test, everything = (Shapes(split, 16, images=30) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(everything)) == (30, 5000, 5030)
    np.testing.assert_array_equal(everything[29]["image"], train[29]["image"])
    np.testing.assert_array_equal(everything[30]["image"], test[0]["image"])
    assert not np.array_equal(train[0]["image"], test[0]["image"])
    labels = np.array([test[i]["label"] for i in range(800)])
    assert np.bincount(labels, minlength=8).min() > 60
    copy = pickle.loads(pickle.dumps(test))
    np.testing.assert_array_equal(copy[7]["image"], test[7]["image"])


def test_a_config_opens_it():
    config = DataConfig(name="shapes:images=40,shapes=3", image_size=32, annotations=EVERYTHING)
    source = open_source(config)
    assert source.identity == "shapes split=train images=40 size=32 channels=3 shapes=3"
    batch = next(batches(source, seed=0, batch_size=4, num_threads=1))
    assert {key: value.shape for key, value in batch.items() if isinstance(value, np.ndarray)} == {
        "image": (4, 32, 32, 3),
        "label": (4,),
        "boxes": (4, 3, 4),
        "box_labels": (4, 3),
        "mask": (4, 32, 32),
        "segmentation": (4, 32, 32),
    }
    plain = open_source(DataConfig(name="shapes", image_size=64))
    assert len(plain) == 50_000 and plain[0].keys() == {"image", "label"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "shapes:shape=3"}, r"data\.name: shapes has no option 'shape'; did you mean 'shapes'"),
        ({"name": "shapes:shapes=x"}, r"data\.name: shapes:shapes=x must be shapes=INTEGER"),
        ({"name": "shapes:shapes=9"}, r"data\.name: shapes:shapes=9 must be 1 to 6"),
        ({"name": "shapes:images=0"}, r"data\.name: shapes:images=0 must be at least 1"),
        ({"image_size": 8}, r"data\.image_size=8: shapes need at least 16 pixels"),
        ({"split": "tset"}, r"data\.split='tset': shapes has no such split; did you mean 'test'"),
        ({"annotations": ("box",)}, r"data\.annotations: 'box' is not known; did you mean 'boxes'"),
        ({"name": "digits", "annotations": ("boxes",)}, r"data\.annotations=\('boxes',\): 'digits' has none"),
    ],
)
def test_options_that_are_wrong(fields, message):
    with pytest.raises(UserError, match=f"^{message}"):
        open_source(DataConfig(**{"name": "shapes", "image_size": 32, **fields}))


@pytest.mark.parametrize(("left", "right"), [("orange", "yellow"), ("white", "purple")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_shape_between_two_colours_is_recognised(kind, left, right):
    size = 64
    shape = Shape(kind, "orange", 0.5, 0.5, 0.3)
    rows, columns, coverage = cover(shape, size)
    image = np.full((size, size, 3), 0.3, np.float32)
    # From one colour into the other, so that neither has the whole shape; half-way from white to purple is near none.
    share = np.linspace(0, 1, coverage.shape[1])[None, :, None]
    colour = (1 - share) * COLOURS[left] + share * COLOURS[right]
    image[rows, columns] += coverage[..., None] * (colour - image[rows, columns])
    found = recognise((image * 255).astype(np.uint8))
    assert found is not None and found.kind == kind
    assert found.colour in (left, right)
