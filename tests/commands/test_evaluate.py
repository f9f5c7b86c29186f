"""`diffusion-jax evaluate` in this process: the file it writes, what it prints, what it refuses."""

import json

import numpy as np
import pytest
from absl import flags

from diffusion_jax.commands import evaluate
from diffusion_jax.data.digits import Digits
from diffusion_jax.errors import UserError


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A cache folder and a sample file: twice the test digits, every tenth with the label of another digit."""
    folder = tmp_path_factory.mktemp("evaluate")
    source = Digits("test", 8, channels=3)
    records = [source[i] for i in range(len(source))] * 2
    labels = np.stack([record["label"] for record in records])
    labels[::10] = (labels[::10] + 1) % 10
    np.savez(folder / "samples.npz", arr_0=np.stack([record["image"] for record in records]), arr_1=labels)
    return folder


@pytest.fixture
def run(home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))

    def run(**options):
        values = flags.FlagValues()
        evaluate.define_flags(values)
        values(["evaluate", *(f"--{name}={value}" for name, value in options.items())])
        evaluate.run(values)

    return run


def test_writes_and_prints_the_result(run, home, tmp_path, capsys):
    out = tmp_path / "runs" / "result.json"
    run(samples=home / "samples.npz", reference="digits", out=out)
    result = json.loads(out.read_text())
    assert 0.88 < result["class_agreement"] < 0.91 < 0.985 <= result["held_out"]["class_agreement"]
    assert 0 < result["frechet_distance"] < 1
    assert result["count"] == 718 and result["held_out"]["count"] == 359
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == str(out)
    rows = {line.rsplit(maxsplit=2)[0]: line.split()[-2:] for line in printed[1:5]}
    held_out = result["held_out"]
    assert rows["images"] == ["718", "359"]
    assert rows["class_agreement"] == [f"{result['class_agreement']:.4f}", f"{held_out['class_agreement']:.4f}"]
    distances = [f"{result['frechet_distance_same_count']:.4f}", f"{held_out['frechet_distance']:.4f}"]
    assert rows["frechet_distance of 359"] == distances
    assert "digits-classifier-64" in printed[5] and "split=train" in printed[5]


def test_nothing_is_overwritten_unasked(run, home, tmp_path):
    out = tmp_path / "result.json"
    out.write_text("precious")
    arguments = {"samples": home / "samples.npz", "reference": "digits", "out": out, "metrics": "frechet_distance"}
    with pytest.raises(UserError, match=r"result.json is already there; .*--overwrite"):
        run(**arguments)
    assert out.read_text() == "precious"
    run(**arguments, overwrite=True)
    assert "class_agreement" not in json.loads(out.read_text())
    assert list(tmp_path.iterdir()) == [out]


def test_a_reference_that_holds_the_test_digits_leaves_nothing_to_compare_with(run, home, tmp_path, capsys):
    out = tmp_path / "result.json"
    run(samples=home / "samples.npz", reference="digits:test", out=out)
    result = json.loads(out.read_text())
    assert result["held_out"] is None and "frechet_distance_same_count" not in result
    assert "held-out" not in capsys.readouterr().out


def test_a_result_that_cannot_be_written_is_at_least_printed(run, home, capsys):
    out = home / "samples.npz" / "result.json"
    with pytest.raises(UserError, match=r"result.json: cannot be written \(File exists\)"):
        run(samples=home / "samples.npz", reference="digits", out=out)
    assert "class_agreement" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": "frechet"}, "metric 'frechet' is not known; did you mean 'frechet_distance'?"),
        ({"reference": "digts"}, "'digts' is no data set and no .npz file; did you mean 'digits'?"),
        ({"samples": "missing.npz"}, "missing.npz: there is no such file"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_file(run, home, tmp_path, changes, message):
    out = tmp_path / "result.json"
    with pytest.raises(UserError) as caught:
        run(**({"samples": home / "samples.npz", "reference": "digits", "out": out} | changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not out.exists()


def test_photographs_have_no_extractor_yet(run, tmp_path):
    np.savez(tmp_path / "samples.npz", np.zeros((4, 32, 32, 3), np.uint8))
    with pytest.raises(UserError, match="32×32 images: no feature extractor takes them"):
        run(samples=tmp_path / "samples.npz", reference="tfds:cifar10", out=tmp_path / "result.json")


@pytest.mark.parametrize("missing", ["samples", "reference", "out"])
def test_flags_that_are_needed(missing):
    values = flags.FlagValues()
    evaluate.define_flags(values)
    given = [f"--{name}=x" for name in ("samples", "reference", "out") if name != missing]
    with pytest.raises(flags.IllegalFlagValueError, match=f"--{missing}"):
        values(["evaluate", *given])
