"""The classes of samples, from the words of a user."""

import jax.numpy as jnp
import numpy as np

from diffusion_jax import keys
from diffusion_jax.errors import UserError

BALANCED = "balanced"


def choose_labels(labelled: bool, text: str | None, num: int, num_classes: int, seed: int) -> np.ndarray:
    """The classes of `num` samples, as `parse_labels`: balanced where `text` is None, and 0 for samples without labels.

    Raises:
      UserError: labels are asked of an unconditional model, or are not its classes.
    """
    if labelled:
        return parse_labels(text or BALANCED, num, num_classes, seed)
    if text is not None:
        raise UserError(f"--labels {text}: this run was trained without a condition and takes no class: leave it out")
    return np.zeros(num, np.int32)


def parse_labels(text: str, num: int, num_classes: int, seed: int) -> np.ndarray:
    """The classes of `num` samples.

    Args:
      text: "balanced" (0, 1, … K−1, 0, …), "uniform" (independent draws), a range "0-9" or a list "3,3,7" (repeated).
      num: number of samples.
      num_classes: K.
      seed: of "uniform"; label i is a function of (seed, i).

    Returns:
      [num] int32 in 0…K−1.

    Raises:
      UserError: anything else, or a label beyond K−1.
    """
    if text == "uniform":
        index = jnp.arange(num)
        draws = keys.uniform(keys.purpose_key(seed, "sample_label"), index)
        return np.minimum(np.asarray(draws * num_classes).astype(np.int32), num_classes - 1)
    labels: list[int] = []
    for part in (f"0-{num_classes - 1}" if text == BALANCED else text).split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not (last.isdigit() and int(first) <= int(last))):
            raise UserError(f"--labels {text}: write uniform, balanced, a range such as 0-9 or a list such as 3,3,7")
        labels += range(int(first), int(last or first) + 1)
    if not labels or max(labels) >= num_classes:
        raise UserError(f"--labels {text}: this model's classes are 0 to {num_classes - 1}")
    return np.resize(np.asarray(labels, np.int32), num)
