"""From a trained run to samples and a score, from the command line."""

import json

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.evaluation.image_sets import SampleFile


@pytest.fixture(scope="module")
def run(command_line, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    arguments = ("--config=configs/digits.py:smoke", f"--workdir={workdir}", "--config.train.sample_every=None")
    command_line.run("train", *arguments, "--config.train.save_every=1")
    return workdir


def draw(command_line, run, out, *arguments, **options):
    return command_line.run("sample", f"--workdir={run}", f"--out={out}", *arguments, **options)


def load(folder):
    with np.load(folder / "samples.npz") as archive:
        return archive["arr_0"], archive["arr_1"]


@pytest.fixture(scope="module")
def samples(command_line, run, tmp_path_factory):
    out = tmp_path_factory.mktemp("samples")
    draw(command_line, run, out, "--num=20", "--labels=3,3,7", "--seed=5", "--params=raw")
    return out


def test_samples_are_written_in_the_format_of_adm(samples):
    images, labels = load(samples)
    assert images.shape == (20, 8, 8, 3) and images.dtype == np.uint8
    assert list(labels[:4]) == [3, 3, 7, 3] and np.issubdtype(labels.dtype, np.integer)
    with Image.open(samples / "samples.png") as sheet:
        assert sheet.size == (10 * 66 + 2, 2 * 80 + 2)


def test_a_sample_depends_on_seed_and_number_alone(command_line, run, samples, tmp_path):
    draw(
        command_line,
        run,
        tmp_path,
        "--num=7",
        "--labels=3,3,7",
        "--seed=5",
        "--params=raw",
        "--batch-size=3",
        devices=2,
    )
    ours, want = load(tmp_path)[0].astype(int), load(samples)[0][:7]
    assert np.abs(ours - want).max() <= 1  # float32 sums of another batch size may cross a rounding edge


@pytest.mark.parametrize(
    "arguments",
    [
        ("--sampler=ddpm", "--steps=3", "--cfg-scale=1"),
        pytest.param(("--sampler=euler_maruyama", "--steps=4"), marks=pytest.mark.slow),
        ("--step=1", "--labels=uniform", "--cfg-scale", "4"),
        pytest.param(("--params=ema", "--labels=0-9"), marks=pytest.mark.slow),
        pytest.param(
            ("--sampler=dpm_solver_multistep", "--steps=3", "--config.sampler.solver_order=3"), marks=pytest.mark.slow
        ),
        pytest.param(
            ("--sampler=interpolant_sde", "--steps=4", "--config.sampler.last_step=none"), marks=pytest.mark.slow
        ),
        ("--config.guidance.interval=(0.5, 2.0)", "--config.guidance.rescale=0.7"),
    ],
)
def test_what_is_asked_for_changes_the_samples(command_line, run, samples, tmp_path, arguments):
    draw(command_line, run, tmp_path, "--num=4", "--seed=5", *arguments)
    assert not np.array_equal(load(tmp_path)[0], load(samples)[0][:4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--guide-workdir=/nowhere"], "there is no run"),
        (["--classifier-workdir=RUN"], "this run trained a diffusion model, not a classifier of noisy data; name it"),
        (["--sampler=dim"], "did you mean 'ddim'"),
        (["--sampler=ddim_inversion"], "walks from data to noise and samples are drawn from noise"),
        (["--sampler=ddpm", "--config.sampler.grid=ddim", "--steps=37"], "use 36 or 38, or grid 'linspace'"),
        (["--config.model.depth=3"], "a trained model's config is fixed but for sampler, guidance, sample"),
        (["--config.sampler.ets=1"], "sampler 'ddim' has no key 'ets'; did you mean 'eta'?"),
        (["--labels=0-12"], "this model's classes are 0 to 9"),
        (["--step=17"], "there are 1, 2"),
        (["--steps=2000", "--sampler=ddpm"], "2000 is outside 1…1000, the timesteps that the path was trained on"),
    ],
)
def test_mistakes_are_one_line(command_line, run, tmp_path, arguments, message):
    arguments = [word.replace("RUN", str(run)) for word in arguments]
    _, error = draw(command_line, run, tmp_path / "out", "--num=4", *arguments, status=2)
    lines = [line for line in error.splitlines() if line.startswith("diffusion-jax sample:")]
    assert len(lines) == 1 and message in lines[0], error
    assert not (tmp_path / "out").exists()


def test_a_protocol_decides_how_samples_become_uint8(command_line, run, samples, tmp_path):
    draw(command_line, run, tmp_path, "--num=20", "--labels=3,3,7", "--seed=5", "--params=raw", "--protocol=ldm")
    darker = load(samples)[0].astype(int) - load(tmp_path)[0]
    assert set(np.unique(darker)) == {0, 1} and 0.1 < darker.mean() < 0.9
    for folder, rule in ((samples, "trunc(127.5x+128)"), (tmp_path, "trunc(127.5(x+1))")):
        stated = SampleFile(folder / "samples.npz").describe()
        assert (stated["uint8"], stated["label_law"]) == (rule, "3,3,7")


def test_nothing_is_overwritten_silently(command_line, run, samples, tmp_path):
    _, error = draw(command_line, run, samples, "--num=1", status=2)
    assert "samples.npz is already there" in error
    _, error = draw(command_line, tmp_path, tmp_path / "out", "--num=1", status=2)
    assert "there is no run" in error


def test_a_weaker_run_can_guide(command_line, run, samples, tmp_path):
    same = ("--num=4", "--labels=3,3,7", "--seed=5", "--params=raw")
    weaker = (f"--guide-workdir={run}", "--guide-step=1")
    draw(command_line, run, tmp_path / "off", *same, *weaker, "--guide-scale=1")
    assert np.abs(load(tmp_path / "off")[0].astype(int) - load(samples)[0][:4]).max() <= 1
    draw(command_line, run, tmp_path / "on", *same, *weaker, "--guide-scale=30")
    assert np.abs(load(tmp_path / "on")[0].astype(int) - load(samples)[0][:4]).max() > 1


def test_samples_can_be_scored(command_line, samples, tmp_path):
    arguments = (
        "evaluate",
        f"--samples={samples / 'samples.npz'}",
        "--reference=digits",
        f"--out={tmp_path / 'r.json'}",
    )
    command_line.run(*arguments)
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["held_out"]["class_agreement"] > 0.98 > result["class_agreement"]
    assert result["frechet_distance"] > 2 * result["held_out"]["frechet_distance"]


def test_a_run_is_evaluated_without_writing_its_samples_unless_asked(command_line, run, samples, tmp_path):
    arguments = ("--num=20", "--labels=3,3,7", "--seed=5", "--params=raw", "--reference=digits")
    saved = f"--save-samples={tmp_path / 'kept' / 'samples.npz'}"
    command_line.run("evaluate", f"--workdir={run}", *arguments, saved, f"--out={tmp_path / 'result.json'}")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["count"] == 20 and 0 <= result["class_agreement"] <= 1
    stated = result["samples"]
    assert (stated["label_law"], stated["seed"], stated["uint8"]) == ("3,3,7", 5, "trunc(127.5x+128)")
    assert stated["checkpoint_step"] > 0 and stated["sampler"]["name"]
    for ours, want in zip(load(tmp_path / "kept"), load(samples), strict=True):
        assert np.array_equal(ours, want)


def test_an_unconditional_run_draws_without_labels(command_line, tmp_path):
    changes = ("--config.conditioner.name=none", "--config.guidance.cfg_scale=1")
    command_line.run("train", "--config=configs/digits.py:smoke", f"--workdir={tmp_path / 'run'}", *changes)
    with Image.open(tmp_path / "run" / "samples" / "00000002.png") as sheet:
        assert sheet.size == (8 * 66 + 2, 66 + 2)
    draw(command_line, tmp_path / "run", tmp_path / "out", "--num=20")
    with np.load(tmp_path / "out" / "samples.npz") as archive:
        assert archive.files == ["arr_0", "info"] and np.unique(archive["arr_0"], axis=0).shape == (20, 8, 8, 3)
    with Image.open(tmp_path / "out" / "samples.png") as sheet:
        assert sheet.size == (10 * 66 + 2, 2 * 66 + 2)
    _, error = draw(command_line, tmp_path / "run", tmp_path / "none", "--num=1", "--labels=3", status=2)
    assert "--labels 3: this run was trained without a condition" in error
    result = tmp_path / "result.json"
    measured = (
        "--reference=digits",
        f"--out={result}",
        "--metrics=frechet_distance",
        f"--save-samples={tmp_path / 'e.npz'}",
    )
    command_line.run("evaluate", f"--workdir={tmp_path / 'run'}", "--num=20", *measured)
    assert json.loads(result.read_text())["samples"]["label_law"] is None
    with np.load(tmp_path / "e.npz") as archive:
        assert archive.files == ["arr_0", "info"]
