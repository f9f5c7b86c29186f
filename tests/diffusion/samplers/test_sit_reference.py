"""The numbers of the SiT code, whose time runs from noise to data."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.denoiser import conditional, denoiser, reversed_time
from diffusion_jax.diffusion.losses import FlowMatchingLoss
from diffusion_jax.diffusion.losses.base import noised
from diffusion_jax.diffusion.ode import dopri5
from diffusion_jax.diffusion.paths import GVPPath, LinearPath, VPPath
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.samplers import RK45, InterpolantSDE, ProbabilityFlow
from diffusion_jax.diffusion.samplers.adaptive import path_velocity

PATHS = {"Linear": LinearPath, "GVP": GVPPath, "VP": VPPath}


@pytest.mark.parametrize("name", PATHS)
def test_path_of_the_reference(golden, name):
    data = golden("sit_path")
    path, out = PATHS[name](), {key.removeprefix(f"out/{name}/"): v for key, v in data.items() if f"out/{name}/" in key}
    time = 1 - data["in/t"]
    point = path.point(time)
    column = path.point(time.reshape(-1, 1, 1, 1))
    x, x0, epsilon = data["in/x"], data["in/x1"], data["in/x0"]
    velocity, score = -data["in/velocity"], data["in/score"]
    from_velocity, from_score = Prediction("velocity"), Prediction("score")
    noise = from_velocity.to_epsilon(velocity, x, point)
    found = {
        "alpha": point.alpha,
        "sigma": point.sigma,
        "d_alpha": -point.alpha_dot,
        "d_sigma": -point.sigma_dot,
        "d_alpha_alpha_ratio": -point.drift,
        "drift": -column.drift * x * -1,
        "drift_var": column.diffusion / 2,
        "noise_from_velocity": noise,
        "score_from_velocity": -noise / column.sigma,
        "velocity_from_score": -(
            column.alpha_dot * from_score.to_x0(score, x, point)
            + column.sigma_dot * from_score.to_epsilon(score, x, point)
        ),
        "xt": noised(x0, epsilon, point),
        "ut": -from_velocity.target(x0, epsilon, point),
    }
    forms = {
        "constant": "constant",
        "SBDM": "kl",
        "sigma": "sigma",
        "linear": "linear",
        "decreasing": "decreasing",
        "inccreasing-decreasing": "sine",
    }
    for form, ours in forms.items():
        sampler = InterpolantSDE(diffusion=ours)
        w = [sampler.intensity(path.point(t)) for t in time]
        found[f"diffusion/{form}"] = np.reshape(w, (-1, 1, 1, 1)) / 2
    assert found.keys() == out.keys()
    for key, value in out.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-10, err_msg=key)


def sit_model(config):
    a, b = config["model"]["a"], config["model"]["b"]
    return lambda x, t, cond: jnp.tanh(a * x + b * t.reshape(-1, 1, 1, 1))


KINDS = {"velocity": "velocity", "noise": "epsilon", "score": "score"}


def sit_parts(golden, path_name, prediction):
    """Our path with SiT's margins for its prediction, and its network in our time."""
    config = golden("sit_transport")["config"]
    margin = 0.0 if prediction == "velocity" else 1e-3
    if path_name == "VP":
        path = VPPath(time_scale=1.0)
    else:
        path = PATHS[path_name](train_time_min=margin, time_min=margin, time_max=1 - margin)
    model = sit_model(config)
    if prediction == "velocity":
        model = reversed_time(model)
    else:
        forward = model
        model = lambda x, t, cond: forward(x, 1 - t, cond)  # noqa: E731
    return path, model


LOSS_CASES = [
    (path, prediction, weight)
    for path in PATHS
    for prediction, weight in (
        ("velocity", None),
        ("noise", None),
        ("noise", "velocity"),
        ("score", "likelihood"),
        ("score", None),
    )
]


@pytest.mark.parametrize(("path_name", "prediction", "weight"), LOSS_CASES)
def test_losses_of_the_reference(golden, kit, path_name, prediction, weight):
    data = golden("sit_transport")
    path, model = sit_parts(golden, path_name, prediction)
    loss = FlowMatchingLoss(weighting="velocity" if prediction == "velocity" else weight or "noise")
    low, high = (0.0, 1 - 1e-5) if path_name == "VP" else (1 - path.time_max, 1 - path.train_time_min)
    with jax.enable_x64(True):
        x0, epsilon = (jnp.asarray(kit.to_nhwc(data[key])) for key in ("in/x1", "in/x0"))
        time = jnp.asarray(1 - (low + (high - low) * data["in/uniform"]))
        evaluate = jax.jit(lambda x0, e, t: loss.at(model, path, Prediction(KINDS[prediction]), x0, None, t, e)[0])
        point = path.point(time)
        output = model(noised(x0, epsilon, point), point.timestep, None)
        found = evaluate(x0, epsilon, time)
    expected = kit.to_nhwc(data[f"out/losses/{path_name}_{prediction}_{weight}/pred"])
    # Velocities change their sign with the direction of time.
    np.testing.assert_allclose(-output if prediction == "velocity" else output, expected, rtol=0, atol=1e-8)
    expected = data[f"out/losses/{path_name}_{prediction}_{weight}/loss"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("path_name", "prediction", "weight"), LOSS_CASES)
def test_intervals_of_the_reference(golden, path_name, prediction, weight):
    data = golden("sit_transport")
    sampling, _ = sit_parts(golden, path_name, prediction)
    # In SiT the interval of training is another one than that of sampling on the VP path only.
    training = dataclasses.replace(sampling, time_min=sampling.train_time_min)
    for evaluated, path in enumerate((training, sampling)):
        ode = ProbabilityFlow(steps=4, final="none").times(path)[[0, -1]]
        sde = InterpolantSDE(steps=4, last_step_size=0.04).times(path)[[0, -2]]
        for stochastic, ends in enumerate((ode, sde)):
            key = f"out/interval/{path_name}_{prediction}_{weight}/eval{evaluated}_sde{stochastic}_reverse"
            np.testing.assert_allclose(1 - ends, data[key + "0"], rtol=1e-12)
            # Reversed runs, given in SiT's time too, go the other way on the same interval.
            np.testing.assert_allclose(ends, data[key + "1"], rtol=1e-12)


@functools.cache
def sit_denoise(golden, path_name, prediction):
    _, model = sit_parts(golden, path_name, prediction)
    return denoiser(conditional(model), Prediction(KINDS[prediction]))


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize(
    "name",
    [
        "linear_sigma_euler_mean",
        "linear_decreasing_euler_tweedie",
        "linear_linear_heun_euler",
        "gvp_sigma_heun_mean",
        "vp_sbdm_euler_mean",
        "linear_noise_sbdm_euler_mean",
    ],
)
def test_sdes_of_the_reference(golden, kit, name, steps):
    data = golden("sit_transport")
    case = next(case for case in data["config"]["sde"] if case["name"] == name)
    kwargs = case["kwargs"]
    path, _ = sit_parts(golden, case["path"], case["prediction"])
    sampler = InterpolantSDE(
        steps=steps,
        diffusion={"SBDM": "kl"}.get(kwargs["diffusion_form"], kwargs["diffusion_form"]),
        norm=kwargs.get("diffusion_norm", 1.0),
        method=kwargs["sampling_method"].lower(),
        last_step={"Euler": "ode"}.get(kwargs["last_step"], kwargs["last_step"].lower()),
        last_step_size=kwargs["last_step_size"],
    )
    noise = kit.to_nhwc(data["in/noise"])
    if sampler.method == "heun":  # two calls a step; the noise comes before the first
        noise = np.stack([np.zeros_like(noise), noise], axis=1).repeat(2, axis=0)
    found = kit.walk(
        sampler, path, sit_denoise(golden, case["path"], case["prediction"]), kit.to_nhwc(data["in/x"]), noise
    )
    if sampler.method == "heun":
        found = np.concatenate([found[1:-1:2], found[-1:]])
    expected = kit.to_nhwc(data[f"out/sde/{name}/n{steps}/x"])
    np.testing.assert_allclose(found, expected[1:], rtol=0, atol=1e-8)


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize(
    "name", ["Linear_euler", "Linear_heun2", "GVP_score_euler", "VP_noise_heun2", "Linear_euler_reverse"]
)
def test_odes_of_the_reference(golden, kit, name, steps):
    """N points make N − 1 steps."""
    data = golden("sit_transport")
    case = next(case for case in data["config"]["ode"] if case["name"] == name)
    path, _ = sit_parts(golden, case["path"], case["prediction"])
    sampler = ProbabilityFlow(steps=steps - 1, final="none", method={"heun2": "heun"}.get(case["method"], "euler"))
    times = sampler.times(path)
    if case.get("reverse"):
        times = times[::-1]
    denoise = sit_denoise(golden, case["path"], case["prediction"])
    found = kit.walk(sampler, path, denoise, kit.to_nhwc(data["in/x"]), times=times)
    found = found[1::2] if sampler.method == "heun" else found
    expected = kit.to_nhwc(data[f"out/ode/{name}/n{steps}/x"])[1:]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


def test_adaptive_ode_of_the_reference(golden, kit):
    data = golden("sit_transport")
    path, _ = sit_parts(golden, "Linear", "velocity")
    denoise = sit_denoise(golden, "Linear", "velocity")
    with jax.enable_x64(True):
        x = jnp.asarray(kit.to_nhwc(data["in/x"]))
        sampler = RK45(rtol=1e-9, atol=1e-9)
        found = jax.jit(lambda x: sampler.walk(path, denoise, x, lambda step, stage: x)[0])(x)

        @jax.jit
        def leg(x, start, end):
            def velocity(x, share):
                return (end - start) * path_velocity(path, denoise, x, start + (end - start) * share)

            return dopri5(velocity, x, 0.0, 1.0, 1e-9, 1e-9).y

        for steps in (10, 20):
            expected = kit.to_nhwc(data[f"out/ode/Linear_dopri5/n{steps}/x"])
            np.testing.assert_allclose(found, expected[-1], rtol=0, atol=1e-6)
            state, times = x, np.linspace(1, 0, steps)
            for start, end, there in zip(times[:-1], times[1:], expected[1:], strict=True):
                state = leg(state, start, end)
                np.testing.assert_allclose(state, there, rtol=0, atol=1e-6)
