"""Runs in Python: train, open, sample, evaluate; the commands are thin callers of what is here."""

import html
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from flax import nnx

from diffusion_jax import config as config_lib
from diffusion_jax.diffusion.denoiser import Denoise, conditional, denoiser
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.scoring import open_scorer
from diffusion_jax.evaluation.settings import ScoringConfig
from diffusion_jax.models.conditioning.parts import Conditioning
from diffusion_jax.models.frozen import Frozen
from diffusion_jax.models.presets import preset
from diffusion_jax.runs.folder import RunFolder
from diffusion_jax.runs.kinds import KINDS, Kind, kind_of
from diffusion_jax.runs.metadata import RunMetadata
from diffusion_jax.runs.open_run import Params, Restored, restore
from diffusion_jax.runs.system import DiffusionSystem
from diffusion_jax.sampling.request import SampleRequest, drawn_images
from diffusion_jax.sampling.requests import Requests, batch_arrays
from diffusion_jax.sampling.sample_set import DrawnImages

Config: TypeAlias = str | Mapping[str, Any] | ml_collections.ConfigDict
Overrides: TypeAlias = Sequence[str] | Mapping[str, Any]


class Samples(NamedTuple):
    """Samples and what describes them.

    Attributes:
      images: [N, H, W, C] uint8.
      labels: [N] int32, the class of each; None if they obey none.
      captions: what each was to show, the name of its class or a text; None if they obey none.
      facts: how they were drawn, ready for JSON.
    """

    images: np.ndarray
    labels: np.ndarray | None
    captions: list[str] | None
    facts: dict[str, Any]


class Run:
    """A run that has been trained or is being trained, opened at a checkpoint; weights are read when first needed.

    Args:
      path: its folder, on a disk or in a bucket.
      step: "latest", "best" (by `evaluate.best`) or a step number.

    Raises:
      UserError: no such run or checkpoint.

    Attributes:
      folder: its folder.
      step: the number of the step that it is opened at.
      metadata: what the checkpoint says beside its arrays.
    """

    def __init__(self, path: epath.PathLike, step: str | int = "latest"):
        self.folder = RunFolder(path)
        with self.folder.open(step) as (_, self.step):
            # Fixed here; training may go on meanwhile.
            self._chosen: str | int = "best" if step == "best" else self.step
        self.metadata: RunMetadata = self.folder.metadata(self._chosen)
        self._restored: dict[tuple[str, ...], Restored] = {}

    def __repr__(self) -> str:
        return f"Run('{self.folder}', step={self.step})"

    @property
    def kind(self) -> Kind:
        """What the run trains."""
        return self.metadata.kind

    @cached_property
    def config(self) -> ml_collections.ConfigDict:
        """The complete config."""
        return self.metadata.complete_config()

    @property
    def finished(self) -> bool:
        """Whether the run is at the last of its steps."""
        return self.step >= self.config.train.steps

    @property
    def system(self) -> Any:
        """The parts that the config names, of a diffusion model or a classifier."""
        return self.restored().system

    @property
    def model(self) -> Any:
        """The network with the weights that `sample.params` names, a pytree to call."""
        return self.restored().model

    @property
    def frozen(self) -> Frozen:
        """The frozen networks, the first stage among them."""
        return self.restored().frozen

    def restored(self, overrides: Sequence[str] = ()) -> Restored:
        """The network and the parts of the run under overrides of its config; what has been read is kept.

        Raises:
          UserError: the run trained a first stage, or an override does not fit.
        """
        kind = KINDS["classifier"] if self.kind.name == "classifier" else KINDS["diffusion"]
        key = tuple(overrides)
        if key not in self._restored:
            config = self.metadata.complete_config(overrides, mesh={}) if self._restored else None
            if config is None:
                found = restore(self.folder, self._chosen, overrides, kind=kind)
            else:
                found = self._under(config, kind)
            self._restored[key] = found
        return self._restored[key]

    def _under(self, config: ml_collections.ConfigDict, kind: Kind) -> Restored:
        """The run under another config, with weights that are already here where they are the same."""
        system: Any = kind.system(config, self.metadata.facts)
        wanted = _params(system)
        for other in self._restored.values():
            if _params(other.system) == wanted:
                return other._replace(system=system)
        any_other = next(iter(self._restored.values()))
        fresh = restore(self.folder, self._chosen, mesh=any_other.mesh, kind=kind, params=wanted)
        return fresh._replace(system=system)

    def draw(self, request: SampleRequest) -> DrawnImages:
        """The samples that a request asks for, drawn batch by batch as they are taken.

        Raises:
          UserError: a request that does not fit the run.
        """
        return drawn_images(self.restored(request.config_overrides()), self.folder, request)

    def sample(self, num: int | None = None, **request: Any) -> Samples:
        """Draws samples.

        Args:
          num: their number.
          **request: further fields of `SampleRequest`, such as `labels`, `cfg_scale`, `sampler`, `steps`, `seed`; or
            fields of a record that the conditioner reads, such as `boxes`, with a value for each sample.

        Raises:
          UserError: a request that does not fit the run.
        """
        drawn = self.draw(self._request(num, request))
        images = np.concatenate(list(drawn.raw_batches()))
        return Samples(images, drawn.labels, drawn.captions(drawn.count), drawn.describe())

    def evaluate(
        self,
        reference: str | None = None,
        num: int = 10_000,
        metrics: Sequence[str] | None = None,
        scoring: Mapping[str, Any] | None = None,
        **request: Any,
    ) -> dict[str, Any]:
        """Scores samples of the run, drawn as they are measured.

        Args:
          reference: real images or their statistics; see `evaluate --reference`.
          num: number of samples.
          metrics: their names; None takes those of the protocol.
          scoring: further fields of `ScoringConfig`, such as weights of the networks.
          **request: further fields of `SampleRequest`; `protocol` also says by which rules to score.

        Returns:
          The result, ready for JSON, with everything that its values depend on.

        Raises:
          UserError: a request or reference that does not fit.
        """
        wanted = self._request(num, request)
        names = None if metrics is None else tuple(metrics)
        config = ScoringConfig(reference=reference, protocol=wanted.protocol, metrics=names, **(scoring or {}))
        drawn = self.draw(wanted)
        return open_scorer(config, drawn.image_shape, drawn.count, drawn.settings).measure(drawn)

    def denoiser(
        self, cond: Conditioning | Mapping[str, Sequence[Any]] | None = None, overrides: Sequence[str] = ()
    ) -> Denoise:
        """The trained network as samplers call it, with the guidance and the corrections of the config.

        Args:
          cond: the fields of records that the conditioner reads, such as `{"label": [3, 7]}`, a value for each sample
            of a batch; or the `Conditioning` of a batch, which is not guided; None for an unconditional model.
          overrides: `--config.section.key=value` arguments, such as of the guidance scale.

        Returns:
          A function of (x [B, h, w, c], point of the path) that gives the predicted data and noise.

        Raises:
          UserError: the run trained no diffusion model, or a model of a condition is given none.
        """
        restored = self.restored(overrides)
        system: DiffusionSystem = restored.system
        reads = type(system.conditioner).reads
        null = None
        if isinstance(cond, Conditioning):
            guided = conditional(restored.model, cond)
        elif reads and not cond:
            raise UserError(f"denoiser: this run was trained with a condition: give {', '.join(reads)} of each sample")
        else:
            fields = cond or {}
            requests = Requests(len(fields[reads[0]]) if reads else 0, fields)
            made = batch_arrays(system.conditioner, list(enumerate(requests)), seed=0)
            arrays = jax.tree.map(jnp.asarray, made)
            condition = system.conditioner(arrays, restored.frozen.conditioner)
            if system.conditioner.has_null:
                null = system.conditioner.null(arrays, restored.frozen.conditioner)
            guided = system.guidance(restored.model, condition, null)
        return denoiser(guided, system.prediction, system.transforms(restored.frozen.first_stage))

    def log(self) -> dict[str, np.ndarray]:
        """The log by column, float64 [lines], NaN in the lines that lack one."""
        return self.folder.log()

    def _request(self, num: int | None, request: Mapping[str, Any]) -> SampleRequest:
        """A request whose names that are no fields of `SampleRequest` are fields of records."""
        own = {name: value for name, value in request.items() if name in SampleRequest.__dataclass_fields__}
        fields = {name: value for name, value in request.items() if name not in own}
        if fields:
            own["fields"] = fields
        return SampleRequest(num=num, **own)

    def _repr_png_(self) -> bytes | None:
        """The last grid of samples, for notebooks."""
        return self.folder.last_picture()

    def _repr_html_(self) -> str:
        """The run and its last grid of samples, for notebooks."""
        picture = self.folder.last_picture()
        steps = f"step {self.step:,} of {self.config.train.steps:,}"
        text = f"<p>{html.escape(str(self.folder))}: {self.kind.trains}, {steps}</p>"
        if picture is None:
            return text
        return f'{text}<img src="data:image/png;base64,{b64encode(picture).decode()}">'


def open_run(path: epath.PathLike, step: str | int = "latest") -> Run:
    """Opens a run at a checkpoint; arguments and errors as of `Run`."""
    return Run(path, step)


def load_config(config: Config, overrides: Overrides = ()) -> ml_collections.ConfigDict:
    """A complete config.

    Args:
      config: "FILE.py" or "FILE.py:VARIANT", or the sections and keys themselves.
      overrides: {"optimizer.lr": 3e-4}, or arguments as of the command line, "--config.optimizer.lr=3e-4".

    Raises:
      UserError: a missing file, an unknown section, key or name, or a value of another type.
    """
    if isinstance(config, str):
        written = config_lib.read_config(config)
    else:
        written = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
    words = overrides
    if isinstance(overrides, Mapping):
        words = [f"{config_lib.OVERRIDE}{key}={value}" for key, value in overrides.items()]
    return config_lib.override(written, list(words), kind_of(written).schema)


def train(
    config: Config,
    workdir: epath.PathLike,
    overrides: Overrides = (),
    init_from: str | None = None,
    allow_changes: bool = False,
    resume_step: str | int | None = None,
) -> Run:
    """Trains a config, or continues the run in a folder.

    Args:
      config: see `load_config`.
      workdir: the folder, on a disk or in a bucket; made if missing.
      overrides: see `load_config`.
      init_from: "RUN[:STEP]" whose weights a new run begins with.
      allow_changes: let a run go on with another learning rate, schedule, clipping or decay.
      resume_step: the checkpoint to go on from; newer ones are deleted. None takes the newest.

    Returns:
      The run at its last step, or where a signal stopped it.

    Raises:
      UserError: a config that does not fit its data, the devices or the run in the folder; a loss that is not finite.
    """
    from diffusion_jax.training.loop import train as run_training
    from diffusion_jax.training.start import StartOptions

    how = StartOptions(init_from, allow_changes, None if resume_step is None else str(resume_step))
    run_training(load_config(config, overrides), workdir, how)
    return Run(workdir)


def backbone(name: str, seed: int = 0, **options: Any) -> nnx.Module:
    """A published network at its initialisation, on the default device.

    Args:
      name: of a preset, such as "dit-s/2"; `diffusion-jax models` lists them.
      seed: decides the weights, 0 ≤ seed < 2³².
      **options: options of the network that replace those of the preset, such as `depth`.

    Raises:
      UserError: there is no such preset or option.
    """
    return jax.jit(lambda key: preset(name).make(key, **options))(jax.random.key(seed))


def _params(system: Any) -> Params:
    return system.sample.params if isinstance(system, DiffusionSystem) else "ema"
