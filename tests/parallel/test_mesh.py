"""Meshes, batches on them, and partition rules."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from diffusion_jax.errors import UserError
from diffusion_jax.parallel.mesh import MeshConfig, batch_sharding, group_by_slice, local_rows, make_mesh, to_global
from diffusion_jax.parallel.partition import make_shardings, path_name


def test_one_axis_takes_the_rest_of_the_devices():
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    "config", [MeshConfig(data=3), MeshConfig(data=-1, fsdp=3), MeshConfig(data=2, fsdp=2), MeshConfig(data=16)]
)
def test_a_mesh_that_does_not_divide_the_devices_is_refused(config):
    with pytest.raises(UserError, match="does not divide 8 devices"):
        make_mesh(config)


@pytest.mark.parametrize("config", [MeshConfig(data=-1, fsdp=-1), MeshConfig(data=0)])
def test_impossible_sizes_are_refused(config):
    with pytest.raises(UserError, match="at most one is -1"):
        make_mesh(config)


def test_the_data_axis_spans_slices_one_after_the_other():
    devices = jax.devices()
    mesh = make_mesh(MeshConfig(fsdp=2, dcn=2), devices[1::2] + devices[::2])
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert [device.id for device in mesh.devices.flat] == [1, 3, 5, 7, 0, 2, 4, 6]


def test_tpus_are_grouped_by_the_slice_they_name():
    tpus = [types.SimpleNamespace(platform="tpu", slice_index=index, id=id) for id, index in enumerate((1, 0, 1, 0))]
    assert [[tpu.id for tpu in group] for group in group_by_slice(tpus, None)] == [[1, 3], [0, 2]]
    with pytest.raises(UserError, match=r"mesh\.dcn=1: these TPUs are of 2 slices"):
        group_by_slice(tpus, 1)
    with pytest.raises(UserError, match="slices of 2, 1 devices"):
        group_by_slice(tpus[1:], None)


@pytest.mark.parametrize("dcn", [0, -1, 3])
def test_slices_of_several_sizes_are_refused(dcn):
    with pytest.raises(UserError, match=rf"mesh\.dcn={dcn} does not divide 8 devices"):
        make_mesh(MeshConfig(dcn=dcn))


def test_nothing_but_data_is_split_between_slices():
    with pytest.raises(UserError, match=r"mesh\.data=1 does not divide over 2 slices"):
        make_mesh(MeshConfig(fsdp=8, dcn=2))


def test_a_batch_is_split_over_data_and_fsdp():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert np.array_equal(local_rows(mesh, 12), np.arange(12))
    rows = np.arange(24.0, dtype=np.float32).reshape(12, 2)
    array = to_global(mesh, 12, {"x": rows})["x"]
    assert np.array_equal(array, rows)
    assert array.sharding.is_equivalent_to(batch_sharding(mesh), 2)
    assert array.addressable_shards[0].data.shape == (3, 2)
    with pytest.raises(UserError, match="batch size 10 does not divide over the 4 batch shards"):
        local_rows(mesh, 10)


def test_rules_apply_by_name_and_refuse_what_does_not_divide():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    rules = ((r"fc/kernel", PartitionSpec("fsdp", "tensor")), (r"bias", PartitionSpec("tensor")))
    tree = {"fc": {"kernel": jax.ShapeDtypeStruct((8, 6), "float32"), "bias": jax.ShapeDtypeStruct((), "float32")}}
    shardings = make_shardings(tree, rules, mesh)
    assert shardings["fc"]["kernel"].spec == PartitionSpec("fsdp", "tensor")
    assert shardings["fc"]["bias"].spec == PartitionSpec()
    tree["fc"]["kernel"] = jax.ShapeDtypeStruct((6, 6), "float32")
    with pytest.raises(UserError, match=r"mesh\.fsdp=4 does not divide axis 0 of fc/kernel \(6, 6\)"):
        make_shardings(tree, rules, mesh)


def test_names_leave_out_the_value_of_nnx_variables():
    from flax import nnx

    paths = jax.tree_util.tree_flatten_with_path(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))[0]
    assert {path_name(path) for path, _ in paths} == {"kernel", "bias"}
