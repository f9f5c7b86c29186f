"""Sample files and data sets: what is read, what is refused."""

import hashlib
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import DataConfig, open_source
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import image_sets
from diffusion_jax.evaluation.image_sets import BATCH_SIZE, SampleFile, open_image_set, with_progress
from diffusion_jax.evaluation.settings import ImageSettings
from diffusion_jax.pictures import to_rgb

SHAPE = (8, 8, 3)


def some_images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), np.uint8)


def read(images, key="image"):
    return np.concatenate([batch[key] for batch in images.batches()])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_sample_file_is_read_whole_and_in_order(tmp_path, save):
    images, labels = some_images(2 * BATCH_SIZE + 5), np.arange(2 * BATCH_SIZE + 5) % 10
    path = tmp_path / "samples.npz"
    save(path, arr_0=images, arr_1=labels)
    samples = SampleFile(path)
    assert samples.count == len(images) and samples.image_shape == SHAPE
    assert np.array_equal(read(samples), images) and np.array_equal(read(samples, "label"), labels)
    facts = samples.describe()
    assert facts["file"] == "samples.npz" and facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts["label_counts"]["3"] == (labels == 3).sum() and facts["count"] == len(images)


def test_slow_measuring_is_told(tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "samples.npz", some_images(BATCH_SIZE + 5))
    samples = SampleFile(tmp_path / "samples.npz")
    assert len(list(with_progress(samples))) == 2 and capsys.readouterr().err == ""
    monkeypatch.setattr(image_sets, "SECONDS_BETWEEN_WORDS", -1)
    list(with_progress(samples))
    lines = capsys.readouterr().err.splitlines()
    counts = [f"{count}/{BATCH_SIZE + 5} images measured" for count in (BATCH_SIZE, BATCH_SIZE + 5)]
    assert lines == [f"{samples.name}: {count}" for count in counts]


def test_labels_may_be_absent(tmp_path):
    path = tmp_path / "samples.npz"
    np.savez(path, some_images(3))
    assert "label" not in next(SampleFile(path).batches())
    assert SampleFile(path).describe()["label_counts"] is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros((4, 8, 8, 3), np.float32)}, "arr_0 is float32; images are uint8 in 0…255"),
        ({"arr_0": np.full((4, 8, 8, 3), None)}, "arr_0 is object; images are uint8"),
        ({"arr_0": np.zeros((4, 8, 8), np.uint8)}, r"arr_0 has shape \[4, 8, 8\]; images are \[N, H, W, 3\]"),
        ({"arr_0": np.zeros((4, 8, 8, 1), np.uint8)}, r"arr_0 has shape \[4, 8, 8, 1\]"),
        ({"arr_0": np.zeros((4, 8, 8, 4), np.uint8)}, r"arr_0 has shape \[4, 8, 8, 4\]"),
        ({"arr_0": np.zeros((0, 8, 8, 3), np.uint8)}, r"arr_0 has shape \[0, 8, 8, 3\]"),
        ({"arr_0": np.asfortranarray(np.zeros((4, 8, 8, 3), np.uint8))}, r"\[4, 8, 8, 3\] in Fortran order"),
        ({"images": some_images(4)}, "has no images 'arr_0' \\(it has images\\)"),
        ({"mu": np.zeros(4), "sigma": np.eye(4)}, "has no images 'arr_0' \\(it has mu, sigma\\)"),
        ({"arr_0": some_images(4), "arr_1": np.zeros(3, int)}, r"arr_1 has shape \[3\]; 4 images need \[4\]"),
        ({"arr_0": some_images(4), "arr_1": np.eye(4, dtype=int)}, r"arr_1 has shape \[4, 4\]"),
        ({"arr_0": some_images(4), "arr_1": np.zeros(4)}, "arr_1 is float64; labels are integers"),
        ({"arr_0": some_images(4), "arr_1": np.full(4, None)}, "arr_1 is object; labels are integers"),
        (
            {"arr_0": some_images(4), "mu": np.zeros(4), "sigma": np.eye(4)},
            r"is a reference, not samples: .*--reference",
        ),
    ],
)
def test_refuses_other_arrays(tmp_path, arrays, message):
    path = tmp_path / "samples.npz"
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=message) as caught:
        SampleFile(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_refuses_images_in_zero_to_one(tmp_path):
    images, path = (some_images(300) / 255 + 0.5).astype(np.uint8), tmp_path / "samples.npz"
    np.savez(path, images)
    with pytest.raises(UserError, match=r"samples\.npz: the first 256 images hold 0 and 1 alone; .* by 255"):
        SampleFile(path)
    np.savez(path, 0 * images)
    assert SampleFile(path).count == 300


def test_refuses_images_in_minus_one_to_one(tmp_path):
    path = tmp_path / "samples.npz"
    images = np.clip(np.random.default_rng(0).normal(size=(300, *SHAPE)), -1, 1).astype(np.int8).astype(np.uint8)
    assert np.array_equal(np.unique(images), [0, 1, 255])
    np.savez(path, images)
    with pytest.raises(UserError, match=r"the first 256 images hold 0, 1 and 255 alone, .*−1…1.* 127\.5 \(x \+ 1\)"):
        SampleFile(path)
    np.savez(path, 255 * (images == 1).astype(np.uint8))
    assert SampleFile(path).count == 300  # drawings in black and white
    images[0, 0, 0, 0] = 2
    np.savez(path, images)
    assert SampleFile(path).count == 300


@pytest.mark.parametrize("info", ["a poem", {"a": 1}, np.arange(3), '["list"]', np.array(["{}", "{}"])])
def test_what_another_program_calls_info_is_passed_over(tmp_path, info):
    path = tmp_path / "samples.npz"
    np.savez(path, arr_0=some_images(4), info=np.array(info))
    assert SampleFile(path).info == {} and SampleFile(path).count == 4


def test_refuses_what_is_not_there_or_no_archive(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        SampleFile(tmp_path / "samples.npz")
    with pytest.raises(UserError, match="there is no such file"):
        SampleFile(tmp_path)
    path = tmp_path / "text.npz"
    path.write_text("no archive")
    with pytest.raises(UserError, match=r"text.npz: is damaged or no .npz file \(File is not a zip file\)"):
        SampleFile(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_anywhere_is_noticed_or_harmless(tmp_path, save):
    images = np.zeros((3, *SHAPE), np.uint8)
    path = tmp_path / "samples.npz"
    save(path, arr_0=images, arr_1=np.arange(3))
    whole = path.read_bytes()
    noticed = 0
    for position in range(len(whole)):
        for bits in (1, 128):
            damaged = bytearray(whole)
            damaged[position] ^= bits
            path.write_bytes(damaged)
            try:
                assert np.array_equal(read(SampleFile(path)), images)
            except UserError as error:
                noticed += 1
                assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert noticed > len(whole)
    for length in range(0, len(whole), 50):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            SampleFile(path)


def test_an_array_shorter_than_its_head_says_is_noticed(tmp_path):
    whole, short = tmp_path / "whole.npz", tmp_path / "short.npz"
    np.savez(whole, some_images(BATCH_SIZE + 1))
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(short, "w") as shorter:
        shorter.writestr("arr_0.npy", archive.read("arr_0.npy")[:-10])
    with pytest.raises(UserError, match=r"short.npz: is damaged"):
        read(SampleFile(short))


@pytest.mark.parametrize(("name", "split"), [("digits", "train"), ("digits:train", "train"), ("digits:test", "test")])
def test_digits_by_split(digits, name, split):
    images = open_image_set(name, SHAPE)
    want, labels = digits(split)
    assert images.count == len(want) and f"split={split}" in images.describe()["identity"]
    assert np.array_equal(read(images), want) and np.array_equal(read(images, "label"), labels)


def test_a_folder_is_read_at_the_size_of_the_samples(tmp_path, digits):
    want, labels = digits("test")
    for i in range(30):
        folder = tmp_path / str(labels[i])
        folder.mkdir(exist_ok=True)
        Image.fromarray(want[i]).save(folder / f"{i:02}.png")
    images = open_image_set(f"folder:{tmp_path}", SHAPE)
    order = np.argsort(labels[:30], kind="stable")
    assert np.array_equal(read(images), want[:30][order])
    assert "classes=10" in images.describe()["identity"]
    assert open_image_set(f"folder:{tmp_path}", (16, 16, 3)).image_shape == (16, 16, 3)


@pytest.fixture
def faces(tmp_path):
    """Four aligned photographs of CelebA's size, of noise, two of them stored lying on their side."""
    folder = tmp_path / "faces"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        image = Image.fromarray(rng.integers(0, 256, (218, 178, 3), np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 3 if i % 2 else 1
        image.save(folder / f"{i}.png", exif=exif)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"crop": "celeba"},
        {"exif_orientation": False},
        {"channels": 1},
        {"crop": "celeba", "exif_orientation": False, "channels": 1},
    ],
)
def test_a_reference_becomes_what_the_images_of_the_run_became(faces, options):
    data = DataConfig(f"folder:{faces}", 8, **options)
    trained_on = open_source(data)
    want = to_rgb(np.stack([trained_on[i]["image"] for i in range(4)]))
    images = open_image_set(f"folder:{faces}", SHAPE, settings=ImageSettings.of(data))
    assert images.image_shape == SHAPE and images.describe()["identity"] == trained_on.identity
    assert np.array_equal(read(images), want)
    assert not np.array_equal(read(open_image_set(f"folder:{faces}", SHAPE)), want)


def test_a_reference_is_read_where_and_as_far_as_the_data_of_the_run(faces):
    (faces / "9.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"9\.png: cannot be read"):
        read(open_image_set(f"folder:{faces}", SHAPE))
    skipping = ImageSettings(on_bad_image="skip", data_dir="/data")
    assert len(read(open_image_set(f"folder:{faces}", SHAPE, settings=skipping))) == 5
    assert skipping.data("tfds:x", 8, "train").data_dir == "/data"


def test_grey_shapes_are_compared_with_grey_shapes():
    images = next(open_image_set("shapes", (16, 16, 3), settings=ImageSettings(channels=1)).batches())["image"]
    assert images.shape[1:] == (16, 16, 3) and (images == images[..., :1]).all()


def test_a_sample_file_says_of_what_images_its_model_was_trained(tmp_path):
    path, stated = tmp_path / "samples.npz", ImageSettings(crop="celeba", channels=1, dataset="folder")
    np.savez(path, arr_0=some_images(3), info=json.dumps({"data": stated.facts()}))
    assert SampleFile(path).settings == stated and SampleFile(path).describe()["data"] == stated.facts()
    np.savez(path, arr_0=some_images(3), info=json.dumps({"seed": 0}))
    assert SampleFile(path).settings is None


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("digit", SHAPE, "'digit' is no data set and no .npz file; did you mean 'digits'?"),
        ("samples.png", SHAPE, "'samples.png' is no data set and no .npz file"),
        ("digits:tset", SHAPE, "digits has no such split; did you mean 'test'?"),
        ("folder:/nowhere", SHAPE, "folder:/nowhere"),
        ("nowhere.npz", SHAPE, "nowhere.npz: there is no such file"),
        ("digits", (8, 16, 3), "digits: data sets hold square images, the samples are 8×16"),
    ],
)
def test_refuses_other_references(name, shape, message):
    with pytest.raises(UserError) as caught:
        open_image_set(name, shape)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_refuses_a_file_of_another_size(tmp_path):
    path = tmp_path / "reference.npz"
    np.savez(path, np.zeros((4, 16, 16, 3), np.uint8))
    with pytest.raises(UserError, match=r"has images of 16×16, the samples are 8×8"):
        open_image_set(str(path), SHAPE)
