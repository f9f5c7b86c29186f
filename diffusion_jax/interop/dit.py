"""DiT under the parameter names of facebookresearch/DiT and, where later models add to it, under theirs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.interop.mapping import ConvAsLinear, Entry, conv, linear, norm
from diffusion_jax.models.dit.dit import DiT
from diffusion_jax.models.layers.embeddings import sincos_2d
from diffusion_jax.models.layers.norms import LayerNorm, RMSNorm

UNUSED = ("pos_embed", "feat_rope.*", "projectors.*")
"""Official names that a model may have no use for: constants, and a projector that only training needs."""


def dit_entries(model: DiT) -> list[Entry]:
    """The name table of a DiT, as in the official state dicts.

    SwiGLU, RMSNorm and QK-norm go by the names of LightningDiT, the projector by those of REPA. There is no release of
    the cross-attention and in-context designs, nor of models of vectors and tokens; their further layers have names in
    the manner of the rest.

    Args:
      model: the model, abstract or not; its patch size and number of heads enter the layouts.

    Returns:
      Entries for `load_state_dict` and `dump_state_dict`; `pos_embed`, a constant here, is not among them.
    """
    labels = [Entry("y_embedder.embedding_table.weight", "label_embed/table/embedding")]
    return [
        *conv("x_embedder.proj", "patch_embed", transform=ConvAsLinear(model.patch_size)),
        *linear("t_embedder.mlp.0", "time_embed/fc1"),
        *linear("t_embedder.mlp.2", "time_embed/fc2"),
        *(labels if model.label_embed is not None else []),
        *(linear("vector_embedder", "vector_embed/linear") if model.vector_embed is not None else []),
        *(linear("context_embedder", "context_embed") if model.context_embed is not None else []),
        *_block_entries(model.blocks),
        *_norm("final_layer.norm_final", "final/norm", model.final.norm),
        *(linear("final_layer.adaLN_modulation.1", "final/modulation") if model.adaln else []),
        *linear("final_layer.linear", "final/linear"),
        *(_projector_entries() if model.repa_depth else []),
    ]


def _block_entries(blocks: Any) -> list[Entry]:
    attn, mlp = blocks.attn, blocks.mlp
    entries = [
        *_norm("blocks.{i}.norm1", "blocks/norm1", blocks.norm1),
        *linear("blocks.{i}.attn.qkv", "blocks/attn/qkv", out_features=attn.qkv.kernel.shape[2:]),  # 3, heads, d
        *linear("blocks.{i}.attn.proj", "blocks/attn/proj"),
        *_norm("blocks.{i}.norm2", "blocks/norm2", blocks.norm2),
    ]
    if attn.q_norm is not None:
        entries += _norm("blocks.{i}.attn.q_norm", "blocks/attn/q_norm", attn.q_norm)
        entries += _norm("blocks.{i}.attn.k_norm", "blocks/attn/k_norm", attn.k_norm)
    if hasattr(mlp, "w12"):
        entries += linear("blocks.{i}.mlp.w12", "blocks/mlp/w12", out_features=mlp.w12.kernel.shape[2:])  # 2, hidden
        entries += linear("blocks.{i}.mlp.w3", "blocks/mlp/w3")
    else:
        entries += [*linear("blocks.{i}.mlp.fc1", "blocks/mlp/fc1"), *linear("blocks.{i}.mlp.fc2", "blocks/mlp/fc2")]
    if hasattr(blocks, "modulation"):
        entries += linear("blocks.{i}.adaLN_modulation.1", "blocks/modulation")
    if hasattr(blocks, "cross"):
        q, kv = (layer.kernel.shape[2:] for layer in (blocks.cross.q, blocks.cross.kv))  # heads, d; 2, heads, d
        entries += _norm("blocks.{i}.norm_cross", "blocks/norm_cross", blocks.norm_cross)
        entries += linear("blocks.{i}.cross_attn.q", "blocks/cross/q", out_features=q)
        entries += linear("blocks.{i}.cross_attn.kv", "blocks/cross/kv", out_features=kv)
        entries += linear("blocks.{i}.cross_attn.proj", "blocks/cross/proj")
    return entries


def _projector_entries() -> list[Entry]:
    layers = {"projectors.0.0": "fc1", "projectors.0.2": "fc2", "projectors.0.4": "fc3"}
    return [entry for theirs, ours in layers.items() for entry in linear(theirs, f"projector/{ours}")]


def _norm(theirs: str, ours: str, layer: LayerNorm | RMSNorm) -> list[Entry]:
    return norm(theirs, ours, bias=hasattr(layer, "bias")) if hasattr(layer, "scale") else []


def check_positions(model: DiT, state_dict: Mapping[str, np.ndarray], source: str) -> None:
    """Refuses a state dict whose position table is not the one that a DiT computes.

    Args:
      model: a DiT, abstract or not.
      state_dict: arrays under official names.
      source: what errors call the state dict.

    Raises:
      UserError: `pos_embed` is there and is not the sine-cosine table of the model's grid, or of the base grid whose
        positions the model interpolates.
    """
    if "pos_embed" not in state_dict:
        return
    height, width = model.base_grid or model.grid
    table = sincos_2d(height, width, model.width)
    theirs = np.asarray(state_dict["pos_embed"])
    if theirs.shape != (1, *table.shape) or np.abs(theirs[0] - table).max() > 1e-6:
        raise UserError(
            f"{source}: pos_embed is not the fixed sine-cosine table of a {height}×{width} grid: this DiT computes its "
            "positions and cannot take others; set model.base_grid to the grid of the weights to interpolate theirs"
        )
