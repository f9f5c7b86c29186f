"""Autoencoder weights from published formats: same numbers as the official code, and one line for every wrong file."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from diffusion_jax.errors import UserError
from diffusion_jax.interop.autoencoder import diffusers_kwargs, load_autoencoder, load_first_stage
from diffusion_jax.interop.autoencoder_names import DIFFUSERS, DIFFUSERS_DEPRECATED, LDM, autoencoder_entries
from diffusion_jax.interop.mapping import dump_state_dict, parameter_paths
from diffusion_jax.models.autoencoder.autoencoder import AutoencoderKL
from diffusion_jax.models.autoencoder.first_stage import KLConfig
from diffusion_jax.models.layers.convolution import upsample_nearest

FOLDER = Path(__file__).parent.parent / "golden" / "diffusers_vae"
LDM_KWARGS = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (8,), "resolution": 16}
DIFFUSERS_KWARGS = {"ch": 16, "ch_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 8}


def abstract(**kwargs) -> AutoencoderKL:
    return jax.eval_shape(lambda: AutoencoderKL(**kwargs, rngs=nnx.Rngs(0)))


def weights(data: dict) -> dict[str, np.ndarray]:
    return {key[2:]: value for key, value in data.items() if key.startswith("w/")}


def nhwc(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 2, 3, 1)


def assert_close(ours, theirs, name):
    """The golden files' tolerance N: 1e-4 of the larger of 1 and the spread of the reference."""
    assert ours.shape == theirs.shape, name
    assert np.abs(np.asarray(ours) - theirs).max() <= 1e-4 * max(1.0, theirs.std()), name


def assert_equal(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="module")
def diffusers(golden):
    return golden("diffusers_vae")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the diffusers folder that a test may spoil."""
    shutil.copytree(FOLDER, tmp_path / "vae")
    return tmp_path / "vae"


def rewrite(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


def test_diffusers_folder_matches_diffusers(diffusers):
    model = load_autoencoder(FOLDER)
    images = nhwc(diffusers["in/x"])
    encode = jax.jit(lambda model, images: (model.encode(images), model.quant_conv(model.encoder(images))))
    moments, raw = encode(model, images)
    assert_close(raw, nhwc(diffusers["out/moments"]), "moments")
    assert_close(moments.mean, nhwc(diffusers["out/mean"]), "mean")
    assert_close(moments.logvar, nhwc(diffusers["out/logvar"]), "logvar")
    assert_close(moments.sample(nhwc(diffusers["in/noise"])), nhwc(diffusers["out/sample"]), "sample")
    np.testing.assert_allclose(moments.kl(), diffusers["out/kl"], rtol=1e-4)
    decode = jax.jit(lambda model, latents: model.decode(latents))
    assert_close(decode(model, nhwc(diffusers["in/z"])), nhwc(diffusers["out/decode"]), "decode")
    reconstruction = decode(model, nhwc(diffusers["out/mean"]))
    assert_close(reconstruction, nhwc(diffusers["out/reconstruction"]), "reconstruction")


def test_diffusers_layers_match_diffusers(diffusers):
    model = load_autoencoder(FOLDER)
    encoder, decoder = model.encoder, model.decoder

    def walk(images, latents):
        acts = {}
        acts["encoder.conv_in"] = x = encoder.conv_in(images)
        acts["encoder.down_blocks.0"] = x = encoder.downsamplers[0](encoder.levels[0](x))
        acts["encoder.mid_block"] = encoder.mid(encoder.levels[1](x))
        acts["encoder"] = encoder(images)
        acts["decoder.conv_in"] = x = decoder.conv_in(model.post_quant_conv(latents))
        acts["decoder.mid_block"] = x = decoder.mid(x)
        acts["decoder.up_blocks.0"] = decoder.upsamplers[0](upsample_nearest(decoder.levels[1](x)))
        acts["decoder"] = decoder(model.post_quant_conv(latents))
        return acts

    recorded = {key.removeprefix("out/act/"): value for key, value in diffusers.items() if key.startswith("out/act/")}
    # diffusers' decoder was recorded as it decoded `in/z`.
    acts = jax.jit(walk)(nhwc(diffusers["in/x"])[:1], nhwc(diffusers["in/z"])[:1])
    assert acts.keys() == recorded.keys()
    for name, theirs in recorded.items():
        assert_close(acts[name], nhwc(theirs), name)


def test_ldm_file_round_trips_bit_for_bit(golden, tmp_path):
    theirs = weights(golden("ldm_autoencoder_kl"))
    save_file(theirs, tmp_path / "kl.safetensors")
    model = load_autoencoder(tmp_path / "kl.safetensors", abstract(**LDM_KWARGS))
    assert_equal(dump_state_dict(model, autoencoder_entries(model, LDM)), theirs)

    # The same weights inside a whole latent diffusion checkpoint, next to the training losses.
    whole = {f"first_stage_model.{name}": array for name, array in theirs.items()}
    whole |= {"first_stage_model.loss.logvar": np.zeros(1), "model.diffusion_model.out.2.bias": np.zeros(4)}
    save_file(whole, tmp_path / "whole.safetensors")
    again = load_autoencoder(tmp_path / "whole.safetensors", abstract(**LDM_KWARGS))
    assert_equal(parameter_paths(again), parameter_paths(model))

    # And through the other codebase's names.
    renamed = dump_state_dict(model, autoencoder_entries(model, DIFFUSERS))
    assert renamed["decoder.up_blocks.0.attentions.1.to_q.weight"].shape == (64, 64)
    save_file(renamed, tmp_path / "diffusers.safetensors")
    again = load_autoencoder(tmp_path / "diffusers.safetensors", abstract(**LDM_KWARGS))
    assert_equal(parameter_paths(again), parameter_paths(model))


def test_parts_that_only_training_needs_are_passed_over(golden, tmp_path):
    theirs = weights(golden("ldm_autoencoder_kl"))
    save_file(theirs, tmp_path / "kl.safetensors")
    expected = parameter_paths(load_autoencoder(tmp_path / "kl.safetensors", abstract(**LDM_KWARGS)))

    # VA-VAE's file has its foundation model and the projection to it; others the discriminator, LPIPS, an average.
    training = ("foundation_model.model.blocks.0.attn.qkv.weight", "linear_proj.weight", "discriminator.main.0.bias")
    training += ("perceptual_loss.lin0.model.1.weight", "logvar", "loss.logvar", "model_ema.decay", "colorize")
    save_file(theirs | {name: np.zeros(1) for name in training}, tmp_path / "trained.safetensors")
    found = load_autoencoder(tmp_path / "trained.safetensors", abstract(**LDM_KWARGS))
    assert_equal(parameter_paths(found), expected)

    spare = ("adapter.weight", "adapter.bias", "refiner.weight")
    save_file(theirs | {name: np.zeros(1) for name in spare}, tmp_path / "spare.safetensors")
    with pytest.raises(UserError, match=r"has unexpected 'adapter\.bias' and 2 more \(of adapter, refiner\): not"):
        load_autoencoder(tmp_path / "spare.safetensors", abstract(**LDM_KWARGS))


def test_diffusers_names_old_and_new_are_the_same_model(diffusers, folder):
    model = load_autoencoder(folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    stored = load_file(file)
    assert_equal(stored, weights(diffusers))
    assert_equal(dump_state_dict(model, autoencoder_entries(model, DIFFUSERS)), stored)
    old_names = diffusers["config"]["deprecated_names"]
    old = {old_names.get(name, name): array for name, array in stored.items()}
    save_file(old, file)
    again = load_autoencoder(folder)
    assert_equal(parameter_paths(again), parameter_paths(model))
    assert_equal(dump_state_dict(again, autoencoder_entries(again, DIFFUSERS_DEPRECATED)), old)


def test_first_stage_reads_folder_pipeline_and_file(folder):
    section = KLConfig(**DIFFUSERS_KWARGS, weights=str(folder))
    expected = parameter_paths(load_autoencoder(folder))
    stage = section.build(load_first_stage, seed=0)
    assert_equal(parameter_paths(stage.autoencoder), expected)
    assert stage.scale == np.float32(0.18215)

    (folder.parent / "model_index.json").write_text("{}")
    assert_equal(parameter_paths(load_first_stage(section.abstract(), str(folder.parent)).autoencoder), expected)
    file = str(folder / "diffusion_pytorch_model.safetensors")
    assert_equal(parameter_paths(load_first_stage(section.abstract(), file).autoencoder), expected)


def test_a_folder_of_another_scale_or_architecture_is_refused(folder):
    rewrite(folder, scaling_factor=0.13025)
    message = r"has scaling_factor=0\.13025, but autoencoder\.scale=0\.18215: set scale=0\.13025, or name"
    with pytest.raises(UserError, match=message):
        load_first_stage(KLConfig(**DIFFUSERS_KWARGS).abstract(), str(folder))
    load_first_stage(KLConfig(**DIFFUSERS_KWARGS, scale=0.13025).abstract(), str(folder))
    # Norm groups leave no trace in the shapes of the weights.
    with pytest.raises(UserError, match=r"with norm_groups=8, the configuration has 16$"):
        load_autoencoder(folder, abstract(**DIFFUSERS_KWARGS | {"norm_groups": 16}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "VQModel"}, "describes a VQModel, not an AutoencoderKL"),
        ({"act_fn": "relu"}, "has act_fn='relu'; only 'silu' is supported"),
        ({"shift_factor": 0.1159}, r"has shift_factor=0\.1159; only None is supported"),
        ({"use_quant_conv": False}, "has use_quant_conv=False; only True"),
        ({"block_out_channels": [16, 24]}, r"block_out_channels \[16, 24\] must be multiples"),
        ({"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]}, "must mirror"),
        (
            {"down_block_types": ["DownEncoderBlock2D", "SkipDownBlock2D"]},
            "a block of type SkipDownBlock2D; supported:",
        ),
    ],
)
def test_unsupported_diffusers_configurations_are_named(folder, changes, message):
    rewrite(folder, **changes)
    with pytest.raises(UserError, match=rf"^'.*config\.json'[^\n]*{message}"):
        load_autoencoder(folder)


def test_older_configurations_mean_the_defaults_of_diffusers(folder):
    gone = ("scaling_factor", "shift_factor", "use_quant_conv", "mid_block_add_attention", "latents_mean")
    want = load_first_stage(KLConfig(**DIFFUSERS_KWARGS).abstract(), str(folder))
    rewrite(folder, **dict.fromkeys(gone, "absent"))
    stage = load_first_stage(KLConfig(**DIFFUSERS_KWARGS).abstract(), str(folder))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(stage), jax.tree.leaves(want), strict=True))


def test_attention_levels_of_diffusers_are_found():
    config = json.loads((FOLDER / "config.json").read_text())
    config["down_block_types"] = ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]
    config["up_block_types"] = ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]
    model = abstract(**diffusers_kwargs(config, "config.json"))
    assert model.layout.attention == (False, True)
    names = {name for entry in autoencoder_entries(model, DIFFUSERS) for name in entry.parts}
    assert {"encoder.down_blocks.1.attentions.0.to_q.weight", "decoder.up_blocks.0.attentions.1.to_v.bias"} <= names


def test_files_that_are_not_there_or_not_read(folder, tmp_path):
    with pytest.raises(UserError, match=r"^no weights at 'nowhere/sd-vae': .*stabilityai/sd-vae-ft-ema[^\n]*folder"):
        load_autoencoder("nowhere/sd-vae")
    (tmp_path / "kl.h5").write_bytes(b"")
    with pytest.raises(UserError, match=r"kl\.h5' is of a format that is not read; \.safetensors, \.pt, .*diffusers"):
        load_autoencoder(tmp_path / "kl.h5")
    save_file({"weight": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other\.safetensors' has neither the LDM nor the diffusers names"):
        load_autoencoder(tmp_path / "other.safetensors")

    file = folder / "diffusion_pytorch_model.safetensors"
    with pytest.raises(
        UserError, match=r"safetensors': 'encoder\.conv_in\.weight' has shape \(16, 3, 3, 3\), this model"
    ):
        load_autoencoder(file, abstract(**DIFFUSERS_KWARGS | {"ch": 32}))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"is no complete \.safetensors file"):
        load_autoencoder(folder)
    file.unlink()
    with pytest.raises(UserError, match=r"^no weights at .*diffusion_pytorch_model\.safetensors'"):
        load_autoencoder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json' is no JSON"):
        load_autoencoder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"^no '.*config\.json': .*published"):
        load_autoencoder(folder)
