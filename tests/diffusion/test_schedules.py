import numpy as np
import pytest

from diffusion_jax.diffusion import schedules
from diffusion_jax.diffusion.paths import DiscretePath
from diffusion_jax.errors import UserError

# schedule: β_0, β_999, ᾱ_0, ᾱ_249, ᾱ_499, ᾱ_749, ᾱ_999, κ range
TABLE = {
    "linear": (1e-4, 0.02, 0.9999, 0.524085, 0.0785872, 0.00335055, 4.03583e-5, 0.0100, 157.4),
    "scaled_linear": (8.5e-4, 0.012, 0.99915, 0.675432, 0.277670, 0.0566235, 4.66010e-3, 0.0292, 14.61),
    "cosine": (4.12842e-5, 0.999, 0.999959, 0.847012, 0.493844, 0.144272, 2.42877e-9, 0.0064, 20291),
    "sqrt": (0.0234003, 0.999, 0.976600, 0.504950, 0.295780, 0.135270, 4.54648e-7, 0.155, 1483),
}


@pytest.mark.parametrize("schedule", TABLE)
def test_published_constants(schedule):
    betas = schedules.betas(schedule, 1000)
    alpha_bar = np.cumprod(1 - betas)
    kappa = np.sqrt((1 - alpha_bar) / alpha_bar)
    found = [betas[0], betas[-1], *alpha_bar[[0, 249, 499, 749, 999]]]
    np.testing.assert_allclose(found, TABLE[schedule][:7], rtol=6e-6)
    np.testing.assert_allclose(kappa[[0, -1]], TABLE[schedule][7:], rtol=5e-3)


def test_linear_scales_with_the_number_of_timesteps():
    np.testing.assert_allclose(schedules.betas("linear", 100)[[0, -1]], [1e-3, 0.2], rtol=1e-12)


@pytest.mark.parametrize(
    ("b0", "b1", "alpha_bar_499", "alpha_bar_999"),
    [(0.0015, 0.0195, 0.1158, 1.423e-4), (0.0015, 0.0155, 0.1511, 6.687e-4), (0.0015, 0.0205, 0.1086, 9.69e-5)],
)
def test_latent_diffusion_ends(b0, b1, alpha_bar_499, alpha_bar_999):
    path = DiscretePath(schedule="scaled_linear", beta_start=b0, beta_end=b1)
    np.testing.assert_allclose(path.alpha_bar[[0, 499, 999]], [0.9985, alpha_bar_499, alpha_bar_999], rtol=6e-4)


def test_ldm_code_tables(golden):
    data = golden("ldm_samplers")
    ends = {"beta_start": 0.0015, "beta_end": 0.0195}
    np.testing.assert_allclose(schedules.betas("scaled_linear", 1000, **ends), data["out/betas/linear"], rtol=1e-10)
    ends = {"beta_start": 1e-4, "beta_end": 0.02}
    np.testing.assert_allclose(schedules.betas("linear", 100, **ends), data["out/betas/sqrt_linear"], rtol=1e-10)
    np.testing.assert_allclose(schedules.betas("sqrt_linspace", 100, **ends), data["out/betas/sqrt"], rtol=1e-10)


def test_remaining_schedules_follow_their_definitions():
    assert np.all(schedules.betas("constant", 7, beta_end=0.3) == 0.3)
    np.testing.assert_allclose(np.sqrt(schedules.betas("quad", 3)), [0.01, (0.01 + 0.02**0.5) / 2, 0.02**0.5])
    for name, warm in (("warmup10", 10), ("warmup50", 50)):
        betas = schedules.betas(name, 100)
        np.testing.assert_allclose(betas[:warm], np.linspace(1e-4, 0.02, warm))
        assert np.all(betas[warm:] == 0.02)
    np.testing.assert_allclose(schedules.betas("jsd", 4), [1 / 4, 1 / 3, 1 / 2, 1])
    sigmoid = schedules.betas("sigmoid", 11)
    np.testing.assert_allclose(sigmoid[5], (1e-4 + 0.02) / 2)
    np.testing.assert_allclose(sigmoid + sigmoid[::-1], 1e-4 + 0.02)


def test_zero_terminal_snr():
    path = DiscretePath(schedule="scaled_linear", zero_terminal_snr=True)
    np.testing.assert_allclose(path.alpha_bar[[0, 499, 998]], [0.99915, 0.242359, 1.96789e-7], rtol=3e-6)
    assert path.alpha_bar[-1] == 0
    assert path.betas[-1] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("linnear", 1000), "did you mean 'linear'"),
        (("cosine", 1000, 1e-4), "no beta_start"),
        (("linear", 5), "leaves \\(0, 1\\]"),
        (("linear", 1000, -1e-4, 0.02), "leaves \\(0, 1\\]"),
    ],
)
def test_bad_schedules(arguments, message):
    with pytest.raises(UserError, match=message):
        schedules.betas(*arguments)
