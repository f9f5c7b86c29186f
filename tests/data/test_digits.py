import pickle

import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffusion_jax.data.digits import Digits
from diffusion_jax.errors import UserError


def images(source: Digits) -> np.ndarray:
    return np.stack([source[i]["image"] for i in range(len(source))])


def labels(source: Digits) -> np.ndarray:
    return np.array([source[i]["label"] for i in range(len(source))])


def test_images_are_scikit_learns_over_the_whole_range():
    source, data = Digits("all", image_size=8, channels=1), load_digits()
    got = images(source)
    assert (got.shape, got.dtype, got.max()) == ((1797, 8, 8, 1), np.uint8, 255)
    np.testing.assert_allclose(got[..., 0] / 255 * 16, data.images, atol=0.04)
    np.testing.assert_array_equal(labels(source), data.target)
    assert source[0]["label"].dtype == np.int32
    assert source.num_classes == 10 and source.class_names[3] == "3"


def test_train_and_test_divide_all():
    train, test, everything = Digits("train"), Digits("test"), Digits("all")
    assert (len(train), len(test), len(everything)) == (1438, 359, 1797)
    joined = np.concatenate([images(train), images(test)])
    np.testing.assert_array_equal(np.sort(joined, axis=0), np.sort(images(everything), axis=0))
    np.testing.assert_allclose(np.bincount(labels(test)), np.bincount(labels(everything)) / 5, atol=1)


def test_larger_sizes_and_colour_repeat_pixels():
    small, large = Digits("test", 8, 1), Digits("test", 32, 3)
    assert large.image_shape == large[0]["image"].shape == (32, 32, 3)
    np.testing.assert_array_equal(large[5]["image"], np.kron(small[5]["image"], np.ones((4, 4, 3), np.uint8)))


def test_it_survives_pickling():
    source = Digits("test")
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[7]["image"], source[7]["image"])
    assert copy.identity == source.identity == "digits split=test images=359 size=8 channels=1"


@pytest.mark.parametrize("size", [4, 12, 0])
def test_other_sizes_are_refused(size):
    with pytest.raises(UserError, match=f"data.image_size={size}: digits are 8 × 8 pixels"):
        Digits("train", size)


def test_unknown_split_is_refused():
    with pytest.raises(UserError, match=r"data.split='tset'.*did you mean 'test'"):
        Digits("tset")
