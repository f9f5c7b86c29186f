"""Lower bounds of time from published rates."""

import dataclasses
from collections.abc import Iterable

from diffusion_jax.parallel.collectives import BETWEEN_SLICES, Collective
from diffusion_jax.parallel.topology import Topology


@dataclasses.dataclass(frozen=True)
class Bound:
    """Seconds that each part of a program takes at least; they may overlap, so the longest bounds the whole.

    Attributes:
      compute: counted FLOPs at the chips' bfloat16 peak; None if they cannot be counted.
      hbm: each argument and temporary through the memory once in each direction it must go.
      fast: collectives over ICI or NVLink.
      slow: what goes between slices or nodes.
    """

    compute: float | None
    hbm: float
    fast: float
    slow: float

    @property
    def seconds(self) -> float:
        """Of the whole."""
        return max(self.compute or 0, self.hbm, self.fast, self.slow)

    @property
    def by(self) -> str:
        """What sets the bound."""
        parts = {"compute": self.compute or 0, "memory": self.hbm, "interconnect": self.fast, "slow network": self.slow}
        return max(parts, key=lambda part: parts[part])


def bound(topology: Topology, macs: int | None, moved: float, collectives: Iterable[Collective]) -> Bound:
    """The bound of a program.

    Args:
      topology: the chips.
      macs: multiply-adds of all chips together.
      moved: bytes that each chip reads from and writes to its memory.
      collectives: what the chips send each other.

    Returns:
      Seconds.
    """
    chip = topology.chip
    sent = {True: 0.0, False: 0.0}
    for each in collectives:
        sent[each.kind == BETWEEN_SLICES] += each.bytes_sent
    return Bound(
        compute=None if macs is None else 2 * macs / (topology.num_chips * chip.flops),
        hbm=moved / chip.hbm_rate,
        fast=sent[False] / chip.fast_rate,
        slow=sent[True] / chip.slow_rate,
    )
