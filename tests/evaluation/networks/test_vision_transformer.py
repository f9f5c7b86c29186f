"""DINOv2 and CLIP's image tower under their published names, against the same arithmetic in NumPy."""

import dataclasses
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.networks.resize import bicubic_antialias, pil_bicubic_uint8
from diffusion_jax.evaluation.networks.vision_features import VisionFeatures
from diffusion_jax.evaluation.networks.vision_weights import (
    CLIP,
    DINOV2,
    find_weights,
    load_vision_transformer,
    read_vision_transformer,
    resampled_positions,
)
from diffusion_jax.interop.mapping import parameter_paths

TINY = {"image_size": 28, "width": 32, "depth": 2, "heads": 4, "patch_size": 7}
KINDS = {"dinov2": dataclasses.replace(DINOV2, **TINY), "clip": dataclasses.replace(CLIP, **TINY, projection=12)}
STORED_SIDE = 5  # of DINOv2's position table, for images larger than the network will see


def linear(name, width_in, width_out, bias=True):
    return {f"{name}.weight": (width_out, width_in)} | ({f"{name}.bias": (width_out,)} if bias else {})


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def shapes(kind, stored_side=None):
    """The tensors of a published file by name; written out here, as the files have them."""
    width, patch = kind.width, kind.patch_size
    if not kind.clip:
        tensors = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + stored_side**2, width), "mask_token": (1, width)}
        tensors |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
        for i in range(kind.depth):
            block = f"blocks.{i}"
            tensors |= norm(f"{block}.norm1", width) | linear(f"{block}.attn.qkv", width, 3 * width)
            tensors |= linear(f"{block}.attn.proj", width, width) | {f"{block}.ls1.gamma": (width,)}
            tensors |= norm(f"{block}.norm2", width) | linear(f"{block}.mlp.fc1", width, 4 * width)
            tensors |= linear(f"{block}.mlp.fc2", 4 * width, width) | {f"{block}.ls2.gamma": (width,)}
        return tensors | norm("norm", width)
    tower, tokens = "vision_model", 1 + (kind.image_size // patch) ** 2
    tensors = {
        f"{tower}.embeddings.class_embedding": (width,),
        f"{tower}.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        f"{tower}.embeddings.position_embedding.weight": (tokens, width),
        f"{tower}.embeddings.position_ids": (1, tokens),
        "logit_scale": (),
        "text_model.final_layer_norm.weight": (8,),
        "text_projection.weight": (12, 8),
    }
    tensors |= norm(f"{tower}.pre_layrnorm", width) | norm(f"{tower}.post_layernorm", width)
    for i in range(kind.depth):
        layer = f"{tower}.encoder.layers.{i}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors |= linear(f"{layer}.self_attn.{part}", width, width)
        tensors |= norm(f"{layer}.layer_norm1", width) | norm(f"{layer}.layer_norm2", width)
        tensors |= linear(f"{layer}.mlp.fc1", width, 4 * width) | linear(f"{layer}.mlp.fc2", 4 * width, width)
    return tensors | linear("visual_projection", width, kind.projection, bias=False)


def drawn(kind, stored_side=4, seed=0):
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes(kind, stored_side).items():
        value = rng.normal(size=shape) * (0.3 if len(shape) < 2 else math.prod(shape[1:]) ** -0.5)
        near_one = name.endswith(".weight") and len(shape) == 1
        tensors[name] = (value + near_one).astype(np.float32)
    return tensors


def by_hand(kind, t, images):
    """The network in float64, straight from the published tensors and the design: images [B, S, S, 3] prepared."""
    t = {name: value.astype(np.float64) for name, value in t.items()}
    d, p, eps = kind.width, kind.patch_size, 1e-5 if kind.clip else 1e-6

    def normed(name, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * t[f"{name}.weight"] + t[f"{name}.bias"]

    def mapped(name, x):
        return x @ t[f"{name}.weight"].T + t.get(f"{name}.bias", 0)

    patch = "vision_model.embeddings.patch_embedding" if kind.clip else "patch_embed.proj"
    count, side = len(images), kind.image_size // p
    x = np.zeros((count, side * side, d))
    for i in range(side):
        for j in range(side):
            square = images[:, i * p : (i + 1) * p, j * p : (j + 1) * p]
            x[:, i * side + j] = np.einsum("byxc,ocyx->bo", square, t[f"{patch}.weight"]) + t.get(f"{patch}.bias", 0)
    first = t["vision_model.embeddings.class_embedding" if kind.clip else "cls_token"].reshape(1, 1, d)
    positions = t["vision_model.embeddings.position_embedding.weight" if kind.clip else "pos_embed"].reshape(1, -1, d)
    x = np.concatenate([np.repeat(first, count, 0), x], 1) + positions
    if kind.clip:
        x = normed("vision_model.pre_layrnorm", x)
    for i in range(kind.depth):
        name = f"vision_model.encoder.layers.{i}" if kind.clip else f"blocks.{i}"
        y = normed(f"{name}.layer_norm1" if kind.clip else f"{name}.norm1", x)
        if kind.clip:
            q, k, v = (mapped(f"{name}.self_attn.{part}_proj", y) for part in "qkv")
        else:
            q, k, v = np.split(mapped(f"{name}.attn.qkv", y), 3, axis=-1)
        out, h = np.zeros_like(x), d // kind.heads
        for part in (slice(n * h, (n + 1) * h) for n in range(kind.heads)):
            logits = q[..., part] @ k[..., part].swapaxes(1, 2) / np.sqrt(h)
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            out[..., part] = weights / weights.sum(-1, keepdims=True) @ v[..., part]
        out = mapped(f"{name}.self_attn.out_proj" if kind.clip else f"{name}.attn.proj", out)
        x = x + out * t.get(f"{name}.ls1.gamma", 1)
        y = mapped(f"{name}.mlp.fc1", normed(f"{name}.layer_norm2" if kind.clip else f"{name}.norm2", x))
        exact = y * (1 + np.vectorize(math.erf)(y / np.sqrt(2))) / 2
        y = y / (1 + np.exp(-1.702 * y)) if kind.clip else exact
        x = x + mapped(f"{name}.mlp.fc2", y) * t.get(f"{name}.ls2.gamma", 1)
    feature = normed("vision_model.post_layernorm" if kind.clip else "norm", x[:, 0])
    return mapped("visual_projection", feature) if kind.clip else feature


def photographs(count=5, height=40, width=30, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("resize", ["pil_bicubic_uint8", "bicubic_antialias"])
def test_features_are_those_of_the_design(name, resize):
    kind, images = KINDS[name], photographs()
    tensors = drawn(kind)
    features = VisionFeatures(kind, load_vision_transformer(kind, tensors), name, resize=resize, images_per_device=1)
    ours = features.measure(images)[name]
    if resize == "pil_bicubic_uint8":
        pixels = pil_bicubic_uint8(images, kind.image_size, crop=kind.clip).astype(np.float64)
    else:
        pixels = np.asarray(bicubic_antialias(jnp.asarray(images, jnp.float32), kind.image_size), np.float64)
    want = by_hand(kind, tensors, (pixels / 255 - kind.mean) / kind.std)
    assert np.abs(want).max() > 0.5
    np.testing.assert_allclose(ours, want, rtol=0, atol=2e-5)
    facts = features.describe()
    assert (facts["name"], facts["resize"], facts["feature_width"]) == (kind.name, resize, want.shape[1])


def test_every_tensor_has_its_place():
    images = photographs(1, 28, 28)
    for name, kind in KINDS.items():
        base, tensors = None, drawn(kind)
        run = jax.jit(lambda network, x: network(x))
        ignored = ("mask_token", "logit_scale", "position_ids", "text_")
        for changed in (None, *tensors):
            t = tensors if changed is None else tensors | {changed: tensors[changed] * 1.5 + 0.1}
            x = (jnp.asarray(images, jnp.float32) / 255 - jnp.array(kind.mean)) / jnp.array(kind.std)
            ours = np.asarray(run(load_vision_transformer(kind, t), x))
            base = ours if changed is None else base
            # A bias of all keys alike moves every logit of a query by the same.
            silent = changed is None or any(part in changed for part in ignored) or changed.endswith("k_proj.bias")
            assert (np.abs(ours - base).max() > 1e-4) != silent, (name, changed)


def test_positions_equal_the_reference(golden_inception):
    rng = np.random.Generator(np.random.PCG64([7, zlib.crc32(b"pos")]))
    square = (rng.random(37 * 37 * 4) - 0.5).reshape(1, 37 * 37, 4)
    table = np.concatenate([np.full((1, 1, 4), 9.0), square], axis=1)
    ours = resampled_positions(table, 16)
    assert (ours[0, 0] == 9).all()
    np.testing.assert_allclose(ours[0, 1:].reshape(16, 16, 4), golden_inception["dinov2_pos_37_to_16"], atol=1e-6)
    without_offset = jax.image.resize(square.reshape(37, 37, 4), (16, 16, 4), "cubic", antialias=False)
    assert np.abs(without_offset - golden_inception["dinov2_pos_37_to_16"]).max() > 0.1
    assert np.array_equal(resampled_positions(table, 37), table)
    with pytest.raises(UserError, match=r"file: 'pos_embed' has shape \[1, 7, 4\]; \[1, 1 \+ n², D\] is needed"):
        resampled_positions(table[:, :7], 16, "file")


def test_a_table_of_larger_images_is_resampled_on_loading():
    kind = KINDS["dinov2"]
    tensors = drawn(kind, STORED_SIDE)
    network = load_vision_transformer(kind, tensors)
    want = resampled_positions(tensors["pos_embed"], 4)[0]
    np.testing.assert_allclose(network.positions[...], want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("group", ["a", "b", "c", "d", "e"])
def test_resizes_equal_the_reference_implementations(golden_inception, inception_images, group):
    image, rows = inception_images(group)[-1:], np.arange(0, 224, 23)
    want = golden_inception[f"resize_pilbicubic_u8_224_{group}_last_rows"]
    assert np.abs(pil_bicubic_uint8(image, 224)[0, rows].astype(int) - want).max() <= 1
    floats = np.asarray(jax.jit(bicubic_antialias, static_argnums=1)(jnp.asarray(image, jnp.float32), 224))[0, rows]
    np.testing.assert_allclose(floats, golden_inception[f"resize_bicubic_aa224_{group}_last_rows"], atol=5e-3)


def test_the_crop_for_clip_is_the_centre():
    image = photographs(1, 31, 50)
    assert np.array_equal(pil_bicubic_uint8(image, 31, crop=True), image[:, :, 9:40])
    assert np.array_equal(pil_bicubic_uint8(image.swapaxes(1, 2), 31, crop=True), image.swapaxes(1, 2)[:, 9:40])


@pytest.mark.parametrize(("kind", "count"), [(DINOV2, 304_368_640 - 1024 * (1370 - 257 + 1)), (CLIP, 304_293_888)])
def test_published_sizes(kind, count):
    """DINOv2's file has a mask token, and positions of a larger grid."""
    leaves = parameter_paths(jax.eval_shape(kind.network))
    assert sum(leaf.size for leaf in leaves.values()) == count


def test_weights_are_found_read_and_named_when_absent(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for kind in (DINOV2, CLIP):
        assert find_weights(kind) is None
        with pytest.raises(UserError) as caught:
            read_vision_transformer(kind)
        message = str(caught.value)
        assert all(part in message for part in (kind.published, kind.flag, str(tmp_path))) and "\n" not in message
        assert f"evaluate.{'clip' if kind.clip else 'dinov2'}_weights" in message
        file = tmp_path / "diffusion_jax" / kind.file_names[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        assert find_weights(kind) == file and find_weights(kind, "elsewhere.pth") is None


def test_other_weights_are_refused():
    kind = KINDS["dinov2"]
    with_registers = drawn(kind) | {"register_tokens": np.zeros((1, 4, 32), np.float32)}
    with pytest.raises(UserError, match="state dict has unexpected 'register_tokens'"):
        load_vision_transformer(kind, with_registers)
    with pytest.raises(UserError, match=r"lacks 'vision_model\.embeddings\.class_embedding' and"):
        load_vision_transformer(KINDS["clip"], drawn(kind))
