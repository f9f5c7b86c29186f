"""Config sections that several kinds of run share: `kind`, `data`, `optimizer`, `ema`, `train`, `sample`, `mesh`."""

import dataclasses
import re
from typing import Literal

from diffusion_jax.data import DataConfig
from diffusion_jax.diffusion.transforms import dynamic_threshold
from diffusion_jax.errors import UserError
from diffusion_jax.optim.ema_profiles import EMA_PROFILES
from diffusion_jax.optim.optimizer import OPTIMIZERS
from diffusion_jax.parallel.mesh import MeshConfig
from diffusion_jax.schema import Section


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The `train` section.

    Attributes:
      steps: optimizer steps in all.
      batch_size: images per step, over all devices and processes.
      microbatches: parts that a batch is computed in, one after the other; changes memory, not numbers.
      seed: 0 ≤ seed < 2³²; decides everything random.
      ema_widths: relative widths σ_rel of further averages with power-function profiles, from snapshots of which
        `diffusion-jax ema` makes an average of any width after the run; EDM2 takes (0.05, 0.10).
      snapshot_every: steps between snapshots of those averages; None takes none.
      log_every: steps between lines in the log.
      save_every: steps between checkpoints; the last step is saved in any case.
      keep: newest checkpoints to keep.
      keep_every: also keep the checkpoints of these steps' multiples for good; None keeps no others.
      sample_every: steps between sample grids; None draws none.
      eval_every: steps between evaluations as the section `evaluate` says; None evaluates never.
      freeze: regular expressions; parameters in whose name ("blocks.attn.qkv.kernel") one is found do not move.
      profile: "FIRST:LAST" traces the steps after FIRST up to LAST into `WORKDIR/profile`; None traces none.
    """

    steps: int
    batch_size: int
    microbatches: int = 1
    seed: int = 0
    ema_widths: tuple[float, ...] = ()
    snapshot_every: int | None = None
    log_every: int = 100
    save_every: int = 10_000
    keep: int = 2
    keep_every: int | None = None
    sample_every: int | None = None
    eval_every: int | None = None
    freeze: tuple[str, ...] = ()
    profile: str | None = None

    def __post_init__(self):
        for name in ("steps", "batch_size", "microbatches", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name}={getattr(self, name)}: must be at least 1")
        for name in ("keep_every", "sample_every", "eval_every", "snapshot_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"train.{name}={getattr(self, name)}: must be at least 1, or None for never")
        if self.keep_every is not None and self.keep_every % self.save_every:
            raise UserError(
                f"train.keep_every={self.keep_every}: must be a multiple of train.save_every={self.save_every}"
            )
        if not 0 <= self.seed < 2**32:
            raise UserError(f"train.seed={self.seed}: must be at least 0 and below 2³²")
        if bool(self.ema_widths) != (self.snapshot_every is not None):
            raise UserError(
                f"train.ema_widths={self.ema_widths}, train.snapshot_every={self.snapshot_every}: set both or neither"
            )
        for pattern in self.freeze:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"train.freeze={pattern!r}: is no regular expression ({error})") from None
        ProfiledSteps(self.profile, self.steps)
        if self.batch_size % self.microbatches:
            raise UserError(
                f"train.microbatches={self.microbatches} does not divide train.batch_size={self.batch_size}"
            )


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """The `sample` section: how samples are drawn where the command line does not say otherwise.

    Attributes:
      params: "ema" (what papers report) or "raw" weights.
      batch_size: images that each device draws at once; a matter of memory and speed, and of the last bit.
      grid: number of images in the grids drawn during training.
      transform: correction of the predicted data at every step: "clip" to [−1, 1] or "dynamic_threshold" (Imagen), both
        right for pixels and wrong for latents; "codebook" takes the nearest codes of a VQ first stage (LDM).
      quantile: share of the entries that dynamic thresholding keeps.
    """

    params: Literal["ema", "raw"] = "ema"
    batch_size: int = 64
    grid: int = 40
    transform: Literal["none", "clip", "dynamic_threshold", "codebook"] = "none"
    quantile: float = 0.995

    def __post_init__(self):
        dynamic_threshold(self.quantile)
        if self.batch_size < 1 or self.grid < 1:
            raise UserError(f"sample.batch_size={self.batch_size} and sample.grid={self.grid} must be at least 1")


class ProfiledSteps:
    """The steps that `train.profile` names.

    Args:
      text: "FIRST:LAST", from the end of step FIRST to the end of step LAST; None traces nothing.
      steps: of the run.

    Raises:
      UserError: another form, or steps that the run has not.
    """

    def __init__(self, text: str | None, steps: int):
        self.first = self.last = -1
        if text is None:
            return
        match = re.fullmatch(r"(\d+):(\d+)", text)
        if match:
            self.first, self.last = int(match[1]), int(match[2])
        if not match or not 0 < self.first < self.last <= steps:
            raise UserError(
                f"train.profile={text!r}: write FIRST:LAST with 0 < FIRST < LAST ≤ train.steps={steps}, as in 100:105"
            )


def no_settings() -> None:
    """A kind of run has no settings of its own."""


def kind_section(name: str) -> Section:
    """The section `kind`, which says what a config trains, in the schema of one kind."""
    return Section({name: no_settings}, default=name)


# Of sections that describe many things, the keys that decide the numbers of a run.
DATA_IDENTITY = frozenset({"name", "split", "image_size", "channels", "flip", "exif_orientation", "crop"})
TRAIN_IDENTITY = frozenset({"batch_size", "seed", "ema_widths", "freeze"})
NO_KEYS = frozenset[str]()

DATA = Section(DataConfig, identity=DATA_IDENTITY)
TRAIN = Section(TrainConfig, identity=TRAIN_IDENTITY)
OPTIMIZER = Section(
    OPTIMIZERS,
    changeable=frozenset({"lr", "schedule", "warmup_steps", "decay_steps", "clip_norm", "weight_decay"}),
)
EMA = Section(EMA_PROFILES, frozenset({"batch_size"}))
MESH = Section(MeshConfig, identity=NO_KEYS)
