"""What the LDM code calls the parameters and statistics of its discriminator."""

from collections.abc import Mapping, Sequence

import numpy as np

from diffusion_jax.interop.mapping import Entry, PerChannel, conv, load_state_dict, norm
from diffusion_jax.models.autoencoder.discriminator import BatchNorm, NormStats, PatchDiscriminator


def discriminator_entries(model: PatchDiscriminator) -> list[Entry]:
    """The name table of a discriminator's parameters, without the prefix `loss.discriminator.` of LDM checkpoints."""
    entries = conv("main.0", "conv_in")
    for i, each in enumerate(model.norms):
        batch = isinstance(each, BatchNorm)
        entries += conv(f"main.{2 + 3 * i}", f"convs/{i}", bias=not batch)
        if batch:
            entries += norm(f"main.{3 + 3 * i}", f"norms/{i}")
        else:
            entries += [
                Entry(f"main.{3 + 3 * i}.{name}", f"norms/{i}/{name}", PerChannel()) for name in ("loc", "scale")
            ]
    return entries + conv(f"main.{2 + 3 * len(model.norms)}", "conv_out")


def stats_entries(stats: Sequence[NormStats]) -> list[Entry]:
    """The name table of the running statistics of a discriminator with batch norms."""
    names = {"mean": "running_mean", "variance": "running_var"}
    return [
        Entry(f"main.{3 + 3 * i}.{theirs}", f"{i}/{ours}") for i in range(len(stats)) for ours, theirs in names.items()
    ]


def load_discriminator(
    model: PatchDiscriminator, state_dict: Mapping[str, np.ndarray], source: str = "state dict"
) -> tuple[PatchDiscriminator, tuple[NormStats, ...]]:
    """Fills a discriminator and its running statistics.

    Args:
      model: the architecture, concrete or abstract.
      state_dict: official name ("main.0.weight", …) to array.
      source: where it comes from, for error messages.

    Returns:
      The discriminator and its statistics.

    Raises:
      UserError: the weights are of another architecture.
    """
    stats = model.init_stats()
    counters = ("*.num_batches_tracked", "*.initialized")
    running = {name: array for name, array in state_dict.items() if ".running_" in name}
    parameters = {name: array for name, array in state_dict.items() if name not in running}
    return (
        load_state_dict(model, parameters, discriminator_entries(model), ignore=counters, source=source),
        load_state_dict(stats, running, stats_entries(stats), source=source),
    )
