import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.denoiser import conditional, denoiser
from diffusion_jax.diffusion.paths import DiscretePath
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.samplers import SAMPLERS, initial_noise, sample


def learned(x, timestep, cond):
    t = timestep.reshape(-1, 1, 1, 1) / 1000
    return jnp.concatenate([jnp.tanh(0.7 * x + 0.5 * t), jnp.sin(x - t)], axis=-1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_sample_depends_on_its_index_alone(name):
    path, sampler = DiscretePath(), SAMPLERS[name](steps=5)
    denoise = denoiser(conditional(learned), Prediction(variance="learned_range"))

    @jax.jit
    def draw(index):
        start, walk = jax.random.split(jax.random.key(11))
        x = initial_noise(sampler, path, start, index, (2, 3, 1))
        return sample(sampler, path, denoise, x, walk, index)

    whole, part = draw(jnp.arange(8)), draw(jnp.array([6, 1, 3]))
    assert whole.shape == (8, 2, 3, 1) and whole.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(whole)[[6, 1, 3]], np.asarray(part))
    assert len(np.unique(np.asarray(whole)[:, 0, 0, 0])) == 8


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_loop_and_one_network_in_the_program(name):
    """The program holds the network once, however many steps it runs."""
    path, sampler, traced = DiscretePath(), SAMPLERS[name](steps=50), []

    def model(x, timestep, cond):
        traced.append(x.shape)
        return learned(x, timestep, cond)

    denoise = denoiser(conditional(model), Prediction(variance="learned_range"))
    index = jnp.arange(2)
    jaxpr = jax.make_jaxpr(lambda x: sample(sampler, path, denoise, x, jax.random.key(0), index))(
        jnp.zeros((2, 1, 1, 1))
    )
    assert str(jaxpr).count("scan[") == 1
    assert len(traced) <= 2  # scan may trace its body twice


@pytest.mark.parametrize("name", SAMPLERS)
def test_has_a_docstring_with_order_and_calls(name):
    text = SAMPLERS[name].__doc__
    assert "rder" in text and "call" in text


def test_sharded_batch_gives_the_same_samples():
    path, sampler = DiscretePath(), SAMPLERS["ddpm"](steps=5)
    denoise = denoiser(conditional(learned), Prediction(variance="learned_range"))
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    draw = jax.jit(lambda x, index: sample(sampler, path, denoise, x, jax.random.key(0), index))
    x, index = jax.random.normal(jax.random.key(1), (8, 2, 2, 1)), jnp.arange(8)
    single, sharded = draw(x, index), draw(jax.device_put(x, rows), jax.device_put(index, rows))
    np.testing.assert_array_equal(np.asarray(single), np.asarray(sharded))
