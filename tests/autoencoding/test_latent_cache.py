"""A cache of latents: what it holds, how it is finished after an interruption, and that training cannot tell."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from diffusion_jax.autoencoding.fingerprint import encoder_fingerprint
from diffusion_jax.autoencoding.latent_cache import EncodeConfig, with_any_scale, write_cache
from diffusion_jax.autoencoding.latent_statistics import LatentStatistics, measure
from diffusion_jax.config import complete
from diffusion_jax.data import DataConfig, batches, open_source
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.data.latents import CacheMetadata
from diffusion_jax.data.sources import BadImage
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.image_sets import SourceImages
from diffusion_jax.interop.autoencoder import load_first_stage
from diffusion_jax.interop.autoencoder_names import LDM, autoencoder_entries
from diffusion_jax.interop.mapping import dump_state_dict
from diffusion_jax.models.autoencoder.first_stage import Identity, KLConfig, VQConfig
from diffusion_jax.models.autoencoder.tiling import Tiling
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh, replicated, to_global
from diffusion_jax.parallel.partition import path_name
from diffusion_jax.runs.schemas import DIFFUSION_SCHEMA
from diffusion_jax.runs.system import DiffusionSystem
from diffusion_jax.training.diffusion_state import abstract_state
from diffusion_jax.training.diffusion_step import make_train_step

IMAGES, SIZE, BATCH = 13, 16, 8
# Compiling is nearly all that these tests do.
QUICK = {"xla_backend_optimization_level": 0}

TINY = {"ch": 8, "ch_mult": (1, 2), "norm_groups": 4, "num_res_blocks": 1, "mid_attention": False}
SHARDS_OF_4 = EncodeConfig(batch_size=1, shard_size=4)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of photographs of noise in three classes."""
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(IMAGES):
        path = folder / "abc"[i % 3] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)
    return DataConfig(f"folder:{folder}", SIZE, flip=True)


def write_weights(path, config, seed=0):
    """Weights drawn by NumPy, which unlike JAX compiles nothing; returns the path."""
    generator = np.random.default_rng(seed)
    model = jax.eval_shape(lambda: config.make_autoencoder(jax.random.key(0)))
    model = jax.tree.map(lambda leaf: generator.normal(0, 0.1, leaf.shape).astype(np.float32), model)
    save_file(dump_state_dict(model, autoencoder_entries(model, LDM)), path)
    return str(path)


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    """The section `autoencoder` of a config."""
    folder = tmp_path_factory.mktemp("weights")
    weights = write_weights(folder / "kl.safetensors", KLConfig(preset="kl-f4", **TINY))
    return {"name": "kl", "preset": "kl-f4", "scale": 0.5, "weights": weights, **TINY}


@pytest.fixture(scope="module")
def other_section(tmp_path_factory, section):
    """The same architecture with other weights."""
    path = tmp_path_factory.mktemp("weights") / "other.safetensors"
    return {**section, "weights": write_weights(path, KLConfig(preset="kl-f4", **TINY), seed=1)}


def build(section):
    return DIFFUSION_SCHEMA["autoencoder"].build("autoencoder", section).build(load_first_stage, seed=0)


@pytest.fixture(scope="module")
def first_stage(section):
    return build(section)


def write(folder, images, first_stage, config=SHARDS_OF_4, source=None):
    return write_cache(folder, source or open_source(images), images, first_stage, "tiny", config)


@pytest.fixture(scope="module")
def cache(tmp_path_factory, images, first_stage):
    folder = tmp_path_factory.mktemp("cache")
    write(folder, images, first_stage)
    return folder


def reading(cache, **settings):
    return DataConfig(f"cache:{cache}", SIZE, **{"flip": True, **settings})


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_cache_holds_the_posteriors_of_each_image_and_its_mirror_image(images, first_stage, cache):
    source, latents = open_source(images), open_source(reading(cache))
    assert len(latents) == IMAGES and latents.num_classes == 3 and latents.class_names == ("a", "b", "c")
    assert latents.image_shape == (SIZE, SIZE, 3) and source.identity in latents.identity
    pixels = np.stack([source[i]["image"] for i in range(IMAGES)])
    scaled = pixels.astype(np.float32) / 127.5 - 1
    posterior = jax.jit(lambda stage, images: stage.posterior(images))
    plain, mirrored = posterior(first_stage, scaled), posterior(first_stage, scaled[:, :, ::-1])
    for i in range(IMAGES):
        record = latents[i]
        assert set(record) == {"mean", "std", "mirrored_mean", "mirrored_std", "label"}
        assert record["label"] == source[i]["label"] and latents.read(i)["source_id"] == i
        for name in ("mean", "std"):
            assert record[name].shape == (8, 8, 3) and record[name].dtype == np.float32
            np.testing.assert_allclose(record[name], plain[name][i], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(record[f"mirrored_{name}"], mirrored[name][i], rtol=1e-5, atol=1e-6)
    assert not np.allclose(plain["mean"], mirrored["mean"], atol=1e-3)
    assert set(open_source(reading(cache, flip=False))[0]) == {"mean", "std", "label"}


def test_the_statistics_are_those_of_latents_drawn_from_the_cache(first_stage, cache):
    latents = open_source(reading(cache))
    noise = np.random.default_rng(1)
    drawn = []
    for record in (latents[i] for i in range(IMAGES)):
        for prefix in ("", "mirrored_"):
            mean, std = record[f"{prefix}mean"], record[f"{prefix}std"]
            drawn.append(jnp.asarray(mean + std * noise.normal(size=(400, *mean.shape)).astype(np.float32)))
    expected, stored = measure(drawn), latents.metadata.statistics
    np.testing.assert_allclose(stored["mean"], expected.mean, atol=3e-3)
    np.testing.assert_allclose(stored["variance"], expected.variance, rtol=2e-2)
    assert stored["scale"] == pytest.approx(expected.scale, rel=1e-2)


class Stops:
    """A source whose image 9 cannot be read, and which counts what is read."""

    def __init__(self, source, stops):
        self.source, self.stops, self.seen = source, stops, []
        self.num_classes, self.class_names = source.num_classes, source.class_names
        self.image_shape, self.identity, self.record_spec = source.image_shape, source.identity, source.record_spec

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        if self.stops and index == 9:
            raise BadImage.of("nine", "stop")
        self.seen.append(index)
        return self.source[index]


def test_an_interrupted_cache_is_finished_without_loss_or_repetition(tmp_path, images, first_stage, cache):
    with pytest.raises(UserError, match="nine: cannot be read"):
        write(tmp_path, images, first_stage, source=Stops(open_source(images), stops=True))
    assert [path.name for path in sorted(tmp_path.glob("*.array_record"))] == []
    with pytest.raises(UserError, match=r"unfinished; run the diffusion-jax encode"):
        open_source(reading(tmp_path))
    whole = files(cache)
    for name in ("latents-00001-of-00004.array_record", "latents-00001-of-00004.json"):
        (tmp_path / name).write_bytes(whole[name])
    (tmp_path / "latents-00002-of-00004.array_record.77.partial").write_bytes(b"half a shard")
    source = Stops(open_source(images), stops=False)
    write(tmp_path, images, first_stage, source=source)
    assert sorted(source.seen) == [0, 1, 2, 3, *range(8, IMAGES)]
    assert_same_records(tmp_path, cache)
    assert not list(tmp_path.glob("*.partial"))

    (tmp_path / "latents-00003-of-00004.array_record").unlink()
    (tmp_path / "latents-00000-of-00004.array_record").write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"latents-00000-of-00004.array_record has 9 bytes, not \d+: copy it again"):
        open_source(reading(tmp_path))
    source.seen.clear()
    write(tmp_path, images, first_stage, source=source)
    assert sorted(source.seen) == [0, 1, 2, 3, 12]
    assert_same_records(tmp_path, cache)
    source.seen.clear()
    write(tmp_path, images, first_stage, source=source)
    assert source.seen == []


def assert_same_records(folder, other):
    """Equal up to what the place of an image in its batch changes: the last bits."""
    ours, theirs = open_source(reading(folder)), open_source(reading(other))
    assert len(ours) == len(theirs)
    for i in range(len(ours)):
        a, b = ours.read(i), theirs.read(i)
        assert a["label"] == b["label"] and a["source_id"] == b["source_id"] == i
        for name in ours.metadata.record_dtype.names[:-2]:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-6)


def test_another_cache_in_the_same_folder_is_refused(cache, images, first_stage, other_section):
    with pytest.raises(UserError, match=r"holds a cache with encoder='\w+', not '\w+': use another --out"):
        write(cache, images, build(other_section))
    with pytest.raises(UserError, match=r"dtype='float32', not 'float16'"):
        write(cache, images, first_stage, dataclasses.replace(SHARDS_OF_4, dtype="float16"))
    with pytest.raises(UserError, match=r"--dtype float61: is not known; did you mean 'float16'"):
        EncodeConfig(dtype="float61")
    with pytest.raises(UserError, match=r"--shard-size 0: must be at least 1"):
        EncodeConfig(shard_size=0)
    with pytest.raises(UserError, match="'identity' makes no latents"):
        with_any_scale(Identity())
    assert with_any_scale(KLConfig(preset="kl-f8")).scale == 1 and with_any_scale(KLConfig()).scale is None


def test_unreadable_images_are_replaced_and_numbered_as_in_training(tmp_path, images, first_stage):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.full((SIZE, SIZE, 3), 80 * i, np.uint8)).save(folder / f"{i}.png")
    (folder / "1.png").write_bytes(b"no image")
    data = DataConfig(f"folder:{folder}", SIZE, on_bad_image="skip")
    write(tmp_path / "cache", data, first_stage, dataclasses.replace(SHARDS_OF_4, dtype="bfloat16"))
    latents = open_source(DataConfig(f"cache:{tmp_path / 'cache'}", SIZE))
    assert [int(latents.read(i)["source_id"]) for i in range(3)] == [0, 2, 2]
    assert latents[1]["mean"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(latents[1]["mean"], latents[2]["mean"])


def make_system(data, autoencoder):
    config = {
        "data": dataclasses.asdict(data),
        "conditioner": {"name": "class", "label_drop": 0.3},
        "autoencoder": autoencoder,
        "model": {"name": "dit", "depth": 1, "width": 32, "heads": 2, "patch_size": 2},
        "path": {"name": "ddpm"},
        "prediction": {"kind": "epsilon"},
        "loss": {"name": "simple"},
        "ema": {"name": "constant", "max_decay": 0.9},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "train": {"steps": 20, "batch_size": BATCH},
        "sampler": {"name": "ddpm", "steps": 4},
        "guidance": {"name": "cfg", "cfg_scale": 1.0},
    }
    return DiffusionSystem(complete(config, DIFFUSION_SCHEMA), DatasetFacts.of(open_source(data)))


def train(data, autoencoder):
    """The losses of a run, from a state drawn by NumPy."""
    system, mesh = make_system(data, autoencoder), make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer, _ = system.build("optimizer")
    generator = np.random.default_rng(0)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_state(system, optimizer, mesh))
    model = jax.tree.map(lambda leaf: generator.normal(0, 0.1, leaf.shape).astype(leaf.dtype), zeros.model)
    state, first_stage = jax.device_put(
        (zeros._replace(model=model, ema=model), system.load_frozen()), replicated(mesh)
    )
    step = jax.jit(make_train_step(system, optimizer, mesh), compiler_options=QUICK)
    reader = batches(open_source(data), seed=0, batch_size=BATCH)
    losses = []
    for _ in range(system.train.steps):
        batch = next(reader)
        arrays = {key: value for key, value in batch.items() if isinstance(value, np.ndarray)}
        state, metrics = step(state, first_stage, to_global(mesh, BATCH, arrays))
        losses.append(float(metrics["loss"]))
    reader.close()
    return np.array(losses)


def test_training_from_a_cache_equals_encoding_on_the_fly(images, cache, section):
    on_the_fly = train(images, section)
    assert len(set(on_the_fly)) == 20
    np.testing.assert_allclose(train(reading(cache), section), on_the_fly, rtol=1e-5)


def test_half_precision_keeps_three_digits(tmp_path, cache, images, first_stage):
    write(tmp_path, images, first_stage, dataclasses.replace(SHARDS_OF_4, dtype="float16"))
    half, single = open_source(reading(tmp_path))[3], open_source(reading(cache))[3]
    for name in ("mean", "std", "mirrored_mean", "mirrored_std"):
        assert half[name].dtype == np.float16
        np.testing.assert_allclose(half[name], single[name], rtol=1e-3, atol=1e-4)


def test_a_vq_autoencoder_has_a_mean_alone(tmp_path, images):
    config = VQConfig(preset="vq-f4", num_codes=16, scale=2.0, **TINY)
    config = dataclasses.replace(config, weights=write_weights(tmp_path / "vq.safetensors", config))
    metadata = write(tmp_path, images, config.build(load_first_stage, seed=0))
    assert metadata.moments == ("mean",) and set(open_source(reading(tmp_path, flip=False))[0]) == {"mean", "label"}
    system = make_system(reading(tmp_path), {"name": "vq", **dataclasses.asdict(config)})
    record, noise = open_source(reading(tmp_path))[0], np.ones((1, 8, 8, 3), np.float32)
    drawn = system.load_frozen().first_stage.draw({"mean": record["mean"][None]}, noise)
    np.testing.assert_allclose(drawn, 2 * record["mean"][None])


def test_training_refuses_a_cache_of_another_autoencoder(cache, first_stage, section, other_section):
    stored = encoder_fingerprint(first_stage, SIZE)
    assert make_system(reading(cache), section).facts.encoder == stored
    make_system(reading(cache), {**section, "scale": 3.0, "dtype": "bfloat16"}).load_frozen()
    system = make_system(reading(cache), other_section)
    with pytest.raises(UserError, match=rf"^cache:.* holds latents of encoder {stored}, the section 'auto.* \w+: set"):
        system.load_frozen()
    with pytest.raises(UserError, match="autoencoder 'identity' has none"):
        make_system(reading(cache), {"name": "identity"}).load_frozen()
    assert make_system(DataConfig("digits", 8), {"name": "identity"}).facts.encoder is None


def test_sampling_refuses_another_autoencoder_than_that_of_the_cache(cache, section, other_section):
    """Sampling knows the data by what the checkpoint says of them."""
    facts = DatasetFacts.from_json(json.loads(json.dumps(make_system(reading(cache), section).facts.to_json())))
    assert facts == make_system(reading(cache), section).facts and facts.encoder is not None
    with pytest.raises(UserError, match=rf"^cache:.* holds latents of encoder {facts.encoder}, the section 'autoenc"):
        DiffusionSystem(make_system(reading(cache), other_section).config, facts).load_frozen()
    older = {"num_classes": 3, "class_names": ["a", "b", "c"], "identity": "photographs"}
    assert DatasetFacts.from_json(older).encoder is None


def test_a_cache_is_no_set_of_images(cache):
    with pytest.raises(UserError, match=r"^cache encoder=.*: holds latents, not images; name the images that were enc"):
        SourceImages(open_source(reading(cache)))


def test_channels_of_a_cache_are_normalised_by_its_own_statistics(cache, section):
    """Of means 0 and deviations 1, each channel by itself."""
    latents = open_source(reading(cache))
    stored = LatentStatistics.from_json(latents.metadata.statistics)
    keys = {"normalize": "channel", "channel_mean": stored.mean.tolist(), "channel_std": stored.std.tolist()}
    config = {**section, **{key: tuple(v) if isinstance(v, list) else v for key, v in keys.items()}}
    first_stage = make_system(reading(cache), config).load_frozen().first_stage
    records = [latents[i] for i in range(IMAGES)]
    drawn = []
    for prefix in ("", "mirrored_"):
        posterior = {name: np.stack([record[prefix + name] for record in records]) for name in ("mean", "std")}
        noise = np.random.default_rng(0).normal(size=(200, *posterior["mean"].shape)).astype(np.float32)
        drawn.append(np.asarray(first_stage.draw(posterior, noise)).reshape(-1, 3))
    drawn = np.concatenate(drawn)
    np.testing.assert_allclose(drawn.mean(0), 0, atol=2e-2)
    np.testing.assert_allclose(drawn.std(0), 1, rtol=2e-2)


def test_a_fingerprint_is_of_what_decides_the_latents(first_stage):
    stored = encoder_fingerprint(first_stage, SIZE)
    leaves, tree = jax.tree.flatten_with_path(first_stage.autoencoder)
    for i, (path, leaf) in enumerate(leaves):
        changed = [*(leaf for _, leaf in leaves[:i]), np.asarray(leaf) + 1, *(leaf for _, leaf in leaves[i + 1 :])]
        other = dataclasses.replace(first_stage, autoencoder=jax.tree.unflatten(tree, changed))
        encodes = path_name(path).startswith(("encoder", "quant_conv"))
        assert (encoder_fingerprint(other, SIZE) != stored) == encodes, path_name(path)
    tiled = dataclasses.replace(first_stage, tiling=Tiling(8, 4))
    assert encoder_fingerprint(tiled, 16) == stored != encoder_fingerprint(tiled, 32)


def test_mistakes_are_one_line(tmp_path, cache):
    for settings, message in [
        ({"split": "test"}, r"data.split='test': cache:.* holds latents of images with data.split='train'; set that"),
        ({"channels": 1}, r"data.channels=1: cache:.* holds latents of images with data.channels=3"),
        ({"crop": "celeba"}, r"data.crop='celeba': cache:.* with data.crop='adm'"),
    ]:
        with pytest.raises(UserError, match=message):
            open_source(reading(cache, **settings))
    with pytest.raises(UserError, match=r"data.image_size=32: cache:.* with data.image_size=16"):
        open_source(DataConfig(f"cache:{cache}", 32))
    with pytest.raises(UserError, match=r"data.name=cache:.*: no metadata.json there; diffusion-jax encode writes"):
        open_source(reading(tmp_path))
    values = json.loads((cache / "metadata.json").read_text())
    (tmp_path / "metadata.json").write_text(json.dumps({**values, "format": 99}))
    with pytest.raises(UserError, match="is of format 99, this version reads 2"):
        CacheMetadata.read(tmp_path)
    (tmp_path / "metadata.json").write_text("{")
    with pytest.raises(UserError, match=r"metadata.json is damaged \(.*\): encode again"):
        CacheMetadata.read(tmp_path)
    (tmp_path / "metadata.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"latents-00000-of-00004.array_record is missing: copy it again, or run"):
        open_source(reading(tmp_path))


def test_a_label_beyond_the_table_is_refused(tmp_path, cache):
    """JAX would take the last row of a table instead, without a word."""
    shutil.copytree(cache, tmp_path / "cache")
    path = tmp_path / "cache" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_classes": 2, "class_names": ["a", "b"]}))
    latents = open_source(reading(tmp_path / "cache"))
    assert latents[0]["label"] == 0
    with pytest.raises(
        UserError, match=r"^record \d+ of cache:.* has label 2, beyond the classes 0 to 1: encode again$"
    ):
        [latents[i] for i in range(IMAGES)]
