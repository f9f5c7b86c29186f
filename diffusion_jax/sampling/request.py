"""Images of a checkpoint as a set to evaluate: drawn as they are measured, written only if asked."""

from collections.abc import Iterator

from absl import flags
from etils import epath

from diffusion_jax.commands.sample import open_guides, sampling_overrides
from diffusion_jax.data import Batch
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.scoring import uint8_rule
from diffusion_jax.parallel import processes
from diffusion_jax.runs.open_run import open_checkpoints, restore_for_sampling
from diffusion_jax.sampling.archive import SampleArchive
from diffusion_jax.sampling.generation import SampleStream
from diffusion_jax.sampling.known_pixels import read_known_pixels
from diffusion_jax.sampling.labels import BALANCED, choose_labels
from diffusion_jax.sampling.sample_set import DrawnImages


class GeneratedImages(DrawnImages):
    """The samples of a run that flags name.

    Args:
      values: the flags of `sample` or `evaluate`.
      save: a .npz to write the images to, in ADM's format; None writes none.

    Raises:
      UserError: no such run or checkpoint, or flags that do not fit it.
    """

    def __init__(self, values: flags.FlagValues, save: epath.Path | None = None):
        if values.num is None:
            raise UserError("--workdir needs --num, the number of samples to draw")
        overrides = sampling_overrides(values)
        with open_checkpoints(values.workdir, values.step) as (_, step):
            # Fixed here and stated in the result; training may go on meanwhile.
            chosen = "best" if values.step == "best" else str(step)
        system, mesh, model, first_stage = restore_for_sampling(values.workdir, chosen, overrides)
        known = None
        if values.known is not None:
            shape = (system.data.image_size, system.data.image_size, system.data.channels)
            known = read_known_pixels(values.known, values.num, shape)
        rule = uint8_rule(values.protocol)
        stream = SampleStream(system, mesh, open_guides(values, system), known=known, uint8=rule)
        labels = choose_labels(stream.labelled, values.labels, values.num, system.facts.num_classes, values.seed)
        facts = {
            "workdir": str(values.workdir),
            "checkpoint_step": step,
            "label_law": values.labels or BALANCED,
            "overrides": overrides,
        }
        super().__init__(system, stream, model, first_stage, labels, values.seed, facts)
        self.save = save

    def batches(self) -> Iterator[Batch]:
        """See `DrawnImages`; tells how far it is."""
        archive = None
        if self.save is not None and processes.is_main():
            labels = self.labels if self.stream.labelled else None
            archive = SampleArchive(self.save, (self.count, *self.image_shape), labels, self.describe())
        drawn = 0
        for batch in super().batches():
            if archive is not None:
                archive.add(batch["image"])
            yield batch
            drawn += len(batch["image"])
            if processes.is_main():
                print(f"{drawn}/{self.count} samples", flush=True)
        if archive is not None:
            archive.close()
