"""DiT under the parameter names of facebookresearch/DiT."""

from collections.abc import Mapping

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.interop.mapping import ConvAsLinear, Entry, conv, linear, load_state_dict
from diffusion_jax.models.dit import DiT
from diffusion_jax.models.embeddings import sincos_2d


def dit_entries(model: DiT) -> list[Entry]:
    """The name table of a DiT, as in the official state dicts.

    Args:
      model: the model, abstract or not; its patch size and number of heads enter the layouts.

    Returns:
      Entries for `load_state_dict` and `dump_state_dict`; `pos_embed`, a constant here, is not among them.
    """
    fused_heads = model.blocks.attn.qkv.kernel.shape[2:]  # 3, heads, d
    return [
        *conv("x_embedder.proj", "patch_embed", transform=ConvAsLinear(model.patch_size)),
        *linear("t_embedder.mlp.0", "time_embed/fc1"),
        *linear("t_embedder.mlp.2", "time_embed/fc2"),
        Entry("y_embedder.embedding_table.weight", "label_embed/table/embedding"),
        *linear("blocks.{i}.attn.qkv", "blocks/attn/qkv", out_features=fused_heads),
        *linear("blocks.{i}.attn.proj", "blocks/attn/proj"),
        *linear("blocks.{i}.mlp.fc1", "blocks/mlp/fc1"),
        *linear("blocks.{i}.mlp.fc2", "blocks/mlp/fc2"),
        *linear("blocks.{i}.adaLN_modulation.1", "blocks/modulation"),
        *linear("final_layer.adaLN_modulation.1", "final/modulation"),
        *linear("final_layer.linear", "final/linear"),
    ]


def load_dit(model: DiT, state_dict: Mapping[str, np.ndarray], *, source: str = "state dict") -> DiT:
    """Fills a DiT with official weights.

    Args:
      model: a DiT of the same configuration, or its `jax.eval_shape`.
      state_dict: arrays under official names, float32, PyTorch layouts.
      source: what errors call the state dict.

    Returns:
      A new DiT.

    Raises:
      UserError: a tensor is missing, unexpected or of another shape, or the position table is not the sine-cosine one.
    """
    if "pos_embed" in state_dict:
        table = sincos_2d(*model.grid, model.width)
        theirs = np.asarray(state_dict["pos_embed"])
        if theirs.shape != (1, *table.shape) or np.abs(theirs[0] - table).max() > 1e-6:
            raise UserError(
                f"{source}: pos_embed is not the fixed sine-cosine table of a {model.grid[0]}×{model.grid[1]} grid: "
                "this DiT computes its positions and cannot take others"
            )
    return load_state_dict(model, state_dict, dit_entries(model), ignore=("pos_embed",), source=source)
