"""The one complete description of what to draw from a run, and how it becomes images."""

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
from etils import epath

from diffusion_jax.config import OVERRIDE
from diffusion_jax.diffusion.guidance import Autoguidance
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.scoring import uint8_rule
from diffusion_jax.evaluation.settings import ProtocolName
from diffusion_jax.imports import import_function
from diffusion_jax.runs.folder import RunFolder
from diffusion_jax.runs.kinds import KINDS
from diffusion_jax.runs.open_run import Restored, restore
from diffusion_jax.runs.system import DiffusionSystem
from diffusion_jax.sampling.generation import Guides, SampleStream
from diffusion_jax.sampling.known_pixels import read_known_pixels
from diffusion_jax.sampling.labels import BALANCED, choose_labels
from diffusion_jax.sampling.requests import Requests, labelled_requests
from diffusion_jax.sampling.sample_set import DrawnImages

# A trained model's config is fixed but for these sections.
SECTIONS = ("sampler", "guidance", "sample")

Similarity = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """What to draw from a run, and how; what is None is as the run's config says.

    Attributes:
      num: number of samples; None means the number of `labels` or of values in `fields`.
      labels: the classes: "balanced" (the default), "uniform", a list "3,3,7" of numbers, ranges "0-9" and names of
        classes (see `parse_labels`), or such numbers and names as a sequence.
      fields: of a model of another condition than labels, the values [num] of the fields that its conditioner reads.
      seed: of the samples, 0 ≤ seed < 2³²; sample i is a function of (weights, its request, seed, i).
      sampler: the name of the sampler.
      steps: of the sampler.
      cfg_scale: guidance scale, 1 for none.
      params: the averaged or the raw weights.
      batch_size: images that each device draws at once.
      overrides: further `--config.section.key=value` arguments of the sections sampler, guidance and sample.
      protocol: the evaluation protocol by whose rule pixels become 8-bit; None rounds to nearest.
      known: a .npz of images and masks, pixels that the samples keep.
      guide_workdir: a weaker run of the same kind for autoguidance.
      guide_step: its checkpoint.
      guide_scale: autoguidance scale, 1 for none.
      classifier_workdir: a run that trained a classifier of noisy data to guide by.
      classifier_step: its checkpoint.
      classifier_scale: factor of the gradient of its log-probability.
      similarity: how well images fit their labels, a function of (images [B, H, W, C] in −1 … 1, labels [B]) → [B], or
        its name "package.module:function".
      similarity_scale: factor of its gradient.
    """

    num: int | None = None
    labels: str | Sequence[int | str] | None = None
    fields: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    seed: int = 0
    sampler: str | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    params: Literal["ema", "raw"] | None = None
    batch_size: int | None = None
    overrides: tuple[str, ...] = ()
    protocol: ProtocolName | None = None
    known: epath.PathLike | None = None
    guide_workdir: epath.PathLike | None = None
    guide_step: str | int = "latest"
    guide_scale: float = 2.0
    classifier_workdir: epath.PathLike | None = None
    classifier_step: str | int = "latest"
    classifier_scale: float = 1.0
    similarity: str | Similarity | None = None
    similarity_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"num={self.num}: ask for at least one sample")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed}: must be at least 0 and below 2³²")

    @property
    def count(self) -> int:
        """The number of samples; raises a `UserError` if nothing says it."""
        if self.num is not None:
            return self.num
        for values in self.fields.values():
            return len(values)
        if self.labels is not None and not isinstance(self.labels, str):
            return len(self.labels)
        raise UserError("--num is missing: say how many samples to draw")

    def config_overrides(self) -> list[str]:
        """The `--config…` arguments that the request amounts to.

        Raises:
          UserError: one that would change the trained model.
        """
        named = {
            "sampler.name": self.sampler,
            "sampler.steps": self.steps,
            "guidance.cfg_scale": self.cfg_scale,
            "sample.params": self.params,
            "sample.batch_size": self.batch_size,
        }
        overrides = [f"{OVERRIDE}{key}={value}" for key, value in named.items() if value is not None]
        overrides += self.overrides
        for word in overrides:
            if word.startswith(OVERRIDE) and not word.startswith(tuple(f"{OVERRIDE}{name}." for name in SECTIONS)):
                raise UserError(f"{word}: a trained model's config is fixed but for {', '.join(SECTIONS)}")
        return overrides

    def requests(self, stream: SampleStream, system: DiffusionSystem) -> Requests:
        """What each sample is to show.

        Raises:
          UserError: labels of a model that takes none or has others, or fields that are missing or of no use.
        """
        reads = type(system.conditioner).reads
        if self.fields:
            unread = sorted(set(self.fields) - set(reads))
            if unread:
                takes = f"reads {', '.join(reads)}" if reads else "was trained without a condition"
                raise UserError(f"'{unread[0]}' is of no use to this run: it {takes}")
            missing = [name for name in reads if name not in self.fields]
            if missing:
                raise UserError(f"'{missing[0]}' is missing: the conditioner of this run reads {', '.join(reads)}")
            return Requests(self.count, self.fields)
        if set(reads) - {"label"}:
            raise UserError(f"this run needs {', '.join(reads)} of every sample: name them")
        if self.labels is None or isinstance(self.labels, str):
            text = self.labels
        else:
            text = ",".join(label if isinstance(label, str) else str(int(label)) for label in self.labels)
        facts = system.facts
        labels = choose_labels(stream.labelled, text, self.count, facts.num_classes, self.seed, facts.class_names)
        return labelled_requests(labels)

    @property
    def label_law(self) -> str:
        """What a result says of the labels."""
        if self.labels is None:
            return BALANCED
        return self.labels if isinstance(self.labels, str) else ",".join(map(str, self.labels))


def drawn_images(restored: Restored, folder: RunFolder, request: SampleRequest) -> DrawnImages:
    """The samples that a request asks of a run, a set of images that are drawn as they are taken.

    Args:
      restored: the run with the weights to draw from, its system being that of `request.config_overrides()`.
      folder: its folder, for the facts.
      request: what to draw.

    Raises:
      UserError: a request that does not fit the run.
    """
    system = restored.system
    known = None
    if request.known is not None:
        shape = (system.data.image_size, system.data.image_size, system.data.channels)
        known = read_known_pixels(request.known, request.count, shape)
    guides = open_guides(request, system)
    stream = SampleStream(system, restored.mesh, guides, known=known, uint8=uint8_rule(request.protocol))
    facts = {
        "workdir": str(folder),
        "checkpoint_step": restored.step,
        "label_law": request.label_law,
        "overrides": request.config_overrides(),
    }
    requests = request.requests(stream, system)
    return DrawnImages(system, stream, restored.model, restored.frozen, requests, request.seed, facts)


def open_guides(request: SampleRequest, system: DiffusionSystem) -> Guides:
    """Opens the runs and the function that a request names to guide by.

    Raises:
      UserError: no such run or function, or one that does not fit.
    """
    weak = classifier = None
    if request.guide_workdir is not None:
        same: tuple[str, ...] = ("path", "prediction", "latent_shape", "conditioner")
        weak = _open_guide("--guide-workdir", request.guide_workdir, request.guide_step, "diffusion", system, same)
    if request.classifier_workdir is not None:
        same = ("path", "latent_shape", "facts.class_names")
        where, step = request.classifier_workdir, request.classifier_step
        classifier = _open_guide("--classifier-workdir", where, step, "classifier", system, same)
        if system.prediction.kind == "edm":
            raise UserError(
                "--classifier-workdir: an 'edm' prediction is told another time than a classifier; guide a model of "
                "another prediction"
            )
    similarity = request.similarity
    if isinstance(similarity, str):
        similarity = import_function("--similarity", similarity)
    return Guides(
        weak,
        Autoguidance(scale=request.guide_scale),
        classifier,
        request.classifier_scale,
        similarity,
        request.similarity_scale,
    )


def _open_guide(
    flag: str, path: epath.PathLike, step: str | int, kind: str, system: DiffusionSystem, parts: Sequence[str]
) -> Any:
    """The model of a run that is to guide another; raises a `UserError` unless the named parts of both are the same."""
    other = restore(RunFolder(path), step, kind=KINDS[kind], place=flag)
    for part in parts:
        theirs, ours = (operator.attrgetter(part)(each) for each in (other.system, system))
        if theirs != ours:
            raise UserError(f"{flag} {path}: its {part} is {theirs}, which cannot guide {ours}")
    return other.model
