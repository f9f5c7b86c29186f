"""Finding the weight file, and refusing any other."""

import hashlib

import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.networks import inception_weights
from diffusion_jax.evaluation.networks.inception_weights import FILE_NAMES, SHA256, load_inception


def test_absent_weights_are_described_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError) as error:
        load_inception()
    message = str(error.value)
    place = tmp_path / "diffusion_jax" / "pt_inception-2015-12-05-6726825d.pth"
    assert message.startswith(f"no Inception weights at {place}: ") and "\n" not in message
    for part in (SHA256, "github.com/mseitzer/pytorch-fid", "95,628,359 bytes"):
        assert part in message
    for setting in ("--inception-weights", "evaluate.inception_weights"):
        assert setting in message
    with pytest.raises(UserError, match=r"^no Inception weights at elsewhere\.pth: "):
        load_inception("elsewhere.pth")


@pytest.mark.parametrize("name", FILE_NAMES)
def test_the_cache_folder_is_looked_through_and_the_checksum_checked(tmp_path, monkeypatch, name, inception_state_dict):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "diffusion_jax" / name
    file.parent.mkdir()
    file.write_bytes(b"weights")
    with pytest.raises(UserError, match=rf"{name}: is not the Inception network of FID .*fetch .*{SHA256}"):
        load_inception()
    monkeypatch.setattr(inception_weights, "read_torch_file", lambda path: inception_state_dict)
    checksum = hashlib.sha256(b"weights").hexdigest()
    network, found = load_inception(sha256=checksum)
    assert found == checksum
    assert np.array_equal(network.fc.bias[...], inception_state_dict["fc.bias"])
