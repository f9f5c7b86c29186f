"""A plan: what the config's run needs on a topology, and how long it takes at least."""

import dataclasses
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import jax
import ml_collections

from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.errors import UserError
from diffusion_jax.parallel.collectives import Collective, by_kind
from diffusion_jax.parallel.mesh import batch_parts
from diffusion_jax.parallel.topology import Topology, absent_devices
from diffusion_jax.planning.advice import advice
from diffusion_jax.planning.analytic import absent_gpus, gradient_collectives, kept_activations, step_macs
from diffusion_jax.planning.bounds import Bound, bound
from diffusion_jax.planning.programs import (
    Compiled,
    Program,
    compile_program,
    device_bytes,
    frozen_networks,
    sample_program,
    train_batch,
    train_program,
)
from diffusion_jax.runs.kinds import kind_of
from diffusion_jax.training.diffusion_stage import ClassifierStage, DenoisingStage, DiffusionStage

# Pairs of compilations to find the largest batch; were memory linear in the batch, one would do.
ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one chip.

    Attributes:
      parameters: of the model.
      optimizer: its state.
      ema: all running averages.
      inputs: the first stage and the batch.
      work: activations, gradients and temporaries at the worst moment.
      available: what the chip has.
    """

    parameters: float
    optimizer: float
    ema: float
    inputs: float
    work: float
    available: float

    @property
    def total(self) -> float:
        """At the worst moment."""
        return self.parameters + self.optimizer + self.ema + self.inputs + self.work

    @property
    def fits(self) -> bool:
        """Whether that is there."""
        return self.total <= self.available


@dataclasses.dataclass(frozen=True)
class TrainPlan:
    """The train step.

    Attributes:
      memory: of a chip.
      bound: of the step's time; traffic is left out where the step does not fit.
      macs: multiply-adds of a step.
      model_flops: FLOPs of forward and backward pass through the backbone alone, by which MFU is counted.
      collectives: kind to (exchanges, bytes that leave each chip) in a step; None where the step does not fit.
      compile_seconds: of the compiler; None where nothing was compiled.
    """

    memory: Memory
    bound: Bound
    macs: int
    model_flops: float
    collectives: dict[str, tuple[int, float]] | None
    compile_seconds: float | None


@dataclasses.dataclass(frozen=True)
class SamplePlan:
    """Drawing one batch of samples.

    Attributes:
      images: of the batch.
      peak_bytes: of a chip.
      fits: whether they are there.
      macs: multiply-adds of the batch; None where the sampler chooses its steps as it goes.
      bound: of the time; traffic is left out where the program does not fit.
      collectives: as in `TrainPlan`.
      compile_seconds: of the compiler.
    """

    images: int
    peak_bytes: float
    fits: bool
    macs: int | None
    bound: Bound
    collectives: dict[str, tuple[int, float]] | None
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """All of it.

    Attributes:
      topology: the chips.
      mesh: sizes of the mesh's axes.
      batch_size: images per step.
      parameters: of the model.
      train: the train step.
      sample: the sampler; None where it was not asked for or nothing is compiled.
      largest_batch: the largest batch found to fit; None where it was not looked for, 0 where none fits.
      steps: train steps for as many images as the config's `train.steps` of its own batch.
      mfu: assumed share of the peak for `assumed_seconds`.
      assumed_seconds: of a step, by `mfu` or the bound, whichever is longer.
      warnings: where chips are wasted.
      seconds: that planning took.
    """

    topology: Topology
    mesh: dict[str, int]
    batch_size: int
    parameters: int
    train: TrainPlan
    sample: SamplePlan | None
    largest_batch: int | None
    steps: float
    mfu: float
    assumed_seconds: float
    warnings: tuple[str, ...]
    seconds: float

    @property
    def mfu_at_bound(self) -> float:
        """The share of the peak that the model's FLOPs would be if the step took no longer than its bound."""
        peak = self.topology.num_chips * self.topology.chip.flops
        return self.train.model_flops / (self.train.bound.seconds * peak)

    def chip_hours(self, seconds_per_step: float) -> float:
        """Chips × hours of the whole run."""
        return self.topology.num_chips * self.steps * seconds_per_step / 3600

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        fields = dataclasses.asdict(self)
        fields["topology"] |= {"num_chips": self.topology.num_chips, "chip": dataclasses.asdict(self.topology.chip)}
        for part in (fields["train"], fields["sample"]):
            if part:
                part["bound"] |= {"seconds": (of := self._bound(part is fields["train"])).seconds, "by": of.by}
        fields["train"]["memory"] |= {"total": self.train.memory.total, "fits": self.train.memory.fits}
        fields["mfu_at_bound"] = self.mfu_at_bound
        fields["chip_hours_at_bound"] = self.chip_hours(self.train.bound.seconds)
        fields["chip_hours_at_mfu"] = self.chip_hours(self.assumed_seconds)
        return fields

    def _bound(self, train: bool) -> Bound:
        return self.train.bound if train or self.sample is None else self.sample.bound


class Planner:
    """Plans a config on a topology.

    Args:
      config: a complete config of a diffusion model or noisy classifier.
      facts: what is known of the data.
      topology: the chips.
      thorough: compile as a run would, which takes minutes where a first stage's convolutions are compiled.

    Raises:
      UserError: parts that do not fit together, or the mesh; no libtpu.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, facts: DatasetFacts, topology: Topology, thorough: bool = False
    ):
        self.config, self.facts, self.topology, self.thorough = config, facts, topology, thorough
        self.compiles = topology.chip.platform == "tpu"
        self.devices: Sequence[Any] = absent_devices(topology) if self.compiles else absent_gpus(topology)

    def stage(self, batch_size: int, **train: Any) -> DenoisingStage:
        """The stage of the config's run with another batch."""
        sections = self.config.to_dict()
        sections["train"] |= {"batch_size": batch_size, **train}
        kind = ClassifierStage if kind_of(sections).name == "classifier" else DiffusionStage
        return kind(ml_collections.ConfigDict(sections), self.facts, self.devices)

    def plan(self, batch_size: int | None = None, mfu: float = 0.4, sampler: bool = True, largest: bool = True) -> Plan:
        """Makes the plan.

        Args:
          batch_size: images per step; None takes the config's.
          mfu: assumed share of the peak, 0 < mfu ≤ 1.
          sampler: whether to compile the sampler too.
          largest: whether to look for the largest batch that fits.

        Returns:
          The plan.

        Raises:
          UserError: the batch does not divide over the mesh.
        """
        start = time.perf_counter()
        published = self.config.train.batch_size
        batch_size = batch_size or published
        stage = self.stage(batch_size)
        unit = batch_parts(stage.mesh) * stage.train.microbatches
        if batch_size % unit:
            raise UserError(
                f"batch size {batch_size} does not divide over the {unit} parts of the mesh (data × fsdp × "
                f"train.microbatches): name a multiple of {unit} with --batch"
            )
        sampled = None
        if self.compiles:
            with ThreadPoolExecutor(2) as workers:
                drawing = None
                program = train_program(stage)
                training = workers.submit(compile_program, program, self.thorough)
                doubled = workers.submit(self.compile_step, 2 * batch_size) if largest else None
                if sampler and isinstance(stage, DiffusionStage):
                    drawn = sample_program(stage)
                    drawing = workers.submit(compile_program, drawn, self.thorough)
                compiled = training.result()
                trained = self.compiled_plan(stage, program, compiled)
                found = None
                if doubled:
                    known = {batch_size // unit: compiled, 2 * batch_size // unit: doubled.result()}
                    found = self.largest_batch(unit, known, workers)
                if drawing and isinstance(stage, DiffusionStage):
                    sampled = self.sample_plan(stage, drawn, drawing.result())
        else:
            trained = self.analytic_plan(stage)
            found = self.largest_analytic(unit, batch_size) if largest else None
        peak = self.topology.num_chips * self.topology.chip.flops
        result = Plan(
            topology=self.topology,
            mesh=dict(stage.mesh.shape),
            batch_size=batch_size,
            parameters=sum(leaf.size for leaf in jax.tree.leaves(stage.system.abstract_model)),
            train=trained,
            sample=sampled,
            largest_batch=found,
            steps=stage.train.steps * published / batch_size,
            mfu=mfu,
            assumed_seconds=max(trained.model_flops / (mfu * peak), trained.bound.seconds),
            warnings=tuple(advice(stage, self.topology, trained.bound)),
            seconds=0,
        )
        return dataclasses.replace(result, seconds=time.perf_counter() - start)

    def compiled_plan(self, stage: DenoisingStage, program: Program, compiled: Compiled) -> TrainPlan:
        """The plan of a step that was compiled."""
        memory = self.memory(stage, compiled.peak_bytes)
        if program.macs is None:
            raise ValueError("a train step has no loops of unknown length")
        # Temporaries that were alive together have each been written, and are read again.
        moved = program.argument_bytes + program.output_bytes + 2 * memory.work
        return TrainPlan(
            memory=memory,
            bound=bound(self.topology, program.macs, moved, compiled.collectives or ()),
            macs=program.macs,
            model_flops=stage.train.batch_size * stage.flops_per_image(),
            collectives=None if compiled.collectives is None else by_kind(compiled.collectives),
            compile_seconds=compiled.seconds,
        )

    def analytic_plan(self, stage: DenoisingStage) -> TrainPlan:
        """The plan of a step of which only shapes are known."""
        macs = stage.train.batch_size * step_macs(self.stage(1, microbatches=1))
        collectives: list[Collective] = gradient_collectives(stage, self.topology)
        memory = self.memory(stage, None)
        state = memory.parameters + memory.optimizer + memory.ema
        return TrainPlan(
            memory=memory,
            bound=bound(self.topology, macs, 2 * state + memory.inputs + 2 * memory.work, collectives),
            macs=macs,
            model_flops=stage.train.batch_size * stage.flops_per_image(),
            collectives=by_kind(collectives),
            compile_seconds=None,
        )

    def sample_plan(self, stage: DiffusionStage, program: Program, compiled: Compiled) -> SamplePlan:
        """The plan of the sampler."""
        work = max(compiled.peak_bytes - program.argument_bytes, 0)
        moved = program.argument_bytes + program.output_bytes + 2 * work
        return SamplePlan(
            images=stage.system.sample.batch_size * batch_parts(stage.mesh),
            peak_bytes=compiled.peak_bytes,
            fits=compiled.fits,
            macs=program.macs,
            bound=bound(self.topology, program.macs, moved, compiled.collectives or ()),
            collectives=None if compiled.collectives is None else by_kind(compiled.collectives),
            compile_seconds=compiled.seconds,
        )

    def memory(self, stage: DenoisingStage, peak_bytes: float | None) -> Memory:
        """The parts of a chip's memory; without a peak, the work space is gradients and kept activations."""
        state = stage.abstract_state()
        parts = {
            "parameters": device_bytes(state.model),
            "optimizer": device_bytes((state.optimizer, state.timesteps)),
            "ema": device_bytes((state.ema, state.tracks)),
            "inputs": device_bytes((frozen_networks(stage), train_batch(stage))),
        }
        work = kept_activations(stage) + parts["parameters"] if peak_bytes is None else peak_bytes - sum(parts.values())
        return Memory(**parts, work=max(work, 0), available=self.topology.chip.hbm)

    def compile_step(self, batch_size: int) -> Compiled:
        """What the compiler says of the train step with another batch."""
        return compile_program(train_program(self.stage(batch_size)), self.thorough)

    def largest_batch(self, unit: int, known: dict[int, Compiled], workers: Executor) -> int:
        """The largest batch that the compiler accepts, looked for along the line through what it said before.

        Args:
          unit: what batches are multiples of.
          known: what the compiler said of batches, by their number of units.
          workers: where to compile.

        Returns:
          The largest batch that was compiled and fits; 0 if none did.
        """
        for _ in range(ROUNDS):
            best = max((rows for rows, each in known.items() if each.fits), default=0)
            beyond = min((rows for rows, each in known.items() if not each.fits), default=best + 10**9)
            guess = min(max(next_rows(known, self.topology.chip.hbm), best + 1), beyond - 1)
            tried = [rows for rows in (guess, guess + 1) if best < rows < beyond]
            found = workers.map(self.compile_step, [rows * unit for rows in tried])
            known = known | dict(zip(tried, found, strict=True))
        return unit * max((rows for rows, each in known.items() if each.fits), default=0)

    def largest_analytic(self, unit: int, batch_size: int) -> int:
        """The largest batch whose parts, which are linear in it, are within a chip's memory."""
        one, two = (self.memory(self.stage(count * unit), None).total for count in (1, 2))
        return max(int((self.topology.chip.hbm - one) // (two - one)) + 1, 0) * unit


def next_rows(known: dict[int, Compiled], limit: float) -> int:
    """Where the line through the two compilations nearest to the limit reaches it; beyond all if it does not."""
    nearest = sorted(known.items(), key=lambda item: abs(item[1].peak_bytes - limit))[:2]
    (low, first), (high, second) = sorted(nearest)
    slope = (second.peak_bytes - first.peak_bytes) / (high - low)
    return int(low + (limit - first.peak_bytes) / slope) if slope > 0 else 2 * max(known)
