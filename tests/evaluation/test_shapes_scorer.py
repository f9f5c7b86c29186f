"""Whether samples show the shape that was asked for: right, wrong, shapeless and unlabelled ones."""

import numpy as np
import pytest

from diffusion_jax import __main__
from diffusion_jax.data.shapes import Shapes
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.image_sets import SampleFile
from diffusion_jax.evaluation.scoring import open_scorer, values_of
from diffusion_jax.evaluation.settings import ScoringConfig

SIZE, COUNT = 48, 40


@pytest.fixture(scope="module")
def scenes():
    """Images [N, H, W, 3] and labels [N]."""
    source = Shapes("train", SIZE)
    records = [source[i] for i in range(COUNT)]
    return np.stack([record["image"] for record in records]), np.stack([record["label"] for record in records])


def write(tmp_path, images, labels=None):
    path = tmp_path / "samples.npz"
    np.savez(path, images) if labels is None else np.savez(path, images, labels)
    return path


def score(tmp_path, images, labels=None, **options):
    samples = SampleFile(write(tmp_path, images, labels))
    config = ScoringConfig(reference="shapes", **options)
    return open_scorer(config, samples.image_shape, samples.count).measure(samples)


def test_rendered_scenes_agree_with_their_labels(tmp_path, scenes):
    result = score(tmp_path, *scenes)
    assert result["class_agreement"] == 1.0 and result["unrecognised"] == 0.0 and result["count"] == COUNT
    assert result["held_out"]["class_agreement"] >= 0.95 and result["held_out"]["count"] == COUNT
    assert "split=test" in result["held_out"]["identity"] and "split=train" in result["reference"]["identity"]
    assert values_of(result) == {"class_agreement": 1.0}


def test_wrong_and_shapeless_images_count_against_the_samples(tmp_path, scenes):
    images, labels = scenes[0].copy(), scenes[1].copy()
    labels[:10] = (labels[:10] + 1) % Shapes.num_classes
    images[10:16] = 90
    result = score(tmp_path, images, labels)
    np.testing.assert_allclose([result["class_agreement"], result["unrecognised"]], [24 / COUNT, 6 / COUNT])


def test_the_command_prints_the_share_and_keeps_the_result(tmp_path, scenes, capsys):
    path = write(tmp_path, *scenes)
    __main__.run("evaluate", [f"--samples={path}", "--reference=shapes", f"--out={tmp_path / 'result.json'}"])
    printed = capsys.readouterr().out
    assert "class_agreement" in printed and "1.0000" in printed and "shapes-recogniser" in printed
    assert '"unrecognised": 0.0' in (tmp_path / "result.json").read_text()


def test_mistakes_are_one_line(tmp_path, scenes):
    images, labels = scenes
    with pytest.raises(UserError, match=r"metric 'fid' is not known for shapes; known: class_agreement"):
        score(tmp_path, images, labels, metrics=("fid",))
    with pytest.raises(UserError, match=r"samples.npz: has no labels \(arr_1\)"):
        score(tmp_path, images)
    with pytest.raises(UserError, match="label 8 is not one of the classes 0 … 7 of shapes"):
        score(tmp_path, images, np.where(labels == labels[0], 8, labels))
    with pytest.raises(UserError, match="the samples are 48×24"):
        score(tmp_path, images[:, :, :24], labels)
