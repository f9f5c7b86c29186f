"""LPIPS from files against a computation of its own, and its refusal to run on anything but trained weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.errors import UserError
from diffusion_jax.interop.lpips import load_lpips, lpips_entries, read_lpips
from diffusion_jax.interop.mapping import dump_state_dict
from diffusion_jax.models.autoencoder.lpips import LPIPS

# torchvision's "D" configuration: convolutions by their place in the list of layers, M a pooling.
LAYERS = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    weights, channels, number = {}, 3, 0
    for layer in LAYERS:
        if layer == "M":
            number += 1
            continue
        fan_in = 9 * channels
        weights[f"features.{number}.weight"] = rng.standard_normal((layer, channels, 3, 3), np.float32) * np.float32(
            np.sqrt(2 / fan_in)
        )
        weights[f"features.{number}.bias"] = rng.standard_normal(layer, np.float32) * np.float32(0.1)
        channels, number = layer, number + 2
    for i, width in enumerate((64, 128, 256, 512, 512)):
        weights[f"lin{i}.model.1.weight"] = rng.random((1, width, 1, 1), np.float32)
    return weights


@pytest.fixture(scope="module")
def lpips(weights) -> LPIPS:
    return load_lpips(weights)


def reference(weights: dict[str, np.ndarray], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """LPIPS in NCHW, layer by layer."""

    def run(x: np.ndarray) -> list[jax.Array]:
        shift, scale = (np.array(v, np.float32)[:, None, None] for v in ([-0.03, -0.088, -0.188], [0.458, 0.448, 0.45]))
        x, taps, number = jnp.asarray((x - shift) / scale), [], 0
        for layer in LAYERS:
            if layer == "M":
                taps.append(x)
                n, c, h, w = x.shape
                x, number = x.reshape(n, c, h // 2, 2, w // 2, 2).max((3, 5)), number + 1
            else:
                x = jax.lax.conv(x, weights[f"features.{number}.weight"], (1, 1), "SAME")
                x, number = jnp.maximum(x + weights[f"features.{number}.bias"][:, None, None], 0), number + 2
        return [*taps, x]

    total = 0.0
    for i, (in_a, in_b) in enumerate(zip(run(a), run(b), strict=True)):
        units = [np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-10) for x in (in_a, in_b)]
        weighted = (units[0] - units[1]) ** 2 * weights[f"lin{i}.model.1.weight"].reshape(1, -1, 1, 1)
        total = total + weighted.sum(1).mean((1, 2))
    return np.asarray(total)


def test_distance_is_that_of_a_separate_computation(weights, lpips):
    rng = np.random.default_rng(1)
    a, b = rng.uniform(-1, 1, (2, 2, 3, 32, 16)).astype(np.float32)
    ours = jax.jit(lambda lpips, a, b: lpips(a, b))(lpips, a.transpose(0, 2, 3, 1), b.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(ours, reference(weights, a, b), rtol=1e-4)
    assert np.ptp(ours) > 1e-3


def test_gradient_is_finite_where_rectifiers_leave_nothing(lpips):
    silent = jax.tree.map(lambda leaf: leaf, lpips)
    silent.stages[4][2].bias[...] = jnp.full(512, -1e6)

    def distance(a: jax.Array, lpips: LPIPS) -> jax.Array:
        return lpips(a, jnp.ones((1, 16, 16, 3))).sum()

    gradient = jax.jit(jax.grad(distance))(jnp.zeros((1, 16, 16, 3)), silent)
    assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)


def test_files_together_or_a_checkpoint_give_the_same_weights(weights, lpips, tmp_path):
    heads = {name: array for name, array in weights.items() if name.startswith("lin")}
    features = {name: array for name, array in weights.items() if name.startswith("features")}
    save_file(heads, tmp_path / "heads.safetensors")
    save_file(features | {"classifier.0.weight": np.zeros((2, 2))}, tmp_path / "vgg16.safetensors")
    together = read_lpips([tmp_path / "vgg16.safetensors", tmp_path / "heads.safetensors"])

    official = dump_state_dict(lpips, lpips_entries(lpips, torchvision=False))
    assert {"net.slice1.2.bias", "net.slice3.14.weight", "net.slice5.28.weight"} <= official.keys()
    whole = {f"loss.perceptual_loss.{name}": array for name, array in official.items()}
    whole |= {"loss.perceptual_loss.scaling_layer.shift": np.zeros(3), "encoder.conv_in.bias": np.zeros(4)}
    save_file(whole, tmp_path / "whole.safetensors")
    from_checkpoint = read_lpips([tmp_path / "whole.safetensors"])
    for other in (together, from_checkpoint):
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(lpips), strict=True))

    with pytest.raises(UserError, match=r"^'[^']*vgg16\.safetensors' has no heads of LPIPS: .*vgg\.pth\); name both"):
        read_lpips([tmp_path / "vgg16.safetensors"])
    with pytest.raises(UserError, match=r"has no VGG16 features of LPIPS"):
        read_lpips([tmp_path / "heads.safetensors"])
    with pytest.raises(UserError, match=r"^no weights at '.*vgg\.safetensors': LPIPS needs"):
        read_lpips([tmp_path / "vgg.safetensors"])
