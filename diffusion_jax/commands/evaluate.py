"""Scores samples against real images.

    diffusion-jax evaluate --samples fid50k/samples.npz --reference VIRTUAL_imagenet256_labeled.npz --out result.json
    diffusion-jax evaluate --workdir runs/dit --num 50000 --labels uniform --reference ref.npz --out result.json
    diffusion-jax evaluate --samples pictures/ --reference folder:data --protocol ldm --out result.json
    diffusion-jax evaluate --samples samples/samples.npz --reference digits --out result.json
    diffusion-jax evaluate --samples samples/samples.npz --reference shapes --out result.json
    diffusion-jax evaluate --self-check

Samples are a .npz of ADM's format, a folder of images, or a run, from which they are drawn as they are measured and
not kept unless --save-samples names a file. A reference is a .npz of statistics (ADM's, pytorch-fid's, or one that
`diffusion-jax reference` wrote), a .npz of images, folder:PATH or tfds:NAME, digits or shapes.

Metrics under a protocol (--protocol adm, ldm, uvit, clean or edm; adm unless told otherwise): fid, sfid,
inception_score, kid, precision, recall, density, coverage; by default those that the protocol's papers report. They
need the weights of the FID Inception network, from --inception-weights or ~/.cache/diffusion_jax. With the weights of
DINOv2 or CLIP there are fd_dinov2 and cmmd too. The samples of a run become uint8 by the protocol's rule.

Metrics of 8×8 digits, without a protocol: frechet_distance and class_agreement, by a small classifier that is trained
in seconds when first needed. That distance is a number of its extractor, which is always named, and is not FID.
Samples of shapes, without a protocol: class_agreement, by fitting outlines.

Photographs of a reference become images as those became that the model was trained on: a run and the samples that this
library drew say how; of other samples --crop, --exif-orientation and --channels do.

result.json states the protocol, extractor, reference, number of images and every convention that shifts a value;
--compare says what makes an older result incomparable.
"""

import json
import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags

from diffusion_jax.commands.flags import define_image_flags, image_settings, start_process
from diffusion_jax.commands.sample import define_run_flags, sample_request

if TYPE_CHECKING:
    from etils import epath

    from diffusion_jax.evaluation.image_sets import ImageSet


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    text, switch = flags.DEFINE_string, flags.DEFINE_bool
    text("samples", None, "A .npz (arr_0 uint8 [N, H, W, 3], arr_1 labels) or a folder of images.", flag_values=values)
    text("reference", None, "A .npz file, digits[:SPLIT], shapes, folder:PATH or tfds:NAME.", flag_values=values)
    text("protocol", None, "adm, ldm, uvit, clean or edm.", flag_values=values)
    flags.DEFINE_list("metrics", None, "Which metrics; by default those of the protocol.", flag_values=values)
    text("inception_weights", None, "The weight file; by default the one in the cache folder.", flag_values=values)
    text("dinov2_weights", None, "dinov2_vitl14_pretrain.pth, for fd_dinov2.", flag_values=values)
    text("clip_weights", None, "The weights of CLIP ViT-L/14 at 336 pixels, for cmmd.", flag_values=values)
    flags.DEFINE_enum("precision", "float32", ["float32", "fast"], "Of the Inception network.", flag_values=values)
    text("out", None, "The result, a .json file.", flag_values=values)
    text("compare", None, "An older result to set beside this one.", flag_values=values)
    text("save_samples", None, "With --workdir: a .npz to write the samples to.", flag_values=values)
    switch("allow_few", False, "Measure Fréchet distances of fewer than 2048 images.", flag_values=values)
    switch("allow_other_resize", False, "Take statistics made under other rules.", flag_values=values)
    switch("self_check", False, "Compute known values and compare.", flag_values=values)
    switch("overwrite", False, "Replace files that are there.", flag_values=values)
    define_image_flags(values)
    define_run_flags(values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    from diffusion_jax.errors import UserError
    from diffusion_jax.evaluation.scoring import open_scorer
    from diffusion_jax.evaluation.settings import ScoringConfig
    from diffusion_jax.files import check_writable, user_path, write_atomically
    from diffusion_jax.parallel import processes

    if values.self_check:
        self_check()
        return
    if (values.samples is None) == (values.workdir is None) or values.out is None:
        raise UserError("give --out, and either --samples or --workdir (or --self-check alone)")
    for flag in ("out", "save_samples"):
        path = values[flag].value
        if path is not None and user_path(path).exists() and not values.overwrite:
            raise UserError(f"--{flag.replace('_', '-')} {path} is already there; use another name or --overwrite")
        if path is not None:
            check_writable(user_path(path), f"--{flag.replace('_', '-')}")
    older = read_result(user_path(values.compare)) if values.compare else None
    start_process(values)
    config = ScoringConfig(
        reference=values.reference,
        protocol=values.protocol,
        metrics=None if values.metrics is None else tuple(values.metrics),
        inception_weights=values.inception_weights,
        dinov2_weights=values.dinov2_weights,
        clip_weights=values.clip_weights,
        precision=values.precision,
        allow_few=values.allow_few,
        allow_other_resize=values.allow_other_resize,
    )
    samples = open_samples(values)
    settings = image_settings(values, samples.settings)
    result = open_scorer(config, samples.image_shape, samples.count, settings).measure(samples)
    if not processes.is_main():
        return
    print("\n".join(protocol_table(result, values.reference) if "protocol" in result else table(result)))
    if older is not None:
        print("\n".join(comparison(result, older, values.compare)))
    try:
        text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
        write_atomically(user_path(values.out), text.encode())
    except OSError as error:
        raise UserError(f"--out {values.out}: cannot be written ({error.strerror}); use another place") from error
    print(values.out)


def open_samples(values: flags.FlagValues) -> "ImageSet":
    """Opens what --samples or --workdir names."""
    from diffusion_jax.evaluation.image_folder import ImageFiles
    from diffusion_jax.evaluation.image_sets import SampleFile
    from diffusion_jax.files import user_path

    if values.workdir is not None:
        from diffusion_jax.api import open_run
        from diffusion_jax.sampling.saved_images import SavedImages

        drawn = open_run(values.workdir, values.step).draw(sample_request(values))
        return SavedImages(drawn, user_path(values.save_samples) if values.save_samples else None)
    path = user_path(values.samples)
    return ImageFiles(path) if path.is_dir() else SampleFile(path)


def self_check() -> None:
    """Prints the table of known values; raises UserError if one is wrong."""
    from diffusion_jax.errors import UserError
    from diffusion_jax.evaluation.self_check import run_checks

    failed = 0
    print(f"{'':<42}{'expected':>14}{'found':>14}{'difference':>12}")
    for check in run_checks():
        failed += not check.passed
        verdict = "" if check.passed else f"  WRONG: more than {check.tolerance:g}"
        difference = abs(check.found - check.expected)
        print(f"{check.name:<42}{check.expected:>14.8f}{check.found:>14.8f}{difference:>12.1e}{verdict}", flush=True)
    if failed:
        raise UserError(f"{failed} known values come out wrong on this machine; do not trust its scores")
    print("all as expected")


def protocol_table(result: dict[str, Any], reference: str | None) -> list[str]:
    """The lines that tell a person what a result under a protocol says; `reference` as the user named it."""
    count = result["count"]
    shown = f"{count // 1000}K" if count % 1000 == 0 else str(count)
    titles = {"fid": f"FID-{shown}", "sfid": f"sFID-{shown}", "inception_score": "Inception Score", "kid": "KID × 10³"}
    titles |= {"fd_dinov2": f"FD-DINOv2-{shown}", "cmmd": "CMMD"}
    values, lines = result["metrics"], []
    for name, value in values.items():
        if name.endswith("_std"):
            continue
        factor = 1000 if name == "kid" else 1
        spread = values.get(f"{name}_std")
        beside = "" if spread is None else f" ± {factor * spread:.4f}"
        lines.append(f"{titles.get(name, name):<20}{factor * value:>12.4f}{beside}")
    protocol, extractor = result["protocol"], result["extractor"]
    names = ", ".join(each["name"] for each in (extractor, *extractor.get("further", [])))
    lines.append(f"protocol {protocol['name']}; extractor {names}; reference {reference}; {count} images")
    return lines + [f"warning: {text}" for text in result["warnings"]]


def read_result(path: "epath.Path") -> dict[str, Any]:
    """Reads a result file; raises UserError if it is none."""
    from diffusion_jax.errors import UserError

    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--compare {path}: is no result file ({error})") from error
    if not isinstance(result, dict) or not {"count", "extractor", "samples"} <= result.keys():
        raise UserError(f"--compare {path}: is no result of `diffusion-jax evaluate`")
    return result


def comparison(result: dict[str, Any], older: dict[str, Any], name: str) -> list[str]:
    """The values of two results side by side, and what makes them incomparable."""
    from diffusion_jax.evaluation.evaluator import differences
    from diffusion_jax.evaluation.scoring import values_of

    ours, theirs = values_of(result), values_of(older)
    lines = [f"{'':<28}{'this':>16}{pathlib.Path(name).stem:>16}"]
    lines += [f"{key:<28}{ours[key]:>16.4f}{theirs[key]:>16.4f}" for key in ours if key in theirs]
    return lines + [f"warning: not comparable: {text}" for text in differences(result, older)]


def table(result: dict[str, Any]) -> list[str]:
    """The lines that tell a person what a result without a protocol says."""
    from diffusion_jax.evaluation.scoring import values_of

    held_out = result["held_out"]
    columns = [("samples", result, result["count"])]
    if held_out:
        columns.append(("held-out real", held_out, held_out["count"]))
    lines = [f"{'':<28}" + "".join(f"{title:>16}" for title, _, _ in columns)]
    lines.append(f"{'images':<28}" + "".join(f"{count:>16}" for _, _, count in columns))
    for name in values_of(result):
        lines.append(f"{name:<28}" + "".join(f"{values[name]:>16.4f}" for _, values, _ in columns))
    same_count = result.get("frechet_distance_same_count")
    if same_count is not None and held_out["count"] != result["count"]:
        title = f"frechet_distance of {held_out['count']}"
        lines.append(f"{title:<28}{same_count:>16.4f}{held_out['frechet_distance']:>16.4f}")
    reference = result["reference"]
    lines.append(
        f"extractor: {result['extractor']['name']}; reference: {reference.get('identity', reference.get('file'))}"
    )
    return lines + [f"warning: {text}" for text in result["warnings"]]
