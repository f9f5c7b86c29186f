"""Collectives read from compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from diffusion_jax.parallel.collectives import (
    BETWEEN_SLICES,
    Collective,
    by_kind,
    group_size,
    read_collectives,
    type_bytes,
)
from diffusion_jax.parallel.mesh import MeshConfig, make_mesh

TPU = """HloModule jit_step, num_partitions=8

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %add = f32[]{:T(128)} add(%a, %b)
}

%async (p: f32[16]) -> f32[32] {
  %p = f32[16]{0:T(1024)} parameter(0)
  ROOT %gather.1 = f32[32]{0:T(1024)} all-gather(%p), channel_id=3, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
}

%all-reduce-scatter.1 (q: f32[16]) -> f32[4] {
  %q = f32[16]{0:T(1024)} parameter(0)
  %whole = f32[16]{0:T(1024)} all-reduce(%q), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%sum
  ROOT %part = f32[4]{0:T(1024)} dynamic-slice(%whole), dynamic_slice_sizes={4}
}

%body (loop: (s32[], bf16[8,2])) -> (s32[], bf16[8,2]) {
  %loop = (s32[]{:T(128)}, bf16[8,2]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%loop), index=0
  %x = bf16[8,2]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%loop), index=1
  %y = f32[3]{0:T(128)} constant({1, 2, 3})
  %sums = (bf16[8,2]{1,0:T(8,128)S(1)}, f32[3]{0}) all-reduce(%x, %y), replica_groups=mesh['a'=2,'b'=4] {'b'}
  %new = bf16[8,2]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%sums), index=0
  ROOT %next = (s32[]{:T(128)}, bf16[8,2]{1,0:T(8,128)(2,1)S(1)}) tuple(%i, %new)
}

%condition (loop.1: (s32[], bf16[8,2])) -> pred[] {
  %limit = s32[]{:T(128)} constant(28)
  %loop.1 = (s32[]{:T(128)}, bf16[8,2]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%loop.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (start: (s32[], bf16[8,2]), z: f32[16]) -> f32[32] {
  %start = (s32[]{:T(128)}, bf16[8,2]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %z = f32[16]{0:T(1024)} parameter(1)
  %while.1 = (s32[]{:T(128)}, bf16[8,2]{1,0:T(8,128)(2,1)S(1)}) while(%start), condition=%condition, body=%body
  %gather-start = ((f32[16]{0:T(1024)}), f32[32]{0:T(1024)}) async-start(%z), calls=%async
  %gather.2 = f32[32]{0:T(1024)} all-gather(%z), channel_id=3, replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
  %scatter = f32[4]{0:T(1024)} fusion(%z), kind=kCustom, calls=%all-reduce-scatter.1
  %alone = f32[16]{0:T(1024)} all-reduce(%z), channel_id=7, replica_groups=[8,1]<=[8], to_apply=%sum
  %moved = (f32[16]{0}, f32[16]{0}, u32[]{:S(2)}) collective-permute-start(%z), source_target_pairs={{0,1},{1,0}}
  %arrived = f32[16]{0} collective-permute-done(%moved)
  %token = token[] after-all()
  %out = (f32[16]{0}, u32[], token[]) send(%z, %token), channel_id=11, is_host_transfer=true
  %sent = token[] send-done(%out), channel_id=11
  ROOT %gather-done = f32[32]{0:T(1024)} async-done(%gather-start), calls=%async
}
"""


def test_each_collective_counts_as_often_as_it_runs():
    found = read_collectives(TPU)
    assert len(found) == 5 and {each.kind: each for each in found} == {
        "all-reduce": Collective("all-reduce", 16 * 2 + 3 * 4, 4, 28),
        "all-gather": Collective("all-gather", 64, 2, 1),
        "reduce-scatter": Collective("reduce-scatter", 64, 4, 1),
        "collective-permute": Collective("collective-permute", 64, 2, 1),
        BETWEEN_SLICES: Collective(BETWEEN_SLICES, 64, 1, 1),
    }


def test_a_loop_of_unknown_length_is_an_error():
    with pytest.raises(ValueError, match="a loop around sums has no length"):
        read_collectives(TPU.replace("direction=LT", "direction=NE"))
    known = TPU.replace("direction=LT", "direction=NE").replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}'
    )
    assert max(each.count for each in read_collectives(known)) == 5
    with pytest.raises(ValueError, match="no HLO module"):
        read_collectives("nothing of the kind")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("replica_groups={{0,2,4,6},{1,3,5,7}}, x", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", 2),
        ("replica_groups=mesh['a'=2,'b'=4,'c'=3] {'a','c'}, x", 6),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([2,4,2]T(1,0,2)) {'b'}, x", 4),
        ("replica_groups=mesh['a'=8] {'a':(2)4}, x", 4),
        ("source_target_pairs={{0,1},{1,0}}, x", 2),
    ],
)
def test_group_sizes(text, size):
    assert group_size(text) == size


def test_unknown_groups_are_an_error():
    with pytest.raises(ValueError, match="cannot read the groups"):
        group_size("replica_groups={}, x")


def test_bytes_of_types():
    assert type_bytes("(bf16[2,8]{1,0:T(8,128)(2,1)S(1)}, f32[], /*index=5*/s32[3], pred[4])") == 32 + 4 + 12 + 4


def test_bytes_that_leave_a_device():
    sent = {kind: Collective(kind, 80, 4, 3).bytes_sent for kind in ("all-reduce", "all-gather", "reduce-scatter")}
    assert sent == {"all-reduce": 3 * 120, "all-gather": 3 * 240, "reduce-scatter": 3 * 60}
    assert Collective("collective-permute", 80, 2, 1).bytes_sent == 80
    assert by_kind([Collective("all-to-all", 80, 4, 3), Collective("all-to-all", 40, 2, 1)]) == {"all-to-all": (4, 200)}


def test_a_program_that_xla_compiled_for_eight_devices():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))

    def step(x):
        def body(x, _):
            return jnp.sin(jax.lax.psum(x, "fsdp")), None

        x, _ = jax.lax.scan(body, x, None, length=7)
        return jax.lax.all_gather(x, "data")

    spec = PartitionSpec(("data", "fsdp"))
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(None, ("data", "fsdp")), check_vma=False
    )
    compiled = jax.jit(mapped).lower(jax.ShapeDtypeStruct((16, 5), np.float32)).compile()
    assert sorted(read_collectives(compiled.as_text()), key=str) == [
        Collective("all-gather", 2 * 5 * 4, 4, 1),
        Collective("all-reduce", 2 * 5 * 4, 2, 7),
    ]
