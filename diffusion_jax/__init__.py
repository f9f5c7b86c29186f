"""Image diffusion in JAX: train, open and sample runs; every name is imported when it is first asked for."""

from typing import TYPE_CHECKING

from diffusion_jax.imports import lazy_names

if TYPE_CHECKING:
    from diffusion_jax.api import Run as Run
    from diffusion_jax.api import Samples as Samples
    from diffusion_jax.api import backbone as backbone
    from diffusion_jax.api import load_config as load_config
    from diffusion_jax.api import open_run as open_run
    from diffusion_jax.api import train as train

__version__ = "0.1.0"

__getattr__, __all__ = lazy_names(
    dict.fromkeys(("Run", "Samples", "backbone", "load_config", "open_run", "train"), "diffusion_jax.api")
)
