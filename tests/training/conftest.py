"""What tests of training share."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="module")
def shared_compilations(tmp_path_factory):
    """Runs of one module that are the same program compile it once."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("xla")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in options}

    def configure(values):
        compilation_cache.reset_cache()
        for name, value in values.items():
            jax.config.update(name, value)

    configure(options)
    yield
    configure(before)
