"""Draws samples from a checkpoint.

    diffusion-jax sample --workdir runs/digits --out samples --num 100 --labels 0-9 --cfg-scale 2
    diffusion-jax sample --workdir runs/dit_xl2 --out fid50k --num 50000 --labels uniform --sampler ddpm --steps 250

Writes samples.npz (arr_0: uint8 [N, H, W, 3], arr_1: int labels; the format of ADM's evaluation) and samples.png, a
labelled grid of the first ones; an unconditional model's samples have no labels. `info` in the .npz says how they were
drawn and made 8-bit: rounded to nearest, or by the rule of the evaluation that --protocol names. Sample i is a function
of the checkpoint, its label, --seed and i: neither the number of samples nor the batch size nor the number of devices
changes it. All images of a batch are drawn, wanted or not: for a few samples a --batch-size of their number saves time.

--similarity package.module:function guides by any differentiable function of (predicted images [B, H, W, C] in [-1, 1],
labels [B]) that gives [B] numbers: a likelihood, a measurement, a scaled similarity to a caption.

--known FILE.npz fills images in: `image` uint8 [N, H, W, 3], `mask` [N, H, W], not 0 where a pixel is known and stays.

Everything that the run's config says of sampling can be overridden, for example --config.sampler.eta=1 or
--config.guidance.interval="(0.3, 2.0)"; `diffusion-jax samplers` lists the samplers and their options.
"""

import operator
from typing import TYPE_CHECKING, Any

from absl import flags

from diffusion_jax.commands.flags import define_process_flags, start_process

if TYPE_CHECKING:
    from diffusion_jax.runs.system import System
    from diffusion_jax.sampling.generation import Guides

GRID = 100
SECTIONS = ("sampler", "guidance", "sample")


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("out", None, "Folder for samples.npz and samples.png.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace samples already in --out.", flag_values=values)
    flags.DEFINE_string(
        "protocol", None, "Make the samples 8-bit by the rule of this evaluation protocol.", flag_values=values
    )
    define_run_flags(values)
    flags.mark_flags_as_required(["workdir", "out", "num"], flag_values=values)


def define_run_flags(values: flags.FlagValues) -> None:
    """Adds the flags that say what to sample from and how."""
    text, number, real = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float
    text("workdir", None, "The run to sample from.", flag_values=values)
    number("num", None, "Number of samples.", lower_bound=1, flag_values=values)
    text("labels", None, "balanced (default), uniform, a range (0-9) or a list (3,3,7).", flag_values=values)
    text("sampler", None, "The sampler; by default the config's.", flag_values=values)
    number("steps", None, "Sampler steps; by default the config's.", lower_bound=1, flag_values=values)
    real("cfg_scale", None, "Guidance scale, 1 for none; by default the config's.", flag_values=values)
    number("seed", 0, "Seed of the samples.", lower_bound=0, upper_bound=2**32 - 1, flag_values=values)
    flags.DEFINE_enum("params", None, ["ema", "raw"], "Which weights; by default the config's.", flag_values=values)
    text("step", "latest", "The checkpoint's step, or latest.", flag_values=values)
    number(
        "batch_size", None, "Images at once on each device; by default the config's.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_list("overrides", [], "Filled with the --config.… arguments.", flag_values=values)
    text("known", None, "A .npz of images and masks: pixels that the samples keep.", flag_values=values)
    text("guide_workdir", None, "A weaker run of the same kind for autoguidance.", flag_values=values)
    text("guide_step", "latest", "Its checkpoint's step.", flag_values=values)
    real("guide_scale", 2.0, "Autoguidance scale, 1 for none.", flag_values=values)
    text("classifier_workdir", None, "A run that trained a noisy classifier to guide by.", flag_values=values)
    text("classifier_step", "latest", "Its checkpoint's step.", flag_values=values)
    real("classifier_scale", 1.0, "Factor of the classifier's gradient.", flag_values=values)
    text("similarity", None, "A function of your own to guide by, package.module:function.", flag_values=values)
    real("similarity_scale", 1.0, "Factor of its gradient.", flag_values=values)
    define_process_flags(values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    start_process(values)
    import numpy as np

    from diffusion_jax.errors import UserError
    from diffusion_jax.files import user_path
    from diffusion_jax.parallel import processes
    from diffusion_jax.pictures import grid, save
    from diffusion_jax.sampling.request import GeneratedImages

    out = user_path(values.out)
    archive = out / "samples.npz"
    if archive.exists() and not values.overwrite:
        raise UserError(f"--out {out}: samples.npz is already there; use another folder or --overwrite")
    generated = GeneratedImages(values, archive)
    shown: list[np.ndarray] = []
    for batch in generated.batches():
        shown.extend(batch["image"][: GRID - len(shown)])
    if processes.is_main():
        save(grid(np.stack(shown), generated.captions(GRID), columns=10), out / "samples.png")
        print(f"{archive}\n{out / 'samples.png'}")


def sampling_overrides(values: flags.FlagValues) -> list[str]:
    """The config overrides that the flags amount to; raises UserError for any that would change the model."""
    from diffusion_jax.config import OVERRIDE
    from diffusion_jax.errors import UserError

    named = {
        "sampler.name": values.sampler,
        "sampler.steps": values.steps,
        "guidance.cfg_scale": values.cfg_scale,
        "sample.params": values.params,
        "sample.batch_size": values.batch_size,
    }
    overrides = [f"{OVERRIDE}{key}={value}" for key, value in named.items() if value is not None] + values.overrides
    for word in overrides:
        if word.startswith(OVERRIDE) and not word.startswith(tuple(f"{OVERRIDE}{section}." for section in SECTIONS)):
            raise UserError(f"{word}: a trained model's config is fixed but for {', '.join(SECTIONS)}")
    return overrides


def open_guides(values: flags.FlagValues, system: "System") -> "Guides":
    """Opens the runs that --guide-workdir and --classifier-workdir name, and the function that --similarity names."""
    from diffusion_jax.diffusion.guidance import Autoguidance
    from diffusion_jax.errors import UserError
    from diffusion_jax.imports import import_function
    from diffusion_jax.sampling.generation import Guides

    weak = classifier = None
    if values.guide_workdir is not None:
        same = ("path", "prediction", "latent_shape", "conditioner")
        weak = open_guide("--guide-workdir", values.guide_workdir, values.guide_step, system, same)
    if values.classifier_workdir is not None:
        parts = ("path", "latent_shape", "facts.num_classes")
        where = values.classifier_workdir
        classifier = open_guide("--classifier-workdir", where, values.classifier_step, system, parts, classifies=True)
        if system.prediction.kind == "edm":
            raise UserError(
                "--classifier-workdir: an 'edm' prediction is told another time than a classifier; guide a model of "
                "another prediction"
            )
    similarity = None if values.similarity is None else import_function("--similarity", values.similarity)
    return Guides(
        weak,
        Autoguidance(scale=values.guide_scale),
        classifier,
        values.classifier_scale,
        similarity,
        values.similarity_scale,
    )


def open_guide(
    flag: str, workdir: str, step: str, system: "System", parts: tuple[str, ...], classifies: bool = False
) -> Any:
    """The model of a run that is to guide another; raises a `UserError` unless the named parts of both are the same."""
    from diffusion_jax.errors import UserError
    from diffusion_jax.runs.open_run import restore_for_sampling

    other, _, model, _ = restore_for_sampling(workdir, step)
    if other.classifies != classifies:
        kind, right = ("classifier", "--classifier-workdir") if other.classifies else ("generator", "--guide-workdir")
        raise UserError(f"{flag} {workdir}: that run trained a {kind}; name it as {right}")
    for part in parts:
        theirs, ours = (operator.attrgetter(part)(each) for each in (other, system))
        if theirs != ours:
            raise UserError(f"{flag} {workdir}: its {part} is {theirs}, which cannot guide {ours}")
    return model
