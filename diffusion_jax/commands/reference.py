"""Computes the statistics of real images that samples are compared with.

    diffusion-jax reference --data folder:imagenet --split train --image-size 256 --out ref.npz
    diffusion-jax reference --data cifar10.npz --protocol uvit --out ref.npz

Images go through the library's own transform (halved by a box filter, resized bicubically, cropped at the centre; see
the record in the file; --crop, --exif-orientation and --channels are those of the section data of the run that samples
are of), each of the split once, none mirrored. The .npz has mu, sigma, mu_s, sigma_s under the names of
ADM and pytorch-fid; the features of up to 10,000 images for KID, precision and recall; and how all of it was made.
pytorch-fid's program reads it too, and ADM's if the images are in it, as in VIRTUAL_*.npz: --keep-images puts them
there. With --metrics=fid,fd_dinov2,cmmd it serves the networks of those metrics.
"""

from absl import flags

from diffusion_jax.commands.flags import IMAGE_FLAGS, define_image_flags, image_settings


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    text, number = flags.DEFINE_string, flags.DEFINE_integer
    text("data", None, "folder:PATH, tfds:NAME, digits or a .npz file of images.", flag_values=values)
    text("split", "train", "Split of the data set.", flag_values=values)
    number(
        "image_size", None, "Height and width of the images, pixels; not for .npz.", lower_bound=1, flag_values=values
    )
    define_image_flags(values)
    text("protocol", "adm", "adm, ldm, uvit, clean or edm: decides how images reach the network.", flag_values=values)
    text("inception_weights", None, "The weight file; by default the one in the cache folder.", flag_values=values)
    flags.DEFINE_list("metrics", None, "Those to serve; by default all of the Inception network.", flag_values=values)
    text("dinov2_weights", None, "dinov2_vitl14_pretrain.pth, for fd_dinov2.", flag_values=values)
    text("clip_weights", None, "The weights of CLIP ViT-L/14 at 336 pixels, for cmmd.", flag_values=values)
    number("keep", 10_000, "Images whose features are kept.", lower_bound=0, flag_values=values)
    flags.DEFINE_bool("keep_images", False, "Keep those images too, which ADM's program reads.", flag_values=values)
    text("out", None, "The statistics, a .npz file.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace the file if it is there.", flag_values=values)
    flags.mark_flags_as_required(["data", "out"], flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    from diffusion_jax.errors import UserError
    from diffusion_jax.evaluation.evaluator import check_metrics
    from diffusion_jax.evaluation.image_sets import ImageSet, SampleFile, open_data_set
    from diffusion_jax.evaluation.protocol_scorer import offered_metrics, open_extractor
    from diffusion_jax.evaluation.protocols import protocol_named
    from diffusion_jax.evaluation.references import reference_from_images, write_reference
    from diffusion_jax.evaluation.settings import METRIC_NEEDS, ImageSettings, ScoringConfig
    from diffusion_jax.files import check_writable, user_path

    out = user_path(values.out)
    if out.suffix != ".npz":
        raise UserError(f"--out {out}: statistics are .npz files")
    if out.exists() and not values.overwrite:
        raise UserError(f"--out {out} is already there; use another name or --overwrite")
    check_writable(out, "--out")
    protocol = protocol_named(values.protocol)
    config = ScoringConfig(
        inception_weights=values.inception_weights,
        dinov2_weights=values.dinov2_weights,
        clip_weights=values.clip_weights,
    )
    metrics = values.metrics or ["fid"]
    check_metrics(metrics, offered_metrics(config))
    images: ImageSet
    if values.data.endswith(".npz"):
        if any(values[name].value is not None for name in IMAGE_FLAGS):
            raise UserError(f"--data {values.data}: its images are taken as they are; leave out --crop and the like")
        images = SampleFile(user_path(values.data))
    elif values.image_size is None:
        raise UserError(f"--data {values.data} needs --image-size, the pixels to crop and resize to")
    else:
        settings = image_settings(values) or ImageSettings()
        images = open_data_set(values.data, values.image_size, values.split, settings)
    extractor = open_extractor(config, protocol, {METRIC_NEEDS[metric] for metric in metrics})
    reference = reference_from_images(images, extractor, values.keep, values.keep_images)
    write_reference(out, reference)
    print(f"{out}: {reference.facts['count']} images, {extractor.name}, {extractor.resize}")
