"""The published vision transformers whose features distances are made of, and their weights in the user's files."""

import dataclasses
import math
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.networks.vision_transformer import VisionTransformer
from diffusion_jax.files import cache_folder, local_copy, sha256_of, user_path
from diffusion_jax.interop.mapping import ConvAsLinear, Entry, Squeeze, conv, linear, load_state_dict, norm
from diffusion_jax.interop.readers import open_state_dict

# A factor of old that the DINOv2 code adds to the new grid before it divides, so that its steps are a little short.
POSITION_OFFSET = 0.1
CUBIC_A = -0.75


@dataclasses.dataclass(frozen=True)
class VisionKind:
    """One published network.

    Attributes:
      name: what results call it.
      flag: the flag that names its weight file.
      file_names: where its weights are looked for, relative to the cache folder.
      published: where they are to be had.
      mean: of the pixels in 0 … 1, by channel; subtracted.
      std: of the same; divided by.
      image_size: height and width of its input, pixels.
      width: D.
      depth: number of blocks.
      heads: number of heads.
      projection: width of the features, where a projection makes them; None takes the class token.
      patch_size: side of a patch.
      clip: whether it is of CLIP's design, with CLIP's names in the `transformers` library; else of DINOv2's.
    """

    name: str
    flag: str
    file_names: tuple[str, ...]
    published: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    width: int = 1024
    depth: int = 24
    heads: int = 16
    projection: int | None = None
    patch_size: int = 14
    clip: bool = False

    @property
    def key(self) -> str:
        """The key of a config that names its weight file."""
        return "evaluate." + self.flag.removeprefix("--").replace("-", "_")

    def network(self) -> VisionTransformer:
        """The network, without useful weights."""
        return VisionTransformer(
            image_size=self.image_size,
            patch_size=self.patch_size,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            norm_eps=1e-5 if self.clip else 1e-6,
            layer_scale=not self.clip,
            quick_gelu=self.clip,
            first_norm=self.clip,
            patch_bias=not self.clip,
            projection=self.projection,
        )


DINOV2 = VisionKind(
    name="dinov2-vitl14",
    flag="--dinov2-weights",
    file_names=("dinov2_vitl14_pretrain.pth",),
    published="dinov2_vitl14_pretrain.pth of github.com/facebookresearch/dinov2 (the model without registers)",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    image_size=224,
)
CLIP = VisionKind(
    name="clip-vitl14-336",
    flag="--clip-weights",
    file_names=tuple(f"clip-vit-large-patch14-336/{name}" for name in ("model.safetensors", "pytorch_model.bin")),
    published="model.safetensors or pytorch_model.bin of huggingface.co/openai/clip-vit-large-patch14-336",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    image_size=336,
    projection=768,
    clip=True,
)


def find_weights(kind: VisionKind, path: str | None = None) -> epath.Path | None:
    """The weight file of a network: the one named, or that of the cache folder; None if there is none."""
    places = [user_path(path)] if path else [epath.Path(cache_folder() / name) for name in kind.file_names]
    return next((place for place in places if place.is_file()), None)


def read_vision_transformer(kind: VisionKind, path: str | None = None) -> tuple[VisionTransformer, str]:
    """A network with its published weights, read from the user's file.

    Args:
      kind: which.
      path: the file; None looks for it in the user's cache folder.

    Returns:
      The network, and the SHA-256 of the file.

    Raises:
      UserError: no such file, or the weights of something else.
    """
    file = find_weights(kind, path)
    if file is None:
        place = path or cache_folder() / kind.file_names[0]
        raise UserError(
            f"no weights of {kind.name} at {place}: fetch {kind.published} and put it there, or name it by {kind.flag} "
            f"(in a config, by {kind.key})"
        )
    checksum = sha256_of(local_copy(file))
    return load_vision_transformer(kind, open_state_dict(file, kind.published), source=str(file)), checksum


def load_vision_transformer(
    kind: VisionKind, state_dict: Mapping[str, np.ndarray], *, source: str = "state dict"
) -> VisionTransformer:
    """A network with weights by their published names.

    Args:
      kind: which.
      state_dict: the tensors of the published file; those of CLIP's text tower are ignored.
      source: what errors call them.

    Raises:
      UserError: a tensor is missing, unexpected or of another shape.
    """
    network = jax.eval_shape(kind.network)
    if kind.clip:
        ignore = ("text_*", "logit_scale", "vision_model.embeddings.position_ids")
        return load_state_dict(network, state_dict, clip_entries(kind), ignore=ignore, source=source)
    tensors = dict(state_dict)
    grid = kind.image_size // kind.patch_size
    if "pos_embed" in tensors:
        tensors["pos_embed"] = resampled_positions(np.asarray(tensors["pos_embed"]), grid, source)
    if "cls_token" in tensors:
        tensors["cls_token"] = np.asarray(tensors["cls_token"]).reshape(-1)
    return load_state_dict(network, tensors, dinov2_entries(kind), ignore=("mask_token",), source=source)


def dinov2_entries(kind: VisionKind) -> list[Entry]:
    """The name table of facebookresearch/dinov2; `cls_token` is flat and `pos_embed` of the grid of the network."""
    return [
        Entry("cls_token", "class_token"),
        Entry("pos_embed", "positions", Squeeze()),
        *conv("patch_embed.proj", "patch_embed", transform=ConvAsLinear(kind.patch_size)),
        *norm("blocks.{i}.norm1", "blocks/norm1"),
        *linear("blocks.{i}.attn.qkv", "blocks/attn/qkv", out_features=(3, kind.heads, kind.width // kind.heads)),
        *linear("blocks.{i}.attn.proj", "blocks/attn/proj"),
        Entry("blocks.{i}.ls1.gamma", "blocks/scale1"),
        *norm("blocks.{i}.norm2", "blocks/norm2"),
        *linear("blocks.{i}.mlp.fc1", "blocks/mlp/fc1"),
        *linear("blocks.{i}.mlp.fc2", "blocks/mlp/fc2"),
        Entry("blocks.{i}.ls2.gamma", "blocks/scale2"),
        *norm("norm", "norm"),
    ]


def clip_entries(kind: VisionKind) -> list[Entry]:
    """The name table of the image tower of CLIP in the `transformers` library."""
    layer = "vision_model.encoder.layers.{i}"
    fused = tuple(f"{layer}.self_attn.{part}_proj" for part in "qkv")
    return [
        Entry("vision_model.embeddings.class_embedding", "class_token"),
        Entry("vision_model.embeddings.position_embedding.weight", "positions"),
        *conv(
            "vision_model.embeddings.patch_embedding",
            "patch_embed",
            bias=False,
            transform=ConvAsLinear(kind.patch_size),
        ),
        *norm("vision_model.pre_layrnorm", "first_norm"),
        *norm(f"{layer}.layer_norm1", "blocks/norm1"),
        *linear(fused, "blocks/attn/qkv", out_features=(3, kind.heads, kind.width // kind.heads)),
        *linear(f"{layer}.self_attn.out_proj", "blocks/attn/proj"),
        *norm(f"{layer}.layer_norm2", "blocks/norm2"),
        *linear(f"{layer}.mlp.fc1", "blocks/mlp/fc1"),
        *linear(f"{layer}.mlp.fc2", "blocks/mlp/fc2"),
        *norm("vision_model.post_layernorm", "norm"),
        *linear("visual_projection", "projection", bias=False),
    ]


def resampled_positions(table: np.ndarray, grid: int, source: str = "state dict") -> np.ndarray:
    """DINOv2's position table for another grid: cubic (a = −0.75), not antialiased, edges repeated, steps a bit short.

    Args:
      table: [1, 1 + n², D], that of the class token first.
      grid: patches on a side of the images that the network will see.
      source: what errors call the weights.

    Returns:
      [1, 1 + grid², D] float64; the entry of the class token and a table of this grid already are left alone.

    Raises:
      UserError: it is no table of a square grid.
    """
    side = math.isqrt(table.shape[1] - 1) if table.ndim == 3 else 0
    if table.ndim != 3 or len(table) != 1 or side < 1 or side**2 != table.shape[1] - 1:
        raise UserError(f"{source}: 'pos_embed' has shape {list(table.shape)}; [1, 1 + n², D] is needed")
    table = table.astype(np.float64)
    if side == grid:
        return table
    centre = (np.arange(grid) + 0.5) * side / (grid + POSITION_OFFSET) - 0.5
    taps = np.floor(centre)[:, None] + np.arange(-1, 3)  # [grid, 4]
    weights = np.zeros((grid, side))
    indices = np.clip(taps, 0, side - 1).astype(int)
    np.add.at(weights, (np.arange(grid)[:, None], indices), _cubic(np.abs(centre[:, None] - taps)))
    square = table[0, 1:].reshape(side, side, -1)
    square = np.einsum("iy,jx,yxd->ijd", weights, weights, square, optimize=True)
    return np.concatenate([table[:, :1], square.reshape(1, grid**2, -1)], axis=1)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel at distances in 0 … 2."""
    d, a = distance, CUBIC_A
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    return np.where(d <= 1, near, a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a)
