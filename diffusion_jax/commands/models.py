"""Lists the published models with their parameters, multiply-adds of a forward pass and tokens.

    diffusion-jax models
    diffusion-jax models --only 'dit-*/2'

Nothing is allocated: the figures are counted from shapes. GMAC are 10⁹ multiply-adds for one image of the input shape,
tokens the length of the longest sequence. A config takes a model by `"model": preset(NAME).section()`.
"""

import fnmatch

from absl import flags


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("only", "*", "Shell pattern of the names to list.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    import jax

    from diffusion_jax.errors import UserError
    from diffusion_jax.models.backbones import backbone_macs
    from diffusion_jax.models.presets import PRESETS

    names = fnmatch.filter(PRESETS, values.only)
    if not names:
        raise UserError(f"--only={values.only}: matches no published model; `diffusion-jax models` lists all")
    width = max(map(len, names)) + 2
    print(f"{'name':<{width}}{'parameters':>14}{'published':>12}{'GMAC':>10}{'tokens':>8}  input")
    for name in names:
        preset = PRESETS[name]
        model = preset.abstract()
        parameters = sum(leaf.size for leaf in jax.tree.leaves(model))
        macs = backbone_macs(model, preset.input_shape, preset.conditioning)
        published, shape = preset.published or "–", "×".join(map(str, preset.input_shape))
        print(
            f"{name:<{width}}{parameters:>14,}{published:>12}{macs / 1e9:>10.2f}{model.sequence_length:>8}  {shape}",
            flush=True,
        )
