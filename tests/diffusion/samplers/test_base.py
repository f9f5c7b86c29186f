import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.denoiser import conditional, denoiser
from diffusion_jax.diffusion.paths import PATHS, DiscretePath, LinearPath, VEPath, VPPath
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.samplers import (
    DDIM,
    EDM,
    PLMS,
    SAMPLERS,
    DPMSolver,
    InterpolantSDE,
    ProbabilityFlow,
    check_sampling,
    initial_noise,
    sample,
)
from diffusion_jax.errors import UserError


def learned(x, timestep, cond):
    t = timestep.reshape(-1, 1, 1, 1) / 1000
    return jnp.concatenate([jnp.tanh(0.7 * x + 0.5 * t), jnp.sin(x - t)], axis=-1)


def build(name, steps):
    fields = {field.name for field in dataclasses.fields(SAMPLERS[name])}
    return SAMPLERS[name](**({"steps": steps} if "steps" in fields else {}))


def drawing(name):
    path, sampler = DiscretePath(), build(name, 5)
    denoise = denoiser(conditional(learned), Prediction(variance="learned_range"))

    @jax.jit
    def draw(index):
        start, walk = jax.random.split(jax.random.key(11))
        x = initial_noise(sampler, path, start, index, (2, 3, 1))
        return sample(sampler, path, denoise, x, walk, index)

    return draw


# One sampler of each kind of loop in every run of the tests, the others in `make test-slow`.
QUICK = ("ddpm", "euler_maruyama", "unipc", "predictor_corrector", "rk45", "adaptive_dpm_solver")
SELECTED = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SAMPLERS]


@pytest.mark.parametrize("name", SELECTED)
def test_sample_depends_on_its_index_alone(name):
    draw = drawing(name)
    whole, other = (np.asarray(draw(jnp.array(index))) for index in ([0, 1, 2, 3], [6, 3, 5, 1]))
    assert whole.shape == (4, 2, 3, 1) and whole.dtype == np.float32 and np.all(np.isfinite(whole))
    np.testing.assert_array_equal(whole[[3, 1]], other[[1, 3]])
    assert len(np.unique(np.concatenate([whole, other])[:, 0, 0, 0])) == 6


@pytest.mark.parametrize("name", ["ddpm", "unipc"])
def test_sample_does_not_depend_on_the_batch_size(name):
    draw = drawing(name)
    np.testing.assert_array_equal(np.asarray(draw(jnp.arange(4)))[2:3], np.asarray(draw(jnp.array([2]))))


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_loop_in_the_program(name):
    """The program holds the network once, however many steps it runs."""
    path, sampler, traced = DiscretePath(), build(name, 50), []

    def model(x, timestep, cond):
        traced.append(x.shape)
        return learned(x, timestep, cond)

    denoise = denoiser(conditional(model), Prediction(variance="learned_range"))
    x, key, index = jnp.zeros((2, 1, 1, 1)), jax.random.key(0), jnp.arange(2)
    program = str(jax.make_jaxpr(lambda x: sample(sampler, path, denoise, x, key, index))(x))
    if hasattr(sampler, "steps"):
        assert program.count("scan[") == 1
        assert "dot_general" not in program  # matrix products lose bits on accelerators, and this network has none
        assert len(traced) <= 2  # scan may trace its body twice
    else:
        assert "while[" in program


@pytest.mark.parametrize("name", SAMPLERS)
def test_is_described(name):
    sampler = SAMPLERS[name]
    assert sampler.name == name and sampler.order and sampler.calls and sampler.purpose
    assert "rder" in sampler.__doc__ and "call" in sampler.__doc__


def test_sharded_batch_gives_the_same_samples():
    path, sampler = DiscretePath(), SAMPLERS["ddpm"](steps=5)
    denoise = denoiser(conditional(learned), Prediction(variance="learned_range"))
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    draw = jax.jit(lambda x, index: sample(sampler, path, denoise, x, jax.random.key(0), index))
    x, index = jax.random.normal(jax.random.key(1), (8, 2, 2, 1)), jnp.arange(8)
    single, sharded = draw(x, index), draw(jax.device_put(x, rows), jax.device_put(index, rows))
    np.testing.assert_array_equal(np.asarray(single), np.asarray(sharded))


@pytest.mark.parametrize(
    ("sampler", "stages"),
    [
        (ProbabilityFlow(steps=6, method="heun", final="none"), [2] * 6),
        (ProbabilityFlow(steps=6, method="rk4", final="none"), [4] * 6),
        (DPMSolver(steps=6, solver_order=2), [2] * 5 + [1]),
        (DPMSolver(steps=6, solver_order=3), [3] * 5 + [1]),
        (EDM(steps=6), [2] * 5 + [1]),
        (InterpolantSDE(steps=6, method="heun"), [2] * 5 + [1]),
        (PLMS(steps=6), [2] + [1] * 5),
        (PLMS(steps=6, warmup="runge_kutta"), [4] * 3 + [1] * 3),
    ],
)
def test_inner_stages_know_where_their_step_began(sampler, stages):
    """So that a guidance interval falls on whole steps."""
    path = VPPath()
    times = sampler.times(path)
    plan = sampler.plan(path, times)
    starts = [path.point(np.float64(time)).kappa for time in times[: len(stages)]]
    np.testing.assert_allclose(plan.point.step_kappa, np.repeat(starts, stages), rtol=1e-9)


def test_prior_scale():
    index = jnp.arange(4)
    for path, scale in ((DiscretePath(), 1.0), (VEPath(), 50.0), (LinearPath(), 1.0)):
        x = initial_noise(DDIM(), path, jax.random.key(0), index, (2, 2, 1))
        y = jax.vmap(lambda k: jax.random.normal(k, (2, 2, 1)))(
            jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(index)
        )
        np.testing.assert_allclose(x, scale * y, rtol=1e-6)


@pytest.mark.parametrize("path_name", PATHS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs_on_every_path_or_says_why_not(name, path_name):
    path, sampler = PATHS[path_name](), build(name, 10)
    try:
        check_sampling(sampler, path, Prediction("v"))
    except UserError as error:
        assert path_name in str(error) and "time_start below 1" in str(error)
        # Only steps whose factors are infinite where no signal is left.
        assert path_name in ("linear", "gvp")
        assert name in ("euler_maruyama", "predictor_corrector", "adaptive_dpm_solver", "plms")


def test_networks_that_say_nothing_about_data_in_pure_noise():
    with pytest.raises(UserError, match="kind 'epsilon' says nothing about the data; set the path's time_max below 1"):
        check_sampling(DDIM(), LinearPath(), Prediction("epsilon"))
    check_sampling(DDIM(), LinearPath(time_max=0.999), Prediction("epsilon"))
    zero_snr = DiscretePath(schedule="scaled_linear", zero_terminal_snr=True)
    with pytest.raises(UserError, match="kind 'score'"):
        check_sampling(DDIM(), zero_snr, Prediction("score"))
    check_sampling(DDIM(), zero_snr, Prediction("v"))
    # Without the last timestep there is signal everywhere.
    check_sampling(DDIM(grid="leading"), zero_snr, Prediction("epsilon"))
