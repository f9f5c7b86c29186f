"""What a program is compiled for."""

import jax


def platform() -> str:
    """What the program being traced is for: "cpu", "gpu" or "tpu", by the mesh that is set or the default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
