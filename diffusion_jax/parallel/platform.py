"""What a program is compiled for."""

import jax


def platform() -> str:
    """What the program being traced is for: "cpu", "gpu" or "tpu", by the mesh that is set or the default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def on_one_cpu() -> bool:
    """Whether the program being traced is for a CPU that counts as one device: nothing is split over a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return platform() == "cpu" and (mesh.empty or mesh.size == 1)
