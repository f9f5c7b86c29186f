"""LPIPS weights from the user's files: the VGG16 of torchvision with the linear heads, or an LDM checkpoint."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from etils import epath
from flax import nnx

from diffusion_jax.errors import UserError
from diffusion_jax.files import user_path
from diffusion_jax.interop.mapping import Entry, PerChannel, conv, load_state_dict
from diffusion_jax.interop.readers import open_state_dict
from diffusion_jax.models.autoencoder.lpips import LPIPS, STAGES
from diffusion_jax.models.layers.precision import DTypeName

PUBLISHED = (
    "LPIPS needs the VGG16 features of torchvision (as .safetensors: huggingface.co timm/vgg16.tv_in1k) and the linear "
    "heads of github.com/richzhang/PerceptualSimilarity (lpips/weights/v0.1/vgg.pth); name both files"
)

PREFIXES = ("first_stage_model.loss.perceptual_loss.", "loss.perceptual_loss.", "perceptual_loss.")


def lpips_entries(model: LPIPS, *, torchvision: bool) -> list[Entry]:
    """The name table of LPIPS.

    Args:
      model: concrete or abstract.
      torchvision: whether the features are called `features.0` as in torchvision, else `net.slice1.0` as in LPIPS.

    Returns:
      One entry for every parameter.
    """
    entries: list[Entry] = []
    number = 0  # of the layer in torchvision's list of convolutions, rectifiers and poolings
    for i, widths in enumerate(STAGES):
        number += i > 0
        for n in range(len(widths)):
            name = f"features.{number}" if torchvision else f"net.slice{i + 1}.{number}"
            entries += conv(name, f"stages/{i}/{n}")
            number += 2
        entries.append(Entry(f"lin{i}.model.1.weight", f"heads/{i}", PerChannel()))
    return entries


def load_lpips(
    state_dict: Mapping[str, np.ndarray], *, dtype: DTypeName = "float32", source: str = "state dict"
) -> LPIPS:
    """Makes LPIPS from weights by name.

    Args:
      state_dict: `lin0.model.1.weight` … together with `features.0.weight` … or `net.slice1.0.weight` …; in an LDM
        checkpoint with a prefix.
      dtype: compute dtype of the convolutions.
      source: where it comes from, for error messages.

    Returns:
      The distance, with trained weights.

    Raises:
      UserError: features or heads are missing.
    """
    prefix = next((each for each in PREFIXES if any(name.startswith(each) for name in state_dict)), "")
    names = {name.removeprefix(prefix): name for name in state_dict if name.startswith(prefix)}
    wanted = {
        short: state_dict[name] for short, name in names.items() if short.startswith(("lin", "net.", "features."))
    }
    for part, start in (("heads", "lin"), ("VGG16 features", ("net.", "features."))):
        if not any(name.startswith(start) for name in wanted):
            raise UserError(f"{source} has no {part} of LPIPS: {PUBLISHED}")
    torchvision = any(name.startswith("features.") for name in wanted)
    abstract = jax.eval_shape(lambda: LPIPS(dtype=dtype, rngs=nnx.Rngs(0)))
    return load_state_dict(abstract, wanted, lpips_entries(abstract, torchvision=torchvision), source=source)


def read_lpips(paths: Sequence[epath.PathLike], *, dtype: DTypeName = "float32") -> LPIPS:
    """Reads LPIPS from one or several files that hold its weights together; see `load_lpips`.

    Raises:
      UserError: a file is missing or not read, or together they lack a part.
    """
    state_dict: dict[str, np.ndarray] = {}
    for path in paths:
        opened = open_state_dict(user_path(path), PUBLISHED)
        parts = ("lin", "net.", "features.", *PREFIXES)
        state_dict |= {name: opened[name] for name in opened if name.startswith(parts)}
    return load_lpips(state_dict, dtype=dtype, source=", ".join(f"'{path}'" for path in paths))
