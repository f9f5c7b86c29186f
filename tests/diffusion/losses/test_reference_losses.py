"""The losses of the reference implementation, on its closed-form network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.losses import HybridLoss, SimpleLoss, VLBLoss
from diffusion_jax.diffusion.losses.base import noised
from diffusion_jax.diffusion.paths import DiscretePath
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.variational import prior_term, vlb_term

CASES = (
    "mse_learned_range",
    "rescaled_mse_learned_range",
    "kl_rescaled_learned_range",
    "mse_fixed_large",
    "mse_fixed_small_xstart",
    "kl_rescaled_fixed_small",
    "mse_learned_range_respaced_cosine",
)


def build(case):
    schedule = {"linear": "linear", "squaredcos_cap_v2": "cosine"}[case["noise_schedule"]]
    path = DiscretePath(schedule=schedule, respacing=case["timestep_respacing"])
    fixed = "fixed_small" if case["sigma_small"] else "fixed_large"
    variance = "learned_range" if case["learn_sigma"] else fixed
    prediction = Prediction("x0" if case["predict_xstart"] else "epsilon", variance)
    if case["use_kl"]:
        loss = VLBLoss()
    elif not prediction.learns_variance:
        loss = SimpleLoss()
    else:
        loss = HybridLoss() if case["rescale_learned_sigmas"] else HybridLoss(vlb_weight=1 / path.chain_length)
    return path, prediction, loss


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_parity(golden, kit, name, precision):
    data = golden("gd_losses")
    case = next(case for case in data["config"]["cases"] if case["name"] == name)
    path, prediction, loss = build(case)
    model = kit.reference_model(data["config"]["model"], prediction.learns_variance)
    prefix = f"out/{name}/" if precision == "float64" else f"out/f32/{name}/"
    if precision == "float32" and prefix + "q_sample" not in data:
        prefix = f"out/{name}/"
    with jax.enable_x64(precision == "float64"):
        dtype = jnp.dtype(precision)
        x0, epsilon = (jnp.asarray(kit.to_nhwc(data[f"in/{key}"]), dtype) for key in ("x_start", "noise"))
        n = np.array(data["config"]["t"]) % path.chain_length
        time = jnp.asarray((n + 1) / path.chain_length, dtype)

        def evaluate(x0, epsilon, time):
            found, aux = loss.at(model, path, prediction, x0, None, time, epsilon)
            one_term, _ = VLBLoss(rescale=False).at(model, path, prediction, x0, None, time, epsilon)
            point, step = path.point(time), path.transition(time)
            x = noised(x0, epsilon, point)
            mean, variance_output = prediction.split(model(x, point.timestep))
            log_variance = prediction.log_variance(
                variance_output, jax.tree.map(lambda f: f.reshape(-1, 1, 1, 1), step)
            )
            x0_hat = prediction.to_x0(mean, x, point)
            return {"training_losses/loss": found, "q_sample": x} | {
                "training_losses/mse": aux["mse"],
                "training_losses/vb": found - aux["mse"],  # the reference reports the bound with its weight
                "vb_terms_bpd/clip0": one_term,
                "vb_terms_bpd/clip1": vlb_term(x0, jnp.clip(x0_hat, -1, 1), x, log_variance, step),
                "prior_bpd": prior_term(x0, float(path.alpha_bar[-1] ** 0.5), float((1 - path.alpha_bar[-1]) ** 0.5)),
            }

        found = jax.jit(evaluate)(x0, epsilon, time)
        expected = {key.removeprefix(prefix): value for key, value in data.items() if key.startswith(prefix)}
        assert expected
        for key, value in expected.items():
            value = kit.to_nhwc(value) if value.ndim == 4 else value
            # One bound is 1.1e5, of which 1e-11 is what the order of float64 operations decides.
            tolerance = 1e-8 + 1e-11 * value.max() if precision == "float64" else 1e-4 * max(1, value.std())
            np.testing.assert_allclose(found[key], value, rtol=0, atol=tolerance, err_msg=key)
            assert found[key].dtype == dtype
