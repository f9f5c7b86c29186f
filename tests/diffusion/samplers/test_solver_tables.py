"""Error, order and moments of every deterministic solver, against the published table.

Left: largest error on the mixture at 20, 40, 80 steps of a uniform-λ grid from t = 1 to 0.05, and the order. Right:
standard deviation on Gaussian data, t from 1 to 1e-3, at 10, 20, 50 steps (exact: 0.250211). No step of lower order at
the end.
"""

import numpy as np
import pytest

from diffusion_jax.diffusion.paths import VPPath
from diffusion_jax.diffusion.samplers import DDIM, PLMS, DPMSolver, DPMSolverMultistep, ProbabilityFlow, UniPC

FULL = {"lower_order_final": False}
TABLE = {
    "euler": (ProbabilityFlow, {"method": "euler"}, (4.3e-2, 2.2e-2, 1.1e-2), 1, (0.29665, 0.26922, 0.25682), 1),
    "heun": (ProbabilityFlow, {"method": "heun"}, (1.8e-3, 3.8e-4, 8.6e-5), 2, (0.24464, 0.25032, 0.25033), 2),
    "rk4": (ProbabilityFlow, {"method": "rk4"}, (2.6e-5, 1.7e-6, 1.1e-7), 4, (0.25042, 0.25023, 0.25021), 4),
    "ddim": (DDIM, {}, (8.8e-2, 4.5e-2, 2.2e-2), 1, (0.19698, 0.22201, 0.23853), 1),
    "dpm-1": (
        DPMSolver,
        {"solver_order": 1, "form": "epsilon"},
        (8.8e-2, 4.5e-2, 2.2e-2),
        1,
        (0.19698, 0.22201, 0.23853),
        1,
    ),
    "dpm++1": (DPMSolver, {"solver_order": 1}, (8.8e-2, 4.5e-2, 2.2e-2), 1, (0.19698, 0.22201, 0.23853), 1),
    "plms": (PLMS, {}, (5.9e-3, 1.3e-3, 3.2e-4), 2, (0.26035, 0.25290, 0.25061), 1),
    "dpm-2": (
        DPMSolver,
        {"solver_order": 2, "form": "epsilon"},
        (9.3e-3, 2.2e-3, 5.4e-4),
        2,
        (0.26689, 0.25409, 0.25080),
        2,
    ),
    "dpm-3": (
        DPMSolver,
        {"solver_order": 3, "form": "epsilon"},
        (9.7e-5, 1.3e-5, 1.6e-6),
        3,
        (0.25071, 0.25026, 0.25021),
        3,
    ),
    "dpm++2s": (DPMSolver, {"solver_order": 2}, (7.2e-3, 1.9e-3, 4.8e-4), 2, (0.23856, 0.24695, 0.24966), 2),
    "dpm++3s": (DPMSolver, {"solver_order": 3}, (1.7e-4, 2.3e-5, 2.9e-6), 3, (0.25026, 0.25023, 0.25021), 3),
    "dpm++2m": (DPMSolverMultistep, FULL, (7.5e-3, 1.8e-3, 4.3e-4), 2, (0.25685, 0.25339, 0.25077), 1),
    "dpm++3m published": (
        DPMSolverMultistep,
        {"solver_order": 3, "d2_factor": 1.0} | FULL,
        (4.5e-3, 7.7e-4, 1.6e-4),
        2,
        (0.27051, 0.25213, 0.25043),
        1,
    ),
    "dpm++3m": (
        DPMSolverMultistep,
        {"solver_order": 3} | FULL,
        (2.9e-3, 2.4e-4, 2.3e-5),
        3,
        (0.27068, 0.25095, 0.25023),
        1,
    ),
    "unipc-1": (UniPC, {"solver_order": 1} | FULL, (2.4e-2, 6.0e-3, 1.5e-3), 2, (0.21577, 0.24002, 0.24850), 1),
    "unipc-2": (UniPC, {"solver_order": 2} | FULL, (3.9e-3, 5.1e-4, 6.4e-5), 3, (0.26146, 0.25227, 0.25036), 1),
    "unipc-3": (UniPC, {"solver_order": 3} | FULL, (4.8e-3, 9.0e-5, 3.0e-6), 4, (0.26023, 0.25031, 0.25020), 1),
}


def build(name, steps, **options):
    solver, own, *_ = TABLE[name]
    return solver(steps=steps, grid="log_snr", final="none", **own, **options)


def mixture_error(kit, name, steps):
    start = np.linspace(-2, 2, 9).reshape(9, 1, 1, 1)
    end = kit.walk(build(name, steps, time_end=0.05), VPPath(), kit.mixture, start)[-1].ravel()
    return np.abs(end - kit.MIXTURE_ENDS).max()


@pytest.mark.parametrize("name", TABLE)
def test_errors_on_the_mixture(kit, name):
    errors = TABLE[name][2]
    found = [mixture_error(kit, name, steps) for steps in (20, 40, 80)]
    # The table has two digits.
    half_digit = 0.06 * 10 ** np.floor(np.log10(np.array(errors)))
    assert np.all(np.abs(np.array(found) - errors) < half_digit), found


@pytest.mark.parametrize("name", TABLE)
def test_order_of_convergence(kit, name):
    order = TABLE[name][3]
    # UniPC-3 reaches its order late.
    coarse, fine = (mixture_error(kit, name, steps) for steps in ((160, 320) if name == "unipc-3" else (80, 160)))
    slope = np.log2(coarse / fine)
    assert abs(slope - order) < 0.3, slope


@pytest.mark.parametrize("name", TABLE)
def test_moments_on_gaussian_data(kit, name):
    for steps, expected in zip((10, 20, 50), TABLE[name][4], strict=True):
        _, std = kit.gaussian_moments(build(name, steps), VPPath(), kit.gaussian())
        np.testing.assert_allclose(std, expected, rtol=0, atol=6e-6)


@pytest.mark.parametrize("name", TABLE)
def test_network_calls(name):
    calls = len(build(name, 20).plan(VPPath(), build(name, 20).times(VPPath())).x)
    assert calls == 20 * TABLE[name][5] + (name == "plms")


def test_exact_moments():
    path = VPPath()
    start, end = path.point(np.float64(1.0)), path.point(np.float64(1e-3))
    ratio = np.sqrt(((end.alpha * 0.25) ** 2 + end.sigma**2) / ((start.alpha * 0.25) ** 2 + start.sigma**2))
    mean = end.alpha * 0.5 + ratio * (0 - start.alpha * 0.5)
    np.testing.assert_allclose([mean, ratio], [0.499150, 0.250211], atol=6e-7)
    # What stochastic samplers converge to: the data with the noise of the last time.
    law = [end.alpha * 0.5, np.sqrt((end.alpha * 0.25) ** 2 + end.sigma**2)]
    np.testing.assert_allclose(law[0], 0.49997, rtol=0, atol=6e-6)
    np.testing.assert_allclose(law[1], 0.250206, rtol=0, atol=6e-7)


def test_multistep_on_uniform_time_is_much_worse(kit):
    sampler = DPMSolverMultistep(steps=20, grid="time", final="none", lower_order_final=False)
    _, std = kit.gaussian_moments(sampler, VPPath(), kit.gaussian())
    np.testing.assert_allclose(std, 0.32, atol=6e-3)
