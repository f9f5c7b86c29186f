"""Evaluation under a protocol: every value follows from the features, and the result says what it depends on."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import clip_distance, frechet_distance, inception_score, kernel_distance, precision_recall
from diffusion_jax.evaluation.evaluator import Evaluator, differences, full_result
from diffusion_jax.evaluation.image_sets import SampleFile
from diffusion_jax.evaluation.protocols import PROTOCOLS, protocol_named
from diffusion_jax.evaluation.references import (
    is_statistics_file,
    read_reference,
    reference_from_images,
    write_reference,
)
from diffusion_jax.evaluation.settings import METRIC_NEEDS

COUNT = 300
ADM = dataclasses.replace(PROTOCOLS["adm"], kid_subsets=5, kid_subset_size=50, inception_splits=128)


class Projection:
    """Stands for all networks together: fixed random projections of the pixels to every tap."""

    name, resize, scale, precision, weights_sha256 = "projection", "tf1_bilinear", "(x-128)/128", "float32", "0" * 64
    taps = ("2048", "spatial", "logits_unbiased", "dinov2", "clip")

    def __init__(self, **changes):
        self.widths = dict(zip(self.taps, (12, 9, 7, 5, 6), strict=True))
        for name, value in changes.items():
            setattr(self, name, value)

    def measure(self, images):
        # In float64, whose last digits are rounded away: a product's rounding depends on how many rows it has.
        rows = images.reshape(len(images), -1) / 255
        rng = np.random.default_rng(0)
        return {
            tap: np.tanh(rows @ rng.normal(size=(192, width))).astype(np.float32) for tap, width in self.widths.items()
        }

    def features(self, images):
        return self.measure(images)["2048"]

    def describe(self):
        return {"name": self.name, "resize": self.resize, "scale": self.scale, "weights_sha256": self.weights_sha256}


def some_images(seed, count=COUNT, brightest=256):
    return np.random.default_rng(seed).integers(0, brightest, (count, 8, 8, 3), np.uint8)


def batches(images, size):
    return [images[start : start + size] for start in range(0, len(images), size)]


@pytest.fixture(scope="module")
def real_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("real") / "real.npz"
    np.savez(path, arr_0=some_images(0))
    return path


@pytest.fixture(scope="module")
def reference(real_file):
    return reference_from_images(SampleFile(real_file), Projection())


def evaluator(reference, metrics=tuple(METRIC_NEEDS), allow_few=True, protocol=ADM, extractor=None):
    return Evaluator(protocol, extractor or Projection(), reference, metrics, allow_few)


def moments(rows):
    rows = rows.astype(np.float64)
    return rows.mean(axis=0), np.cov(rows, rowvar=False)


def test_every_metric_is_that_of_the_features(reference):
    fake = some_images(1, brightest=240)
    ours, theirs = Projection().measure(fake), Projection().measure(some_images(0))
    values = evaluator(reference).measure(batches(fake, 64))["metrics"]
    assert values["fid"] == pytest.approx(frechet_distance(*moments(ours["2048"]), *moments(theirs["2048"])), rel=1e-9)
    spatial = frechet_distance(*moments(ours["spatial"]), *moments(theirs["spatial"]))
    assert values["sfid"] == pytest.approx(spatial, rel=1e-9)
    score = inception_score(ours["logits_unbiased"], 128, "adm")
    assert (values["inception_score"], values["inception_score_std"]) == score
    kid = kernel_distance(theirs["2048"], ours["2048"], 5, 50)
    assert (values["kid"], values["kid_std"]) == kid
    dinov2 = frechet_distance(*moments(ours["dinov2"]), *moments(theirs["dinov2"]))
    assert values["fd_dinov2"] == pytest.approx(dinov2, rel=1e-9)
    assert values["cmmd"] == pytest.approx(clip_distance(theirs["clip"], ours["clip"]), rel=1e-9)
    near = precision_recall(theirs["2048"], ours["2048"], 3)._asdict()
    assert {name: values[name] for name in near} == near


def score_warnings(protocol, labels, tmp_path):
    """Those of the Inception Score of images with these labels."""
    path = tmp_path / "samples.npz"
    np.savez(path, arr_0=np.ones((len(labels), 1, 1, 3), np.uint8) * 2, arr_1=labels)
    samples = SampleFile(path)
    judge = Evaluator(PROTOCOLS[protocol], Projection(), None, ("inception_score",))
    return full_result(judge, {"count": samples.count, "metrics": {}}, samples.describe())["warnings"]


DRAWN = np.random.default_rng(0).integers(0, 100, 10_000)


@pytest.mark.parametrize(
    ("protocol", "labels", "words"),
    [
        ("adm", DRAWN, []),
        ("uvit", DRAWN, []),
        ("adm", np.arange(10_000) % 100, []),
        ("adm", np.sort(DRAWN), ["class by class"]),
        ("uvit", np.sort(DRAWN), ["class by class"]),
        ("uvit", np.sort(DRAWN)[::-1], ["class by class"]),
        ("uvit", np.concatenate([np.sort(part) for part in np.split(DRAWN, 10)]), ["class by class"]),
        ("ldm", np.sort(DRAWN), []),
        ("adm", np.concatenate([DRAWN, DRAWN[:1]]), ["last block of the Inception Score has 1 images instead of 5000"]),
        ("uvit", np.concatenate([DRAWN, DRAWN[:1]]), []),
        ("adm", DRAWN[:5001], ["Inception Score of 5001 images lies far below", "last block"]),
        ("adm", DRAWN[:2], ["Inception Score of 2 images lies far below that of 50000"]),
        ("ldm", DRAWN[:100], ["Inception Score of 100 images"]),
    ],
)
def test_an_inception_score_that_says_little_is_told(protocol, labels, words, tmp_path):
    warnings = score_warnings(protocol, labels, tmp_path)
    assert len(warnings) == len(words) and all(word in text for word, text in zip(words, warnings, strict=True))


@pytest.mark.parametrize("size", [1, 7, 300])
def test_the_batch_size_does_not_matter(reference, size):
    fake = some_images(1)
    whole, parts = (evaluator(reference).measure(batches(fake, n)) for n in (64, size))
    assert whole["images_sha256"] == parts["images_sha256"] and whole["count"] == parts["count"] == COUNT
    for name, value in whole["metrics"].items():
        assert parts["metrics"][name] == pytest.approx(value, rel=1e-8), name


def test_processes_that_share_the_work_equal_one(reference, monkeypatch):
    """Two processes played one after the other: what each hands over is kept, then both receive both."""
    parts, handed = batches(some_images(1), 77), {0: [], 1: []}
    alone = evaluator(reference).measure(parts)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for process in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        keep = handed[process].append
        monkeypatch.setattr(
            multihost_utils, "process_allgather", lambda x, keep=keep: (keep(x), np.stack([x, x]) + 1)[1]
        )
        evaluator(reference).measure(parts)
    assert len(handed[0]) == len(handed[1]) == len(parts) * len(Projection.taps)
    assert not np.array_equal(handed[0][0], handed[1][0])
    both = map(np.stack, zip(handed[0], handed[1], strict=True))
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda x: next(both))
    together = evaluator(reference).measure(parts)
    assert together["count"] == COUNT and together["images_sha256"] == alone["images_sha256"]
    for name, value in alone["metrics"].items():
        assert together["metrics"][name] == pytest.approx(value, rel=1e-8), name


def test_only_what_was_asked_for_is_measured(reference):
    measured = evaluator(None, ("inception_score",), allow_few=False).measure([some_images(1, 20)])
    assert set(measured["metrics"]) == {"inception_score", "inception_score_std"}
    assert set(Evaluator(ADM, Projection(), reference).metrics) == set(PROTOCOLS["adm"].metrics)


def test_few_images_are_refused_unless_allowed(reference):
    with pytest.raises(UserError, match=r"^fid of 300 images says little: .*--allow-few .*evaluate\.allow_few"):
        evaluator(reference, ("fid",), allow_few=False).measure([some_images(1)])


def test_too_few_images_for_a_subset_are_refused_on_either_side(reference):
    larger = dataclasses.replace(ADM, kid_subset_size=100)
    with pytest.raises(UserError, match=r"^kid of protocol adm takes subsets of 100 images, and the samples are 60; "):
        evaluator(reference, ("kid",), protocol=larger).measure([some_images(1, 60)])
    with pytest.raises(UserError, match=r"subsets of 1000 images, and .*real\.npz are 300; give more"):
        evaluator(reference, ("kid",), protocol=PROTOCOLS["ldm"])


def test_what_a_metric_lacks_is_named_beforehand(reference):
    with pytest.raises(UserError, match="'fid' compares with real images; name them by --reference"):
        evaluator(None, ("fid",))
    with pytest.raises(UserError, match="metric 'fdi' is not known; did you mean 'fid'"):
        evaluator(reference, ("fdi",))
    bare = dataclasses.replace(reference, features=None, moments={"2048": reference.moments["2048"]})
    with pytest.raises(UserError, match="has no mu_s and sigma_s"):
        evaluator(bare, ("sfid",))
    with pytest.raises(UserError, match="has no mu_dinov2 and sigma_dinov2, from which 'fd_dinov2' is made"):
        evaluator(bare, ("fd_dinov2",))
    with pytest.raises(UserError, match="holds no images or features, which 'kid' compares with"):
        evaluator(bare, ("kid",))
    with pytest.raises(UserError, match="holds no images or embeddings, which 'cmmd' compares with"):
        evaluator(dataclasses.replace(reference, embeddings=None), ("cmmd",))


def test_a_result_states_what_it_depends_on_and_differences_are_found(reference):
    measure = evaluator(reference, ("fid", "precision"))
    samples = {"file": "samples.npz", "uint8": "trunc(127.5(x+1))", "label_law": "uniform"}
    result = full_result(measure, measure.measure([some_images(1)]), samples)
    result = json.loads(json.dumps(result))
    assert result["protocol"]["resize"] == "tf1_bilinear" and result["protocol"]["inception_score"] == "adm"
    assert result["extractor"]["weights_sha256"] == "0" * 64 and result["count"] == COUNT
    assert result["reference"]["sha256"] and result["samples"]["label_law"] == "uniform"
    assert any("300 images lies far above that of 50000" in text for text in result["warnings"])
    assert "the covariance of fewer than 2048 images is singular" in result["warnings"]
    assert any("made uint8 by trunc(127.5(x+1))" in text for text in result["warnings"])
    assert differences(result, result) == []
    uvit = evaluator(reference, ("fid",), protocol=PROTOCOLS["uvit"], extractor=Projection(name="other"))
    other = full_result(uvit, uvit.measure([some_images(1, 299)]), samples)
    assert [line.split(":")[0] for line in differences(result, other)] == ["protocol", "extractor", "number of images"]


def test_references_survive_being_stored(reference, tmp_path):
    path = tmp_path / "ref.npz"
    write_reference(path, reference)
    assert is_statistics_file(path)
    stored = read_reference(path, Projection())
    for tap in ("2048", "spatial", "dinov2"):
        for ours, theirs in zip(stored.moments[tap], reference.moments[tap], strict=True):
            assert np.array_equal(ours, theirs)
    assert np.array_equal(stored.embeddings, reference.embeddings)
    assert np.array_equal(stored.features, reference.features) and stored.facts["count"] == COUNT
    assert stored.facts["recorded"]["resize"] == "tf1_bilinear"
    measured = [evaluator(r).measure([some_images(1)])["metrics"] for r in (stored, reference)]
    assert measured[0] == measured[1]


def test_a_reference_that_keeps_images_has_all_that_the_program_of_adm_reads(real_file, tmp_path):
    path = tmp_path / "VIRTUAL.npz"
    write_reference(path, reference_from_images(SampleFile(real_file), Projection(), keep=40, keep_images=True))
    (chosen,) = (batch["image"] for batch in SampleFile(path, beside_statistics=True).batches())
    assert np.array_equal(chosen, some_images(0)[np.arange(40) * COUNT // 40])
    with np.load(path) as archive:
        assert {"arr_0", "mu", "sigma", "mu_s", "sigma_s"} <= set(archive.files)
    stored = read_reference(path, Projection())
    np.testing.assert_array_equal(stored.features, Projection().features(chosen))


def test_a_reference_of_another_resize_is_refused_unless_allowed(reference, tmp_path):
    path = tmp_path / "ref.npz"
    write_reference(path, reference)
    other = Projection(resize="half_pixel_bilinear")
    with pytest.raises(
        UserError, match=r"made with resize tf1_bilinear, not half_pixel_bilinear; .*--allow-other-resi"
    ):
        read_reference(path, other)
    mixed = read_reference(path, other, allow_other_resize=True)
    assert mixed.facts["warnings"] == ["reference made with resize tf1_bilinear, not half_pixel_bilinear"]


def test_the_files_of_adm_and_pytorch_fid_are_read(reference, tmp_path):
    (mu, sigma), (mu_s, sigma_s) = reference.moments["2048"], reference.moments["spatial"]
    np.savez(tmp_path / "adm.npz", arr_0=some_images(0, 40), mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s)
    adm = read_reference(tmp_path / "adm.npz", Projection())
    np.testing.assert_allclose(adm.embeddings, reference.embeddings[:40], rtol=1e-6)
    np.testing.assert_allclose(adm.features, reference.features[:40], rtol=1e-6)
    assert set(adm.moments) == {"2048", "spatial"}
    np.savez(tmp_path / "pytorch.npz", mu=mu.astype(np.float32), sigma=sigma.astype(np.float32))
    theirs = read_reference(tmp_path / "pytorch.npz", Projection())
    assert theirs.features is None and set(theirs.moments) == {"2048"}


def test_sfid_depends_on_the_order_of_the_spatial_features(reference):
    order = np.arange(9).reshape(3, 3).T.ravel()
    mu, sigma = reference.moments["spatial"]
    turned = dataclasses.replace(reference, moments={"spatial": (mu[order], sigma[np.ix_(order, order)])})
    fake = some_images(1)
    right, wrong = (evaluator(r, ("sfid",)).measure([fake])["metrics"]["sfid"] for r in (reference, turned))
    assert wrong > 1.5 * right


eye, zero = np.eye(12), np.zeros(12)
lopsided = eye + np.eye(12, k=1)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"sigma": eye}, "has no 'mu'"),
        ({"mu": zero}, "has no 'sigma'"),
        ({"mu": zero, "sigma": eye, "mu_s": np.zeros(9)}, "has no 'sigma_s'"),
        ({"mu": np.zeros(64), "sigma": np.eye(64)}, r"mu \[64\] and sigma \[64, 64\] are of another network; \[12\]"),
        ({"mu": zero, "sigma": lopsided}, "sigma is not symmetric"),
        ({"mu": zero + np.nan, "sigma": eye}, "mu or sigma has values that are not finite"),
    ],
)
def test_damaged_references_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "ref.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read_reference(tmp_path / "ref.npz", Projection())


def test_truncated_and_absent_references_are_refused(tmp_path, reference):
    path = tmp_path / "ref.npz"
    write_reference(path, reference)
    path.write_bytes(path.read_bytes()[:-200])
    assert not is_statistics_file(path)
    with pytest.raises(UserError, match=r"ref\.npz: is damaged or no \.npz file"):
        read_reference(path, Projection())
    with pytest.raises(UserError, match="there is no such file"):
        read_reference(tmp_path / "absent.npz", Projection())


def test_protocols_are_those_of_the_papers():
    assert PROTOCOLS["adm"].resize == PROTOCOLS["ldm"].resize == "tf1_bilinear"
    assert (PROTOCOLS["uvit"].resize, PROTOCOLS["uvit"].scale) == ("half_pixel_bilinear", "x/127.5-1")
    assert PROTOCOLS["clean"].resize == "pil_bicubic"
    assert (PROTOCOLS["adm"].inception_score, PROTOCOLS["adm"].inception_splits) == ("adm", 5000)
    assert (PROTOCOLS["ldm"].inception_score, PROTOCOLS["ldm"].inception_splits) == ("torch_fidelity", 10)
    assert all(protocol.describe()["name"] == name for name, protocol in PROTOCOLS.items())
    with pytest.raises(UserError, match="--protocol amd: there is none of this name; did you mean 'adm'"):
        protocol_named("amd")
