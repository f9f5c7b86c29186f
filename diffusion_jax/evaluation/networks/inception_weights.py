"""Where the weights of the FID Inception network come from, and the check that they are the right ones."""

from etils import epath

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.networks.inception import InceptionV3
from diffusion_jax.files import cache_folder, local_copy, sha256_of, user_path
from diffusion_jax.interop.torch_files import read_torch_file

# The same bytes are published under both names, by pytorch-fid and by torch-fidelity.
FILE_NAMES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
PUBLISHED = f"release fid_weights of github.com/mseitzer/pytorch-fid (95,628,359 bytes, SHA-256 {SHA256})"


def load_inception(path: epath.PathLike | None = None, sha256: str = SHA256) -> tuple[InceptionV3, str]:
    """The Inception network with its published weights.

    Args:
      path: the weight file; None looks for it in the user's cache folder.
      sha256: the checksum it must have.

    Returns:
      The network, and the checksum.

    Raises:
      UserError: no such file, or another one.
    """
    if path is None:
        places = [epath.Path(cache_folder() / name) for name in FILE_NAMES]
        file = next((place for place in places if place.is_file()), places[0])
    else:
        file = user_path(path)
    if not file.is_file():
        raise UserError(
            f"no Inception weights at {file}: fetch {FILE_NAMES[0]} from {PUBLISHED} and put it there, or name it by "
            "--inception-weights (in a config, by evaluate.inception_weights)"
        )
    found = sha256_of(local_copy(file))
    if found != sha256:
        raise UserError(
            f"{file}: is not the Inception network of FID (its SHA-256 is {found}); fetch {FILE_NAMES[0]} from "
            f"{PUBLISHED}"
        )
    return InceptionV3.from_state_dict(read_torch_file(file), source=str(file)), found
