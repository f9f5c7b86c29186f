"""Drawing samples: guidance as DiT does it, and the identity of sample number i."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion_jax.config import complete, override
from diffusion_jax.data.facts import DatasetFacts
from diffusion_jax.diffusion.guidance import Autoguidance, ClassifierFreeGuidance
from diffusion_jax.diffusion.paths import DiscretePath
from diffusion_jax.errors import UserError
from diffusion_jax.interop.backbones import fill_backbone
from diffusion_jax.models.conditioning.parts import Conditioning, ConditioningSpec
from diffusion_jax.models.dit.dit import DiT
from diffusion_jax.models.frozen import Frozen
from diffusion_jax.parallel.mesh import MeshConfig, batch_sharding, make_mesh
from diffusion_jax.pictures import grid, to_uint8
from diffusion_jax.runs.kinds import kind_of
from diffusion_jax.runs.schemas import CLASSIFIER_SCHEMA, DIFFUSION_SCHEMA
from diffusion_jax.runs.system import ClassifierSystem, DiffusionSystem
from diffusion_jax.sampling.generation import NO_GUIDES, Guides, SampleStream, decode_in_parts, exchange
from diffusion_jax.sampling.known_pixels import KnownPixels, read_known_pixels
from diffusion_jax.sampling.labels import parse_labels
from diffusion_jax.sampling.requests import labelled_requests
from diffusion_jax.sampling.sample_set import DrawnImages


@pytest.mark.parametrize("scale", [1.5, 4.0])
def test_guided_forward_agrees_with_the_official_code(golden, scale):
    data = golden("dit_p2")
    model = jax.eval_shape(
        lambda: DiT(
            input_shape=(8, 8, 4),
            out_channels=8,
            conditioning=ConditioningSpec(num_classes=10, null_class=True),
            depth=2,
            width=64,
            heads=4,
            rngs=nnx.Rngs(0),
        )
    )
    model = fill_backbone("dit", model, {key[2:]: value for key, value in data.items() if key.startswith("w/")})
    half = data["in/cfg_x"].shape[0] // 2
    x = jnp.moveaxis(jnp.asarray(data["in/cfg_x"][:half]), 1, -1)
    cond, null = (Conditioning(label=jnp.asarray(y, jnp.int32)) for y in np.split(data["in/cfg_y"], 2))
    point = DiscretePath().point(jnp.asarray((data["in/cfg_t"][:half] + 1) / 1000, jnp.float32))
    guided = ClassifierFreeGuidance(cfg_scale=scale, guided_channels="first3")(model, cond, null)(x, point)
    want = np.moveaxis(data[f"out/forward_with_cfg/{scale}"][:half], 1, -1)
    assert np.abs(guided - want).max() <= 1e-4 * max(1.0, want.std())


@pytest.fixture(scope="module")
def system():
    config = {
        "data": {"name": "digits", "image_size": 8, "channels": 1},
        "conditioner": {"name": "class"},
        "autoencoder": {"name": "identity"},
        "model": {"name": "dit", "depth": 1, "width": 32, "heads": 2, "patch_size": 2},
        "path": {"name": "ddpm"},
        "prediction": {"kind": "epsilon"},
        "loss": {"name": "simple"},
        "ema": {"name": "constant", "max_decay": 0.9},
        "timesteps": {"name": "uniform"},
        "optimizer": {"name": "adamw"},
        "train": {"steps": 1, "batch_size": 8},
        "sampler": {"name": "ddim", "steps": 3, "eta": 1.0},
        "guidance": {"name": "cfg", "cfg_scale": 1.5},
        "sample": {"batch_size": 8, "transform": "clip"},
    }
    return DiffusionSystem(complete(config, DIFFUSION_SCHEMA), DatasetFacts(10, tuple("0123456789"), "none"))


@pytest.fixture(scope="module")
def model(system):
    """A model whose output layers are not zero."""
    leaves, structure = jax.tree.flatten(system.init_model())
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, noisy)


class LastBits(nnx.Module):
    """A first stage that shows the last eight bits of each latent in place of a picture."""

    def decode(self, latents):
        bits = jax.lax.bitcast_convert_type(latents, jnp.uint32) & 0xFF
        return (bits.astype(jnp.float32) - 127.5) / 127.5


def draw(system, model, mesh, num=11, rows=8, seed=5, labels="balanced", frozen=None, guides=NO_GUIDES):
    stream = SampleStream(system, mesh, guides, rows=rows)
    frozen = frozen or system.load_frozen()
    return np.concatenate(list(stream(model, frozen, labelled_requests(parse_labels(labels, num, 10, seed)), seed)))


def test_a_sample_depends_on_its_number_alone(system, model):
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    images = draw(system, model, one)
    assert images.shape == (11, 8, 8, 1) and images.dtype == np.uint8
    for mesh, rows, num in [(make_mesh(MeshConfig(2, 2, 2)), 1, 6), (one, 3, 5)]:
        other = draw(system, model, mesh, num, rows)
        # float32 sums may be associated otherwise on another mesh, which can move a value over a rounding edge
        assert np.abs(other.astype(int) - images[:num]).max() <= 1
    assert np.unique(images.reshape(11, -1), axis=0).shape[0] == 11
    assert not np.array_equal(draw(system, model, one, seed=6), images)


def test_samples_are_the_same_bit_for_bit_on_any_number_of_devices(system, model):
    """With `transform` too, whose corrected data gives the noise anew."""
    one, two, eight = (
        draw(system, model, make_mesh(MeshConfig(), jax.devices()[:count]), rows=2, frozen=Frozen(LastBits()))
        for count in (1, 2, 8)
    )
    assert len(np.unique(one)) > 100
    np.testing.assert_array_equal(two, one)
    np.testing.assert_array_equal(eight, one)


@pytest.mark.parametrize("most", [1, 16, 100])
def test_processes_exchange_images_in_parts(most):
    """In order, however the mesh arranges its devices, and with no more of them on a device than allowed."""
    mesh = make_mesh(MeshConfig(2, 2, 2))
    images = np.arange(24 * 3, dtype=np.uint8).reshape(24, 3)
    np.testing.assert_array_equal(exchange(mesh, jax.device_put(images, batch_sharding(mesh)), most), images)


class Heavy(nnx.Module):
    """A first stage that needs much memory for each image, all of it at once."""

    def decode(self, latents):
        features = jnp.sin(latents[..., None] * jnp.arange(1.0, 65.0))
        return jnp.sort(features, axis=-1)[..., ::-2].mean(-1)


def test_memory_of_decoding_does_not_grow_with_the_batch():
    """In order, however the mesh arranges its devices."""
    one, spread = make_mesh(MeshConfig(), jax.devices()[:1]), make_mesh(MeshConfig(2, 2, 2))
    latents = np.random.default_rng(0).normal(size=(24, 8, 8, 3)).astype(np.float32)

    def decode(mesh, rows, at_once):
        function = jax.jit(lambda latents: decode_in_parts(Heavy(), latents, 8, mesh, most=at_once * 64))
        return function.lower(jax.device_put(latents[:rows], batch_sharding(mesh))).compile()

    def temporaries(rows, at_once):
        return decode(one, rows, at_once).memory_analysis().temp_size_in_bytes

    assert temporaries(24, 4) < 2 * temporaries(4, 4) < temporaries(24, 24)
    want = np.asarray(to_uint8(Heavy().decode(latents)))
    for mesh, at_once in ((one, 5), (one, 0), (spread, 2), (spread, 100)):
        images = decode(mesh, 24, at_once)(jax.device_put(latents, batch_sharding(mesh)))
        assert images.dtype == np.uint8 and images.sharding.is_equivalent_to(batch_sharding(mesh), 4)
        np.testing.assert_array_equal(images, want)


class Brightness(nnx.Module):
    """A classifier that takes bright images for class 1 and dark ones for class 0."""

    def __call__(self, x, timestep, cond=None):
        bright = x.mean((1, 2, 3))
        return jnp.stack([-bright, bright], axis=1)


def test_a_classifier_guides(system, model):
    one = make_mesh(MeshConfig(), jax.devices()[:1])

    def brightness(label, scale):
        guides = Guides(classifier=Brightness(), classifier_scale=scale)
        return draw(system, model, one, num=8, labels=label, guides=guides).mean()

    unguided = draw(system, model, one, num=8, labels="1").mean()
    assert brightness("1", 0.0) == unguided
    assert brightness("1", 50.0) > unguided + 5
    assert brightness("0", 50.0) < draw(system, model, one, num=8, labels="0").mean() - 5


def test_a_function_of_images_and_labels_guides(system, model):
    one = make_mesh(MeshConfig(), jax.devices()[:1])

    def brightness(images, label):
        return jnp.where(label == 1, 1.0, -1.0) * images.mean((1, 2, 3))

    def mean(label, function, scale):
        guides = Guides(similarity=function, similarity_scale=scale)
        return draw(system, model, one, num=8, labels=label, guides=guides).mean()

    plain = {label: draw(system, model, one, num=8, labels=label).mean() for label in "01"}
    assert mean("1", brightness, 50.0) > plain["1"] + 5
    assert mean("0", brightness, 50.0) < plain["0"] - 5
    with pytest.raises(UserError, match=r"the similarity gives \(\): it must give one number per image, \(8,\)"):
        mean("1", lambda images, label: images.mean(), 1.0)


def test_all_guidances_compose(system, model):
    """Classifier-free with interval and rescale, autoguidance, a similarity and a classifier in one run."""
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    narrow = changed(system, "guidance.interval=(0.1, 100.0)", "guidance.rescale=0.5")
    weak = jax.tree.map(lambda leaf: 0.8 * leaf, model)

    def mean(similarity_scale, classifier_scale):
        guides = Guides(
            weak,
            Autoguidance(1.5),
            Brightness(),
            classifier_scale,
            lambda images, label: images.mean((1, 2, 3)),
            similarity_scale,
        )
        return draw(narrow, model, one, num=8, labels="1", guides=guides).mean()

    neither, both = mean(0.0, 0.0), mean(30.0, 30.0)
    assert neither + 5 < mean(30.0, 0.0) < both and neither + 5 < mean(0.0, 30.0) < both


def test_known_pixels_stay_and_shape_the_rest(system, model):
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    image = np.full((1, 8, 8, 1), 250, np.uint8)
    mask = np.zeros((1, 8, 8), bool)
    mask[:, :, :4] = True

    def drawn(known):
        stream = SampleStream(system, one, rows=4, known=known)
        return np.concatenate(
            list(stream(model, system.load_frozen(), labelled_requests(np.zeros(6, np.int32)), seed=5))
        )

    free, filled = drawn(None), drawn(KnownPixels(image, mask))
    assert (filled[:, :, :4] == 250).all()
    assert not np.array_equal(filled[:, :, 4:], free[:, :, 4:])
    np.testing.assert_array_equal(drawn(KnownPixels(image, np.zeros_like(mask))), free)


def test_the_file_of_known_pixels_is_checked(tmp_path):
    path = tmp_path / "known.npz"
    np.savez(path, image=np.full((3, 8, 8, 3), 7, np.uint8), mask=np.eye(8)[None].repeat(3, 0))
    known = read_known_pixels(path, 3, (8, 8, 1))
    assert known.image.shape == (3, 8, 8, 1) and known.image[0, 0, 0, 0] == 7 and known.mask.sum() == 24
    assert known.rows(np.array([1, 5])).image.shape == (2, 8, 8, 1)
    for num, shape in ((4, (8, 8, 1)), (3, (16, 16, 3))):
        with pytest.raises(UserError, match="this run needs uint8"):
            read_known_pixels(path, num, shape)
    with pytest.raises(UserError, match="needs the arrays image and mask"):
        read_known_pixels(tmp_path / "none.npz", 3, (8, 8, 1))


def changed(system, *overrides):
    words = [f"--config.{word}" for word in overrides]
    return DiffusionSystem(override(system.config.to_dict(), words, DIFFUSION_SCHEMA), system.facts)


def test_classifiers_and_generators_are_not_confused(system):
    for word in ("model.name=noisy_classifier", "loss.name=classification"):
        with pytest.raises(UserError, match=r"is not known"):
            changed(system, word)
    sections = {name: section for name, section in system.config.to_dict().items() if name in CLASSIFIER_SCHEMA}
    sections |= {"kind": {"name": "classifier"}, "model": {"name": "noisy_classifier"}}
    classifier = override(sections | {"loss": {"name": "classification"}}, [], CLASSIFIER_SCHEMA)
    with pytest.raises(UserError, match="needs the label of every image"):
        ClassifierSystem(classifier, system.facts)
    with pytest.raises(UserError, match="this config trains a classifier of noisy data: add the section 'kind'"):
        kind_of({"loss": {"name": "classification"}})
    with pytest.raises(UserError, match=r"kind.name='clasifier' is not known.*'classifier'"):
        kind_of({"kind": {"name": "clasifier"}})
    with pytest.raises(UserError, match="autoencoder 'identity' has no codebook"):
        changed(system, "sample.transform=codebook")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("conditioner.label_drop=0",), "needs a null condition and conditioner 'class' as configured trains none"),
        (("path.name=linear",), "kind 'epsilon' says nothing about the data"),
        (("sampler.eta=0", "sampler.grid=ddim", "sampler.steps=37"), "use 36 or 38"),
        (("sampler.steps=1001",), "1001 is outside 1…1000, the timesteps that the path was trained on"),
        (("sampler.name=ddim_inversion",), "walks from data to noise and samples are drawn from noise"),
    ],
)
def test_what_cannot_be_sampled_fails_when_the_run_is_set_up(system, overrides, message):
    with pytest.raises(UserError, match=message):
        changed(system, *overrides)


def test_predicted_data_can_snap_to_the_codebook(system):
    tiny = (
        "preset=vq-f8",
        "weights=random",
        "ch=32",
        "ch_mult=(1,)",
        "num_res_blocks=1",
        "num_codes=16",
        "attn_resolutions=()",
    )
    small = changed(
        system, "autoencoder.name=vq", *(f"autoencoder.{word}" for word in tiny), "sample.transform=codebook"
    )
    first_stage = small.load_frozen().first_stage
    (snap,) = small.transforms(first_stage)
    codes = np.asarray(first_stage.codebook)
    x0 = codes[[3, 7]].reshape(1, 1, 2, -1) + 1e-4
    np.testing.assert_array_equal(snap(jnp.asarray(x0), None), codes[[3, 7]].reshape(1, 1, 2, -1))
    assert small.transforms(first_stage) and not changed(system, "sample.transform=none").transforms(first_stage)


def test_labels_are_parsed():
    assert list(parse_labels("balanced", 5, 3, 0)) == [0, 1, 2, 0, 1]
    assert list(parse_labels("7-9", 4, 10, 0)) == [7, 8, 9, 7]
    assert list(parse_labels("3,3,7", 6, 10, 0)) == [3, 3, 7, 3, 3, 7]
    assert list(parse_labels("0-1,5", 3, 10, 0)) == [0, 1, 5]
    uniform = parse_labels("uniform", 5000, 10, 0)
    assert np.abs(np.bincount(uniform, minlength=10) / 5000 - 0.1).max() < 0.02
    assert np.array_equal(parse_labels("uniform", 100, 10, 0), uniform[:100])
    assert not np.array_equal(parse_labels("uniform", 5000, 10, 1), uniform)
    for text in ("8-10", "ten", "3,", "-3", "5-2"):
        with pytest.raises(UserError, match=f"--labels {text}"):
            parse_labels(text, 4, 10, 0)


def test_uint8_conversion_truncates_as_the_evaluation_scripts_do():
    values = jnp.array([-2.0, -1.0, 0.0, 0.999, 1.0, 2.0, -0.9999])
    assert list(to_uint8(values)) == [0, 0, 128, 255, 255, 255, 0]
    assert list(to_uint8(values, "trunc(127.5(x+1))")) == [0, 0, 127, 254, 255, 255, 0]


class Grey(nnx.Module):
    """A first stage whose every picture lies halfway between the levels 127 and 128."""

    def decode(self, latents):
        return jnp.zeros_like(latents)


def test_samples_become_uint8_by_the_rule_of_the_stream(system, model):
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    for rule, level in (("trunc(127.5x+128)", 128), ("trunc(127.5(x+1))", 127)):
        stream = SampleStream(system, one, uint8=rule)
        drawn = DrawnImages(
            system, stream, model, Frozen(Grey()), labelled_requests(np.arange(3)), 0, {"workdir": "run"}
        )
        (batch,) = drawn.batches()
        assert (batch["image"] == level).all() and drawn.describe()["uint8"] == rule


def test_a_grid_shows_every_image_where_it_belongs():
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.full((1, 8, 8, 1), 40, np.uint8)
    sheet = np.asarray(grid(images, columns=3))
    assert sheet.shape == (2 * 66 + 2, 3 * 66 + 2, 3)
    for i in range(6):
        row, column = divmod(i, 3)
        tile = sheet[2 + row * 66 : 66 + row * 66, 2 + column * 66 : 66 + column * 66]
        assert (tile == 40 * i).all()
    captioned = np.asarray(grid(images, list("abcdef"), columns=3))
    assert captioned.shape[0] == sheet.shape[0] + 2 * 14 and (captioned[2:14] < 128).any()
