"""Says what a run needs on hardware that is not there: memory, largest batch, traffic, least time.

    diffusion-jax plan --config configs/dit.py --topology v5e:16x16 --config.model.dtype=bfloat16
    diffusion-jax plan --config configs/dit.py --topology v5p-128 --batch 2048 --config.mesh.fsdp=64
    diffusion-jax plan --config configs/dit.py --topology h200x8 --classes 1000

The train step and the sampler are those of the run, compiled by the TPU compiler (the extra diffusion_jax[tpu]) for a
topology by its torus, v5e:16x16, or by Cloud TPU's name, v5e-256, v6e-64, v5p-128 (which counts cores, two a chip);
2xv5e:16x16 is two slices. Of GPUs (a100, h100, h200, b200: h200x8) the plan is made from shapes alone. Neither images
nor weights need be there; where TFDS does not declare the number of classes, name it with --classes.

Bounds are what published peaks allow: no step is faster. Multiply-adds are counted in the program itself.
"""

import json

from absl import flags

from diffusion_jax.commands.flags import define_float


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("config", None, "The config file, FILE.py or FILE.py:VARIANT.", flag_values=values)
    flags.DEFINE_string("topology", None, "The chips: v5e:16x16, v5e-256, 2xv6e-64, h200x8.", flag_values=values)
    flags.DEFINE_integer("batch", None, "Images per step; by default the config's.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("classes", None, "Number of classes of the data.", lower_bound=1, flag_values=values)
    define_float(values, "mfu", 0.4, "Share of the peak assumed.", 0.01, 1.0)
    flags.DEFINE_bool("sampler", True, "Compile the sampler too.", flag_values=values)
    flags.DEFINE_bool("largest", True, "Look for the largest batch that fits.", flag_values=values)
    flags.DEFINE_bool(
        "thorough", False, "Compile with a run's effort: minutes, for up to a tenth less memory.", flag_values=values
    )
    flags.DEFINE_string("json", None, "A file to write the plan to.", flag_values=values)
    flags.DEFINE_list("overrides", [], "Filled with the --config.… arguments.", flag_values=values)
    flags.mark_flags_as_required(["config", "topology"], flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    import jax

    from diffusion_jax.config import override, read_config
    from diffusion_jax.errors import UserError
    from diffusion_jax.files import user_path, write_atomically
    from diffusion_jax.parallel.topology import parse_topology
    from diffusion_jax.planning.facts import planned_facts
    from diffusion_jax.planning.plan import Planner
    from diffusion_jax.planning.report import report
    from diffusion_jax.runs.kinds import kind_of

    # Programs for devices that are not there can be kept, but not be loaded again.
    jax.config.update("jax_compilation_cache_dir", None)
    topology = parse_topology(values.topology)
    written = read_config(values.config)
    kind = kind_of(written)
    if kind.name == "first_stage":
        raise UserError(f"--config {values.config}: trains a first stage; plan takes diffusion models and classifiers")
    config = override(written, values.overrides, kind.schema)
    data = kind.schema["data"].build("data", config.data)
    facts = planned_facts(data, "label" in kind.system.reads(config), values.classes)
    planner = Planner(config, facts, topology, values.thorough)
    plan = planner.plan(values.batch, values.mfu, values.sampler, values.largest)
    print(report(plan, values.config))
    if values.json:
        write_atomically(user_path(values.json), (json.dumps(plan.to_json(), indent=2) + "\n").encode())
