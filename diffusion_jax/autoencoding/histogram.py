"""The distribution of latents as a picture, which shows channels that are dead, skewed or heavy in their tails."""

import numpy as np
from matplotlib.figure import Figure

BINS = 101
MOST_CHANNELS = 16


def plot_latents(latents: np.ndarray) -> Figure:
    """Draws the density of each channel, and of a normal distribution with the mean and the deviation of all elements.

    Args:
      latents: [B, h, w, c] float, finite; channels from the 17th on are left out.

    Returns:
      The figure; its densities have a logarithmic axis, since tails are what goes unseen.
    """
    mean, std = float(latents.mean()), float(latents.std())
    edges = np.linspace(latents.min(), latents.max(), BINS + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for channel in range(min(latents.shape[-1], MOST_CHANNELS)):
        values = latents[..., channel]
        density, _ = np.histogram(values, edges, density=True)
        label = f"{channel}: {values.mean():.2f} ± {values.std():.2f}"
        axes.plot(centres, np.where(density > 0, density, np.nan), label=label, marker=".", markersize=2)
    normal = np.exp(-0.5 * ((centres - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    axes.plot(centres, normal, "k--", label=f"all: {mean:.2f} ± {std:.2f}")
    axes.set(
        yscale="log", ylim=(1e-4 / std, 10 / std), xlabel="latent", ylabel="density", title="channels of the latents"
    )
    axes.legend(fontsize="small", ncols=2)
    return figure
