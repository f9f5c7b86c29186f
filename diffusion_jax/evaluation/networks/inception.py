"""The Inception network of 2015-12-05 (arXiv 1512.00567), whose features define FID (arXiv 1706.08500).

It differs from the Inception-v3 of model zoos: average pools do not count padding, the last block pools by maximum,
there are 1008 outputs, and its own weights. A distance under any other network is not FID.
"""

from collections.abc import Mapping
from typing import Literal

import jax
import numpy as np
from absl import logging
from flax import nnx

from diffusion_jax.evaluation.networks.inception_blocks import (
    ConvNorm,
    MixedA,
    MixedB,
    MixedC,
    MixedD,
    MixedE,
    max_pool,
)
from diffusion_jax.interop.mapping import CONV, Entry, linear, load_state_dict, parameter_paths

TAP_WIDTHS = {
    "64": 64,
    "192": 192,
    "768": 768,
    "2048": 2048,
    "spatial": 2023,
    "logits_unbiased": 1008,
    "logits": 1008,
}
"""Numbers per image at each tap."""

NetworkPrecision = Literal["float32", "fast"]

SPATIAL_CHANNELS = 7


class InceptionV3(nnx.Module):
    """The network, from prepared images to the features that metrics use.

    Built without arguments it has no useful weights; `from_state_dict` gives it some.
    """

    def __init__(self) -> None:
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, (3, 3), strides=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, (3, 3), padding=(1, 1))
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, (3, 3))
        self.Mixed_5b = MixedA(192, 32)
        self.Mixed_5c = MixedA(256, 64)
        self.Mixed_5d = MixedA(288, 64)
        self.Mixed_6a = MixedB(288)
        self.Mixed_6b = MixedC(768, 128)
        self.Mixed_6c = MixedC(768, 160)
        self.Mixed_6d = MixedC(768, 160)
        self.Mixed_6e = MixedC(768, 192)
        self.Mixed_7a = MixedD(768)
        self.Mixed_7b = MixedE(1280, "average")
        self.Mixed_7c = MixedE(2048, "max")
        self.fc = nnx.Linear(2048, 1008, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array, precision: NetworkPrecision = "float32") -> dict[str, jax.Array]:
        """Features at every tap.

        Args:
          x: [B, 299, 299, 3] float32, about −1 … 1, from `network_input`.
          precision: "float32" keeps every product in float32 and is what published numbers need; "fast" leaves
            products to the backend: TF32 on NVIDIA GPUs (features move by 4e-4 relative), bfloat16 on TPUs (3e-3).

        Returns:
          By tap, float32: "64", "192", "768", "2048" spatial means [B, width]; "spatial" [B, 2023], the first seven
          channels of the 17 × 17 map inside Mixed_6d, flattened (h, w, c); "logits_unbiased" [B, 1008] without the
          bias, from which the Inception Score is made, and "logits" with it.
        """
        with jax.default_matmul_precision("highest" if precision == "float32" else "default"):
            return self._taps(x)

    def _taps(self, x: jax.Array) -> dict[str, jax.Array]:
        taps: dict[str, jax.Array] = {}
        x = self.Conv2d_1a_3x3(x)  # [B, 149, 149, 32]
        x = self.Conv2d_2a_3x3(x)  # [B, 147, 147, 32]
        x = self.Conv2d_2b_3x3(x)  # [B, 147, 147, 64]
        x = max_pool(x, strides=2)  # [B, 73, 73, 64]
        taps["64"] = x.mean((1, 2))
        x = self.Conv2d_3b_1x1(x)  # [B, 73, 73, 80]
        x = self.Conv2d_4a_3x3(x)  # [B, 71, 71, 192]
        x = max_pool(x, strides=2)  # [B, 35, 35, 192]
        taps["192"] = x.mean((1, 2))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # [B, 35, 35, 288]
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))  # [B, 17, 17, 768]
        x = self.Mixed_6d(x)  # [B, 17, 17, 768]
        # The first channels of a block are those of its branch1x1, the layer that sFID is defined on.
        taps["spatial"] = x[..., :SPATIAL_CHANNELS].reshape(len(x), -1)  # [B, 17·17·7]
        x = self.Mixed_6e(x)  # [B, 17, 17, 768]
        taps["768"] = x.mean((1, 2))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # [B, 8, 8, 2048]
        taps["2048"] = x.mean((1, 2))
        taps["logits_unbiased"] = taps["2048"] @ self.fc.kernel[...]  # [B, 1008]
        taps["logits"] = self.fc(taps["2048"])
        return taps

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, np.ndarray], *, source: str = "state dict") -> "InceptionV3":
        """The network with published weights.

        Args:
          state_dict: the 472 float tensors of `pt_inception-2015-12-05-6726825d.pth` by name, PyTorch layouts; its
            batch counters are ignored.
          source: what errors call it.

        Raises:
          UserError: a tensor is missing, unexpected or of another shape.
        """
        if any(np.any(value != 1) for name, value in state_dict.items() if name.endswith(".bn.weight")):
            logging.warning("%s: batch normalisation has scales other than 1, which the published file has not", source)
        network = jax.eval_shape(cls)
        ignore = ("*.bn.num_batches_tracked",)
        return load_state_dict(network, state_dict, inception_entries(network), ignore=ignore, source=source)


def inception_entries(network: InceptionV3) -> list[Entry]:
    """The name table of the network, abstract or not, for `load_state_dict`."""
    entries = linear("fc", "fc")
    for path in parameter_paths(network):
        layer, _, leaf = path.rpartition("/")
        if leaf == "kernel" and layer != "fc":
            theirs = layer.replace("/", ".")
            entries += [
                Entry(f"{theirs}.conv.weight", path, CONV),
                Entry(f"{theirs}.bn.weight", f"{layer}/scale"),
                Entry(f"{theirs}.bn.bias", f"{layer}/bias"),
                Entry(f"{theirs}.bn.running_mean", f"{layer}/mean"),
                Entry(f"{theirs}.bn.running_var", f"{layer}/var"),
            ]
    return entries
