"""What the LDM code and diffusers call the parameters of the autoencoders."""

import dataclasses
from collections.abc import Iterable

from diffusion_jax.interop.mapping import ConvAsLinear, Entry, conv, linear, norm
from diffusion_jax.models.autoencoder.autoencoder import Autoencoder, AutoencoderVQ
from diffusion_jax.models.autoencoder.blocks import ResBlock


@dataclasses.dataclass(frozen=True)
class Naming:
    """What one codebase calls the parts of the autoencoder.

    Attributes:
      encoder_level: prefix of level {level} of the encoder, 0 at full resolution.
      decoder_level: prefix of level {level} of the decoder.
      decoder_from_below: whether {level} of the decoder counts from the lowest resolution.
      block: block {n} of a level, after the prefix.
      attention: attention {n} of a level, after the prefix.
      downsampler: after the encoder prefix.
      upsampler: after the decoder prefix.
      mid: the two blocks and the attention at the lowest resolution, after "encoder." or "decoder.".
      norm_out: the last norm, after the same.
      shortcut: the 1×1 convolution of a residual block.
      attention_norm: the norm of an attention.
      qkv: its three projections.
      proj: its output projection.
      attention_is_conv: whether the projections are stored as 1×1 convolutions.
    """

    encoder_level: str
    decoder_level: str
    decoder_from_below: bool
    block: str
    attention: str
    downsampler: str
    upsampler: str
    mid: tuple[str, str, str]
    norm_out: str
    shortcut: str
    attention_norm: str
    qkv: tuple[str, str, str]
    proj: str
    attention_is_conv: bool


LDM = Naming(
    encoder_level="encoder.down.{level}",
    decoder_level="decoder.up.{level}",
    decoder_from_below=False,
    block="block.{n}",
    attention="attn.{n}",
    downsampler="downsample.conv",
    upsampler="upsample.conv",
    mid=("mid.block_1", "mid.attn_1", "mid.block_2"),
    norm_out="norm_out",
    shortcut="nin_shortcut",
    attention_norm="norm",
    qkv=("q", "k", "v"),
    proj="proj_out",
    attention_is_conv=True,
)
DIFFUSERS = Naming(
    encoder_level="encoder.down_blocks.{level}",
    decoder_level="decoder.up_blocks.{level}",
    decoder_from_below=True,
    block="resnets.{n}",
    attention="attentions.{n}",
    downsampler="downsamplers.0.conv",
    upsampler="upsamplers.0.conv",
    mid=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    norm_out="conv_norm_out",
    shortcut="conv_shortcut",
    attention_norm="group_norm",
    qkv=("to_q", "to_k", "to_v"),
    proj="to_out.0",
    attention_is_conv=False,
)
# The public sd-vae files are older than the renaming of the attention layers.
DIFFUSERS_DEPRECATED = dataclasses.replace(DIFFUSERS, qkv=("query", "key", "value"), proj="proj_attn")


def autoencoder_entries(model: Autoencoder, naming: Naming) -> list[Entry]:
    """The name table of an autoencoder.

    Args:
      model: concrete or abstract.
      naming: `LDM`, `DIFFUSERS` or `DIFFUSERS_DEPRECATED`.

    Returns:
      One entry for every parameter.
    """
    entries: list[Entry] = []

    def add_block(theirs: str, ours: str, block: ResBlock) -> None:
        for i in (1, 2):
            entries.extend(norm(f"{theirs}.norm{i}", f"{ours}/norm{i}"))
            entries.extend(conv(f"{theirs}.conv{i}", f"{ours}/conv{i}"))
        if block.shortcut is not None:
            entries.extend(conv(f"{theirs}.{naming.shortcut}", f"{ours}/shortcut", transform=ConvAsLinear()))

    def add_attention(theirs: str, ours: str) -> None:
        entries.extend(norm(f"{theirs}.{naming.attention_norm}", f"{ours}/norm"))
        for name, parts in (("qkv", naming.qkv), ("proj", (naming.proj,))):
            projections = tuple(f"{theirs}.{part}" for part in parts)
            if naming.attention_is_conv:
                entries.extend(conv(projections, f"{ours}/{name}", transform=ConvAsLinear()))
            else:
                entries.extend(linear(projections, f"{ours}/{name}"))

    for half, part in (("encoder", model.encoder), ("decoder", model.decoder)):
        entries.extend(conv(f"{half}.conv_in", f"{half}/conv_in"))
        for i, level in enumerate(part.levels):
            prefix = _level_prefix(naming, half, i, len(part.levels))
            for n, block in enumerate(level.blocks):
                add_block(f"{prefix}.{naming.block.format(n=n)}", f"{half}/levels/{i}/blocks/{n}", block)
            for n in range(len(level.attentions)):
                add_attention(f"{prefix}.{naming.attention.format(n=n)}", f"{half}/levels/{i}/attentions/{n}")
        block1, attention, block2 = (f"{half}.{name}" for name in naming.mid)
        add_block(block1, f"{half}/mid/block1", part.mid.block1)
        if part.mid.attention is not None:
            add_attention(attention, f"{half}/mid/attention")
        add_block(block2, f"{half}/mid/block2", part.mid.block2)
        entries.extend(norm(f"{half}.{naming.norm_out}", f"{half}/norm_out"))
        entries.extend(conv(f"{half}.conv_out", f"{half}/conv_out"))

    # Between levels i and i + 1: the encoder's convolution belongs to the upper level, the decoder's to the lower.
    levels = len(model.encoder.levels)
    for i in range(levels - 1):
        upper = _level_prefix(naming, "encoder", i, levels)
        lower = _level_prefix(naming, "decoder", i + 1, levels)
        entries.extend(conv(f"{upper}.{naming.downsampler}", f"encoder/downsamplers/{i}"))
        entries.extend(conv(f"{lower}.{naming.upsampler}", f"decoder/upsamplers/{i}"))
    entries.extend(conv("quant_conv", "quant_conv", transform=ConvAsLinear()))
    entries.extend(conv("post_quant_conv", "post_quant_conv", transform=ConvAsLinear()))
    if isinstance(model, AutoencoderVQ):
        entries.append(Entry("quantize.embedding.weight", "quantizer/codebook"))
    return entries


def recognise_naming(names: Iterable[str]) -> Naming | None:
    """The naming that the names of a state dict follow, or None if they are not those of an autoencoder."""
    names = tuple(names)
    if any(name.startswith("encoder.down.") for name in names):
        return LDM
    if any(name.startswith("encoder.down_blocks.") for name in names):
        return DIFFUSERS_DEPRECATED if any(name.endswith(".query.weight") for name in names) else DIFFUSERS
    return None


def _level_prefix(naming: Naming, half: str, level: int, levels: int) -> str:
    if half == "encoder":
        return naming.encoder_level.format(level=level)
    return naming.decoder_level.format(level=levels - 1 - level if naming.decoder_from_below else level)
