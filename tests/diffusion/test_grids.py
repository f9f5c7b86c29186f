import numpy as np
import pytest

from diffusion_jax.diffusion.grids import CONTINUOUS_GRIDS, times
from diffusion_jax.diffusion.paths import DiscretePath, GVPPath, VEPath, VPPath

# grid: what is spaced evenly, as a function of t and κ
EVEN = {
    "time": lambda t, kappa: t,
    "quadratic": lambda t, kappa: np.sqrt(t),
    "log_snr": lambda t, kappa: np.log(kappa),
    "karras": lambda t, kappa: kappa ** (1 / 7),
}


def test_every_continuous_grid_is_covered():
    assert EVEN.keys() == set(CONTINUOUS_GRIDS)


@pytest.mark.parametrize("path", [VPPath(), VEPath(), DiscretePath(), GVPPath(time_max=0.999)], ids=lambda p: p.name)
@pytest.mark.parametrize("grid", EVEN)
def test_what_is_spaced_evenly(grid, path):
    found = times(path, grid, 12, "none", time_end=0.01)
    assert len(found) == 13 and found.dtype == np.float64
    np.testing.assert_allclose(found[[0, -1]], [path.time_max, 0.01], rtol=1e-14)
    steps = np.diff(EVEN[grid](found, path.point(found).kappa))
    assert np.all(np.diff(found) < 0)
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-8)


def test_where_the_last_step_ends():
    path = DiscretePath()
    ends = {final: times(path, "trailing", 10, final)[-2:] for final in ("data", "first", "none")}
    np.testing.assert_allclose(ends["data"], [0.1, 0.0], rtol=1e-12)
    np.testing.assert_allclose(ends["first"], [0.1, 0.001], rtol=1e-12)
    assert len(times(path, "trailing", 10, "none")) == 11 and ends["none"][-1] > 0.05
