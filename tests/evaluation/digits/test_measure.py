"""Metrics of digits that are right, wrong, missing or noisy, and what a result says of them."""

import json

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.digits.measure import METRICS, Measured, check_metrics, evaluate
from diffusion_jax.evaluation.image_sets import SampleFile, open_image_set

SHAPE = (8, 8, 3)


@pytest.fixture
def score(tmp_path, classifier):
    """The result for images and labels against the train digits."""

    def run(images, labels=None, reference="digits", held_out="digits:test", **options):
        path = tmp_path / "samples.npz"
        np.savez(path, images) if labels is None else np.savez(path, images, labels)
        unseen = open_image_set(held_out, SHAPE) if held_out else None
        return evaluate(SampleFile(path), open_image_set(reference, SHAPE), classifier, held_out=unseen, **options)

    return run


def test_held_out_digits_score_as_the_result_says_they_do(score, digits):
    images, labels = digits("test")
    order = np.random.default_rng(0).permutation(len(labels))
    result = score(images[order], labels[order])
    assert result["count"] == result["held_out"]["count"] == len(labels)
    for name in METRICS:
        np.testing.assert_allclose(result[name], result["held_out"][name], rtol=1e-9)
    np.testing.assert_allclose(result["frechet_distance_same_count"], result["frechet_distance"], rtol=1e-9)
    assert result["class_agreement"] >= 0.985
    assert 0.1 < result["frechet_distance"] < 1


def test_the_reference_itself_is_at_distance_zero(score, digits):
    result = score(*digits("train"))
    assert result["frechet_distance"] < 1e-9
    assert 0.01 < result["frechet_distance_same_count"] < result["held_out"]["frechet_distance"]


def test_mislabelled_samples_disagree(score, digits):
    images, labels = digits("test")
    right = score(images, labels)
    assert score(images, (labels + 1) % 10)["class_agreement"] < 0.01
    half = np.where(np.arange(len(labels)) % 2, labels, (labels + 1) % 10)
    np.testing.assert_allclose(score(images, half)["class_agreement"], right["class_agreement"] / 2, atol=0.02)


def test_worse_samples_are_further_away(score, digits):
    images, labels = digits("test")
    noise = np.random.default_rng(1).normal(size=(*images.shape[:3], 1))
    noisy = np.clip(images + 64 * noise, 0, 255).astype(np.uint8)
    real = score(images, labels)["frechet_distance"]
    assert score(noisy, labels)["frechet_distance"] > 3 * real
    assert score(images[labels < 9], labels[labels < 9])["frechet_distance"] > 3 * real
    repeated = np.arange(len(labels)) % 40
    assert score(images[repeated], labels[repeated])["frechet_distance"] > 3 * real


def test_a_sample_file_can_be_the_reference(score, tmp_path, digits):
    images, _ = digits("train")
    np.savez(tmp_path / "reference.npz", images)
    result = score(*digits("test"), reference=str(tmp_path / "reference.npz"))
    assert result["reference"]["file"] == "reference.npz" and len(result["reference"]["sha256"]) == 64
    np.testing.assert_allclose(result["frechet_distance"], score(*digits("test"))["frechet_distance"], rtol=1e-9)


def test_a_result_states_what_its_values_depend_on(score, digits, classifier):
    images, labels = digits("test")
    result = score(images[:100], labels[:100])
    assert json.loads(json.dumps(result)) == result
    assert not any("fid" in key.lower() for key in result)
    assert result["extractor"] == classifier.describe()
    assert result["samples"]["count"] == result["count"] == result["held_out"]["count"] == 100
    assert "split=train images=1438" in result["reference"]["identity"] and result["reference"]["count"] == 1438
    assert "split=test" in result["held_out"]["identity"]
    chosen = np.argsort(labels, kind="stable")[np.arange(100) * len(labels) // 100]
    as_many = score(images[chosen], labels[chosen], held_out=None)
    for name in METRICS:
        np.testing.assert_allclose(result["held_out"][name], as_many[name], rtol=1e-9)
    assert result["warnings"] == [] and result["versions"].keys() == {"diffusion_jax", "jax", "numpy"}


def test_unlabelled_samples_have_a_distance_alone(score, digits):
    images, _ = digits("test")
    result = score(images, metrics=["frechet_distance"])
    assert "class_agreement" not in result and "class_agreement" not in result["held_out"]
    with pytest.raises(UserError, match=r"samples.npz: has no labels \(arr_1\).*--metrics=frechet_distance"):
        score(images)


def test_agreement_can_be_asked_for_alone(score, digits):
    result = score(*digits("test"), metrics=["class_agreement"], held_out=None)
    assert result["held_out"] is None and "frechet_distance" not in result and result["warnings"] == []
    assert "frechet_distance_same_count" not in result


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_of_other_classes_are_refused(score, digits, label):
    images, _ = digits("test")
    with pytest.raises(
        UserError, match=f"samples.npz: label {label} is not one of the classes 0 … 9 that digits-classifier-64"
    ):
        score(images[:3], np.array([0, label, 1]))


def test_too_few_images_are_warned_about_and_one_is_refused(score, digits):
    images, labels = digits("test")
    (warning,) = score(images[:64], labels[:64])["warnings"]
    assert warning.startswith("64 samples are too few for 64 features")
    with pytest.raises(UserError, match="at least 2 images, not 1"):
        score(images[:1], labels[:1])


def test_images_that_the_extractor_refuses_are_named_with_their_file(score, tmp_path, digits):
    images, labels = digits("test")
    coloured = images * np.array([1, 0, 0], np.uint8)
    with pytest.raises(UserError, match=r"samples.npz: coloured images"):
        score(coloured, labels)
    np.savez(tmp_path / "reference.npz", coloured)
    with pytest.raises(UserError, match=r"reference.npz: coloured images"):
        score(images, labels, reference=str(tmp_path / "reference.npz"))


def test_an_extractor_without_classes_gives_no_agreement(classifier, tmp_path, digits):
    class Features:
        name, feature_width, features = "features", 64, classifier.features

        def describe(self):
            return {"name": self.name}

        def real_images_unseen_by(self, reference):
            return None

    np.savez(tmp_path / "samples.npz", *digits("test"))
    samples, reference = SampleFile(tmp_path / "samples.npz"), open_image_set("digits", SHAPE)
    with pytest.raises(UserError, match="class_agreement: features recognises no classes"):
        evaluate(samples, reference, Features())
    assert evaluate(samples, reference, Features(), ["frechet_distance"])["frechet_distance"] > 0


def test_unknown_metrics_are_named():
    with pytest.raises(UserError, match="metric 'frechet' is not known; did you mean 'frechet_distance'"):
        check_metrics(["class_agreement", "frechet"])
    with pytest.raises(UserError, match="metric 'fid' is not known"):
        check_metrics(["fid"])
    with pytest.raises(UserError, match="names no metric"):
        check_metrics([])


@pytest.mark.parametrize("law", ["sorted", "cyclic", "shuffled", "skewed"])
def test_a_part_of_the_samples_keeps_the_share_of_each_class(law):
    labels = np.arange(718) % 10
    labels = {
        "sorted": np.sort(labels),
        "cyclic": labels,
        "shuffled": np.random.default_rng(0).permutation(labels),
        "skewed": np.minimum(np.arange(718) % 40, 9),
    }[law]
    measured = Measured(np.arange(718.0)[:, None], np.arange(718), labels)
    part = measured.take(359)
    assert len(np.unique(part.predictions)) == 359
    assert np.array_equal(part.features[:, 0], part.predictions) and np.array_equal(
        part.labels, labels[part.predictions]
    )
    assert np.abs(np.bincount(part.labels) - np.bincount(labels) / 2).max() <= 1
    everything = measured.take(718)
    assert np.array_equal(np.sort(everything.predictions), np.arange(718))
    assert len(Measured(measured.features, None, None).take(100).features) == 100
