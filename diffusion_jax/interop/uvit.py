"""U-ViT under the parameter names of baofff/U-ViT, `libs.uvit.UViT` and `libs.uvit_t2i.UViT`."""

from diffusion_jax.interop.mapping import ConvAsLinear, Entry, Squeeze, conv, linear, norm
from diffusion_jax.models.uvit.uvit import UViT

_TIME = [*linear("time_embed.0", "embed/time_embed/fc1"), *linear("time_embed.2", "embed/time_embed/fc2")]


def uvit_entries(model: UViT) -> list[Entry]:
    """The name table of a U-ViT, as in the official state dicts.

    The released code has no pooled embedding; its map has a name in the manner of the label's.

    Args:
      model: the model, abstract or not; its patch size, heads and options enter the table.

    Returns:
      Entries for `load_state_dict` and `dump_state_dict`.
    """
    embed, head = model.embed, model.head
    return [
        *conv("patch_embed.proj", "embed/patch_embed", transform=ConvAsLinear(embed.patch_size)),
        Entry("pos_embed", "embed/positions", Squeeze()),
        *(_TIME if embed.time_embed is not None else []),
        *([Entry("label_emb.weight", "embed/label_embed/table/embedding")] if embed.label_embed is not None else []),
        *(linear("vector_emb", "embed/vector_embed/linear") if embed.vector_embed is not None else []),
        *(linear("context_embed", "embed/context_embed") if embed.context_length else []),
        *_block(model, "in_blocks.{i}", "trunk/down"),
        *_block(model, "mid_block", "trunk/middle"),
        *linear("out_blocks.{i}.skip_linear", "trunk/up/skip"),
        *_block(model, "out_blocks.{i}", "trunk/up/block"),
        *norm("norm", "head/norm"),
        *linear("decoder_pred", "head/linear"),
        *(conv("final_layer", "head/conv") if head.conv is not None else []),
    ]


def _block(model: UViT, theirs: str, ours: str) -> list[Entry]:
    qkv = model.trunk.middle.attn.qkv
    fused_heads = qkv.kernel.shape[1:]  # 3, heads, d
    return [
        *norm(f"{theirs}.norm1", f"{ours}/norm1"),
        *linear(f"{theirs}.attn.qkv", f"{ours}/attn/qkv", bias=qkv.bias is not None, out_features=fused_heads),
        *linear(f"{theirs}.attn.proj", f"{ours}/attn/proj"),
        *norm(f"{theirs}.norm2", f"{ours}/norm2"),
        *linear(f"{theirs}.mlp.fc1", f"{ours}/ffn/fc1"),
        *linear(f"{theirs}.mlp.fc2", f"{ours}/ffn/fc2"),
    ]
