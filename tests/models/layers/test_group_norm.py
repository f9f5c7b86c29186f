"""Group norm against float64 and its refusals."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.models.layers.group_norm import GroupNorm


def test_group_norm_keeps_its_digits_under_a_large_mean():
    x = (1000 + np.random.default_rng(0).standard_normal((2, 6, 5, 8))).astype(np.float32)
    norm = GroupNorm(8, groups=4, eps=1e-5)
    norm.scale[...], norm.bias[...] = jnp.arange(1.0, 9.0), jnp.arange(8.0)
    groups = x.astype(np.float64).reshape(2, 30, 4, 2)
    centred = groups - groups.mean((1, 3), keepdims=True)
    expected = centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-5)
    expected = expected.reshape(x.shape) * np.arange(1, 9) + np.arange(8)
    np.testing.assert_allclose(norm(x), expected, atol=5e-3)
    assert norm(x.astype(jnp.bfloat16)).dtype == jnp.float32


def test_group_norm_needs_groups_that_divide():
    with pytest.raises(UserError, match="48 channels do not divide into 32 norm groups"):
        GroupNorm(48)
