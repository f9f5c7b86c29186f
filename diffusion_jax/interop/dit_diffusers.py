"""DiT as the `DiTTransformer2DModel` of diffusers: names, config.json, folders.

The two codes compute different functions of the same weights: diffusers takes the time frequencies 10000^(−i/127) where
the official code takes 10000^(−i/128), and before the MLP the norm_eps of its config, 1e-5 by default.
"""

import json
from typing import Any, Literal

import jax
from etils import epath
from flax import nnx

from diffusion_jax.errors import UserError
from diffusion_jax.files import user_path
from diffusion_jax.interop.mapping import ConvAsLinear, Entry, conv, linear, load_state_dict
from diffusion_jax.interop.readers import open_state_dict
from diffusion_jax.models.conditioning.parts import ConditioningSpec
from diffusion_jax.models.dit.dit import DiT
from diffusion_jax.records import Json
from diffusion_jax.schema import Options

PUBLISHED = (
    "DiT is published for diffusers on huggingface.co as facebook/DiT-XL-2-256 and facebook/DiT-XL-2-512; name the "
    "folder of the pipeline or its sub-folder 'transformer'"
)

REQUIRED = {
    "norm_type": "ada_norm_zero",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
}


def diffusers_dit_entries(model: DiT) -> list[Entry]:
    """The name table of a DiT under the names of diffusers, which repeats the embeddings of time and class per block.

    Args:
      model: a classic adaLN-Zero DiT, abstract or not.

    Returns:
      Entries for `load_state_dict`, which checks that the copies are equal, and `dump_state_dict`.

    Raises:
      UserError: diffusers has no such model.
    """
    _check_known_to_diffusers(model)
    block, embedding = "transformer_blocks.{i}", "norm1.emb.timestep_embedder"
    return [
        *conv("pos_embed.proj", "patch_embed", transform=ConvAsLinear(model.patch_size)),
        *_repeated(linear(f"{block}.{embedding}.linear_1", "time_embed/fc1"), model.depth),
        *_repeated(linear(f"{block}.{embedding}.linear_2", "time_embed/fc2"), model.depth),
        *_repeated(
            [Entry(f"{block}.norm1.emb.class_embedder.embedding_table.weight", "label_embed/table/embedding")],
            model.depth,
        ),
        *linear(f"{block}.norm1.linear", "blocks/modulation"),
        *linear(
            tuple(f"{block}.attn1.{name}" for name in ("to_q", "to_k", "to_v")),
            "blocks/attn/qkv",
            out_features=model.blocks.attn.qkv.kernel.shape[2:],  # 3, heads, d
        ),
        *linear(f"{block}.attn1.to_out.0", "blocks/attn/proj"),
        *linear(f"{block}.ff.net.0.proj", "blocks/mlp/fc1"),
        *linear(f"{block}.ff.net.2", "blocks/mlp/fc2"),
        *linear("proj_out_1", "final/modulation"),
        *linear("proj_out_2", "final/linear"),
    ]


def diffusers_dit_config(model: DiT) -> Json:
    """The config.json of a DiT for diffusers.

    A model with freq_denominator 128 is another function there; see the module's docstring.

    Args:
      model: a classic adaLN-Zero DiT, abstract or not.

    Returns:
      What `DiTTransformer2DModel.from_config` takes.

    Raises:
      UserError: diffusers has no such model.
    """
    _check_known_to_diffusers(model)
    *_, heads, head_width = model.blocks.attn.qkv.kernel.shape
    pixels = model.patch_size**2
    return {
        "_class_name": "DiTTransformer2DModel",
        **REQUIRED,
        "num_attention_heads": heads,
        "attention_head_dim": head_width,
        "in_channels": model.patch_embed.kernel.shape[0] // pixels,
        "out_channels": model.final.linear.kernel.shape[1] // pixels,
        "num_layers": model.depth,
        "dropout": 0.0,
        "norm_eps": model.blocks.norm2.eps,
        "sample_size": model.grid[0] * model.patch_size,
        "patch_size": model.patch_size,
        "num_embeds_ada_norm": model.conditioning.num_classes,
    }


def diffusers_dit_options(config: Json, function: Literal["official", "diffusers"]) -> Options:
    """The constructor arguments of a DiT described by a config.json of diffusers.

    Args:
      config: its content.
      function: which of the two functions to compute: that of the official code, right for the published weights, or
        that of diffusers.

    Returns:
      Keyword arguments of `DiT`, without `rngs`.

    Raises:
      UserError: it describes another model.
    """
    kind = config.get("_class_name")
    if kind not in ("DiTTransformer2DModel", "Transformer2DModel"):  # the second in files of older releases
        raise UserError(f"config.json describes a {kind}, not a DiTTransformer2DModel")
    for name, value in REQUIRED.items():
        if config.get(name, value) != value:
            raise UserError(f"config.json has {name}={config[name]!r}: a DiT has {value!r}")
    side, channels = config["sample_size"], config["in_channels"]
    as_diffusers = {"freq_denominator": 127, "mlp_norm_eps": config.get("norm_eps", 1e-5)}
    return {
        "input_shape": (side, side, channels),
        "out_channels": config.get("out_channels") or channels,
        "conditioning": ConditioningSpec(num_classes=config["num_embeds_ada_norm"], null_class=True),
        "depth": config["num_layers"],
        "width": config["num_attention_heads"] * config["attention_head_dim"],
        "heads": config["num_attention_heads"],
        "patch_size": config["patch_size"],
        **(as_diffusers if function == "diffusers" else {}),
    }


def load_diffusers_dit(
    path: epath.PathLike, *, function: Literal["official", "diffusers"] = "official", **options: Any
) -> DiT:
    """Reads a DiT from a folder of diffusers.

    Args:
      path: the folder of the model or of a pipeline.
      function: see `diffusers_dit_options`.
      **options: further options of `DiT`, such as `dtype`.

    Returns:
      The model.

    Raises:
      UserError: no such folder, or weights or a config.json of another model.
    """
    folder = user_path(path)
    if (folder / "transformer").is_dir():
        folder = folder / "transformer"
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise UserError(f"no '{config_file}': {PUBLISHED}")
    try:
        config = json.loads(config_file.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"'{config_file}' is no JSON ({error}): fetch it again") from error
    arguments = {**diffusers_dit_options(config, function), **options}
    model = jax.eval_shape(lambda: DiT(**arguments, rngs=nnx.Rngs(0)))
    file = folder / "diffusion_pytorch_model.safetensors"
    entries = diffusers_dit_entries(model)
    return load_state_dict(
        model, open_state_dict(file, PUBLISHED), entries, ignore=("pos_embed.pos_embed",), source=f"'{file}'"
    )


def _repeated(entries: list[Entry], depth: int) -> list[Entry]:
    """One parameter of ours that block 0 holds and all others hold copies of."""

    def repeated(entry: Entry) -> Entry:
        first, *copies = (entry.parts[0].replace("{i}", str(i)) for i in range(depth))
        return Entry(first, entry.ours, entry.transform, tuple(copies))

    return [repeated(entry) for entry in entries]


def _check_known_to_diffusers(model: DiT) -> None:
    blocks = model.blocks
    classic = {
        "block='adaln_zero'": getattr(blocks, "gate", False),
        "modulation_shift=True": getattr(blocks, "shift", True),
        "norm='layer'": not hasattr(blocks.norm1, "scale"),
        "mlp='gelu'": hasattr(blocks.mlp, "fc1"),
        "mlp_ratio=4": hasattr(blocks.mlp, "fc1") and blocks.mlp.fc1.kernel.shape[-1] == 4 * model.width,
        "qk_norm='none'": blocks.attn.q_norm is None,
        "rope=False": not model.head_width,
        "base_grid=None": model.base_grid is None,
        "time_scale=1": model.time_embed.time_scale == 1,
        "a square input": model.grid[0] == model.grid[1],
        "repa_depth=0": not model.repa_depth,
        "no condition but the class": model.vector_embed is None,
        "a null class": model.conditioning.null_class,
    }
    for option, holds in classic.items():
        if not holds:
            raise UserError(f"diffusers knows only the classic DiT, with {option}: this model cannot go by its names")
