"""Released velocity networks that count time from noise to data: SiT and LightningDiT."""

from collections.abc import Mapping

import numpy as np

FREQUENCIES = 10000.0 ** (-np.arange(128) / 128)


def sit_state_dict(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rewrites weights of the SiT or LightningDiT release as those of a DiT of this library.

    The releases run time from noise (0) to data (1) and predict the velocity in that direction; here time runs from
    data to noise. The sinusoids of 1 − t are a rotation of those of t, which goes into the first time layer, and the
    sign of the velocity into the head; so u(x, t) of the result is −v(x, 1 − t) of the release. Output channels beyond
    those of the input, which SiT has and discards, are dropped. The released models of REPA count time as this library
    does.

    Args:
      state_dict: arrays under official names; a DiT with 256 time features and time_scale 1.

    Returns:
      The same names; applied twice, the original but for dropped channels and rounding.
    """
    _, channels, patch_size, _ = state_dict["x_embedder.proj.weight"].shape
    time, weight = (np.asarray(state_dict[name]) for name in ("t_embedder.mlp.0.weight", "final_layer.linear.weight"))
    cos, sin = np.cos(FREQUENCIES), np.sin(FREQUENCIES)
    of_cos, of_sin = np.split(time.astype(np.float64), 2, axis=1)  # [D, 128] each
    reversed_time = np.concatenate([of_cos * cos + of_sin * sin, of_cos * sin - of_sin * cos], axis=1)  # [D, 256]

    def head(rows: np.ndarray) -> np.ndarray:
        kept = rows.reshape(patch_size**2, -1, *rows.shape[1:])[:, :channels]  # [p², C, ...]
        return -kept.reshape(-1, *rows.shape[1:])  # [p²·C, ...]

    return {
        **state_dict,
        "t_embedder.mlp.0.weight": reversed_time.astype(time.dtype),
        "final_layer.linear.weight": head(weight),
        "final_layer.linear.bias": head(np.asarray(state_dict["final_layer.linear.bias"])),
    }
