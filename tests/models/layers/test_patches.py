"""Patches and back."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.models.layers.patches import patch_grid, patchify, unpatchify


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_patches_are_row_major_and_hold_row_column_channel(patch_size):
    h, w, p = 2, 3, patch_size
    image = np.arange(h * p * w * p * 2).reshape(1, h * p, w * p, 2)
    patches = np.asarray(patchify(jnp.asarray(image), p))
    for row in range(h):
        for column in range(w):
            patch = image[0, row * p : (row + 1) * p, column * p : (column + 1) * p]
            assert np.array_equal(patches[0, row * w + column], patch.ravel())
    assert patch_grid(h * p, w * p, p) == (h, w)
    assert np.array_equal(unpatchify(jnp.asarray(patches), (h, w), p), image)


def test_a_patch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="patch_size=4 does not divide the input of 8×6"):
        patch_grid(8, 6, 4)
