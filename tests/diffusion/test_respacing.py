import numpy as np
import pytest

from diffusion_jax.diffusion.respacing import ddim_indices, discrete_indices, parse_respacing, section_indices
from diffusion_jax.errors import UserError


def test_section_counts():
    kept = section_indices(1000, (250,))
    assert kept[:7].tolist() == [0, 4, 8, 12, 16, 20, 24] and kept[-4:].tolist() == [987, 991, 995, 999]
    kept = section_indices(1000, (50,))
    assert kept[:6].tolist() == [0, 20, 41, 61, 82, 102] and kept[-1] == 999
    assert section_indices(1000, (1,)).tolist() == [0]


def test_first_sections_take_the_remainder():
    assert section_indices(10, (4, 3, 3)).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert section_indices(11, (2, 2, 2)).tolist() == [0, 3, 4, 7, 8, 10]


def test_ddim_strides():
    assert ddim_indices(1000, 50).tolist() == list(range(0, 1000, 20))
    assert ddim_indices(1000, 250).tolist() == list(range(0, 1000, 4))


def test_which_ddim_counts_exist():
    def exists(steps):
        try:
            return len(ddim_indices(1000, steps)) == steps
        except UserError:
            return False

    small = {n for n in range(2, 61) if not exists(n)}
    assert small == {37, 41, 43, 45, 47, 49, 51, 52, 54, 55, 57, 58, 60}
    assert [n for n in range(101, 1001) if exists(n)] == [112, 125, 143, 167, 200, 250, 334, 500, 1000]


def test_diffusers_spacings(golden):
    data = golden("sched_ddpm_ddim")
    for grid, offset, case in (
        ("leading", 0, "ddim_eta0"),
        ("leading", 1, "ddim_sd"),
        ("trailing", 0, "ddim_trailing"),
    ):
        for steps in (10, 20):
            kept = discrete_indices(grid, 1000, steps) + offset
            np.testing.assert_array_equal(kept[::-1], data[f"out/{case}/n{steps}/timesteps"])


def test_latent_diffusion_spacings(golden):
    data = golden("ldm_samplers")
    for grid, steps, name in (("ldm", 50, "uniform"), ("ldm", 7, "uniform"), ("ldm_quad", 20, "quad")):
        expected = data[f"out/make_ddim_timesteps/{name}_{steps}_1000"]
        np.testing.assert_array_equal(discrete_indices(grid, 1000, steps), expected)
    assert len(discrete_indices("ldm", 1000, 150)) == 167
    assert len(np.unique(discrete_indices("ldm_quad", 1000, 100))) == 96


@pytest.mark.parametrize("grid", ["trailing", "linspace", "adm"])
def test_grids_that_reach_the_last_timestep(grid):
    for steps in (2, 7, 10, 250):
        kept = discrete_indices(grid, 1000, steps)
        assert len(kept) == steps and kept[-1] == 999 and np.all(np.diff(kept) > 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ddim_indices(1000, 37), "no integer stride visits 37 of 1000 timesteps; use 36 or 38"),
        (lambda: parse_respacing("ddim37", 1000), "use 36 or 38"),
        (lambda: parse_respacing("fifty", 1000), "cannot read 'fifty'"),
        (lambda: parse_respacing("600,600", 1000), "cannot keep 600 of the 500 timesteps in section 0"),
        (lambda: discrete_indices("trailing", 1000, 1001), "1001 is outside 1…1000"),
        (lambda: discrete_indices("trailling", 1000, 10), "did you mean 'trailing'"),
        (lambda: discrete_indices("ldm", 1000, 300), "beyond the last, 999"),
    ],
)
def test_bad_requests(call, message):
    with pytest.raises(UserError, match=message):
        call()
