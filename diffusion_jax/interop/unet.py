"""UNets under the parameter names of the LDM code, which are those of ADM, IDDPM and their classifiers."""

import dataclasses

import numpy as np

from diffusion_jax.interop.mapping import LINEAR, ConvAsLinear, Entry, conv, linear, norm
from diffusion_jax.models.layers.transformer import CrossAttention, Linear
from diffusion_jax.models.unet.blocks import Block, Encoder, Resampler
from diffusion_jax.models.unet.noisy_classifier import NoisyClassifier
from diffusion_jax.models.unet.residual_block import ResBlock
from diffusion_jax.models.unet.spatial_transformer import SpatialTransformer
from diffusion_jax.models.unet.unet import UNet

POINTWISE = ConvAsLinear()


@dataclasses.dataclass(frozen=True)
class PointwiseConv1d:
    """Theirs is a pointwise convolution [O, I, 1], ours a product [I, O]."""

    def forward(self, theirs: np.ndarray) -> np.ndarray:
        return theirs[..., 0].T

    def inverse(self, ours: np.ndarray) -> np.ndarray:
        return ours.T[..., None]


@dataclasses.dataclass(frozen=True)
class FusedQKV:
    """Theirs is a pointwise convolution [3C, C, 1] or its bias [3C], ours a product [C, 3, heads, d] or [3, heads, d].

    Attributes:
      heads: number of heads.
      qkv_first: whether their channels are ordered (3, heads, d) instead of (heads, 3, d).
    """

    heads: int
    qkv_first: bool = False

    def forward(self, theirs: np.ndarray) -> np.ndarray:
        matrix = theirs.reshape(theirs.shape[0], -1).T  # [C or 1, 3C]
        if self.qkv_first:
            ours = matrix.reshape(len(matrix), 3, self.heads, -1)
        else:
            ours = matrix.reshape(len(matrix), self.heads, 3, -1).swapaxes(1, 2)
        return ours if theirs.ndim == 3 else ours[0]

    def inverse(self, ours: np.ndarray) -> np.ndarray:
        ordered = ours if self.qkv_first else ours.swapaxes(-3, -2)
        if ours.ndim == 3:
            return ordered.reshape(-1)
        return ordered.reshape(len(ours), -1).T[..., None]


def unet_entries(model: UNet, *, qkv_first: bool = False) -> list[Entry]:
    """The name table of a UNet.

    The released code has no pooled embedding; its map has a name in the manner of the label's.

    Args:
      model: concrete or abstract.
      qkv_first: how the attention blocks order the channels of q, k and v: (heads, 3, d) in LDM, IDDPM and ADM, or
        (3, heads, d), the "new attention order" of ADM's ImageNet 64×64 models.

    Returns:
      One entry for every parameter.
    """
    labels = [Entry("label_emb.weight", "label_embed/table/embedding")]
    entries = [
        *(labels if model.label_embed is not None else []),
        *(linear("vector_emb", "vector_embed/linear") if model.vector_embed is not None else []),
        *_trunk(model.encoder, qkv_first),
    ]
    number = 0
    for i in reversed(range(len(model.decoder.levels))):
        level = model.decoder.levels[i]
        for n, block in enumerate(level.blocks):
            entries += _block(f"output_blocks.{number}", f"decoder/levels/{i}/blocks/{n}", block, qkv_first)
            if level.upsampler is not None and n == len(level.blocks) - 1:
                place = 1 if block.attention is None else 2
                ours = f"decoder/levels/{i}/upsampler"
                entries += _resampler(f"output_blocks.{number}.{place}", ours, level.upsampler, "conv")
            number += 1
    return [*entries, *norm("out.0", "decoder/norm_out"), *conv("out.2", "decoder/conv_out")]


def classifier_entries(model: NoisyClassifier, *, qkv_first: bool = False) -> list[Entry]:
    """The name table of a classifier of noisy images; arguments as of `unet_entries`."""
    # The pooling has the new order in every release.
    qkv = FusedQKV(model.pool.qkv.kernel.shape[2], qkv_first=True)
    return [
        *_trunk(model.encoder, qkv_first),
        *norm("out.0", "norm_out"),
        Entry("out.2.positional_embedding", "pool/positions", LINEAR),
        Entry("out.2.qkv_proj.weight", "pool/qkv/kernel", qkv),
        Entry("out.2.qkv_proj.bias", "pool/qkv/bias", qkv),
        *conv("out.2.c_proj", "pool/proj", transform=PointwiseConv1d()),
    ]


def _trunk(encoder: Encoder, qkv_first: bool) -> list[Entry]:
    entries = [*linear("time_embed.0", "time_embed/fc1"), *linear("time_embed.2", "time_embed/fc2")]
    entries += conv("input_blocks.0.0", "encoder/conv_in")
    number = 1
    for i, level in enumerate(encoder.levels):
        for n, block in enumerate(level.blocks):
            entries += _block(f"input_blocks.{number}", f"encoder/levels/{i}/blocks/{n}", block, qkv_first)
            number += 1
        if level.downsampler is not None:
            ours = f"encoder/levels/{i}/downsampler"
            entries += _resampler(f"input_blocks.{number}.0", ours, level.downsampler, "op")
            number += 1
    entries += _block("middle_block", "encoder/mid1", encoder.mid1, qkv_first)
    return entries + _res_block("middle_block.2", "encoder/mid2/res", encoder.mid2.res)


def _block(theirs: str, ours: str, block: Block, qkv_first: bool) -> list[Entry]:
    entries = _res_block(f"{theirs}.0", f"{ours}/res", block.res)
    if isinstance(block.attention, SpatialTransformer):
        entries += spatial_transformer_entries(block.attention, f"{theirs}.1.", f"{ours}/attention/")
    elif block.attention is not None:
        qkv = FusedQKV(block.attention.attn.qkv.kernel.shape[2], qkv_first)
        entries += norm(f"{theirs}.1.norm", f"{ours}/attention/norm")
        entries.append(Entry(f"{theirs}.1.qkv.weight", f"{ours}/attention/attn/qkv/kernel", qkv))
        entries.append(Entry(f"{theirs}.1.qkv.bias", f"{ours}/attention/attn/qkv/bias", qkv))
        entries += conv(f"{theirs}.1.proj_out", f"{ours}/attention/attn/proj", transform=PointwiseConv1d())
    return entries


def _res_block(theirs: str, ours: str, block: ResBlock) -> list[Entry]:
    shortcut = conv(f"{theirs}.skip_connection", f"{ours}/shortcut", transform=POINTWISE)
    return [
        *norm(f"{theirs}.in_layers.0", f"{ours}/norm1"),
        *conv(f"{theirs}.in_layers.2", f"{ours}/conv1"),
        *linear(f"{theirs}.emb_layers.1", f"{ours}/embedding"),
        *norm(f"{theirs}.out_layers.0", f"{ours}/norm2"),
        *conv(f"{theirs}.out_layers.3", f"{ours}/conv2"),
        *([] if block.shortcut is None else shortcut),
    ]


def _resampler(theirs: str, ours: str, resampler: Resampler, convolution: str) -> list[Entry]:
    if resampler.res is not None:
        return _res_block(theirs, f"{ours}/res", resampler.res)
    return conv(f"{theirs}.{convolution}", f"{ours}/conv")


def spatial_transformer_entries(model: SpatialTransformer, theirs: str = "", ours: str = "") -> list[Entry]:
    """The name table of a SpatialTransformer.

    Args:
      model: concrete or abstract.
      theirs: prefix of their names, such as "middle_block.1.".
      ours: prefix of our paths, such as "encoder/mid1/attention/".

    Returns:
      One entry for every parameter.
    """
    blocks = model.blocks
    first, second = f"{theirs}transformer_blocks.{{i}}.attn1", f"{theirs}transformer_blocks.{{i}}.attn2"
    entries = [
        *norm(f"{theirs}norm", f"{ours}norm"),
        *conv(f"{theirs}proj_in", f"{ours}proj_in", transform=POINTWISE),
        *conv(f"{theirs}proj_out", f"{ours}proj_out", transform=POINTWISE),
        *_fused(first, ("to_q", "to_k", "to_v"), f"{ours}blocks/attn1/qkv", blocks.attn1.qkv),
        *linear(f"{first}.to_out.0", f"{ours}blocks/attn1/proj"),
        *linear(f"{second}.to_out.0", f"{ours}blocks/attn2/proj"),
        *_fused(f"{theirs}transformer_blocks.{{i}}.ff.net.0", ("proj",), f"{ours}blocks/mlp/fc1", blocks.mlp.fc1),
        *linear(f"{theirs}transformer_blocks.{{i}}.ff.net.2", f"{ours}blocks/mlp/fc2"),
    ]
    for n in (1, 2, 3):
        entries += norm(f"{theirs}transformer_blocks.{{i}}.norm{n}", f"{ours}blocks/norm{n}")
    if isinstance(blocks.attn2, CrossAttention):
        entries += _fused(second, ("to_q",), f"{ours}blocks/attn2/q", blocks.attn2.q)
        return entries + _fused(second, ("to_k", "to_v"), f"{ours}blocks/attn2/kv", blocks.attn2.kv)
    return entries + _fused(second, ("to_q", "to_k", "to_v"), f"{ours}blocks/attn2/qkv", blocks.attn2.qkv)


def _fused(theirs: str, parts: tuple[str, ...], ours: str, layer: Linear) -> list[Entry]:
    names = tuple(f"{theirs}.{part}" for part in parts)
    # The leading axes are those of the stack of blocks and of the input.
    return linear(names, ours, bias=layer.bias is not None, out_features=layer.kernel.shape[2:])
