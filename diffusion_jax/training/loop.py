"""The training loop: start or resume, step, log, sample, save."""

import collections
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np

from diffusion_jax import config as config_lib
from diffusion_jax.data import Source, batches, open_source
from diffusion_jax.errors import UserError
from diffusion_jax.parallel import processes
from diffusion_jax.parallel.mesh import batch_parts, local_rows, make_mesh, replicated, to_global
from diffusion_jax.parallel.peak import peak_flops_per_second
from diffusion_jax.training.checkpoints import Checkpoints, versions
from diffusion_jax.training.evaluation import TrainingEvaluation
from diffusion_jax.training.generation import draw_grid, grid_stream
from diffusion_jax.training.metrics import MetricWriter, ProgressLine
from diffusion_jax.training.setup import abstract_state, new_state, shardings_of
from diffusion_jax.training.signals import StopRequest
from diffusion_jax.training.state import TrainState
from diffusion_jax.training.step import TIME_BUCKETS, make_train_step
from diffusion_jax.training.system import SCHEMA, DatasetFacts, System

# Steps in flight: enough to hide the host's work, few enough that waiting batches take no memory to speak of.
AHEAD = 2

# Sections and keys that decide the numbers of a run; a run resumes only where they agree.
IDENTITY_SECTIONS = (
    "conditioner",
    "autoencoder",
    "model",
    "path",
    "prediction",
    "loss",
    "timesteps",
    "alignment",
    "optimizer",
    "ema",
)
IDENTITY_KEYS = {
    f"data.{key}" for key in ("name", "split", "image_size", "channels", "flip", "exif_orientation", "crop")
}
IDENTITY_KEYS |= {f"train.{key}" for key in ("batch_size", "seed", "ema_widths")}
# Change memory or speed, not numbers.
FREE_KEYS = ("model.remat",)


def train(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Trains a diffusion model, continuing from the newest checkpoint in `workdir` if there is one.

    Writes `config.json`, `metrics.jsonl`, `checkpoints/STEP`, `samples/STEP.png` and, where the config asks for them,
    `evaluations/STEP.json`, `best/STEP` and `snapshots/STEP` into `workdir`. SIGTERM and SIGINT
    save and return; the same call then resumes.

    Args:
      config: a complete config.
      workdir: the run's folder, made if missing.

    Raises:
      UserError: the config does not fit its data, mesh or the run already in `workdir`; the loss is not finite.
    """
    source = open_source(SCHEMA["data"].build("data", config.data))
    system = System(config, DatasetFacts.of(source))
    mesh = make_mesh(system.build("mesh"))
    rows = local_rows(mesh, system.train.batch_size)
    if (system.train.batch_size // system.train.microbatches) % batch_parts(mesh):
        raise UserError(
            f"train.microbatches={system.train.microbatches} cuts train.batch_size={system.train.batch_size} into "
            f"parts that do not divide over {batch_parts(mesh)} batch shards (mesh data × fsdp)"
        )
    optimizer, learning_rate = system.build("optimizer")
    abstract = abstract_state(system, optimizer, mesh)

    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir, keep=system.train.keep, keep_every=system.train.keep_every)
    if checkpoints.steps():
        step = checkpoints.choose("latest")
        check_same_run(config, checkpoints.metadata(step)["config"], workdir)
        state = TrainState(**checkpoints.read(step, abstract._asdict()))
    else:
        step = 0
        state = new_state(system, optimizer, abstract)
    metadata = {
        "config": config.to_dict(),
        "versions": versions(),
        "data": {**vars(system.facts), "class_names": list(system.facts.class_names)},
    }
    if processes.is_main():
        (workdir / "config.json").write_text(config_lib.to_json(config) + "\n")
        parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract.model))
        print(
            f"{'resuming at' if step else 'starting at'} step {step} of {system.train.steps}: "
            f"{parameters:,} parameters, {len(source):,} images, mesh {dict(mesh.shape)}",
            file=sys.stderr,
        )
    first_stage = jax.device_put(system.load_first_stage(), replicated(mesh))
    step_function = jax.jit(
        make_train_step(system, optimizer, mesh),
        donate_argnums=0,
        out_shardings=(shardings_of(abstract), replicated(mesh)),
    )
    loop = Loop(system, mesh, checkpoints, metadata, workdir, learning_rate)
    loop.run(state, step, step_function, first_stage, source, rows)


def check_same_run(config: ml_collections.ConfigDict, stored: dict[str, Any], workdir: pathlib.Path) -> None:
    """Refuses to continue a run under a config that would have given other numbers.

    Raises:
      UserError: names the first key that differs.
    """
    old = config_lib.complete(stored, SCHEMA)
    for key, (before, now) in config_lib.differences(old, config).items():
        decisive = key.partition(".")[0] in IDENTITY_SECTIONS or key in IDENTITY_KEYS
        if decisive and key not in FREE_KEYS:
            raise UserError(
                f"{workdir} holds a run with {key}={before!r}, not {now!r}: set it back to resume, or use another "
                "--workdir"
            )


class Loop:
    """The part of a run that repeats.

    Args:
      system: the run's parts.
      mesh: the mesh.
      checkpoints: where to save.
      metadata: what to save beside the state.
      workdir: the run's folder.
      learning_rate: of a step.
    """

    def __init__(
        self,
        system: System,
        mesh: jax.sharding.Mesh,
        checkpoints: Checkpoints,
        metadata: dict[str, Any],
        workdir: pathlib.Path,
        learning_rate: Callable[[int], jax.Array],
    ):
        self.system, self.mesh, self.checkpoints = system, mesh, checkpoints
        self.metadata, self.workdir, self.learning_rate = metadata, workdir, learning_rate
        self.saved: int | None = None
        self.snapshots = Checkpoints(workdir, folder="snapshots") if system.train.ema_widths else None
        self.stream = grid_stream(system, mesh) if system.train.sample_every else None
        self.evaluation = TrainingEvaluation(system, mesh, workdir) if system.train.eval_every else None

    def run(
        self, state: TrainState, step: int, step_function: Callable, first_stage: Any, source: Source, rows: np.ndarray
    ) -> None:
        """Steps from `step` to the end of the run, or until a signal."""
        train, data = self.system.train, self.system.data
        self.saved = step if self.checkpoints.steps() else None
        main = processes.is_main()
        writer = MetricWriter(self.workdir, step) if main else None
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
        )
        pending: list[dict[str, jax.Array]] = []
        in_flight: collections.deque[jax.Array] = collections.deque()
        bad_images = 0
        start, clock = step, time.perf_counter()
        try:
            with StopRequest() as stop:
                while step < train.steps:
                    batch = next(reader)
                    bad_images += int(batch.pop("bad_images"))
                    sharded = to_global(self.mesh, train.batch_size, batch)
                    # Around the step alone: what scores samples computes on devices of its own choice.
                    with jax.set_mesh(self.mesh):
                        state, metrics = step_function(state, first_stage, sharded)
                    step += 1
                    if step == start + 1:
                        clock = time.perf_counter()  # speed is counted without the compilation
                    pending.append(metrics)
                    in_flight.append(metrics["loss"])
                    if len(in_flight) > AHEAD:
                        in_flight.popleft().block_until_ready()
                    line.step(step)

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
                        seconds = (time.perf_counter() - clock) / len(pending)
                        scalars |= self.speed(seconds) | {"bad_images": bad_images}
                        line.report(step, scalars["loss"], scalars["images_per_second"], seconds)
                        if self.evaluation and evaluating:
                            scalars |= self.evaluation(state, step, first_stage, self.metadata)
                        if writer:
                            writer.write(step, scalars)
                        pending = []
                    if saving or stopping:
                        self.checkpoints.save(step, state._asdict(), self.metadata)
                        self.saved = step
                    if self.snapshots and train.snapshot_every and (last or step % train.snapshot_every == 0):
                        tracks = dict(zip(map(str, train.ema_widths), state.tracks, strict=True))
                        self.snapshots.save(step, tracks, self.metadata)
                    if train.sample_every and self.stream and (last or step % train.sample_every == 0):
                        params = state.ema if self.system.sample.params == "ema" else state.model
                        draw_grid(
                            self.system, self.stream, params, first_stage, self.workdir / f"samples/{step:08}.png"
                        )
                    if stopping:
                        if main:
                            print(
                                f"{stop.signal_name or 'stop'}: saved step {step}; run again to resume", file=sys.stderr
                            )
                        break
                    if reporting:
                        clock = time.perf_counter()
            self.checkpoints.close()
            for further in (self.snapshots, self.evaluation):
                if further:
                    further.close()
        finally:
            reader.close()
            line.close()
            if writer:
                writer.close()

    def check_finite(self, pending: list[dict[str, jax.Array]], step: int) -> None:
        """Stops the run at the first loss that is not finite, before it can be saved.

        Raises:
          UserError: names the step and the last good checkpoint.
        """
        for number, loss in enumerate(
            jax.device_get([metrics["loss"] for metrics in pending]), step - len(pending) + 1
        ):
            if not np.isfinite(loss):
                kept = "nothing was saved" if self.saved is None else f"step {self.saved} is the last good checkpoint"
                self.checkpoints.wait()
                raise UserError(
                    f"the loss of step {number} is {loss}: stopped, and {kept}; lower optimizer.lr or set "
                    "optimizer.clip_norm"
                )

    def summarise(self, pending: list[dict[str, jax.Array]], step: int) -> dict[str, float]:
        """Averages the metrics of the steps since the last report."""
        fetched = jax.device_get(pending)
        scalars = {
            name: float(np.mean([metrics[name] for metrics in fetched]))
            for name in fetched[0]
            if name not in ("loss_sum", "count")
        }
        loss_sum, count = (np.sum([metrics[name] for metrics in fetched], axis=0) for name in ("loss_sum", "count"))
        for i in range(TIME_BUCKETS):
            if count[i]:
                low, high = i / TIME_BUCKETS, (i + 1) / TIME_BUCKETS
                scalars[f"loss_t_{low:.2f}_{high:.2f}"] = float(loss_sum[i] / count[i])
        return {**scalars, "learning_rate": float(self.learning_rate(step - 1))}

    def speed(self, seconds_per_step: float) -> dict[str, float]:
        """Images per second, and the share of the devices' peak that the backbone's counted FLOPs make up."""
        images_per_second = self.system.train.batch_size / seconds_per_step
        mfu = images_per_second * self.system.train_flops_per_image() / peak_flops_per_second()[0]
        return {"images_per_second": images_per_second, "seconds_per_step": seconds_per_step, "mfu": mfu}
