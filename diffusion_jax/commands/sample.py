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

import functools
from typing import TYPE_CHECKING, Any

from absl import flags

from diffusion_jax.commands.flags import define_float, define_process_flags, start_process

if TYPE_CHECKING:
    from diffusion_jax.sampling.request import SampleRequest

GRID = 100


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
    text, number = flags.DEFINE_string, flags.DEFINE_integer
    real = functools.partial(define_float, values)
    text("workdir", None, "The run to sample from.", flag_values=values)
    number("num", None, "Number of samples.", lower_bound=1, flag_values=values)
    what = "balanced (default), uniform, or a list of numbers, ranges and names of classes (3,3,7 or 0-9 or cat,dog)."
    text("labels", None, what, flag_values=values)
    text("sampler", None, "The sampler; by default the config's.", flag_values=values)
    number("steps", None, "Sampler steps; by default the config's.", lower_bound=1, flag_values=values)
    real("cfg_scale", None, "Guidance scale, 1 for none; by default the config's.")
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
    real("guide_scale", 2.0, "Autoguidance scale, 1 for none.")
    text("classifier_workdir", None, "A run that trained a noisy classifier to guide by.", flag_values=values)
    text("classifier_step", "latest", "Its checkpoint's step.", flag_values=values)
    real("classifier_scale", 1.0, "Factor of the classifier's gradient.")
    text("similarity", None, "A function of your own to guide by, package.module:function.", flag_values=values)
    real("similarity_scale", 1.0, "Factor of its gradient.")
    define_process_flags(values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    start_process(values)
    import numpy as np

    from diffusion_jax.api import open_run
    from diffusion_jax.errors import UserError
    from diffusion_jax.files import check_writable, user_path
    from diffusion_jax.parallel import processes
    from diffusion_jax.pictures import grid, save
    from diffusion_jax.sampling.saved_images import SavedImages

    out = user_path(values.out)
    archive = out / "samples.npz"
    if archive.exists() and not values.overwrite:
        raise UserError(f"--out {out}: samples.npz is already there; use another folder or --overwrite")
    drawn = open_run(values.workdir, values.step).draw(sample_request(values))
    check_writable(archive, "--out")  # last, so that a mistake leaves no folder
    shown: list[np.ndarray] = []
    for batch in SavedImages(drawn, archive).batches():
        shown.extend(batch["image"][: GRID - len(shown)])
    if processes.is_main():
        save(grid(np.stack(shown), drawn.captions(GRID), columns=10), out / "samples.png")
        print(f"{archive}\n{out / 'samples.png'}")


def sample_request(values: flags.FlagValues) -> "SampleRequest":
    """What the flags ask for."""
    from diffusion_jax.errors import UserError
    from diffusion_jax.sampling.request import SampleRequest

    if values.num is None:
        raise UserError("--workdir needs --num, the number of samples to draw")
    named: dict[str, Any] = {name: values[name].value for name in SampleRequest.__dataclass_fields__ if name in values}
    return SampleRequest(**{**named, "overrides": tuple(values.overrides)})
