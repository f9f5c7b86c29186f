"""What the program that draws a batch says of it beside the images, and the error that becomes of it on the host."""

from typing import NamedTuple

import jax
import numpy as np

from diffusion_jax.diffusion.samplers import Progress, Sampler
from diffusion_jax.errors import UserError


class Diagnostics(NamedTuple):
    """What tells whether samples are fit for use; a part that is None was not asked for and costs nothing.

    Attributes:
      progress: how far each sample came, [B] fields; None for samplers of a fixed number of steps.
      finite: [B] bool, whether all numbers of a sample are; None where nobody looked.
    """

    progress: Progress | None = None
    finite: jax.Array | None = None


class Drawn(NamedTuple):
    """A batch of samples.

    Attributes:
      images: [B, H, W, C] uint8.
      diagnostics: of the same samples.
    """

    images: jax.Array
    diagnostics: Diagnostics


class UnfinishedSamples(UserError):
    """Samples that are still noisy since their sampler stopped on the way."""


class NotFiniteSamples(UserError):
    """Samples that hold NaN or infinity, which as 8-bit pixels look like black images."""


def check_drawn(diagnostics: Diagnostics, sampler: Sampler) -> None:
    """Raises an `UnfinishedSamples` unless all samples arrived, and a `NotFiniteSamples` unless they are finite.

    Args:
      diagnostics: those of the samples that were asked for, as host arrays; the same on all processes, which then
        raise together.
      sampler: what drew them.
    """
    progress, finite = diagnostics.progress, diagnostics.finite
    if progress is None or np.all(progress.finished):
        if finite is not None and not np.all(finite):
            raise NotFiniteSamples(
                f"{np.sum(~np.asarray(finite))} of {len(finite)} samples hold NaN or infinity: the weights are not "
                "finite or the guidance scale is far too large; name another checkpoint with --step, or lower the scale"
            )
        return
    stopped = ~np.asarray(progress.finished)
    times = np.asarray(progress.time)[stopped]
    low, high = float(times.min()), float(times.max())
    where = f"t = {low:.3g}" if low == high else f"t = {low:.3g} to {high:.3g}"
    count = f"{stopped.sum()} of {len(stopped)} samples stopped at {where}, on the way from noise at 1 to data at 0"
    if np.any(np.asarray(progress.stuck)[stopped]):
        raise UnfinishedSamples(
            f"sampler '{sampler.name}': {count}, since its steps became not finite or too small to arrive: raise "
            "sampler.rtol and sampler.atol, set sampler.time_end above 0, or take a sampler with a number of steps; if "
            "that gives no images either, the weights are not finite"
        )
    raise UnfinishedSamples(
        f"sampler '{sampler.name}': {count}, after sampler.max_steps={getattr(sampler, 'max_steps', None)} attempts: "
        "raise it, or sampler.rtol and sampler.atol, or take a sampler with a number of steps"
    )
