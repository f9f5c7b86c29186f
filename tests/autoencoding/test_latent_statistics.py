import json

import numpy as np
import pytest

from diffusion_jax.autoencoding.latent_statistics import LatentStatistics, measure
from diffusion_jax.errors import UserError


def test_statistics_do_not_depend_on_how_latents_are_divided():
    rng = np.random.default_rng(0)
    latents = (rng.normal(size=(10, 4, 6, 3)) * [1, 5, 0.2] + [30, -2, 0]).astype(np.float32)
    for parts in ([10], [1, 9], [4, 3, 3]):
        statistics = measure(np.split(latents, np.cumsum(parts)[:-1]))
        wide = latents.astype(np.float64)
        assert statistics.count == 240
        np.testing.assert_allclose(statistics.mean, wide.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(statistics.std, wide.std((0, 1, 2)), rtol=1e-5)
        np.testing.assert_allclose(statistics.scale, 1 / wide.std(ddof=1), rtol=1e-6)
    again = LatentStatistics.from_json(json.loads(json.dumps(statistics.to_json())))
    np.testing.assert_array_equal(again.mean, statistics.mean)
    assert again.scale == statistics.scale


def test_latents_without_deviation_are_refused():
    with pytest.raises(UserError, match=r"^latent statistics need at least one batch"):
        measure([])
    for value in (1.0, np.nan):
        with pytest.raises(UserError, match=r"^the latents have no finite, positive deviation"):
            measure([np.full((2, 2, 2, 3), value, np.float32)])
