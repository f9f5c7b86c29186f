"""What samplers and guidance cost beside the network, as ratios to the network's own time in the same run.

    python benchmarks/samplers.py

1. Overhead of each fixed-step sampler: its time per network call with a network that costs nothing, over the time of a
   DiT-S/2 forward pass at batch 8.
2. Guided over unguided sampling with DiT-S/2, and the same with guidance in half of the steps.
3. The speed of guided sampling over that of a large matrix product.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from diffusion_jax.diffusion.denoiser import denoiser
from diffusion_jax.diffusion.guidance import ClassifierFreeGuidance
from diffusion_jax.diffusion.paths import DiscretePath, Path
from diffusion_jax.diffusion.paths.flow import LinearPath
from diffusion_jax.diffusion.predictions import Prediction
from diffusion_jax.diffusion.samplers import DDIM, SAMPLERS, Sampler, initial_noise, sample
from diffusion_jax.models.conditioning.parts import Conditioning, ConditioningSpec
from diffusion_jax.models.dit.dit import DiT, dit_config
from diffusion_jax.models.macs import count_macs
from diffusion_jax.parallel.hardware import prepare_cpu
from diffusion_jax.parallel.peak import matmul_flops_per_second

BATCH = 8
SHAPE = (32, 32, 4)
PREDICTION = Prediction("epsilon", "learned_range")


def fastest(call: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of several calls, after one to warm up."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def make_draw(sampler: Sampler, path: Path, guidance: ClassifierFreeGuidance) -> Callable[..., jax.Array]:
    """One compiled sampling run, (model, label) → latents."""
    index = jnp.arange(BATCH)

    @jax.jit
    def draw(model: Any, label: jax.Array) -> jax.Array:
        x = initial_noise(sampler, path, jax.random.key(0), index, SHAPE)
        null = Conditioning(label=jnp.full_like(label, 1000))
        denoise = denoiser(guidance(model, Conditioning(label=label), null), PREDICTION)
        return sample(sampler, path, denoise, x, jax.random.key(1), index)

    return draw


def free_network(x: jax.Array, timestep: jax.Array, cond: Conditioning) -> jax.Array:
    """A network that costs next to nothing."""
    return jnp.concatenate([0.5 * x, 0 * x], axis=-1)


def main() -> None:
    """Prints the figures."""
    model = DiT(
        input_shape=SHAPE,
        out_channels=8,
        conditioning=ConditioningSpec(num_classes=1000, null_class=True),
        rngs=nnx.Rngs(0),
        **dit_config("S/2"),
    )
    label = jnp.arange(BATCH)
    x, timestep = jnp.zeros((BATCH, *SHAPE)), jnp.zeros(BATCH)
    forward = jax.jit(lambda model: model(x, timestep, Conditioning(label=label)))
    network = fastest(lambda: forward(model), 5)
    device = f"{jax.devices()[0].device_kind}, JAX {jax.__version__}"
    print(f"DiT-S/2 forward, batch {BATCH}: {network * 1e3:.0f} ms on {device}\n")

    print("sampler overhead per step, over a forward pass")
    for name, constructor in SAMPLERS.items():
        if "steps" not in {field.name for field in dataclasses.fields(constructor)}:
            continue
        sampler = constructor(steps=100)
        path = LinearPath() if name in ("interpolant_sde", "renoise") else DiscretePath()
        draw = make_draw(sampler, path, ClassifierFreeGuidance())
        seconds = fastest(lambda draw=draw: draw(jax.tree_util.Partial(free_network), label), 5) / 100
        print(f"  {name:<22}{seconds * 1e3:7.2f} ms   {seconds / network:7.2%}")

    steps = 4
    times = DDIM(steps=steps).times(DiscretePath())[:-1]
    kappas = [float(DiscretePath().point(t).kappa) for t in times]
    halves = (kappas[steps // 2 - 1 + 2], kappas[2])
    print(f"\nguided sampling over unguided (DDIM), batch {BATCH}")
    draws = {
        name: make_draw(DDIM(steps=steps), DiscretePath(), guidance)
        for name, guidance in {
            "unguided": ClassifierFreeGuidance(1.0),
            "guided": ClassifierFreeGuidance(4.0),
            "guided, doubled batch": ClassifierFreeGuidance(4.0, batching="joint"),
            "guided in half the steps": ClassifierFreeGuidance(4.0, interval=halves),
        }.items()
    }
    # Taken in turn, so that a machine that slows down slows all of them down.
    rounds = [
        {name: fastest(lambda draw=draw: draw(model, label), 1) for name, draw in draws.items()}
        | {"product": 1 / matmul_flops_per_second(4096)}
        for _ in range(6)
    ]
    costs = {name: statistics.median(each[name] for each in rounds) for name in draws}
    for name, seconds in costs.items():
        print(f"  {name:<26}{seconds:7.2f} s   {seconds / costs['unguided']:6.2f}×")
    flops = 2 * count_macs(draws["guided"], model, label)
    product = 1 / statistics.median(each["product"] for each in rounds)
    speed = flops / costs["guided"]
    print(
        f"\nguided: {speed / 1e9:.1f} GFLOP/s, {speed / product:.3f} of a 4096³ product ({product / 1e9:.1f} GFLOP/s)"
    )


if __name__ == "__main__":
    prepare_cpu()
    main()
