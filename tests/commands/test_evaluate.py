"""`diffusion-jax evaluate` in this process: the file it writes, what it prints, what it refuses."""

import dataclasses
import errno
import json
import os

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

from diffusion_jax import files
from diffusion_jax.__main__ import with_underscores
from diffusion_jax.commands import evaluate, reference
from diffusion_jax.data import DataConfig, open_source
from diffusion_jax.data.digits import Digits
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import protocol_scorer, scoring
from diffusion_jax.evaluation.image_sets import SampleFile
from diffusion_jax.evaluation.networks.inception_features import InceptionFeatures
from diffusion_jax.evaluation.networks.vision_weights import CLIP, DINOV2
from diffusion_jax.evaluation.settings import ImageSettings

TINY = {"image_size": 14, "width": 16, "depth": 1, "heads": 2, "patch_size": 7}


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


@pytest.mark.parametrize("flag", ["out", "save_samples"])
def test_a_result_that_cannot_be_written_is_not_measured(run, home, tmp_path, flag, capsys, monkeypatch):
    monkeypatch.setattr(scoring, "open_scorer", None)
    places = {"out": tmp_path / "out.json"} | {flag: home / "samples.npz" / "result"}
    named = flag.replace("_", "-")
    with pytest.raises(UserError, match=rf"^--{named} .*result: cannot be written \(Not a directory\)"):
        run(samples=home / "samples.npz", reference="digits", **places)
    with pytest.raises(UserError, match=r"cannot be written \(Is a directory\)"):
        run(samples=home / "samples.npz", reference="digits", out=tmp_path, overwrite=True)
    assert capsys.readouterr().out == ""


def test_a_result_that_can_no_longer_be_written_is_at_least_printed(run, home, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "write_atomically", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        run(samples=home / "samples.npz", reference="digits", out=tmp_path / "result.json")
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


class Projection:
    """Stands for the Inception network, whose weights are not at hand."""

    name, precision, weights_sha256 = "projection", "float32", "0" * 64
    taps = ("2048", "spatial", "logits_unbiased")

    def __init__(self, protocol):
        self.widths = dict.fromkeys(self.taps, 6)
        self.resize, self.scale = protocol.resize, protocol.scale

    def measure(self, images):
        rows = images.reshape(len(images), -1).astype(np.float32) / 255
        projection = np.random.default_rng(0).normal(size=(rows.shape[1], 6)).astype(np.float32)
        return dict.fromkeys(self.taps, rows @ projection)

    def features(self, images):
        return self.measure(images)["2048"]

    def describe(self):
        return {"name": self.name, "resize": self.resize, "scale": self.scale, "weights_sha256": self.weights_sha256}


@pytest.fixture
def projection(monkeypatch):
    monkeypatch.setattr(protocol_scorer, "load_inception", lambda path: (None, "0" * 64))
    monkeypatch.setattr(InceptionFeatures, "under", lambda protocol, *_: Projection(protocol))


@pytest.fixture
def photographs(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (60, 12, 12, 3), np.uint8)
    np.savez(tmp_path / "real.npz", arr_0=images[:40])
    np.savez(tmp_path / "fake.npz", arr_0=images[20:])
    return tmp_path


def make_reference(**options):
    values = flags.FlagValues()
    reference.define_flags(values)
    values(["reference", *(f"--{name}={value}" for name, value in options.items())])
    reference.run(values)


def test_photographs_are_measured_under_a_protocol(run, projection, photographs, capsys):
    result = photographs / "result.json"
    stored = photographs / "ref.npz"
    make_reference(data=photographs / "real.npz", out=stored)
    common = {"samples": photographs / "fake.npz", "allow_few": True, "metrics": "fid,sfid,precision"}
    run(**common, reference=stored, out=result)
    printed = capsys.readouterr().out.splitlines()
    from_file = json.loads(result.read_text())
    assert printed[1].split() == ["FID-40", f"{from_file['metrics']['fid']:.4f}"]
    assert f"protocol adm; extractor projection; reference {stored}; 40 images" in printed
    assert from_file["protocol"]["name"] == "adm" and from_file["reference"]["recorded"]["count"] == 40
    second = photographs / "second.json"
    run(**common, reference=photographs / "real.npz", out=second, compare=result)
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(second.read_text())["metrics"] == from_file["metrics"]
    assert any(line.startswith("warning: not comparable: reference:") for line in printed)
    with pytest.raises(UserError, match="made with resize tf1_bilinear"):
        run(**common, reference=stored, out=photographs / "third.json", protocol="uvit")


def test_a_reference_of_a_folder_records_how_its_images_were_made(projection, photographs):
    for i, image in enumerate(np.load(photographs / "real.npz")["arr_0"]):
        folder = photographs / "data" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.pad(image, ((0, 0), (2, 3), (0, 0)))).save(folder / f"{i}.png")
    options = {"data": f"folder:{photographs / 'data'}", "image_size": 8, "keep": 10, "keep_images": True}
    make_reference(**options, out=photographs / "ref.npz")
    with np.load(photographs / "ref.npz") as archive:
        info = json.loads(str(archive["info"]))
        assert archive["mu"].shape == (6,) and archive["features"].shape == (10, 6) and archive["n"] == 40
        assert archive["arr_0"].shape == (10, 8, 8, 3) and archive["arr_0"].dtype == np.uint8
    for fact in ("split=train", "images=40", "size=8", "crop=adm"):
        assert fact in info["identity"]
    assert (info["extractor"], info["resize"], info["weights_sha256"]) == ("projection", "tf1_bilinear", "0" * 64)


@pytest.fixture
def faces(photographs):
    """Photographs of CelebA's size, and samples of a run on their faces, which hit them exactly."""
    folder = photographs / "faces"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (218, 178, 3), np.uint8)).save(folder / f"{i:02}.png")
    data = DataConfig(f"folder:{folder}", 12, crop="celeba")
    source = open_source(data)
    images = np.stack([source[i]["image"] for i in range(40)])
    facts = {"data": ImageSettings.of(data).facts()}
    np.savez(photographs / "drawn.npz", arr_0=images, info=json.dumps(facts))
    np.savez(photographs / "foreign.npz", arr_0=images)
    return folder


def test_photographs_of_a_reference_are_cut_as_those_of_the_run(run, projection, photographs, faces):
    common = {"allow_few": True, "metrics": "fid"}

    def fid(**options):
        run(**common, **options, out=photographs / "result.json", overwrite=True)
        return json.loads((photographs / "result.json").read_text())["metrics"]["fid"]

    drawn, foreign, cut = photographs / "drawn.npz", photographs / "foreign.npz", photographs / "cut.npz"
    assert fid(samples=drawn, reference=f"folder:{faces}") == pytest.approx(0, abs=1e-6)
    assert fid(samples=foreign, reference=f"folder:{faces}", crop="celeba") == pytest.approx(0, abs=1e-6)
    assert fid(samples=foreign, reference=f"folder:{faces}") > 1e-3
    with pytest.raises(UserError, match=r"trained on other images \(crop=adm, not celeba\)"):
        fid(samples=drawn, reference=f"folder:{faces}", crop="adm")
    make_reference(data=f"folder:{faces}", image_size=12, crop="celeba", out=cut)
    assert fid(samples=drawn, reference=cut) == pytest.approx(0, abs=1e-6)


def test_a_stored_reference_of_other_images_is_refused(run, projection, photographs, faces):
    options = {"samples": photographs / "drawn.npz", "allow_few": True, "metrics": "fid"}
    stored, out = photographs / "ref.npz", photographs / "result.json"
    make_reference(data=f"folder:{faces}", image_size=12, out=stored)
    with pytest.raises(UserError, match=r"ref\.npz: was made with crop=adm, not celeba; .* make it anew"):
        run(**options, reference=stored, out=out)
    run(**options, reference=stored, out=out, allow_other_resize=True)
    assert "reference made with crop=adm, not celeba" in json.loads(out.read_text())["warnings"]
    with np.load(stored) as archive:
        arrays = dict(archive)
    info = json.loads(str(arrays["info"]))
    del info["data"]  # as in files that state the transform in a line for people alone
    np.savez(stored, **(arrays | {"info": json.dumps(info)}))
    with pytest.raises(UserError, match=r"made with crop=adm, not celeba"):
        run(**options, reference=stored, out=out, overwrite=True)
    make_reference(data=f"folder:{faces}", image_size=8, crop="celeba", out=stored, overwrite=True)
    with pytest.raises(UserError, match=r"made with images of 8×8, not 12×12"):
        run(**options, reference=stored, out=out, overwrite=True)


def test_a_reference_that_cannot_match_is_refused_before_it_is_measured(run, photographs, faces, monkeypatch):
    monkeypatch.setattr(evaluate, "open_samples", lambda values: SampleFile(photographs / "drawn.npz"))
    for name in ("ProtocolScorer", "ShapesScorer", "DigitsScorer"):
        monkeypatch.setattr(scoring, name, None)
    common = {"samples": photographs / "drawn.npz", "out": photographs / "result.json"}
    with pytest.raises(UserError, match=r"^--reference digits: digits are 8×8, the samples 12×12: "):
        run(**common, reference="digits")
    with pytest.raises(UserError, match=r"^--reference shapes: the samples are of a model of 'folder': "):
        run(**common, reference="shapes")
    with pytest.raises(UserError, match=r"leave out --crop"):
        make_reference(data=photographs / "real.npz", crop="adm", out=photographs / "ref.npz")


def test_metrics_of_other_networks_are_offered_where_their_weights_are(run, home, photographs):
    asked = {"samples": photographs / "fake.npz", "reference": photographs / "real.npz", "allow_few": True}
    with pytest.raises(UserError) as caught:
        run(**asked, metrics="fid,xyz", out=photographs / "result.json")
    assert "inception_score" in str(caught.value) and "cmmd" not in str(caught.value)
    with pytest.raises(UserError, match=r"no weights of clip-vitl14-336 at .*: fetch model\.safetensors or"):
        run(**asked, metrics="cmmd", out=photographs / "result.json")
    (photographs / "dino.pth").touch()
    with pytest.raises(UserError, match="did you mean 'fd_dinov2'"):
        run(**asked, metrics="fd_dinov", dinov2_weights=photographs / "dino.pth", out=photographs / "result.json")


def test_other_networks_are_measured_beside_inception(run, projection, photographs, capsys, monkeypatch):
    """The name of a metric reaches its network, and the result states all networks."""
    kinds = {"dinov2": dataclasses.replace(DINOV2, **TINY), "clip": dataclasses.replace(CLIP, **TINY, projection=5)}

    def read(kind, path):
        leaves, structure = jax.tree.flatten(kind.network())
        rng = np.random.default_rng(0)
        drawn = [leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
        return jax.tree.unflatten(structure, drawn), kind.name[:4] * 16

    monkeypatch.setattr(protocol_scorer, "FURTHER", kinds)
    monkeypatch.setattr(protocol_scorer, "read_vision_transformer", read)
    stored, result = photographs / "ref.npz", photographs / "result.json"
    make_reference(data=photographs / "real.npz", metrics="fid,fd_dinov2,cmmd", out=stored)
    common = {"samples": photographs / "fake.npz", "allow_few": True}
    run(**common, metrics="fid,fd_dinov2,cmmd", reference=stored, out=result)
    printed = capsys.readouterr().out
    assert "FD-DINOv2-40" in printed and "extractor projection, dinov2-vitl14, clip-vitl14-336;" in printed
    values = json.loads(result.read_text())
    assert all(value > 0 for value in values["metrics"].values())
    stated = [(each["name"], each["resize"]) for each in values["extractor"]["further"]]
    assert stated == [("dinov2-vitl14", "pil_bicubic_uint8"), ("clip-vitl14-336", "pil_bicubic_uint8")]
    alone = photographs / "alone.json"
    run(**common, metrics="fd_dinov2", reference=stored, out=alone)
    assert json.loads(alone.read_text())["extractor"]["name"] == "dinov2-vitl14"
    assert json.loads(alone.read_text())["metrics"]["fd_dinov2"] == values["metrics"]["fd_dinov2"]
    with pytest.raises(UserError, match="made with resize pil_bicubic_uint8, not bicubic_antialias"):
        run(**common, metrics="fd_dinov2", reference=stored, protocol="edm", out=photographs / "edm.json")


def test_the_network_is_not_run_for_too_few_images_or_without_weights(run, photographs):
    common = {"samples": photographs / "fake.npz", "reference": photographs / "real.npz"}
    with pytest.raises(UserError, match=r"fid of 40 images says little"):
        run(**common, out=photographs / "result.json")
    with pytest.raises(UserError, match=r"no Inception weights at .*fetch .* and put it there"):
        run(**common, out=photographs / "result.json", allow_few=True)


def test_a_folder_of_pictures_is_measured(run, projection, photographs):
    (photographs / "pictures").mkdir()
    with np.load(photographs / "fake.npz") as archive:
        for i, image in enumerate(archive["arr_0"]):
            Image.fromarray(image).save(photographs / "pictures" / f"{i}.png")
    common = {"reference": photographs / "real.npz", "metrics": "fid", "allow_few": True}
    run(**common, samples=photographs / "pictures", out=photographs / "folder.json")
    run(**common, samples=photographs / "fake.npz", out=photographs / "file.json")
    ours, theirs = (json.loads((photographs / f"{name}.json").read_text()) for name in ("folder", "file"))
    assert ours["metrics"] == theirs["metrics"] and ours["images_sha256"] == theirs["images_sha256"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": None}, r"needs --image-size"),
        ({"out": "ref.npy"}, r"statistics are \.npz files"),
        ({"protocol": "amd"}, r"did you mean 'adm'"),
    ],
)
def test_references_need_a_size_and_a_place(tmp_path, changes, message):
    options = {"data": f"folder:{tmp_path}", "image_size": 8, "out": tmp_path / "ref.npz"} | changes
    with pytest.raises(UserError, match=message):
        make_reference(**{name: value for name, value in options.items() if value is not None})


@pytest.mark.parametrize("given", [{}, {"samples": "x.npz"}, {"samples": "x.npz", "workdir": "y", "out": "z.json"}])
def test_flags_that_are_needed(run, given):
    with pytest.raises(UserError, match="give --out, and either --samples or --workdir"):
        run(**given)


def test_switches_are_turned_off_with_dashes_too():
    words = ["--no-exif-orientation", "--num-steps=1", "--no-overwrite"]
    assert [with_underscores(word) for word in words] == ["--noexif_orientation", "--num_steps=1", "--nooverwrite"]
