"""The digits classifier: how well it reads, that it is one function of its input, and its cache."""

import dataclasses

import jax
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.digits import classifier as digit_classifier
from diffusion_jax.evaluation.digits.classifier import DigitClassifier
from diffusion_jax.evaluation.digits.classifier_training import Recipe
from diffusion_jax.evaluation.digits.extractor import Classifier, extractor_for

SHORT = Recipe(steps=2)


def test_reads_held_out_digits(classifier, digits):
    images, labels = digits("test")
    assert (classifier.predict(images) == labels).mean() >= 0.985


def test_features_separate_the_classes(classifier, digits):
    images, labels = digits("test")
    train_images, train_labels = digits("train")
    features = classifier.features(train_images)
    assert features.shape == (len(train_labels), 64) and features.dtype == np.float32
    centres = np.stack([features[train_labels == c].mean(axis=0) for c in range(10)])
    nearest = np.linalg.norm(classifier.features(images)[:, None] - centres, axis=-1).argmin(axis=1)
    assert (nearest == labels).mean() >= 0.97


def test_features_depend_on_the_image_alone(classifier, digits):
    images, _ = digits("train")
    images = images[:600]
    together = classifier.features(images)
    order = np.random.default_rng(0).permutation(len(images))
    assert np.array_equal(classifier.features(images[order]), together[order])
    apart = [classifier.features(images[start : start + 7]) for start in range(0, len(images), 7)]
    assert np.array_equal(np.concatenate(apart), together)
    assert classifier.features(images[:0]).shape == (0, 64)


def test_one_channel_and_nearly_grey_images_read_the_same(classifier, digits):
    images, _ = digits("test")
    np.testing.assert_allclose(classifier.features(images[..., :1]), classifier.features(images), atol=1e-5)
    tinted = np.clip(images.astype(int) + np.array([-2, 0, 2]), 0, 255).astype(np.uint8)
    assert (classifier.predict(tinted) == classifier.predict(images)).mean() > 0.99


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), r"images float32\[2, 8, 8, 3\]: the digits classifier takes uint8"),
        (np.zeros((2, 16, 16, 3), np.uint8), r"uint8\[2, 16, 16, 3\]"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"uint8\[2, 8, 8, 4\]"),
        (np.zeros((8, 8, 3), np.uint8), r"uint8\[8, 8, 3\]"),
    ],
)
def test_refuses_other_images(classifier, images, message):
    with pytest.raises(UserError, match=message):
        classifier.features(images)
    with pytest.raises(UserError, match=message):
        classifier.predict(images)


def test_refuses_coloured_images(classifier):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    images[2, ..., 0] = 200
    with pytest.raises(UserError, match=r"coloured images \(channels 200 levels apart\): .* takes grey ones"):
        classifier.features(images)


def test_is_a_classifier_that_says_what_it_is(classifier):
    assert isinstance(classifier, Classifier)
    facts = classifier.describe()
    assert facts["name"] == classifier.name == "digits-classifier-64"
    assert len(facts["weights_sha256"]) == 64 and facts["feature_width"] == 64
    assert classifier.real_images_unseen_by("digits") == "digits:test"
    assert classifier.real_images_unseen_by("digits:test") is None


def test_other_sizes_have_no_extractor():
    with pytest.raises(UserError, match=r"32×32 images: no feature extractor takes them; .*digits of 8×8 pixels"):
        extractor_for((32, 32, 3))


def test_training_is_a_function_of_its_recipe(tmp_path, classifier):
    first, again = (DigitClassifier.open(SHORT, tmp_path / name) for name in "ab")
    assert first.weights_sha256 == again.weights_sha256 != classifier.weights_sha256
    assert first.fingerprint == again.fingerprint != classifier.fingerprint


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Recipe)])
def test_every_part_of_the_recipe_is_in_the_fingerprint(field):
    changed = dataclasses.replace(SHORT, **{field: getattr(SHORT, field) + 1})
    assert changed.fingerprint("data") != SHORT.fingerprint("data") != SHORT.fingerprint("other data")


def test_trains_once(tmp_path, monkeypatch, digits):
    images, _ = digits("test")
    trained = DigitClassifier.open(SHORT, tmp_path)
    (file,) = tmp_path.iterdir()
    assert trained.fingerprint in file.name
    monkeypatch.setattr(digit_classifier, "train", None)
    kept = DigitClassifier.open(SHORT, tmp_path)
    assert kept.weights_sha256 == trained.weights_sha256
    assert np.array_equal(kept.features(images), trained.features(images))


def test_the_cache_folder_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    DigitClassifier.open(SHORT)
    assert [path.parent for path in tmp_path.rglob("*.safetensors")] == [tmp_path / "diffusion_jax"]


def flip_a_bit(data):
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


@pytest.mark.parametrize("damage", [lambda data: data[:1000], lambda data: b"", lambda data: b"x" * 99, flip_a_bit])
def test_a_damaged_cache_is_made_again(tmp_path, damage):
    trained = DigitClassifier.open(SHORT, tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert DigitClassifier.open(SHORT, tmp_path).weights_sha256 == trained.weights_sha256
    assert file.read_bytes() == whole and list(tmp_path.iterdir()) == [file]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").touch()
    assert DigitClassifier.open(SHORT, tmp_path / "file" / "cache").feature_width == 64


def test_a_program_without_the_cpu_is_told(tmp_path, monkeypatch):
    def local_devices(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", local_devices)
    with pytest.raises(UserError, match=r"runs on the CPU, .*add cpu to JAX_PLATFORMS"):
        DigitClassifier.open(SHORT, tmp_path)
