"""PyTorch's weight files in both formats, made by hand; and files that would rather run programs."""

import collections
import io
import pickle
import struct
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest

from diffusion_jax.errors import UserError
from diffusion_jax.interop.autoencoder import load_first_stage
from diffusion_jax.interop.autoencoder_names import LDM, autoencoder_entries
from diffusion_jax.interop.mapping import dump_state_dict
from diffusion_jax.interop.readers import open_state_dict
from diffusion_jax.interop.torch_files import MAGIC, read_torch_file
from diffusion_jax.models.autoencoder.first_stage import KLConfig

STORAGE_NAMES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


@pytest.fixture
def torch(monkeypatch):
    """Stand-ins under the names that PyTorch's files mention, for pickle to write down."""
    module, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    lightning = types.ModuleType("pytorch_lightning")
    for holder, name in ((utils, "_rebuild_tensor_v2"), (utils, "_rebuild_parameter"), (lightning, "Callback")):
        setattr(holder, name, type(name, (), {"__module__": holder.__name__}))
    for name in STORAGE_NAMES.values():
        setattr(module, name, type(name, (), {"__module__": "torch"}))
    module._utils = utils
    for holder in (module, utils, lightning):
        monkeypatch.setitem(sys.modules, holder.__name__, holder)
    return module


class Stored:
    """A storage, which goes into a file as a reference."""

    def __init__(self, array, key):
        self.array, self.key = array, key


class View:
    """A tensor, which goes into a file as a call of `_rebuild_tensor_v2`."""

    def __init__(self, torch, storage, offset, shape, strides, parameter=False):
        arguments = (storage, offset, shape, strides, False, collections.OrderedDict())
        self.call = (torch._utils._rebuild_tensor_v2, arguments)
        if parameter:
            self.call = (torch._utils._rebuild_parameter, (View(torch, *arguments[:4]), True, arguments[5]))

    def __reduce__(self):
        return self.call


def tensor(torch, array, key, parameter=False):
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return View(torch, Stored(array, key), 0, array.shape, strides, parameter)


def dump(torch, content, protocol=2):
    """The pickle of the content, and its storages by key."""
    storages, out = {}, io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            if not isinstance(thing, Stored):
                return None
            storages[thing.key] = thing.array
            kind = getattr(torch, STORAGE_NAMES[str(thing.array.dtype)])
            return ("storage", kind, thing.key, "cpu", thing.array.size)

    Pickler(out, protocol).dump(content)
    return out.getvalue(), storages


def write_archive(path, torch, content, compression=zipfile.ZIP_STORED, protocol=2):
    data, storages = dump(torch, content, protocol)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")


def write_stream(path, torch, content):
    data, storages = dump(torch, content)
    parts = [pickle.dumps(MAGIC, 2), pickle.dumps(1001, 2)]
    parts.append(pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}, 2))
    parts += [data, pickle.dumps(list(reversed(storages)), 2)]
    for array in reversed(storages.values()):
        parts += [struct.pack("<q", array.size), array.tobytes()]
    path.write_bytes(b"".join(parts))


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "conv.weight": rng.normal(size=(4, 3, 2, 2)).astype(np.float32),
        "odd.bytes": np.array([True, False, True]),
        "bn.num_batches_tracked": np.array(7, np.int64),
        "half": rng.normal(size=5).astype(np.float16),
        "brain": rng.normal(size=(2, 5)).astype(ml_dtypes.bfloat16),
        "double": rng.normal(size=3),
        "empty": np.zeros((0, 3), np.float32),
    }


def assert_equal(ours, arrays):
    assert list(ours) == list(arrays)
    for name, array in arrays.items():
        assert ours[name].dtype == array.dtype and ours[name].shape == array.shape
        assert np.array_equal(ours[name], array)


@pytest.mark.parametrize("write", [write_archive, write_stream])
def test_both_formats_are_read(tmp_path, torch, arrays, write):
    path = tmp_path / "weights.pth"
    items = [(name, tensor(torch, array, str(i), parameter=i == 0)) for i, (name, array) in enumerate(arrays.items())]
    content = collections.OrderedDict(items)
    content._metadata = {"": {"version": 1}}
    write(path, torch, content)
    assert_equal(read_torch_file(path), arrays)
    assert_equal(open_state_dict(path, "nowhere"), arrays)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_compressed_archives_and_newer_protocols_are_read(tmp_path, torch, arrays, protocol):
    path = tmp_path / "weights.pt"
    content = {name: tensor(torch, array, str(i)) for i, (name, array) in enumerate(arrays.items())}
    write_archive(path, torch, content, zipfile.ZIP_DEFLATED, protocol)
    assert_equal(read_torch_file(path), arrays)


@pytest.mark.parametrize("write", [write_archive, write_stream])
def test_views_share_a_storage(tmp_path, torch, write):
    data = np.arange(24, dtype=np.float32)
    shared = Stored(data, "0")
    content = {
        "whole": View(torch, shared, 0, (4, 6), (6, 1)),
        "transposed": View(torch, shared, 0, (6, 4), (1, 6)),
        "tail": View(torch, shared, 20, (4,), (1,)),
        "repeated": View(torch, shared, 3, (2, 2), (0, 1)),
    }
    write(tmp_path / "views.pt", torch, content)
    ours = read_torch_file(tmp_path / "views.pt")
    assert np.array_equal(ours["whole"], data.reshape(4, 6)) and np.array_equal(ours["transposed"], ours["whole"].T)
    assert ours["tail"].tolist() == [20, 21, 22, 23] and ours["repeated"].tolist() == [[3, 4], [3, 4]]


def test_a_training_checkpoint_has_sections(tmp_path, torch, arrays):
    path = tmp_path / "last.ckpt"
    model = {name: tensor(torch, array, str(i)) for i, (name, array) in enumerate(arrays.items())}
    ema = {"conv.weight": tensor(torch, 2 * arrays["conv.weight"], "ema")}
    callback = sys.modules["pytorch_lightning"].Callback
    beside = {"epoch": 3, "callbacks": {callback: {"best": None}}, "lr_schedulers": [], "flags": (True, {1, 2})}
    write_archive(path, torch, {"state_dict": model, **beside})
    assert_equal(read_torch_file(path), arrays)
    write_archive(path, torch, {"model": model, "ema": ema, **beside})
    assert np.array_equal(read_torch_file(path, "ema")["conv.weight"], 2 * arrays["conv.weight"])
    with pytest.raises(UserError, match=r"several sets of weights; choose one of ema, model$"):
        read_torch_file(path)
    with pytest.raises(UserError, match=r"no weights 'modle'; did you mean 'model'\?"):
        read_torch_file(path, "modle")


class Malice:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


MALICE = {
    "call": lambda: Malice(eval, "1/0"),
    "nested": lambda: {"state_dict": [Malice(getattr, Malice(__import__, "os"), "system")]},
    "class": lambda: {"a": io.BytesIO},
    "method": lambda: Malice(collections.OrderedDict.fromkeys, [1]),
}


@pytest.mark.parametrize("name", MALICE)
@pytest.mark.parametrize("write", [write_archive, write_stream])
def test_files_that_want_to_run_something_are_refused(tmp_path, torch, name, write):
    path = tmp_path / "evil.pth"
    write(path, torch, MALICE[name]())
    with pytest.raises(UserError, match=r"evil.pth: (mentions|calls) .*not read$") as error:
        read_torch_file(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "code",
    [
        b"cos\nsystem\n(S'true'\ntR.",  # GLOBAL and REDUCE
        b"(S'true'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'true'\no.",  # OBJ
        b"\x80\x02\x82\x01.",  # EXT1, a name by number
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",  # STACK_GLOBAL
        b"ctorch\nFloatStorage\n(tR.",  # a name that may only be mentioned
        b"ccollections\nOrderedDict\n}S'x'\nI1\nsb.",  # state for a name
        b"ctorch._utils\n_rebuild_tensor_v2\n(I1\nI2\nI3\nI4\ntR.",  # a tensor of nothing
        b"I1\n(tR.",  # a number as a function
        b"(S'anything'\ntQ.",  # a reference to something outside
        b"R.",
        b"t.",
        b"h\x05.",
        b"]]s.",
        b"",
        b"garbage",
    ],
)
def test_malformed_pickles_are_refused_in_one_line(tmp_path, code):
    path = tmp_path / "evil.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", code)
    with pytest.raises(UserError, match=r"evil.pt: ") as error:
        read_torch_file(path)
    assert "\n" not in str(error.value)


def test_damaged_files_are_refused(tmp_path, torch):
    path = tmp_path / "weights.pth"
    content = {"a": tensor(torch, np.arange(1000, dtype=np.float32), "0")}
    for write in (write_archive, write_stream):
        write(path, torch, content)
        whole = path.read_bytes()
        for length in (0, 1, 30, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(UserError, match=r"weights.pth: "):
                read_torch_file(path)
    for text in (b"version https://git-lfs", b"<html>", b"\x80\x02I5\n."):
        path.write_bytes(text)
        with pytest.raises(UserError, match=r"weights.pth: "):
            read_torch_file(path)
    write_stream(path, torch, {"a": View(torch, Stored(np.zeros(4, np.float32), "0"), 0, (5,), (1,))})
    with pytest.raises(UserError, match="is damaged"):
        read_torch_file(path)
    write_stream(path, torch, [1, 2])
    with pytest.raises(UserError, match="no tensors by name"):
        read_torch_file(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_torch_file(tmp_path / "absent.pth")


def test_a_first_stage_is_read_from_a_training_checkpoint(tmp_path, torch, golden):
    """As LDM published them: a whole training state, with the losses' own weights among the autoencoder's."""
    theirs = {key[2:]: value for key, value in golden("ldm_autoencoder_kl").items() if key.startswith("w/")}
    named = {**theirs, "loss.logvar": np.zeros(1, np.float32)}
    tensors = {
        name: tensor(torch, np.ascontiguousarray(array), str(i)) for i, (name, array) in enumerate(named.items())
    }
    content = {"epoch": 3, "global_step": 7, "state_dict": tensors, "optimizer_states": [{"state": {}}]}
    write_archive(tmp_path / "kl.ckpt", torch, content)
    keys = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (8,), "resolution": 16}
    config = KLConfig(weights=str(tmp_path / "kl.ckpt"), **keys)
    first_stage = config.build(load_first_stage, seed=0)
    stored = dump_state_dict(first_stage.autoencoder, autoencoder_entries(first_stage.autoencoder, LDM))
    assert stored.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(stored[name], array)
