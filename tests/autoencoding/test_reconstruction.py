"""What a first stage in training is judged on: values over whole images, pictures, networks with weights or none."""

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.autoencoding import reconstruction
from diffusion_jax.autoencoding.objective import Generator
from diffusion_jax.autoencoding.reconstruction import Reconstructions
from diffusion_jax.autoencoding.system import AUTOENCODER_SCHEMA, AutoencoderSystem, ReconstructionConfig
from diffusion_jax.config import load_config
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.metrics.frechet import frechet_distance
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh

pytestmark = pytest.mark.usefixtures("shared_compilations")
WORDS = ["autoencoder.ch=4", "autoencoder.norm_groups=2", "data.num_threads=1", "evaluate.num=6", "evaluate.grid=4"]


def reconstructions(*more):
    words = [f"--config.{word}" for word in (*WORDS, *more)]
    config = load_config("configs/shapes64_autoencoder.py:smoke", words, AUTOENCODER_SCHEMA)
    system = AutoencoderSystem(config, DatasetFacts(8, tuple("abcdefgh"), "shapes"))
    return Reconstructions(system, make_mesh(MeshConfig(), jax.devices()[:2]))


@pytest.fixture(scope="module")
def judged():
    return reconstructions()


@pytest.fixture(scope="module")
def model(judged) -> Generator:
    return jax.jit(judged.system.init_state)().ema


def both(judged, model):
    """All images and what becomes of them, float64 in 0 … 255."""
    parts = [part[:2] for part in judged._reconstructed(model, None, judged.config.num)]
    return [np.concatenate(images).astype(np.float64) for images in zip(*parts, strict=True)]


def test_values_are_means_over_the_images(judged, model):
    images, copies = both(judged, model)
    assert len(images) == 6
    psnr = -10 * np.log10(np.mean(((images - copies) / 255) ** 2, axis=(1, 2, 3)))
    values = judged.quality(model)
    assert values.keys() == {"psnr", "ssim"}
    np.testing.assert_allclose(values["psnr"], psnr.mean(), rtol=1e-3)
    distance = jax.tree_util.Partial(lambda a, b: abs(a - b).mean((1, 2, 3)))
    expected = np.abs(images - copies).mean() / 127.5
    np.testing.assert_allclose(judged.quality(model, distance)["lpips"], expected, rtol=1e-2)


def test_rfid_compares_copies_with_images(judged, model, monkeypatch):
    class Features:
        """Pixels, turned into fewer features than those of the network."""

        def features(self, images):
            flat = images.reshape(len(images), -1).astype(np.float64) / 255
            return flat @ np.random.default_rng(0).normal(size=(flat.shape[1], 16))

    monkeypatch.setattr(judged, "inception", Features())
    monkeypatch.setattr(reconstruction.InceptionFeatures, "feature_width", 16)
    found = judged.quality(model)["rfid"]
    moments = []
    for images in both(judged, model):
        features = Features().features(images.astype(np.uint8))
        moments += [features.mean(0), np.cov(features.T)]
    assert found > 0
    np.testing.assert_allclose(found, frechet_distance(*moments), rtol=1e-6)


def test_pictures_of_images_and_of_latents(judged, model, tmp_path):
    judged.draw(model, tmp_path / "00000002.png")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["00000002-latents.png", "00000002.png"]
    for file in tmp_path.iterdir():
        assert len(set(Image.open(file).convert("L").tobytes())) > 10


def test_weights_and_images_that_are_missing(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"evaluate.num=6: rFID of fewer than 2048 images .* evaluate.allow_few=True"):
        ReconstructionConfig(num=6, inception_weights="weights.pth")
    assert ReconstructionConfig(num=6, inception_weights="weights.pth", allow_few=True).num == 6
    with pytest.raises(UserError, match="no Inception weights at"):
        reconstructions(f"evaluate.inception_weights={tmp_path / 'absent.pth'}", "evaluate.allow_few=True")
    monkeypatch.setattr(reconstruction, "load_inception", lambda path: ("network", "checksum"))
    found = []
    monkeypatch.setattr(reconstruction, "InceptionFeatures", lambda *args, **kwargs: found.append((args, kwargs)))
    reconstruction.open_inception("weights.pth")
    assert found == [
        (
            ("network",),
            {"resize": "tf1_bilinear", "scale": "(x-128)/128", "taps": ("2048",), "weights_sha256": "checksum"},
        )
    ]
