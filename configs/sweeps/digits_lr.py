"""Learning rate × weighting of the loss for the DiT of configs/digits.py; about ten minutes on two CPU cores.

diffusion-jax sweep --sweep configs/sweeps/digits_lr.py
"""

from diffusion_jax.sweeping import Sweep, product


def get_sweep() -> Sweep:
    """Six runs of 500 steps."""
    return Sweep(
        config="configs/digits.py",
        points=product({"optimizer.lr": [3e-4, 1e-3, 3e-3]}, {"loss.name": ["simple", "min_snr"]}),
        fixed={"train.steps": 500, "optimizer.decay_steps": 500, "train.log_every": 25, "train.sample_every": 500},
        metrics=("mse", "grad_norm"),
    )
