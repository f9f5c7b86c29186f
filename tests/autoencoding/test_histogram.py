import numpy as np

from diffusion_jax.autoencoding.histogram import MOST_CHANNELS, plot_latents


def test_each_channel_has_its_density():
    rng = np.random.default_rng(0)
    means, stds = np.array([0.0, 2.0]), np.array([1.0, 0.5])
    latents = means + stds * rng.normal(size=(50, 20, 20, 2))
    figure = plot_latents(latents)
    *channels, everything = figure.axes[0].lines
    for line, mean, std in zip((*channels, everything), (*means, 1.0), (*stds, latents.std()), strict=True):
        x, density = line.get_data()
        near = np.abs(x - mean) < std
        normal = np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
        np.testing.assert_allclose(density[near], normal[near], rtol=0.15)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["0: 0.01 ± 1.00", "1: 2.00 ± 0.50", "all: 1.00 ± 1.27"]


def test_of_many_channels_the_first_are_drawn():
    figure = plot_latents(np.random.default_rng(0).normal(size=(2, 4, 4, 40)))
    assert len(figure.axes[0].lines) == MOST_CHANNELS + 1
