"""The Inception network against float64 reference features, and each known mistake beside it."""

import functools
import hashlib
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.networks import inception_blocks
from diffusion_jax.evaluation.networks.inception import TAP_WIDTHS, InceptionV3
from diffusion_jax.evaluation.networks.inception_features import InceptionFeatures
from diffusion_jax.evaluation.networks.resize import network_input
from diffusion_jax.parallel.partition import path_name

TOLERANCE = 2e-5
ADM = ("tf1_bilinear", "(x-128)/128")


@pytest.fixture(scope="module")
def features(inception):
    """All taps of uint8 images, by the network compiled once."""
    return InceptionFeatures(inception, taps=tuple(TAP_WIDTHS), devices=jax.devices()[:1], images_per_device=8)


@pytest.fixture(scope="module")
def measured(features, inception_images):
    """All taps of a named group of images."""
    return functools.cache(lambda group: features.measure(inception_images(group)))


@pytest.fixture(scope="module")
def taps(inception, inception_images):
    """The compiled network on one prepared image of group a: (network, x) to taps, and its arguments."""
    x = network_input(jnp.asarray(inception_images("a")[6:7]), *ADM)
    return jax.jit(lambda network, x: network(x)), inception, x


def distance(taps, reference, tap):
    return np.abs(np.asarray(taps[tap]) - reference[f"feat_a_{tap}"][6:7]).max()


def test_weights_are_those_of_the_references(golden_inception, inception_state_dict):
    tensors = inception_state_dict
    assert len(tensors) == 472 and sum(tensor.size for tensor in tensors.values()) == 23_885_392
    digest = hashlib.sha256(b"".join(tensors[name].astype("<f4").tobytes() for name in sorted(tensors)))
    assert digest.hexdigest() == golden_inception["meta"]["all_weights_sha256"]


@pytest.mark.parametrize("group", ["a", "b", "c", "d", "e"])
def test_every_tap_equals_the_reference(golden_inception, measured, group):
    for tap in TAP_WIDTHS:
        want = golden_inception[f"feat_{group}_{tap}"]
        np.testing.assert_allclose(measured(group)[tap], want, rtol=0, atol=TOLERANCE, err_msg=tap)


def test_the_preparation_of_pytorch_fid_equals_its_reference(golden_inception, inception_images, taps):
    function, network, _ = taps
    prepare = jax.jit(network_input, static_argnums=(1, 2))
    for group in ("a", "b", "c", "d", "e"):
        for i, image in enumerate(inception_images(group)):
            ours = function(network, prepare(jnp.asarray(image[None]), "half_pixel_bilinear", "x/127.5-1"))
            for tap in ("768", "2048"):
                want = golden_inception[f"ptfid_{group}_{tap}"][i : i + 1]
                np.testing.assert_allclose(ours[tap], want, rtol=0, atol=TOLERANCE)


def test_features_do_not_depend_on_batch_position_or_devices(inception_images, features, measured, inception):
    images, whole = inception_images("a"), measured("a")
    assert len(features.features(images[:0])) == 0
    np.testing.assert_array_equal(features.features(images[3:6]), whole["2048"][3:6])
    spread = InceptionFeatures(inception, images_per_device=1).measure(images[::-1])
    for tap, ours in spread.items():
        np.testing.assert_allclose(ours[::-1], whole[tap], rtol=0, atol=1e-5)


def test_every_product_is_in_full_precision(taps):
    def precisions(precision):
        jaxpr = jax.make_jaxpr(lambda network, x: network(x, precision))(*taps[1:])
        products = [e for e in jaxpr.eqns if e.primitive.name in ("conv_general_dilated", "dot_general")]
        assert len(products) == 96
        return {p for e in products for p in (e.params["precision"] or [None])}

    assert precisions("float32") == {jax.lax.Precision.HIGHEST}
    assert jax.lax.Precision.HIGHEST not in precisions("fast")


def changed(network, layers="", **leaves):
    """The network with some arrays of its layers replaced: `leaves` maps a name to a function of the old array."""

    def replace(path, leaf):
        name = path_name(path)
        change = leaves.get(name.rpartition("/")[2])
        return change(np.asarray(leaf)) if change and layers in name and not name.startswith("fc") else leaf

    return jax.tree_util.tree_map_with_path(replace, network)


def swapped(network):
    """The network with the 1×3 and 3×1 outputs of Mixed_7b in the wrong order, which is a change of its readers."""
    a, b = slice(320, 704), slice(704, 1088)
    order = np.r_[0:320, b, a, 1088:2048]
    return changed(network, "Mixed_7c", kernel=lambda k: k[:, :, order] if k.shape[2] == 2048 else k)


def tf32(kernel):
    """Rounds to ten bits behind the point, as TF32 units do."""
    return ((kernel.view(np.uint32) + (1 << 12)) & 0xFFFFE000).astype(np.uint32).view(np.float32)


WEIGHT_MISTAKES = {
    "epsilon 1e-5": lambda n: changed(n, var=lambda v: v + np.float32(1e-5 - 1e-3)),
    "scale ignored": lambda n: changed(n, scale=np.ones_like),
    "1x3 and 3x1 swapped": swapped,
    "TF32 products": lambda n: changed(n, kernel=tf32),
    "bfloat16 products": lambda n: changed(n, kernel=lambda k: k.astype(jnp.bfloat16).astype(np.float32)),
}


@pytest.mark.parametrize("mistake", WEIGHT_MISTAKES)
def test_a_mistake_in_the_weights_shows(golden_inception, taps, mistake):
    function, network, x = taps
    change = WEIGHT_MISTAKES[mistake]
    assert distance(function(network, x), golden_inception, "2048") < TOLERANCE
    assert distance(function(change(network), x), golden_inception, "2048") > 10 * TOLERANCE


def align_corners(images):
    corners = np.linspace(0, images.shape[1] - 1, 299)
    weights = np.maximum(0, 1 - np.abs(corners[:, None] - np.arange(images.shape[1]))).astype(np.float32)
    return (jnp.einsum("oh,pw,bhwc->bopc", weights, weights, images) - 128) / 128


INPUT_MISTAKES = {
    "half-pixel resize": lambda images, x: network_input(images, "half_pixel_bilinear", ADM[1]),
    "corners aligned": lambda images, x: align_corners(images.astype(jnp.float32)),
    "rounded after the resize": lambda images, x: jnp.round(x * 128) / 128,
    "x/127.5 - 1": lambda images, x: network_input(images, ADM[0], "x/127.5-1"),
    "BGR": lambda images, x: x[..., ::-1],
}


@pytest.mark.parametrize("mistake", INPUT_MISTAKES)
def test_a_mistake_in_the_input_shows(golden_inception, inception_images, taps, mistake):
    function, network, x = taps
    wrong = function(network, INPUT_MISTAKES[mistake](jnp.asarray(inception_images("a")[6:7]), x))
    for tap in ("2048", "spatial"):
        assert distance(wrong, golden_inception, tap) > 10 * TOLERANCE


@pytest.mark.parametrize(("block", "pool"), [("Mixed_7b", "max"), ("Mixed_7c", "average")])
def test_the_wrong_pool_in_the_last_blocks_shows(golden_inception, taps, block, pool):
    _, network, x = taps
    mistaken = jax.tree.map(lambda leaf: leaf, network)
    getattr(mistaken, block).pool = pool
    wrong = jax.jit(lambda network, x: network(x))(mistaken, x)
    assert distance(wrong, golden_inception, "2048") > 1000 * TOLERANCE
    assert distance(wrong, golden_inception, "768") < TOLERANCE


def test_counting_the_padding_of_average_pools_shows(golden_inception, taps, monkeypatch):
    _, network, x = taps

    original = inception_blocks.average_pool
    monkeypatch.setattr(inception_blocks, "average_pool", lambda x: padded(original, x))
    wrong = jax.jit(lambda network, x: network(x))(network, x)
    for tap in ("768", "2048", "spatial"):
        assert distance(wrong, golden_inception, tap) > 1000 * TOLERANCE
    assert distance(wrong, golden_inception, "64") < TOLERANCE


def padded(pool, x):
    return pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))[:, 1:-1, 1:-1]


def test_another_layout_of_the_spatial_features_shows(golden_inception, measured):
    ours = measured("a")["spatial"]
    other = ours.reshape(8, 17, 17, 7).transpose(0, 3, 1, 2).reshape(8, -1)
    assert np.abs(other - golden_inception["feat_a_spatial"]).max() > 1000 * TOLERANCE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("fc.bias"), "^file.pth lacks 'fc.bias': not the weights of this model"),
        (lambda d: d.update(AuxLogits=np.zeros(1)), "^file.pth has unexpected 'AuxLogits'"),
        (lambda d: d.update({"fc.bias": np.zeros(1000)}), r"'fc.bias' has shape \(1000,\), this model needs \(1008,\)"),
    ],
)
def test_other_weights_are_refused(inception_state_dict, change, message):
    tensors = dict(inception_state_dict)
    change(tensors)
    with pytest.raises(UserError, match=message):
        InceptionV3.from_state_dict(tensors, source="file.pth")


def test_batch_counters_are_ignored_and_scales_reported(inception_state_dict, caplog):
    counters = {"Mixed_5b.branch1x1.bn.num_batches_tracked": np.int64(0)}
    plain = {name: np.ones_like(t) if name.endswith("bn.weight") else t for name, t in inception_state_dict.items()}
    with caplog.at_level(logging.WARNING, "absl"):
        InceptionV3.from_state_dict(plain | counters)
        assert not caplog.records
        InceptionV3.from_state_dict(inception_state_dict)
    assert "scales other than 1" in caplog.text


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), "images are float32, feature networks take uint8"),
        (np.zeros((1, 8, 8, 1), np.uint8), r"shape \[1, 8, 8, 1\] \(grey\).*convert them to RGB"),
        (np.zeros((1, 8, 8, 4), np.uint8), r"shape \[1, 8, 8, 4\] \(RGBA\).*convert them to RGB"),
        (np.zeros((8, 8, 3), np.uint8), r"shape \[8, 8, 3\]"),
    ],
)
def test_images_of_another_kind_are_refused(features, images, message):
    with pytest.raises(UserError, match=message):
        features.measure(images)
