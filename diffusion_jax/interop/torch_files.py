"""The weight files of PyTorch (.pt, .pth, .ckpt, .bin) without PyTorch, and without running anything in them.

Both formats are read: the zip archives that `torch.save` writes since version 1.6, and the streams before it. Tensors
are views of the file on disk, so that only what is used is ever read.
"""

import mmap
import pathlib
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.files import local_copy
from diffusion_jax.interop.pickles import Constructor, Name, Opaque, read_pickle

MAGIC = 0x1950A86A20F9469CFC6C
STREAM_VERSION = 1001

STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class Storage:
    """The numbers that tensors are views of.

    Attributes:
      dtype: of the numbers.
      count: how many.
      data: their bytes, known once the file has been read to where they lie.
    """

    def __init__(self, dtype: np.dtype, count: int):
        self.dtype = dtype
        self.count = count
        self.data: memoryview | None = None


class Tensor:
    """A view of a storage; offset and strides count numbers, not bytes."""

    def __init__(self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object):
        if not isinstance(storage, Storage) or len(shape) != len(strides) or min((offset, *shape, *strides)) < 0:
            raise ValueError("a tensor of no sensible shape")
        self.storage, self.offset, self.shape, self.strides = storage, offset, tuple(shape), tuple(strides)

    def array(self) -> np.ndarray:
        """Raises ValueError or TypeError if the tensor reaches beyond its storage."""
        size = self.storage.dtype.itemsize
        strides = tuple(size * stride for stride in self.strides)
        if self.storage.data is None:
            raise ValueError("a tensor without numbers")
        buffer = self.storage.data
        array = np.ndarray(self.shape, self.storage.dtype, buffer, self.offset * size, strides)
        return np.require(array, requirements="A")


NAMES: dict[Name, Constructor | None] = {
    Name("collections", "OrderedDict"): dict,
    Name("torch._utils", "_rebuild_tensor"): Tensor,
    Name("torch._utils", "_rebuild_tensor_v2"): Tensor,
    Name("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    Name("torch", "Size"): tuple,
    Name("torch", "device"): Opaque,
    **{Name("torch", storage): None for storage in STORAGES},
    **{Name(builtins, "set"): set for builtins in ("builtins", "__builtin__")},
    # What training scripts keep beside their weights.
    Name("argparse", "Namespace"): Opaque,
    Name("collections", "defaultdict"): Opaque,
    Name("_codecs", "encode"): Opaque,
    **{Name(f"numpy.{core}.multiarray", "scalar"): Opaque for core in ("core", "_core")},
    Name("numpy", "dtype"): Opaque,
    **{Name(library, "*"): Opaque for library in ("pytorch_lightning", "lightning", "omegaconf")},
}


def read_torch_file(path: epath.PathLike, section: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch file by name.

    Args:
      path: the file; of one in a bucket, a local copy is mapped.
      section: which of the state dicts in a training checkpoint, such as "ema" or "state_dict"; None takes the only
        one there is.

    Returns:
      Name to array, in PyTorch layouts; the file must stay while they are used, and they are not for writing.

    Raises:
      UserError: the file is damaged, of another kind, mentions anything but tensors, or has other sections.
    """
    source = str(path)
    content = _read(path, source)
    found = _state_dicts(content)
    if section is None and len(found) == 1:
        section = next(iter(found))
    if section not in found:
        if not found:
            raise UserError(f"{source}: holds no tensors by name; it is no file of weights")
        named = sorted(found)
        if section is None:
            raise UserError(f"{source}: holds several sets of weights; choose one of {', '.join(named)}")
        raise UserError(f"{source}: has no weights '{section}'{did_you_mean(section, named)}")
    try:
        return {name: tensor.array() for name, tensor in found[section].items()}
    except (ValueError, TypeError) as error:
        raise UserError(f"{source}: is damaged ({error}); fetch it again") from error


def _state_dicts(content: object) -> dict[str, dict[str, Tensor]]:
    """The dicts of tensors in a file: itself, named "", or those one level below."""

    def tensors(thing: object) -> dict[str, Tensor]:
        items = thing.items() if isinstance(thing, dict) else ()
        return {name: value for name, value in items if isinstance(name, str) and isinstance(value, Tensor)}

    if not isinstance(content, dict):
        return {}
    if own := tensors(content):
        return {"": own}
    return {name: inner for name, value in content.items() if isinstance(name, str) and (inner := tensors(value))}


def _read(path: epath.PathLike, source: str) -> object:
    try:
        copy = local_copy(path)
        with open(copy, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise UserError(f"{source}: is empty; fetch it again") from error
    if data[:4] == b"PK\x03\x04":
        return _read_archive(copy, data, source)
    return _read_stream(data, source)


def _storage_reader(storages: dict[str, Storage]) -> Callable[[Any], Storage]:
    def storage(reference: Any) -> Storage:
        kind, name, key, _, count, *views = reference
        if kind != "storage" or not isinstance(name, Name) or name.name not in STORAGES or any(views):
            raise ValueError(f"a reference to a {kind}")
        if not isinstance(count, int) or count < 0:
            raise ValueError("a storage of no sensible size")
        return storages.setdefault(str(key), Storage(np.dtype(STORAGES[name.name]), count))

    return storage


def _read_archive(path: pathlib.Path, data: mmap.mmap, source: str) -> object:
    """The zip format: data.pkl, and one file per storage, not compressed."""
    storages: dict[str, Storage] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(roots) != 1:
                raise UserError(f"{source}: is a zip file, but not one of PyTorch's weight files (no data.pkl)")
            root = roots[0]
            if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
                raise UserError(f"{source}: was written by a big-endian machine, which is not read")
            with archive.open(f"{root}data.pkl") as stream:
                content = read_pickle(stream, NAMES, source, _storage_reader(storages))
            for key, storage in storages.items():
                storage.data = _member(archive, data, f"{root}data/{key}", storage)
    except (zipfile.BadZipFile, KeyError, EOFError, ValueError, struct.error) as error:
        raise UserError(f"{source}: is damaged ({error}); fetch it again") from error
    return content


def _member(archive: zipfile.ZipFile, data: mmap.mmap, name: str, storage: Storage) -> memoryview:
    """The bytes of a storage, without a copy."""
    info = archive.getinfo(name)
    size = storage.count * storage.dtype.itemsize
    if info.file_size < size:
        raise ValueError(f"{name} is {info.file_size} bytes long, not {size}")
    if info.compress_type != zipfile.ZIP_STORED:
        return memoryview(archive.read(name))[:size]
    name_length, extra_length = struct.unpack_from("<HH", data, info.header_offset + 26)
    start = info.header_offset + 30 + name_length + extra_length
    return _slice(data, start, size)


def _read_stream(data: mmap.mmap, source: str) -> object:
    """The older format: five pickles (magic number, version, system, content, order of storages), then the storages."""
    storages: dict[str, Storage] = {}
    stream: Any = data  # has the `read` and `readline` that pickles need
    if data[:1] != b"\x80" or read_pickle(stream, {}, source) != MAGIC:
        raise UserError(f"{source}: is no weight file of PyTorch; fetch it again")
    if read_pickle(stream, {}, source) != STREAM_VERSION:
        raise UserError(f"{source}: is of a version of PyTorch's format that is not read")
    system = read_pickle(stream, {}, source)
    if not isinstance(system, dict) or not system.get("little_endian", True):
        raise UserError(f"{source}: was written by a big-endian machine, which is not read")
    content = read_pickle(stream, NAMES, source, _storage_reader(storages))
    order = read_pickle(stream, {}, source)
    position = data.tell()
    try:
        for key in order:
            storage = storages[str(key)]
            (count,) = struct.unpack_from("<q", data, position)
            if count != storage.count:
                raise ValueError(f"storage {key} has {count} numbers, not {storage.count}")
            size = count * storage.dtype.itemsize
            storage.data = _slice(data, position + 8, size)
            position += 8 + size
    except (KeyError, TypeError, ValueError, struct.error) as error:
        raise UserError(f"{source}: is damaged or cut short ({error}); fetch it again") from error
    return content


def _slice(data: mmap.mmap, start: int, size: int) -> memoryview:
    if start + size > len(data):
        raise ValueError(f"it ends at {len(data)} bytes, {start + size - len(data)} too early")
    return memoryview(data)[start : start + size]
