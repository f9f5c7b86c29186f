"""Fréchet distance against network calls for every sampler, on the digits model of `make demo`.

    make demo
    python benchmarks/quality_vs_steps.py --workdir runs/digits --out docs/quality_vs_steps.png

Samplers that choose their own steps run at several tolerances; their calls are those of the slowest sample, since all
walk together. `ddim_inversion` walks the other way and has no place here.

The samples are unguided, so that the figure shows the solvers and not the guidance; features and reference are those of
`diffusion-jax evaluate --reference digits`. The dashed line is the distance of held-out real digits.
"""

import argparse
import functools
import pathlib
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

from diffusion_jax.__main__ import enable_compilation_cache
from diffusion_jax.data import DataConfig, Source, open_source
from diffusion_jax.diffusion.samplers import SAMPLERS
from diffusion_jax.diffusion.samplers.adaptive import AdaptiveSampler
from diffusion_jax.evaluation import FeatureStatistics, frechet_distance
from diffusion_jax.evaluation.digits.extractor import Extractor, extractor_for
from diffusion_jax.runs.folder import RunFolder
from diffusion_jax.runs.open_run import restore
from diffusion_jax.sampling.generation import SampleStream
from diffusion_jax.sampling.labels import parse_labels
from diffusion_jax.sampling.requests import labelled_requests

STEPS = (4, 8, 16, 32)
# For samplers that choose their own steps.
TOLERANCES = (1.0, 0.1, 0.01, 0.001)
ENCODERS = ("ddim_inversion",)


class Counted(nnx.Module):
    """A network that counts its calls.

    Args:
      model: the network.
      calls: a list that gets an entry at every call.
    """

    def __init__(self, model: nnx.Module, calls: list[None]):
        self.model, self.append = model, functools.partial(calls.append, None)

    def __call__(self, x: jax.Array, timestep: jax.Array, cond: Any) -> jax.Array:
        """What the network gives."""
        jax.debug.callback(self.append)
        return self.model(x, timestep, cond)


def main() -> None:
    """Draws the figure and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/digits")
    parser.add_argument("--out", default="docs/quality_vs_steps.png", type=pathlib.Path)
    parser.add_argument("--num", type=int, default=359, help="samples per point; 359 real digits are held out")
    options = parser.parse_args()
    enable_compilation_cache()

    extractor = extractor_for((8, 8, 1))
    reference = moments(extractor, real_digits("train"))
    held_out = frechet_distance(*moments(extractor, real_digits("test")), *reference)
    print(f"held-out digits: {held_out:.3f}\n{'sampler':<22}" + "".join(f"{f'N = {steps}':>20}" for steps in STEPS))

    figure, axes = plt.subplots(figsize=(8, 5.5))
    axes.set_prop_cycle(color=plt.get_cmap("tab20").colors)
    for name in SAMPLERS:
        if name in ENCODERS:
            continue
        calls, distances = [], []
        adaptive = issubclass(SAMPLERS[name], AdaptiveSampler)
        for effort in TOLERANCES if adaptive else STEPS:
            keys = ("rtol", "atol") if adaptive else ("steps",)
            overrides = [f"--config.sampler.name={name}", *(f"--config.sampler.{key}={effort}" for key in keys)]
            overrides += ["--config.guidance.cfg_scale=1", f"--config.sample.batch_size={options.num}"]
            restored = restore(RunFolder(options.workdir), "latest", overrides)
            system, mesh, model, frozen = restored.system, restored.mesh, restored.model, restored.frozen
            made: list[None] = []
            labels = parse_labels("balanced", options.num, 10, 0)
            stream = SampleStream(system, mesh)
            images = np.concatenate(list(stream(Counted(model, made), frozen, labelled_requests(labels), seed=0)))
            jax.effects_barrier()
            calls.append(len(made))
            distances.append(frechet_distance(*moments(extractor, images), *reference))
        print(
            f"{name:<22}" + "".join(f"{d:>9.3f} ({c:>3} calls)" for d, c in zip(distances, calls, strict=True)),
            flush=True,
        )
        axes.plot(calls, distances, marker=".", label=name)
    axes.axhline(held_out, color="grey", linestyle="--", label="held-out real digits")
    axes.set(xscale="log", yscale="log", xlabel="network calls", ylabel=f"Fréchet distance ({extractor.name})")
    axes.set_title("Digits, unguided")
    axes.legend(fontsize=7, ncol=2)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(options.out, dpi=100)
    print(options.out)


def real_digits(split: str) -> np.ndarray:
    """All images of a split, [N, 8, 8, 1] uint8."""
    source: Source = open_source(DataConfig(name="digits", image_size=8, channels=1, split=split))
    return np.stack([source[i]["image"] for i in range(len(source))])


def moments(extractor: Extractor, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the features of images."""
    statistics = FeatureStatistics(extractor.feature_width)
    statistics.update(extractor.features(images))
    return statistics.finalise()


if __name__ == "__main__":
    main()
