"""The one attention entry point of the library."""

import jax
import jax.numpy as jnp

from diffusion_jax.models.layers.attention_kernels import choose, cudnn_attention, pallas_attention, scaled


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None, bias: jax.Array | None = None
) -> jax.Array:
    """Scaled dot-product attention, softmax(q kᵀ / √d) v, with the softmax in float32 (arXiv 1706.03762, eq. 1).

    Computed by the kernel of the platform, see `attention_kernels`, or by XLA where that has no such case. The kernels
    of GPUs and TPUs never hold the [N, M] weights in memory, and have no forward-mode derivative.

    Args:
      q: [B, N, heads, d] queries, float32 or bfloat16.
      k: [B, M, heads, d] keys, same dtype.
      v: [B, M, heads, d] values, same dtype.
      mask: [B, M] bool, True where a key may be attended to; None allows all; a row that allows none takes
        the mean of all.
      bias: [W, heads, N, M] float32 added to the logits, W a divisor of B: element b of the batch takes bias b mod W,
        as the windows of a Swin layer do. None adds nothing.

    Returns:
      [B, N, heads, d], the dtype of `v`.
    """
    match choose(q, k, mask, bias):
        case "cudnn":
            return cudnn_attention(q, k, v, mask)
        case "pallas":
            return pallas_attention(q, k, v, mask)
    return xla_attention(q, k, v, mask, bias)


def xla_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, bias: jax.Array | None
) -> jax.Array:
    """The definition as matrix products, for any platform; arguments and result as in `attention`."""
    batch, queries, heads, d = q.shape

    # One merged batch axis lets XLA's CPU backend emit plain batched matrix products; with B and heads apart its
    # backward pass transposes every operand again.
    def merge(x: jax.Array) -> jax.Array:
        return x.swapaxes(1, 2).reshape(batch * heads, x.shape[1], d)  # [B·heads, N, d]

    q, k, v = merge(scaled(q, d)), merge(k), merge(v)
    logits = jnp.einsum("bnd,bmd->bnm", q, k, preferred_element_type=jnp.float32)  # [B·heads, N, M]
    if bias is not None:
        periods = logits.reshape(-1, bias.shape[0] * heads, *logits.shape[1:])  # [B / W, W·heads, N, M]
        logits = (periods + bias.reshape(1, -1, *bias.shape[2:])).reshape(logits.shape)  # [B·heads, N, M]
    if mask is not None:
        allowed = jnp.broadcast_to(mask[:, None, None, :], (batch, heads, 1, mask.shape[1]))
        logits = jnp.where(allowed.reshape(batch * heads, 1, -1), logits, jnp.finfo(logits.dtype).min)
    # Dividing [N, d] by the sums instead of [N, M]: only one array of the size of the weights is made, and kept.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))  # [B·heads, N, M]
    out = jnp.einsum("bnm,bmd->bnd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)  # [B·heads, N, d]
    out = (out / weights.sum(-1, keepdims=True)).astype(v.dtype)  # [B·heads, N, d]
    return out.reshape(batch, heads, queries, d).swapaxes(1, 2)  # [B, N, heads, d]
