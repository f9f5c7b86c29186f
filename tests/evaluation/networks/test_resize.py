"""The resize rules against the pixels of reference implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.evaluation.networks.resize import half_pixel_bilinear, network_input, pil_bicubic, tf1_bilinear

GROUPS = ("a", "b", "c", "d", "e")
ROWS = np.arange(0, 299, 23)


def resized(resize, image):
    return np.asarray(jax.jit(resize)(jnp.asarray(image[None], jnp.float32))[0])


@pytest.mark.parametrize("group", GROUPS)
def test_rules_equal_the_reference_implementations(golden_inception, inception_images, group):
    image = inception_images(group)[-1]
    for name, resize, full_scale, tolerance in (
        ("tf1", tf1_bilinear, 1, 2e-5 * 255),
        ("halfpixel", half_pixel_bilinear, 255, 2e-5 * 255),
        ("pilbicubic", pil_bicubic, 1, 5e-3),
    ):
        want = golden_inception[f"resize_{name}_{group}_last_rows"] * full_scale
        np.testing.assert_allclose(resized(resize, image)[ROWS], want, atol=tolerance, err_msg=name)


def test_the_rule_of_tensorflow_on_a_whole_image(golden_inception, inception_images):
    ours = resized(tf1_bilinear, inception_images("a")[-1])
    np.testing.assert_allclose(ours, golden_inception["resize_tf1_a_last"], atol=2e-5 * 255)


def test_other_rules_are_far_from_that_of_tensorflow(golden_inception, inception_images):
    image, want = inception_images("a")[2], resized(tf1_bilinear, inception_images("a")[2])
    assert np.abs(resized(half_pixel_bilinear, image) - want).max() > 20
    corners = np.linspace(0, 63, 299)
    low = corners.astype(int)
    rows = image[low] + (image[np.minimum(low + 1, 63)] - 1.0 * image[low]) * (corners - low)[:, None, None]
    assert np.abs(rows[:, 0] - want[:, 0]).max() > 5
    assert np.abs(np.round(want) - want).max() > 0.4


def test_an_image_of_the_final_size_is_left_alone():
    image = np.random.default_rng(0).integers(0, 256, (299, 299, 3), np.uint8)
    assert np.array_equal(resized(tf1_bilinear, image), image)


def test_scales():
    images = np.array([0, 128, 255], np.uint8).reshape(1, 1, 3, 1).repeat(3, -1)
    ours = network_input(jnp.asarray(images.repeat(299, 1)), "tf1_bilinear", "(x-128)/128")[0, 0]
    assert (float(ours.min()), float(ours.max())) == (-1, 127 / 128)
    theirs = network_input(jnp.asarray(images.repeat(299, 1)), "tf1_bilinear", "x/127.5-1")[0, 0]
    assert (float(theirs.min()), float(theirs.max())) == (-1, 1)
