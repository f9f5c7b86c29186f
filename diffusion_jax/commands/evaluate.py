"""Scores samples against real images.

    diffusion-jax evaluate --samples samples/samples.npz --reference digits --out result.json
    diffusion-jax evaluate --samples a.npz --reference b.npz --metrics frechet_distance --out result.json

Metrics:
  frechet_distance  Distance between the feature distributions of samples and reference; lower is better. It is a number
                    of its feature extractor, which is always named, and is not FID.
  class_agreement   Share of the samples recognised as the class they were asked to be; needs labels (arr_1).

Beside them stand the same values of held-out real images at the same sample count: as good as it gets. The extractor
for digits is a small classifier, trained on the CPU in seconds when first needed and kept in ~/.cache/diffusion_jax.
result.json also states sample count, reference, extractor and every convention that shifts a value.
"""

import json
import pathlib
from typing import Any

from absl import flags


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    text = flags.DEFINE_string
    text("samples", None, "The samples: .npz with arr_0 uint8 [N, H, W, 3], arr_1 int labels [N].", flag_values=values)
    text("reference", None, "A .npz file, digits[:SPLIT], folder:PATH or tfds:NAME.", flag_values=values)
    flags.DEFINE_list("metrics", "frechet_distance,class_agreement", "Which metrics.", flag_values=values)
    text("out", None, "The result, a .json file.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace the result if there is one.", flag_values=values)
    flags.mark_flags_as_required(["samples", "reference", "out"], flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    from diffusion_jax.errors import UserError
    from diffusion_jax.evaluation.extractors import extractor_for
    from diffusion_jax.evaluation.image_sets import SampleFile, open_image_set
    from diffusion_jax.evaluation.metrics import check_metrics, evaluate
    from diffusion_jax.files import write_atomically

    out = pathlib.Path(values.out)
    if out.exists() and not values.overwrite:
        raise UserError(f"--out {out} is already there; use another name or --overwrite")
    check_metrics(values.metrics)
    samples = SampleFile(pathlib.Path(values.samples))
    extractor = extractor_for(samples.image_shape)
    reference = open_image_set(values.reference, samples.image_shape)
    unseen = extractor.real_images_unseen_by(values.reference)
    held_out = open_image_set(unseen, samples.image_shape) if unseen else None
    result = evaluate(samples, reference, extractor, values.metrics, held_out)
    print("\n".join(table(result, values.metrics)))
    try:
        write_atomically(out, (json.dumps(result, indent=2, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); use another place") from error
    print(out)


def table(result: dict[str, Any], metrics: list[str]) -> list[str]:
    """The lines that tell a person what a result says.

    Args:
      result: from `evaluate`.
      metrics: the metrics in it.
    """
    held_out = result["held_out"]
    columns = [("samples", result, result["count"])]
    if held_out:
        columns.append(("held-out real", held_out, held_out["count"]))
    lines = [f"{'':<28}" + "".join(f"{title:>16}" for title, _, _ in columns)]
    lines.append(f"{'images':<28}" + "".join(f"{count:>16}" for _, _, count in columns))
    for name in metrics:
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
