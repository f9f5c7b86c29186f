"""The one sum of all residual streams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models.layers.residual import add


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 64), (2, 4, 4, 64)])
def test_a_sum_is_rounded_once(shape, gated):
    """The branch keeps its float32 digits until the sum is made, in every residual dtype."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, branch, gate = (jax.random.normal(key, size) for key, size in zip(keys, (shape, shape, (2, 64)), strict=True))
    x = x.astype(jnp.bfloat16)
    out = add(x, branch, gate if gated else None)
    factor = gate.reshape(2, *[1] * (len(shape) - 2), 64) if gated else 1
    exact = x.astype(jnp.float32) + factor * branch
    assert out.dtype == jnp.bfloat16 and np.array_equal(out, exact.astype(jnp.bfloat16))
    assert not np.array_equal(out, x + (factor * branch).astype(jnp.bfloat16))  # rounded twice
    np.testing.assert_array_equal(add(x.astype(jnp.float32), branch, gate if gated else None), exact)
