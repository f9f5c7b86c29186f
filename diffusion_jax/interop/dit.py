"""DiT under the parameter names of facebookresearch/DiT."""

from collections.abc import Mapping

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.interop.mapping import ConvAsLinear, Entry, conv, linear
from diffusion_jax.models.dit import DiT
from diffusion_jax.models.embeddings import sincos_2d


def dit_entries(model: DiT) -> list[Entry]:
    """The name table of a DiT, as in the official state dicts.

    Args:
      model: the model, abstract or not; its patch size and number of heads enter the layouts.

    Returns:
      Entries for `load_state_dict` and `dump_state_dict`; `pos_embed`, a constant here, is not among them.
    """
    labels = [Entry("y_embedder.embedding_table.weight", "label_embed/table/embedding")]
    fused_heads = model.blocks.attn.qkv.kernel.shape[2:]  # 3, heads, d
    return [
        *conv("x_embedder.proj", "patch_embed", transform=ConvAsLinear(model.patch_size)),
        *linear("t_embedder.mlp.0", "time_embed/fc1"),
        *linear("t_embedder.mlp.2", "time_embed/fc2"),
        *(labels if hasattr(model, "label_embed") else []),
        *linear("blocks.{i}.attn.qkv", "blocks/attn/qkv", out_features=fused_heads),
        *linear("blocks.{i}.attn.proj", "blocks/attn/proj"),
        *linear("blocks.{i}.mlp.fc1", "blocks/mlp/fc1"),
        *linear("blocks.{i}.mlp.fc2", "blocks/mlp/fc2"),
        *linear("blocks.{i}.adaLN_modulation.1", "blocks/modulation"),
        *linear("final_layer.adaLN_modulation.1", "final/modulation"),
        *linear("final_layer.linear", "final/linear"),
    ]


def check_positions(model: DiT, state_dict: Mapping[str, np.ndarray], source: str) -> None:
    """Refuses a state dict whose position table is not the one that a DiT computes.

    Args:
      model: a DiT, abstract or not.
      state_dict: arrays under official names.
      source: what errors call the state dict.

    Raises:
      UserError: `pos_embed` is there and is not the sine-cosine table of the model's grid.
    """
    if "pos_embed" not in state_dict:
        return
    table = sincos_2d(*model.grid, model.width)
    theirs = np.asarray(state_dict["pos_embed"])
    if theirs.shape != (1, *table.shape) or np.abs(theirs[0] - table).max() > 1e-6:
        raise UserError(
            f"{source}: pos_embed is not the fixed sine-cosine table of a {model.grid[0]}×{model.grid[1]} grid: "
            "this DiT computes its positions and cannot take others"
        )
