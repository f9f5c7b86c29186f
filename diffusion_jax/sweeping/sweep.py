"""Sweeps: what a sweep file returns, the runs that it means, and how far each of them is."""

import dataclasses
import functools
import json
import pathlib
import runpy
import sys
from collections.abc import Sequence

import jax
import ml_collections
from etils import epath

from diffusion_jax.autoencoding.system import AutoencoderSystem
from diffusion_jax.config import OVERRIDE, override, read_config
from diffusion_jax.data import DataConfig, open_source
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.errors import UserError
from diffusion_jax.runs.folder import LOG, RunFolder, read_metadata
from diffusion_jax.runs.kinds import kind_of
from diffusion_jax.sweeping.grid import SweepPoint, names
from diffusion_jax.training.start import check_same_run


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What `get_sweep()` of a sweep file returns.

    Attributes:
      config: the base config, FILE.py or FILE.py:VARIANT.
      points: the runs, see `product` and `zipped`; lists of points are joined with +.
      fixed: overrides of all runs, not part of their names.
      metrics: what the report shows, names of `metrics.jsonl`.
    """

    config: str
    points: Sequence[SweepPoint]
    fixed: SweepPoint = dataclasses.field(default_factory=dict)
    metrics: tuple[str, ...] = ("loss",)


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
      name: its name, see `names`.
      point: its overrides without the fixed ones.
      workdir: its folder.
      arguments: those of `diffusion-jax train`.
      steps: steps in all.
    """

    name: str
    point: SweepPoint
    workdir: epath.Path
    arguments: tuple[str, ...]
    steps: int

    @property
    def step(self) -> int:
        """The step of its newest checkpoint, 0 if there is none."""
        folder = RunFolder(self.workdir)
        return max(folder.checkpoints(read_only=True).steps(), default=0) if folder.is_run else 0

    @property
    def finished(self) -> bool:
        return self.step >= self.steps

    @property
    def command(self) -> list[str]:
        """What trains it, with this interpreter."""
        return [sys.executable, "-m", "diffusion_jax", "train", *self.arguments]

    def log(self) -> list[dict[str, float]]:
        """The lines of its `metrics.jsonl`, without one that is being written."""
        path = self.workdir / LOG
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]


def read_sweep(file: str) -> Sweep:
    """Runs a sweep file.

    Raises:
      UserError: there is no such file, it has no `get_sweep`, or that returns something else than a `Sweep` of points.
    """
    if not pathlib.Path(file).is_file():
        raise UserError(f"--sweep {file}: there is no such file; sweeps are files such as configs/sweeps/digits_lr.py")
    try:
        function = runpy.run_path(file).get("get_sweep")
    except SyntaxError as error:
        raise UserError(f"--sweep {file}: {error}") from None
    sweep = function() if callable(function) else None
    if not isinstance(sweep, Sweep):
        raise UserError(f"--sweep {file}: needs a function get_sweep() that returns a diffusion_jax.sweeping.Sweep")
    if not sweep.points:
        raise UserError(f"--sweep {file}: has no points")
    return sweep


def planned_runs(sweep: Sweep, workdir: epath.Path) -> list[PlannedRun]:
    """The runs of a sweep, each with a config that has been checked, so that none fails for it in the middle.

    Args:
      sweep: the sweep.
      workdir: its folder; runs have theirs in it.

    Raises:
      UserError: a point overrides what there is not or with a wrong value, or gives parts that do not fit together, or
        its folder holds a run of another config; names the point.
    """
    written = read_config(sweep.config)
    facts = functools.cache(_facts)
    runs = []
    for name, point in zip(names(sweep.points), sweep.points, strict=True):
        overrides = [f"{OVERRIDE}{key}={value}" for key, value in {**sweep.fixed, **point}.items()]
        folder = workdir / name
        try:
            config = override(written, overrides, kind_of(written).schema)
            _check(config, facts(DataConfig(**config.data), kind_of(written).system.reads(config)))
            _check_folder(config, RunFolder(folder))
        except UserError as error:
            raise UserError(f"run '{name}': {error}") from None
        arguments = (f"--config={sweep.config}", *overrides, f"--workdir={folder}")
        runs.append(PlannedRun(name, dict(point), folder, arguments, config.train.steps))
    return runs


def _facts(data: DataConfig, reads: tuple[str, ...]) -> DatasetFacts:
    return DatasetFacts.of(open_source(data, reads))


def _check(config: ml_collections.ConfigDict, facts: DatasetFacts) -> None:
    """Builds the parts of a run and the shapes of its model; the mesh is left to the machine that trains it."""
    system = kind_of(config).system(config, facts)
    if isinstance(system, AutoencoderSystem):
        jax.eval_shape(system.init_state)
    else:
        system.build("optimizer")
        jax.eval_shape(system.init_model)


def _check_folder(config: ml_collections.ConfigDict, folder: RunFolder) -> None:
    if folder.is_run:
        checkpoints = folder.checkpoints(read_only=True)
        if checkpoints.steps():
            check_same_run(config, read_metadata(checkpoints, checkpoints.choose("latest")), folder)
