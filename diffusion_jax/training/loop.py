"""The training loop: start or resume, step, log, sample, save."""

import collections
import contextlib
import functools
import sys
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from diffusion_jax.data import Feed, Source, batches, open_source
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.data.survey import classes_of, survey
from diffusion_jax.errors import UserError
from diffusion_jax.models.frozen import Frozen
from diffusion_jax.models.layers.attention_kernels import attention_kernel, platform_kernel
from diffusion_jax.parallel import processes
from diffusion_jax.parallel.create import shardings_of
from diffusion_jax.parallel.mesh import batch_parts, local_rows, replicated, to_global
from diffusion_jax.parallel.peak import peak_flops_per_second
from diffusion_jax.runs.checkpoints import Checkpoints
from diffusion_jax.runs.folder import RunFolder
from diffusion_jax.runs.kinds import kind_of
from diffusion_jax.runs.metadata import RunMetadata
from diffusion_jax.sections import ProfiledSteps
from diffusion_jax.training.profiling import Profiler
from diffusion_jax.training.run_log import MetricWriter, ProgressLine, write_parameter_table
from diffusion_jax.training.signals import StopRequest
from diffusion_jax.training.stage import Metrics, Stage, Step
from diffusion_jax.training.stages import STAGES
from diffusion_jax.training.start import StartOptions, doubts, start
from diffusion_jax.training.timing import Timing

# Steps in flight: enough to hide the host's work, few enough that waiting batches take no memory to speak of.
AHEAD = 2


def train(config: ml_collections.ConfigDict, workdir: epath.PathLike, how: StartOptions | None = None) -> bool:
    """Trains what a config says, continuing from the newest checkpoint in the folder if there is one.

    Writes what `RunFolder` describes. SIGTERM and SIGINT save and return; the same call then resumes.

    Args:
      config: a complete config, of the schema of its kind.
      workdir: the run's folder, on a disk or in a bucket; made if missing.
      how: how the run is to begin or go on; None does neither in a special way.

    Returns:
      Whether the run is at its end; False after a signal.

    Raises:
      UserError: the config does not fit its data, mesh or the run already in `workdir`; the loss is not finite.
    """
    kind, folder = kind_of(config), RunFolder(workdir)
    source = open_source(kind.schema["data"].build("data", config.data), kind.system.reads(config))
    for note in survey(source):
        if processes.is_main():
            print(note, file=sys.stderr)
    stage: Stage = STAGES[kind.name](config, DatasetFacts.of(source))
    settings, mesh = stage.train, stage.mesh
    rows = local_rows(mesh, settings.batch_size)
    if (settings.batch_size // settings.microbatches) % batch_parts(mesh):
        raise UserError(
            f"train.microbatches={settings.microbatches} cuts train.batch_size={settings.batch_size} into "
            f"parts that do not divide over {batch_parts(mesh)} batch shards (mesh data × fsdp)"
        )
    with folder.locked() if processes.is_main() else contextlib.nullcontext():
        return _train(config, stage, source, rows, folder, how or StartOptions())


def _train(
    config: ml_collections.ConfigDict,
    stage: Stage,
    source: Source,
    rows: np.ndarray,
    folder: RunFolder,
    how: StartOptions,
) -> bool:
    """Starts a stage that fits its mesh, and trains it to its end or a signal; see `train`."""
    settings, mesh = stage.train, stage.mesh
    kernel = platform_kernel(stage.attention, mesh.devices.flat[0].platform)
    abstract = stage.abstract_state()
    checkpoints = folder.checkpoints(keep=settings.keep, keep_every=settings.keep_every)
    state, step, metadata = start(config, stage, abstract, folder, checkpoints, how)
    if processes.is_main():
        folder.write_config(config)
        write_parameter_table(folder.path, abstract.model)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract.model))
        print(
            f"{'resuming at' if step else 'starting at'} step {step} of {settings.steps}: "
            f"{parameters:,} parameters, {len(source):,} images of {classes_of(source)}, "
            f"mesh {dict(mesh.shape)}, {kernel} attention",
            file=sys.stderr,
        )
        for doubt in doubts(config):
            print(f"warning: {doubt}", file=sys.stderr)
    frozen = jax.device_put(stage.load_frozen(), replicated(mesh))
    step_function = jax.jit(
        stage.make_step(),
        donate_argnums=0,
        out_shardings=(shardings_of(abstract), replicated(mesh)),
    )
    return Loop(stage, checkpoints, metadata, folder).run(state, step, step_function, frozen, source, rows)


class Loop:
    """The part of a run that repeats.

    Args:
      stage: what is trained.
      checkpoints: where to save.
      metadata: what to save beside the state.
      folder: the run's folder.
    """

    def __init__(self, stage: Stage, checkpoints: Checkpoints, metadata: RunMetadata, folder: RunFolder):
        self.stage, self.checkpoints, self.metadata, self.folder = stage, checkpoints, metadata, folder
        self.saved: list[int] = []
        self.all_finite = jax.jit(_all_finite)
        self.snapshots = folder.snapshots() if stage.train.ema_widths else None
        self.draw = stage.drawing() if stage.train.sample_every else None
        self.evaluation = stage.evaluation(folder) if stage.train.eval_every else None

    def run(self, state: Any, step: int, step_function: Step, frozen: Frozen, source: Source, rows: np.ndarray) -> bool:
        """Steps from `step` to the end of the run, or until a signal; returns whether the end was reached."""
        train, data, mesh = self.stage.train, self.stage.data, self.stage.mesh
        self.saved = list(self.checkpoints.steps())
        main = processes.is_main()
        writer = MetricWriter(self.folder.path, step) if main else None
        line = ProgressLine(step, train.steps, quiet=not main)
        reader = batches(
            source,
            seed=train.seed,
            batch_size=train.batch_size,
            rows=rows.tolist(),
            start_step=step,
            num_threads=data.num_threads,
            num_workers=data.num_workers,
            prefetch=data.prefetch,
            contents=self.stage.contents,
        )
        place = functools.partial(to_global, mesh, train.batch_size)
        feed = Feed(reader, place, data.num_threads, data.num_workers)
        pending: list[Metrics] = []
        in_flight: collections.deque[jax.Array] = collections.deque()
        start = step
        timing = Timing(writer.last if writer else None)
        profiler = Profiler(ProfiledSteps(train.profile, train.steps), self.folder.profile_path)
        try:
            with StopRequest() as stop:
                while step < train.steps:
                    batch = feed.take(lambda: jax.block_until_ready(list(in_flight)))
                    # Around the step alone: what scores samples computes on devices of its own choice.
                    with jax.set_mesh(mesh), attention_kernel(self.stage.attention):
                        state, metrics = step_function(state, frozen, batch)
                    step += 1
                    if step == start + 1:
                        timing.startup()  # speed is counted without the compilation
                        feed.restart()
                    pending.append(metrics)
                    in_flight.append(metrics["loss"])
                    if len(in_flight) > AHEAD:
                        in_flight.popleft().block_until_ready()
                    line.step(step)
                    profiler.after(step, state)

                    last = step == train.steps
                    evaluating = train.eval_every is not None and (last or step % train.eval_every == 0)
                    reporting = last or evaluating or step % train.log_every == 0
                    saving = last or step % train.save_every == 0
                    # All processes must leave at the same step, so several ask each other, and only when they report.
                    alone = jax.process_count() == 1
                    stopping = (alone or reporting) and processes.any_process(stop.signal_name is not None)
                    if reporting or saving or stopping:
                        self.check_finite(pending, step)
                    if reporting:
                        scalars = self.summarise(pending, step)
                        lap = timing.lap()
                        seconds = lap / len(pending)
                        scalars |= self.speed(seconds) | feed.summary(len(pending), lap)
                        line.report(step, scalars["loss"], scalars["images_per_second"], seconds)
                        if self.evaluation and evaluating:
                            with timing.aside("evaluation"):
                                scalars |= self.evaluation(state, step, frozen, self.metadata)
                        waited = scalars["input_seconds_per_step"] * len(pending)
                        scalars |= timing.summary(max(lap - waited, 0.0))
                        if writer:
                            writer.write(step, scalars)
                        pending = []
                    with timing.aside("checkpoint"):
                        if saving or stopping:
                            if writer:
                                writer.flush()  # a run that resumes writes no line of the steps before
                            self.check_weights(state, step)
                            facts = self.stage.checkpoint_facts(state)
                            self.checkpoints.save(step, state._asdict(), self.metadata.with_more(**facts).to_json())
                            self.saved.append(step)
                        if self.snapshots and train.snapshot_every and (last or step % train.snapshot_every == 0):
                            tracks = dict(zip(map(str, train.ema_widths), state.tracks, strict=True))
                            self.snapshots.save(step, tracks, self.metadata.to_json())
                    if self.draw and train.sample_every and (last or step % train.sample_every == 0):
                        with timing.aside("evaluation"):
                            self.draw(state, frozen, self.folder.picture_path(step))
                    if stopping:
                        if main:
                            print(
                                f"{stop.signal_name or 'stop'}: saved step {step}; run again to resume", file=sys.stderr
                            )
                        break
            self.checkpoints.close()
            for further in (self.snapshots, self.evaluation):
                if further:
                    further.close()
            return step >= train.steps
        finally:
            profiler.close()
            feed.close()
            line.close()
            if writer:
                writer.close()

    def check_finite(self, pending: list[Metrics], step: int) -> None:
        """Stops the run at the first loss or gradient that is not finite.

        Raises:
          UserError: names the step and the last good checkpoint.
        """
        seen = jax.device_get([(metrics["loss"], metrics["grad_norm"]) for metrics in pending])
        for number, (loss, norm) in enumerate(seen, step - len(pending) + 1):
            if not np.isfinite(loss):
                # The weights of the step before gave this loss, so their checkpoint is no good one.
                self.stop_for(f"the loss of step {number} is {loss}", before=number - 1)
            if not np.isfinite(norm):
                self.stop_for(f"the gradient of step {number} has norm {norm}", before=number)

    def check_weights(self, state: Any, step: int) -> None:
        """Stops the run before weights that are not finite are saved.

        Raises:
          UserError: names the step and the last good checkpoint.
        """
        with jax.set_mesh(self.stage.mesh):
            finite = bool(self.all_finite((state.model, state.ema)))
        if not finite:
            self.stop_for(f"the weights after step {step} are not finite", before=step)

    def stop_for(self, reason: str, before: int) -> NoReturn:
        """Stops the run; `before` is the first step whose checkpoint is not good."""
        self.checkpoints.wait()
        good = [step for step in self.saved if step < before]
        if good:
            kept = f"step {good[-1]} is the last good checkpoint"
            way = f"go on from it with --resume-step {good[-1]} --allow-changes and a lower optimizer.lr or "
        else:
            kept, way = "no good checkpoint was saved", "begin anew with a lower optimizer.lr or "
        raise UserError(f"{reason}: stopped, and {kept}; {way}optimizer.clip_norm set")

    def summarise(self, pending: list[Metrics], step: int) -> dict[str, float]:
        """Scalars for the log, from the metrics of the steps since the last report."""
        scalars = self.stage.summarise(jax.device_get(pending))
        return {**scalars, "learning_rate": float(self.stage.learning_rate(step - 1))}

    def speed(self, seconds_per_step: float) -> dict[str, float]:
        """Images per second, and the share of the devices' peak that the counted FLOPs make up."""
        images_per_second = self.stage.train.batch_size / seconds_per_step
        mfu = images_per_second * self.stage.flops_per_image() / peak_flops_per_second()[0]
        return {"images_per_second": images_per_second, "seconds_per_step": seconds_per_step, "mfu": mfu}


def _all_finite(tree: Any) -> jax.Array:
    """Whether all floating-point arrays of a tree are finite, a scalar bool."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()
