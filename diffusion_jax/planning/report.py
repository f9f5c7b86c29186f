"""A plan as a page of text."""

from collections.abc import Iterator, Mapping

from diffusion_jax.parallel.topology import GIB
from diffusion_jax.planning.bounds import Bound
from diffusion_jax.planning.plan import Plan, SamplePlan, TrainPlan


def report(plan: Plan, title: str) -> str:
    """The plan for people.

    Args:
      plan: the plan.
      title: what was planned.

    Returns:
      Lines of text.
    """
    return "\n".join(_lines(plan, title))


def _lines(plan: Plan, title: str) -> Iterator[str]:
    mesh = " ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    yield f"{title} on {plan.topology}"
    yield f"mesh {mesh}, {plan.parameters:,} parameters, batch {plan.batch_size}"
    yield ""
    yield from _memory(plan)
    yield ""
    yield from _work(plan, plan.train)
    yield ""
    yield from _time(plan)
    if plan.sample:
        yield ""
        yield from _sampler(plan, plan.sample)
    for warning in plan.warnings:
        yield f"warning: {warning}"
    how = "compiled with libtpu" if plan.train.compile_seconds is not None else "from shapes alone"
    yield f"\nplanned in {plan.seconds:.0f} s, {how}"


def _memory(plan: Plan) -> Iterator[str]:
    memory = plan.train.memory
    estimated = plan.train.compile_seconds is None
    yield "memory of a chip, GiB"
    yield _row("parameters", memory.parameters / GIB)
    yield _row("optimizer", memory.optimizer / GIB)
    yield _row("EMA", memory.ema / GIB)
    yield _row("first stage and batch", memory.inputs / GIB)
    yield _row("activations, gradients", memory.work / GIB, "kept for the backward pass, estimated" * estimated)
    verdict = "fits" if memory.fits else "DOES NOT FIT"
    yield _row("in all", memory.total / GIB, f"of {memory.available / GIB:.2f}: {verdict}")
    if plan.largest_batch is not None:
        largest = f"{plan.largest_batch} images" if plan.largest_batch else "none fits"
        yield f"  {'largest batch':<26}{largest:>10}  " + ("estimated" if estimated else "compiled")


def _work(plan: Plan, train: TrainPlan) -> Iterator[str]:
    yield "one step"
    yield _row("FLOPs", 2 * train.macs / 1e12, "TFLOP of all chips, first stage and recomputation included", digits=1)
    yield _row(
        "of forward and backward", train.model_flops / 1e12, "TFLOP of the backbone, by which MFU counts", digits=1
    )
    yield from _collectives(train.collectives)


def _collectives(collectives: Mapping[str, tuple[int, float]] | None) -> Iterator[str]:
    if collectives is None:
        yield "  collectives: unknown, since the compiler stopped where memory ended"
        return
    for kind, (count, sent) in collectives.items():
        yield _row(kind, sent / 1e6, f"MB leave each chip, in {count} exchanges", digits=1)
    if not collectives:
        yield "  no collectives"


def _time(plan: Plan) -> Iterator[str]:
    bound = plan.train.bound
    yield "time of a step, ms at least"
    yield from _bound(bound, plan.train.collectives is not None)
    yield _row(
        "bound",
        1e3 * bound.seconds,
        f"set by {bound.by}; MFU {plan.mfu_at_bound:.0%}, no faster than "
        f"{plan.batch_size / bound.seconds:,.0f} images/s",
    )
    yield _row(
        f"at {plan.mfu:.0%} MFU", 1e3 * plan.assumed_seconds, f"{plan.batch_size / plan.assumed_seconds:,.0f} images/s"
    )
    hours = plan.chip_hours(plan.train.bound.seconds)
    assumed = plan.chip_hours(plan.assumed_seconds)
    yield (
        f"  {plan.steps:,.0f} steps: {hours:,.0f} chip-hours at the bound, {assumed:,.0f} at {plan.mfu:.0%} MFU "
        f"({assumed / plan.topology.num_chips:,.0f} hours)"
    )


def _bound(bound: Bound, traffic: bool) -> Iterator[str]:
    if bound.compute is not None:
        yield _row("FLOPs at the peak", 1e3 * bound.compute)
    yield _row("memory", 1e3 * bound.hbm)
    if traffic:
        yield _row("interconnect", 1e3 * bound.fast)
    if bound.slow:
        yield _row("between slices or nodes", 1e3 * bound.slow)


def _sampler(plan: Plan, sample: SamplePlan) -> Iterator[str]:
    yield f"sampling {sample.images:,} images at once"
    verdict = "fits" if sample.fits else "DOES NOT FIT: lower sample.batch_size"
    yield _row(
        "memory of a chip", sample.peak_bytes / GIB, f"GiB of {plan.train.memory.available / GIB:.2f}: {verdict}"
    )
    if sample.macs is not None:
        yield _row("FLOPs", 2 * sample.macs / sample.images / 1e12, "TFLOP an image", digits=1)
    yield from _collectives(sample.collectives)
    rate = sample.images / sample.bound.seconds
    yield _row("bound", sample.bound.seconds, f"s, set by {sample.bound.by}; no faster than {rate:,.1f} images/s")


def _row(name: str, value: float, note: str = "", digits: int = 2) -> str:
    return f"  {name:<26}{value:>10,.{digits}f}  {note}".rstrip()
