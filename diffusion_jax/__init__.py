"""Image diffusion in JAX: the systems of four papers, each a configuration of one library."""

__version__ = "0.1.0"
