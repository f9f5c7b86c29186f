import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.denoiser import Denoised
from diffusion_jax.diffusion.paths import DiscretePath, VPPath
from diffusion_jax.diffusion.point import align
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.samplers import DDIM, AdaptiveDPMSolver, DPMSolver, DPMSolverMultistep, SDEDPMSolver, UniPC
from diffusion_jax.errors import UserError

START = np.linspace(-2, 2, 9).reshape(9, 1, 1, 1)
LAMBDA = {"grid": "log_snr", "final": "none"}


def constant_data(x, point):
    data = jnp.full_like(x, 0.3)
    at = align(point, x)
    return Denoised(data, (x - at.alpha * data) / at.sigma)


def constant_noise(x, point):
    noise = jnp.full_like(x, 0.3)
    at = align(point, x)
    return Denoised((x - at.sigma * noise) / at.alpha, noise)


def exact_data_end(path, times):
    """σ_t/σ_s x + (α_t − σ_t α_s/σ_s) m: the ODE with constant x̂_0."""
    s, t = path.point(np.float64(times[0])), path.point(np.float64(times[-1]))
    return t.sigma / s.sigma * START + (t.alpha - t.sigma * s.alpha / s.sigma) * 0.3


def exact_noise_end(path, times):
    s, t = path.point(np.float64(times[0])), path.point(np.float64(times[-1]))
    return t.alpha / s.alpha * START + (t.sigma - t.alpha * s.kappa) * 0.3


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver", [DPMSolver, DPMSolverMultistep])
def test_constant_predictions_are_integrated_exactly(kit, solver, order):
    path = VPPath()
    for form, denoise, exact in (("x0", constant_data, exact_data_end), ("epsilon", constant_noise, exact_noise_end)):
        sampler = solver(steps=7, solver_order=order, form=form, **LAMBDA)
        end = kit.walk(sampler, path, denoise, START)[-1]
        np.testing.assert_allclose(end, exact(path, sampler.times(path)), rtol=1e-11)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_integrates_constant_data_exactly(kit, order):
    sampler = UniPC(steps=7, solver_order=order, **LAMBDA)
    end = kit.walk(sampler, VPPath(), constant_data, START)[-1]
    np.testing.assert_allclose(end, exact_data_end(VPPath(), sampler.times(VPPath())), rtol=1e-11)


def test_first_order_is_ddim_in_both_forms(kit):
    path = VPPath()
    ddim = kit.walk(DDIM(steps=12, grid="log_snr"), path, kit.mixture, START)
    for sampler in (
        DPMSolver(steps=12, solver_order=1),
        DPMSolver(steps=12, solver_order=1, form="epsilon"),
        DPMSolverMultistep(steps=12, solver_order=1),
        DPMSolverMultistep(steps=12, solver_order=1, form="epsilon"),
    ):
        np.testing.assert_allclose(kit.walk(sampler, path, kit.mixture, START), ddim, rtol=0, atol=1e-12)


def test_unipc_2_without_corrector_is_dpm_solver_2m(kit):
    path = VPPath()
    multistep = DPMSolverMultistep(steps=20, **LAMBDA)
    unipc = UniPC(steps=20, solver_order=2, corrector=False, lower_order_final=False, **LAMBDA)
    expected = kit.walk(multistep, path, kit.mixture, START)
    np.testing.assert_allclose(kit.walk(unipc, path, kit.mixture, START), expected, rtol=0, atol=1e-12)


def test_both_corrections_and_unipc_variants_have_second_order(kit):
    def error(build, steps):
        end = kit.walk(build(steps), VPPath(), kit.mixture, START)[-1].ravel()
        return np.abs(end - kit.MIXTURE_ENDS).max()

    for build in (
        lambda n: DPMSolverMultistep(steps=n, correction="heun", lower_order_final=False, time_end=0.05, **LAMBDA),
        lambda n: DPMSolverMultistep(steps=n, form="epsilon", lower_order_final=False, time_end=0.05, **LAMBDA),
        lambda n: UniPC(steps=n, corrector=False, variant="bh1", lower_order_final=False, time_end=0.05, **LAMBDA),
    ):
        assert abs(np.log2(error(build, 80) / error(build, 160)) - 2) < 0.2


def test_sde_moments(kit):
    path = VPPath()
    table = {1: (0.20075, 0.22307, 0.23597, 0.24291), 2: (0.25749, 0.25246, 0.25079, 0.25035)}
    for order, expected in table.items():
        for steps, std in zip((20, 40, 80, 160), expected, strict=True):
            sampler = SDEDPMSolver(steps=steps, solver_order=order, lower_order_final=False, **LAMBDA)
            found = kit.gaussian_moments(sampler, path, kit.gaussian())
            np.testing.assert_allclose(found, [0.499971, std], rtol=0, atol=6e-6)


def test_sde_first_order_is_ddim_with_fresh_noise(kit):
    path, rng = VPPath(), np.random.default_rng(0)
    noise = rng.normal(size=(15, *START.shape))
    sde = kit.walk(SDEDPMSolver(steps=15, solver_order=1), path, kit.mixture, START, noise)
    ddim = kit.walk(DDIM(steps=15, eta=1.0, grid="log_snr"), path, kit.mixture, START, noise)
    np.testing.assert_allclose(sde, ddim, rtol=0, atol=1e-12)


def test_last_step_to_data_returns_the_prediction(kit):
    for sampler in (DPMSolver(steps=5), DPMSolverMultistep(steps=5), SDEDPMSolver(steps=5)):
        path = VPPath()
        states = kit.walk(sampler, path, kit.mixture, START)
        point = path.point(np.float64(sampler.times(path)[-2]))
        with jax.enable_x64(True):
            expected = kit.mixture(jnp.asarray(states[-2]), point).x0
        np.testing.assert_allclose(states[-1], expected, rtol=1e-12)


def test_fast_orders():
    assert DPMSolver(steps=9, fast=True).orders() == [3, 3, 2, 1]
    assert DPMSolver(steps=10, fast=True).orders() == [3, 3, 3, 1]
    assert DPMSolver(steps=11, fast=True).orders() == [3, 3, 3, 2]
    for calls in (9, 10, 11):
        sampler = DPMSolver(steps=calls, fast=True, final="none")
        assert len(sampler.plan(VPPath(), sampler.times(VPPath())).x) == calls


@pytest.mark.parametrize("order", [2, 3])
def test_adaptive(kit, order):
    """A hundredth of the tolerance gives a thirtieth of the error or less, and each sample steps for itself."""
    path = VPPath()

    def ends(start, rtol):
        sampler = AdaptiveDPMSolver(solver_order=order, rtol=rtol, atol=rtol / 6, time_end=0.05)
        with jax.enable_x64(True):
            walk = jax.jit(lambda x: sampler.walk(path, kit.mixture, x, lambda step, stage: x)[0])
            return np.asarray(walk(jnp.asarray(start))).ravel()

    loose, tight = (np.abs(ends(START, rtol) - kit.MIXTURE_ENDS).max() for rtol in (0.05, 0.0005))
    assert loose < {2: 0.3, 3: 0.02}[order] and tight < loose / 30
    np.testing.assert_allclose(ends(START[3:4], 0.05), ends(START, 0.05)[3:4], rtol=1e-12)


# One scheduler each; diffusers rounds the timesteps that its network sees, so the grid and they come from the file.
CASES = {
    "dpmpp_order1": DPMSolverMultistep(solver_order=1),
    "dpmpp_order2": DPMSolverMultistep(solver_order=2),
    "dpmpp_order2_heun": DPMSolverMultistep(solver_order=2, correction="heun"),
    "dpmpp_order3": DPMSolverMultistep(solver_order=3, d2_factor=1.0),
    "dpmpp_order2_karras": DPMSolverMultistep(solver_order=2),
    "dpm_order2": DPMSolverMultistep(solver_order=2, form="epsilon"),
    "dpm_order3": DPMSolverMultistep(solver_order=3, form="epsilon", d2_factor=1.0),
    "sde_dpmpp_order2": SDEDPMSolver(solver_order=2),
    "unipc_bh2_order2": UniPC(solver_order=2),
    "unipc_bh2_order3": UniPC(solver_order=3),
    "unipc_bh1_order2": UniPC(solver_order=2, variant="bh1"),
}


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("name", CASES)
def test_diffusers_scheduler(golden, kit, name, steps):
    data = golden("sched_multistep")
    kwargs = next(case["kwargs"] for case in data["config"]["cases"] if case["name"] == name)
    chain = DiscretePath(schedule=kwargs["beta_schedule"], beta_start=kwargs["beta_start"], beta_end=kwargs["beta_end"])
    prefix = f"out/{name}/n{steps}/"
    sigmas, timesteps = data[prefix + "sigmas"], data[prefix + "timesteps"]
    path = kit.ScheduledPath(sigmas, timesteps)
    sampler = CASES[name]
    if name.startswith("dpmpp_order2_karras"):
        ends = chain.point(np.array([1.0, 1 / 1000])).kappa
        np.testing.assert_allclose(sigmas[:-1], kit.karras_kappa(ends[0], ends[1], steps), rtol=1e-10)
    else:
        # Uniform timesteps, the first trained one left to the final step.
        times = (np.round(np.linspace(0, 999, steps + 1))[::-1][:-1] + 1) / 1000
        final = chain.point(np.float64(1 / 1000)).kappa if "final_sigmas_type" in kwargs else 0.0
        if "unipc_bh1" not in name:
            np.testing.assert_array_equal(chain.point(times).timestep, timesteps)
        np.testing.assert_allclose(
            np.append(chain.point(times).kappa, final), sigmas, rtol=1e-2 if "bh1" in name else 1e-10
        )
    denoise = kit.golden_denoise(data["config"], Prediction())
    x, noise = kit.to_nhwc(data["in/x"]), kit.to_nhwc(data["in/noise"])
    found = kit.walk(sampler, path, denoise, x, noise, times=path.times)
    expected = kit.to_nhwc(data[prefix + "x"])[1:]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)
    found = kit.walk(sampler, path, denoise, x, noise, times=path.times, dtype=np.float32)
    expected = kit.to_nhwc(data[prefix.replace("out/", "out/f32/") + "x"])[1:]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1, expected.std()))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DPMSolver(solver_order=4), "solver_order must be 1, 2 or 3"),
        (lambda: DPMSolver(form="epsilonn"), "did you mean 'epsilon'"),
        (lambda: DPMSolver(solver_order=2, fast=True), "set solver_order 3"),
        (lambda: DPMSolverMultistep(correction="hein"), "did you mean 'heun'"),
        (lambda: DPMSolverMultistep(solver_order=0), "solver_order must be 1, 2 or 3"),
        (lambda: SDEDPMSolver(solver_order=3), "solver_order must be 1 or 2"),
        (lambda: UniPC(variant="bh3"), "unknown 'bh3'"),
        (lambda: UniPC(solver_order=9), "solver_order must be 1 to 4"),
        (lambda: AdaptiveDPMSolver(solver_order=1), "solver_order must be 2 or 3"),
        (lambda: AdaptiveDPMSolver(rtol=0.0), "must be positive"),
    ],
)
def test_bad_options(build, message):
    with pytest.raises(UserError, match=message):
        build()
