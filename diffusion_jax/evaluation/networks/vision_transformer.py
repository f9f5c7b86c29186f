"""Vision transformers read at the class token: DINOv2 (arXiv 2304.07193) and CLIP's image tower (arXiv 2103.00020)."""

import jax
import jax.numpy as jnp
from flax import nnx

from diffusion_jax.models.layers.attention_kernels import attention_kernel
from diffusion_jax.models.layers.norms import LayerNorm
from diffusion_jax.models.layers.patches import patchify
from diffusion_jax.models.layers.transformer import MLP, Linear, SelfAttention

MLP_RATIO = 4


class QuickMLP(MLP):
    """The MLP of CLIP, whose activation x·σ(1.702 x) stands for the GELU."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., D] to [..., D] in the compute dtype."""
        hidden = self.fc1(x)  # [..., 4D]
        return self.fc2(hidden * jax.nn.sigmoid(1.702 * hidden))  # [..., D]


class VisionBlock(nnx.Module):
    """The pre-norm block: x += γ₁ Attn(LN x), x += γ₂ MLP(LN x).

    Args:
      width: D.
      heads: number of heads.
      norm_eps: of the norms.
      layer_scale: whether the block has the factors γ; otherwise they are 1.
      quick_gelu: CLIP's activation in place of the exact GELU.
      rngs: initialiser streams.
    """

    def __init__(self, width: int, heads: int, *, norm_eps: float, layer_scale: bool, quick_gelu: bool, rngs: nnx.Rngs):
        dtype = jnp.float32
        mlp = QuickMLP if quick_gelu else MLP
        self.norm1 = LayerNorm(width, eps=norm_eps)
        self.attn = SelfAttention(width, heads, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(width, eps=norm_eps)
        self.mlp = mlp(width, MLP_RATIO * width, approximate=False, dtype=dtype, rngs=rngs)
        if layer_scale:
            self.scale1 = nnx.Param(jnp.ones(width))
            self.scale2 = nnx.Param(jnp.ones(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens [B, N, D] to [B, N, D], float32."""
        attended = self.attn(self.norm1(x))  # [B, N, D]
        x = x + (attended * self.scale1[...] if hasattr(self, "scale1") else attended)
        mixed = self.mlp(self.norm2(x))  # [B, N, D]
        return x + (mixed * self.scale2[...] if hasattr(self, "scale2") else mixed)


class VisionTransformer(nnx.Module):
    """From prepared images to the vector that stands for each.

    Built without weights it is of no use; `load_vision_transformer` reads published ones.

    Args:
      image_size: height and width of the images, pixels.
      patch_size: side p of a patch, a divisor of it.
      width: D.
      depth: number of blocks.
      heads: number of heads.
      norm_eps: of all norms.
      layer_scale: see `VisionBlock`.
      quick_gelu: see `VisionBlock`.
      first_norm: whether a norm comes before the blocks too.
      patch_bias: whether the patch embedding has a bias.
      projection: width of the linear map behind the last norm; None has none.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        norm_eps: float,
        layer_scale: bool,
        quick_gelu: bool,
        first_norm: bool,
        patch_bias: bool,
        projection: int | None,
    ):
        rngs = nnx.Rngs(0)
        self.patch_size = patch_size
        self.feature_width = projection or width

        def make_block(key: jax.Array) -> VisionBlock:
            return VisionBlock(
                width,
                heads,
                norm_eps=norm_eps,
                layer_scale=layer_scale,
                quick_gelu=quick_gelu,
                rngs=nnx.Rngs(key),
            )

        self.patch_embed = Linear(3 * patch_size**2, width, use_bias=patch_bias, rngs=rngs)
        self.class_token = nnx.Param(jnp.zeros(width))
        self.positions = nnx.Param(jnp.zeros((1 + (image_size // patch_size) ** 2, width)))
        if first_norm:
            self.first_norm = LayerNorm(width, eps=norm_eps)
        self.blocks = jax.vmap(make_block)(jax.random.split(rngs.params(), depth))
        self.norm = LayerNorm(width, eps=norm_eps)
        if projection is not None:
            self.projection = Linear(width, projection, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The features of images.

        Args:
          x: [B, S, S, 3] float32, normalised as the weights want it.

        Returns:
          [B, D], or [B, projection], float32.
        """
        # A score must not depend on the kernel of a platform.
        with jax.default_matmul_precision("highest"), attention_kernel("xla"):
            patches = self.patch_embed(patchify(x, self.patch_size))  # [B, N − 1, D]
            first = jnp.broadcast_to(self.class_token[...], (len(x), 1, patches.shape[-1]))  # [B, 1, D]
            tokens = jnp.concatenate([first, patches], axis=1) + self.positions[...]  # [B, N, D]
            if hasattr(self, "first_norm"):
                tokens = self.first_norm(tokens)
            tokens, _ = jax.lax.scan(lambda tokens, block: (block(tokens), None), tokens, self.blocks)
            feature = self.norm(tokens[:, 0])  # [B, D]
            return self.projection(feature) if hasattr(self, "projection") else feature
