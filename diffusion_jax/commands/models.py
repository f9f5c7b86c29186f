"""Lists the published models and first stages with their parameters, multiply-adds of a forward pass and tokens.

    diffusion-jax models
    diffusion-jax models --only dit-xl/2
    diffusion-jax models --only 'dit-*/2' --count

GMAC are 10⁹ multiply-adds for one image of the input shape (of a first stage, to encode and to decode it), tokens the
length of the longest sequence that is attended to. The figures are stored; --count counts them anew from shapes, up to
some seconds a model, and nothing is allocated. A config takes a model by `"model": preset(NAME).section()` and a first
stage by `"autoencoder": {"name": "kl", "preset": NAME}`, or "vq".
"""

import difflib
import fnmatch

from absl import flags


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("only", "*", "Name, or shell pattern of the names to list.", flag_values=values)
    flags.DEFINE_bool("count", False, "Count from shapes instead of reading the stored figures.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    from diffusion_jax.errors import UserError
    from diffusion_jax.models.presets import PRESETS
    from diffusion_jax.models.presets.counts import COUNTS
    from diffusion_jax.models.presets.first_stages import FIRST_STAGE_PRESETS, FirstStagePreset
    from diffusion_jax.models.presets.preset import Preset

    models: dict[str, Preset | FirstStagePreset] = {**PRESETS, **FIRST_STAGE_PRESETS}
    names = fnmatch.filter(models, values.only)
    if not names:
        near = difflib.get_close_matches(values.only, models, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "`diffusion-jax models` lists all"
        raise UserError(f"--only={values.only}: matches no published model; {hint}")
    width = max(map(len, names)) + 2
    print(f"{'name':<{width}}{'parameters':>14}{'published':>12}{'GMAC':>10}{'tokens':>8}  input", flush=True)
    for name in names:
        model = models[name]
        parameters, macs, tokens = model.count() if values.count or name not in COUNTS else COUNTS[name]
        published, shape = model.published or "–", "×".join(map(str, model.input_shape))
        print(
            f"{name:<{width}}{parameters:>14,}{published:>12}{macs / 1e9:>10.2f}{tokens or '–':>8}  {shape}", flush=True
        )
