"""`diffusion-jax encode` from the command line: killed, spread over processes, trained from, and given wrong input."""

import signal
import socket
import time

import jax
import numpy as np
import pytest

from diffusion_jax import __main__
from diffusion_jax.autoencoding.latent_statistics import LatentStatistics
from diffusion_jax.autoencoding.objective import Generator
from diffusion_jax.data import DataConfig, open_source
from diffusion_jax.errors import UserError
from diffusion_jax.models.autoencoder.first_stage import VQConfig
from diffusion_jax.runs.checkpoints import Checkpoints

TINY = {"ch": 8, "ch_mult": "(1,)", "norm_groups": 4, "num_res_blocks": 1, "mid_attention": False, "in_channels": 1}
AUTOENCODER = [f"--config.autoencoder.{key}={value}" for key, value in TINY.items()]
ENCODE = ["encode", "--autoencoder=kl-f4", "--weights=random", "--data=digits", "--image-size=8", "--shard-size=100"]
ENCODE += ["--config.data.channels=1", "--batch-size=10", *AUTOENCODER]
TRAIN = ["train", "--config=configs/digits.py:smoke", "--config.autoencoder.name=kl", "--config.data.flip=true"]
TRAIN += ["--config.autoencoder.preset=kl-f4", "--config.autoencoder.weights=random", "--config.autoencoder.scale=1"]
TRAIN += ["--config.train.sample_every=None", *AUTOENCODER]


def records(folder):
    cache = open_source(DataConfig(f"cache:{folder}", 8, channels=1))
    return [cache.read(i) for i in range(len(cache))]


def assert_whole(folder):
    """Every digit once, in order."""
    digits, cached = open_source(DataConfig("digits", 8, channels=1)), records(folder)
    assert [int(record["source_id"]) for record in cached] == list(range(len(digits)))
    assert [int(record["label"]) for record in cached] == [int(digits[i]["label"]) for i in range(len(digits))]
    return cached


@pytest.fixture(scope="module")
def cache(command_line, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "digits"
    out, error = command_line.run(*ENCODE, f"--out={folder}")
    assert "1,438 images as latents 8×8×3, float32" in out and "1 / std of the latents is" in out
    assert "shard 15 of 15: 38 images" in error
    return folder


def test_a_cache_holds_every_image_once(cache):
    assert_whole(cache)


def test_the_folder_of_a_run_says_what_it_trained(tmp_path, capsys):
    """Kind, architecture and weights; and that a run of something else has none of them."""
    section = {**TINY, "ch_mult": (1,), "num_codes": 16, "preset": "vq-f8", "attn_resolutions": ()}
    model = jax.eval_shape(lambda: VQConfig(**section).make_autoencoder(jax.random.key(0)))
    generator = np.random.default_rng(0)
    model = jax.tree.map(lambda leaf: generator.normal(0, 0.1, leaf.shape).astype(leaf.dtype), model)
    statistics = LatentStatistics(1, np.zeros(4), np.ones(4)).to_json()
    for folder, more in (("vq", {"latents": statistics}), ("dit", {})):
        (tmp_path / folder).mkdir()
        checkpoints = Checkpoints(tmp_path / folder)
        metadata = {"config": {"autoencoder": {"name": "vq", **section}}, **more}
        checkpoints.save(1, {"ema": Generator(model, np.float32(0))}, metadata)
        checkpoints.close()

    data = ["--data=digits", "--split=test", "--image-size=8", "--config.data.channels=1"]
    __main__.run("encode", [f"--autoencoder={tmp_path / 'vq'}", *data, f"--out={tmp_path / 'out'}"])
    assert "359 images as latents 8×8×4" in capsys.readouterr().out
    cache = open_source(DataConfig(f"cache:{tmp_path / 'out'}", 8, "test", channels=1))
    digits = open_source(DataConfig("digits", 8, "test", channels=1))
    image = digits[7]["image"][None].astype(np.float32) / 127.5 - 1
    latents = jax.jit(lambda model, image: model.encode(image))(model, image)
    np.testing.assert_allclose(cache[7]["mean"], latents[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="dit: that run trained no autoencoder; name the folder of one that did"):
        __main__.run("encode", [f"--autoencoder={tmp_path / 'dit'}", *data, f"--out={tmp_path / 'out2'}"])


@pytest.mark.slow
def test_training_from_a_cache_equals_encoding_on_the_fly(command_line, cache, tmp_path):
    command_line.run(*TRAIN, f"--workdir={tmp_path / 'images'}")
    command_line.run(*TRAIN, f"--config.data.name=cache:{cache}", f"--workdir={tmp_path / 'cache'}")
    images, cached = (command_line.losses(tmp_path / name) for name in ("images", "cache"))
    assert sorted(images) == sorted(cached) == [1, 2]
    np.testing.assert_allclose(list(cached.values()), list(images.values()), rtol=1e-5)


@pytest.mark.slow
def test_a_killed_cache_is_finished_by_the_same_command(command_line, cache, tmp_path):
    process = command_line.start(*ENCODE, f"--out={tmp_path}")
    deadline = time.monotonic() + 300
    while len(list(tmp_path.glob("*.array_record"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.array_record")}
    assert len(written) < 15
    command_line.run(*ENCODE, f"--out={tmp_path}")
    assert all(path.stat().st_mtime_ns == before for path, before in written.items())
    for ours, theirs in zip(assert_whole(tmp_path), records(cache), strict=True):
        np.testing.assert_allclose(ours["mean"], theirs["mean"], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_two_processes_share_the_shards(command_line, cache, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"--coordinator=localhost:{free.getsockname()[1]}"
    started = [
        command_line.start(*ENCODE, f"--out={tmp_path}", address, "--num-processes=2", f"--process-id={i}", devices=2)
        for i in range(2)
    ]
    printed = []
    for process in started:
        _, error = process.communicate(timeout=400)
        assert process.returncode == 0, error
        printed.append([line.split(":")[0] for line in error.splitlines() if line.startswith("shard")])
    for i in range(2):
        assert printed[i] == [f"shard {shard + 1} of 15" for shard in range(i, 15, 2)]
    for ours, theirs in zip(assert_whole(tmp_path), records(cache), strict=True):
        np.testing.assert_allclose(ours["std"], theirs["std"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=digits"], "--autoencoder is missing: A preset"),
        (["--autoencoder=kl-f8"], "--data is missing: The images"),
        (["--autoencoder=kl-f88", "--data=digits"], "--autoencoder kl-f88: is no file, no folder and no preset; pre"),
        (["--autoencoder=kl-f8", "--data=digits", "--image-size=8"], "autoencoder.weights is not set: name the file"),
        (["--autoencoder=sd-vae", "--weights=random", "--data=cache:x"], "data.name=cache:x: holds latents already"),
        (["--config=configs/digits.py", "--seed=3"], "--seed and --config exclude each other"),
        (["--config=configs/digits.py"], "autoencoder 'identity' makes no latents to keep"),
        ([*ENCODE[1:], "--image-size=12"], "data.image_size=12"),
        ([*ENCODE[1:], "--config.autoencoder.ch_mult=(1,1,1,1,1)"], "size of 8×8 does not divide by 16"),
        ([*ENCODE[1:], "--dtype=int8"], "--dtype int8: is not known"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message):
    with pytest.raises(UserError) as caught:
        __main__.run("encode", [*arguments, f"--out={tmp_path}"])
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
