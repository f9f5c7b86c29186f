"""Writes the latents of a data set, so that training need not encode every image in every epoch.

    diffusion-jax encode --autoencoder sd-vae --weights weights/sd-vae-ft-ema --data folder:/data/imagenet \\
        --image-size 256 --out caches/imagenet256
    diffusion-jax encode --config configs/dit.py --out caches/imagenet256
    diffusion-jax train --config configs/dit.py --config.data.name=cache:caches/imagenet256 …

Kept are mean and deviation of the posterior of each image and of its mirror image, so that training draws latents and
flips afresh in every epoch, as if it encoded the images itself. The second form takes the sections `data` and
`autoencoder` and `train.seed` of a training config. --config.data.KEY=VALUE and --config.autoencoder.KEY=VALUE override
either. The same command finishes a cache after any interruption; on several hosts, start it on each.
"""

from absl import flags

from diffusion_jax.commands.flags import define_process_flags, start_process


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    text, number = flags.DEFINE_string, flags.DEFINE_integer
    what = "A preset (kl-f8, sd-vae, vq-f4, …), the folder of a run that trained one, or the weights of an sd-vae."
    text("autoencoder", None, what, flag_values=values)
    text("weights", None, "File or folder of the preset's weights, or random.", flag_values=values)
    text("data", None, "The images: folder:PATH, tfds:NAME, digits or shapes.", flag_values=values)
    text("split", "train", "Split of the data set.", flag_values=values)
    number("image_size", 256, "Height and width of the images, pixels.", lower_bound=1, flag_values=values)
    number("seed", 0, "Seed of random weights: train.seed of the run to come.", lower_bound=0, flag_values=values)
    text("config", None, "A config file that says all of the above, FILE.py or FILE.py:VARIANT.", flag_values=values)
    text("out", None, "The cache, a folder.", flag_values=values)
    text("dtype", "float32", "float32, float16 or bfloat16, of what is stored.", flag_values=values)
    number("batch_size", 32, "Images that each device encodes at once.", flag_values=values)
    number("shard_size", 1000, "Images in a file, and what an interruption costs at most.", flag_values=values)
    flags.DEFINE_list("overrides", [], "Filled with the --config.… arguments.", flag_values=values)
    define_process_flags(values)
    flags.mark_flag_as_required("out", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    start_process(values)
    from diffusion_jax.autoencoding.latent_cache import EncodeConfig, with_any_scale, write_cache
    from diffusion_jax.config import load_config, override
    from diffusion_jax.data import DataConfig, open_source
    from diffusion_jax.errors import UserError
    from diffusion_jax.files import user_path
    from diffusion_jax.models.autoencoder.autoencoder import AUTOENCODERS, VQ_AUTOENCODERS
    from diffusion_jax.parallel import processes
    from diffusion_jax.runs.schemas import DIFFUSION_SCHEMA
    from diffusion_jax.runs.trained_first_stage import as_trained, load_first_stage, trained_kind

    how = EncodeConfig(values.dtype, values.batch_size, values.shard_size)
    if values.config is not None:
        for name in ("autoencoder", "weights", "data", "split", "image_size", "seed"):
            if values[name].present:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} and --config exclude each other: write --config.SECTION.KEY=VALUE")
        config = load_config(values.config, values.overrides, DIFFUSION_SCHEMA)
        seed = config.train.seed
    else:
        for name in ("autoencoder", "data"):
            if values[name].value is None:
                raise UserError(f"--{name} is missing: {values[name].help}")
        preset, weights = values.autoencoder, values.weights
        section = {"name": "vq" if preset in VQ_AUTOENCODERS else "kl", "preset": preset, "weights": weights}
        if preset not in {*AUTOENCODERS, *VQ_AUTOENCODERS} and weights is None:
            if not user_path(preset).exists():
                known = ", ".join([*AUTOENCODERS, *VQ_AUTOENCODERS])
                raise UserError(f"--autoencoder {preset}: is no file, no folder and no preset; presets: {known}")
            section = {"name": trained_kind(preset) or "kl", "weights": preset}
        data = {"name": values.data, "image_size": values.image_size, "split": values.split}
        schema = {name: DIFFUSION_SCHEMA[name] for name in ("data", "autoencoder")}
        config = override({"data": data, "autoencoder": section}, values.overrides, schema)
        seed = values.seed

    images: DataConfig = DIFFUSION_SCHEMA["data"].build("data", config.data)
    if images.name.startswith("cache:"):
        raise UserError(f"data.name={images.name}: holds latents already; name the images")
    autoencoder = with_any_scale(as_trained(DIFFUSION_SCHEMA["autoencoder"].build("autoencoder", config.autoencoder)))
    source = open_source(images)
    height, width, channels = source.image_shape
    autoencoder.abstract().latent_shape((height, width), channels)  # complains before weights are read
    first_stage = autoencoder.build(load_first_stage, seed)
    name = f"{autoencoder.preset} weights={autoencoder.weights}"
    finished = write_cache(user_path(values.out), source, images, first_stage, name, how)
    if processes.is_main() and finished.statistics:
        shape, scale = "×".join(map(str, finished.latent_shape)), finished.statistics["scale"]
        size = sum(finished.shard_bytes) / 1e6
        print(f"{values.out}: {finished.records:,} images as latents {shape}, {finished.dtype}, {size:,.1f} MB")
        print(f"1 / std of the latents is {scale:.5g}: autoencoder.scale, unless the weights have one of their own")
