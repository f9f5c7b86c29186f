"""What tests of models share."""

import jax
import pytest

from diffusion_jax.models.autoencoder.autoencoder import Autoencoder
from diffusion_jax.models.layers.convolution import upsample_nearest


@pytest.fixture(scope="session")
def recorded_layers():
    """The layers of an autoencoder of two levels, the lower one attending, that the golden files of LDM hold."""

    @jax.jit
    def walk(model: Autoencoder, images: jax.Array, latents: jax.Array) -> dict[str, jax.Array]:
        encoder, decoder = model.encoder, model.decoder
        acts = {}
        acts["encoder.conv_in"] = x = encoder.conv_in(images)
        acts["encoder.down.0.block.0"] = x = encoder.levels[0].blocks[0](x)
        acts["encoder.down.0.downsample"] = x = encoder.downsamplers[0](x)
        acts["encoder.down.1.attn.0"] = x = encoder.levels[1](x)
        acts["encoder.mid.attn_1"] = encoder.mid.attention(encoder.mid.block1(x))
        acts["encoder"] = encoder(images)
        acts["decoder.conv_in"] = x = decoder.conv_in(model.post_quant_conv(latents))
        acts["decoder.mid.attn_1"] = decoder.mid.attention(decoder.mid.block1(x))
        x = decoder.upsamplers[0](upsample_nearest(decoder.levels[1](decoder.mid(x))))
        acts["decoder.up.1.upsample"] = x
        acts["decoder.up.0.block.0"] = decoder.levels[0].blocks[0](x)
        acts["decoder"] = decoder(model.post_quant_conv(latents))
        return acts

    return walk
