"""Every block design and refinement of DiT against a second, plain NumPy statement of the specification."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from diffusion_jax.interop.dit import dit_entries
from diffusion_jax.interop.mapping import dump_state_dict
from diffusion_jax.models.backbones import abstract_backbone, backbone_macs
from diffusion_jax.models.conditioning.parts import Conditioning, ConditioningSpec
from diffusion_jax.models.dit.dit import MODERN
from diffusion_jax.parallel.partition import make_shardings, path_name

SHAPE, WIDTH, HEADS, PATCH, DEPTH = (8, 4, 3), 16, 2, 2, 3
CLASSES = ConditioningSpec(num_classes=5, null_class=True)

CASES = {
    "adaln_zero": {},
    "adaln": {"block": "adaln"},
    "cross_attention": {"block": "cross_attention"},
    "in_context": {"block": "in_context"},
    "modern": {**MODERN},
    "layer_qk_norm": {"qk_norm": "layer", "base_grid": (2, 3), "rope": True},
    "no_shift": {"modulation_shift": False, "norm": "rms"},
    "modern_in_context": {**MODERN, "block": "in_context", "mlp_norm_eps": 0.1},
    "modern_cross_attention": {**MODERN, "block": "cross_attention", "base_grid": (2, 3)},
}


def build(**options):
    """A tiny model, abstract, and with random weights."""
    sizes = {"depth": DEPTH, "width": WIDTH, "heads": HEADS, "patch_size": PATCH}
    context = {"input_shape": SHAPE, "out_channels": 4, "conditioning": CLASSES}
    return fill(abstract_backbone("dit", **context, **{**sizes, **options}))


def fill(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), model)


def inputs():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    return x, np.float32([0.3, 0.8]), Conditioning(label=np.int32([4, 5]))


def plain(w, x, t, label, *, block="adaln_zero", norm="layer", mlp="gelu", qk_norm="none", rope=False,
          modulation_shift=True, mlp_norm_eps=1e-6, base_grid=None, time_scale=1.0):  # fmt: skip
    """The specification in NumPy for one image, from weights under official names; also the tokens after each block."""
    rows, columns = x.shape[0] // PATCH, x.shape[1] // PATCH
    base = base_grid or (rows, columns)
    place = [(r * base[0] / rows, q * base[1] / columns) for r in range(rows) for q in range(columns)]

    def linear(name, u):
        return u @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def silu(u):
        return u / (1 + np.exp(-u))

    def softmax(u):
        e = np.exp(u - u.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def normalise(name, u, eps=1e-6, kind=norm):
        if kind == "layer":
            u = u - u.mean(-1, keepdims=True)
        u = u / np.sqrt((u**2).mean(-1, keepdims=True) + eps) * w.get(f"{name}.weight", 1)
        return u + w.get(f"{name}.bias", 0)

    def axis(u):
        omega = 10000.0 ** -(np.arange(WIDTH // 4) / (WIDTH // 4))
        return [*np.sin(u * omega), *np.cos(u * omega)]

    def turn(u, positions):  # u [N, d]
        d, u = u.shape[1], u.copy()
        for n, (r, q) in enumerate(positions):
            for k in range(d // 2):
                angle = (r if k < d // 4 else q) * 10000.0 ** (-2 * (k % (d // 4)) / (d / 2))
                a, b = u[n, 2 * k], u[n, 2 * k + 1]
                u[n, 2 * k] = a * np.cos(angle) - b * np.sin(angle)
                u[n, 2 * k + 1] = b * np.cos(angle) + a * np.sin(angle)
        return u

    def heads_of(u):
        return u.reshape(len(u), HEADS, -1).swapaxes(0, 1)  # heads, N, d

    def attend(q, k, v):
        weights = softmax(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]))
        return (weights @ v).swapaxes(0, 1).reshape(q.shape[1], -1)

    def attention(name, u, places):
        q, k, v = (heads_of(part) for part in np.split(linear(f"{name}.qkv", u), 3, axis=1))
        if qk_norm != "none":
            q, k = normalise(f"{name}.q_norm", q, kind=qk_norm), normalise(f"{name}.k_norm", k, kind=qk_norm)
        if rope:
            q, k = (np.stack([turn(head, places) for head in part]) for part in (q, k))
        return linear(f"{name}.proj", attend(q, k, v))

    def feed(name, u):
        if mlp == "swiglu":
            a, b = np.split(linear(f"{name}.w12", u), 2, axis=1)
            return linear(f"{name}.w3", silu(a) * b)
        u = linear(f"{name}.fc1", u)
        return linear(f"{name}.fc2", 0.5 * u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3))))

    patches = [
        x[r : r + PATCH, q : q + PATCH] for r in range(0, x.shape[0], PATCH) for q in range(0, x.shape[1], PATCH)
    ]
    tokens = np.stack([np.einsum("hwc,ochw->o", patch, w["x_embedder.proj.weight"]) for patch in patches])
    tokens = tokens + w["x_embedder.proj.bias"] + np.array([axis(q) + axis(r) for r, q in place])
    angles = time_scale * t * 10000.0 ** (-np.arange(128) / 128)
    time = linear(
        "t_embedder.mlp.2", silu(linear("t_embedder.mlp.0", np.concatenate([np.cos(angles), np.sin(angles)])))
    )
    embeddings = np.stack([time, w["y_embedder.embedding_table.weight"][label]])
    c = silu(embeddings.sum(0))
    if block == "in_context":
        tokens, place = np.concatenate([tokens, embeddings]), [*place, (0, 0), (0, 0)]
    states = []
    for name in (f"blocks.{i}" for i in range(DEPTH)):
        if block in ("adaln_zero", "adaln"):
            chunks = iter(linear(f"{name}.adaLN_modulation.1", c).reshape(-1, WIDTH))
        for layer in ("attn", "cross_attn", "mlp"):
            if layer == "cross_attn":
                if block == "cross_attention":
                    q = linear(f"{name}.cross_attn.q", normalise(f"{name}.norm_cross", tokens))
                    k, v = np.split(linear(f"{name}.cross_attn.kv", embeddings), 2, axis=1)
                    tokens = tokens + linear(f"{name}.cross_attn.proj", attend(*map(heads_of, (q, k, v))))
                continue
            number, eps = (1, 1e-6) if layer == "attn" else (2, mlp_norm_eps)
            u, gate = normalise(f"{name}.norm{number}", tokens, eps), 1
            if block in ("adaln_zero", "adaln"):
                shift = next(chunks) if modulation_shift else 0
                u = u * (1 + next(chunks)) + shift
                gate = next(chunks) if block == "adaln_zero" else 1
            u = attention(f"{name}.attn", u, place) if layer == "attn" else feed(f"{name}.mlp", u)
            tokens = tokens + gate * u
        states.append(tokens[: rows * columns])
    tokens = normalise("final_layer.norm_final", states[-1])
    if block in ("adaln_zero", "adaln"):
        shift, scale = np.split(linear("final_layer.adaLN_modulation.1", c), 2)
        tokens = tokens * (1 + scale) + shift
    patches = linear("final_layer.linear", tokens).reshape(rows, columns, PATCH, PATCH, 4)
    return patches.swapaxes(1, 2).reshape(*x.shape[:2], 4), states


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_a_plain_statement_of_the_specification(name):
    options = CASES[name]
    model = build(**options)
    x, t, cond = inputs()
    out = jax.jit(model.__call__)(x, t, cond)
    weights = {key: np.float64(value) for key, value in dump_state_dict(model, dit_entries(model)).items()}
    for b in range(2):
        want, _ = plain(weights, np.float64(x[b]), float(t[b]), cond.label[b], **options)
        assert want.std() > 0.1
        np.testing.assert_allclose(out[b], want, atol=2e-4 * max(1, want.std()))


def test_the_projected_tokens_are_those_of_the_named_block():
    options = {**CASES["modern_in_context"]}
    model = build(**options, repa_depth=2, repa_width=6, repa_hidden=10)
    x, t, cond = inputs()
    out, projected = jax.jit(model.project)(x, t, cond)
    np.testing.assert_array_equal(out, jax.jit(model.__call__)(x, t, cond))
    weights = {key: np.float64(value) for key, value in dump_state_dict(model, dit_entries(model)).items()}
    _, states = plain(weights, np.float64(x[0]), float(t[0]), cond.label[0], **options)
    u = states[1]
    for i in (0, 2, 4):
        u = u @ weights[f"projectors.0.{i}.weight"].T + weights[f"projectors.0.{i}.bias"]
        u = u / (1 + np.exp(-u)) if i < 4 else u
    np.testing.assert_allclose(projected[0], u, atol=1e-4 * max(1, u.std()))


def test_a_projector_costs_a_call_nothing_and_teaches_the_blocks_before_it():
    model = build(repa_depth=2, repa_width=6, repa_hidden=10)
    assert backbone_macs(model, SHAPE, CLASSES) == backbone_macs(build(), SHAPE, CLASSES)
    x, t, cond = inputs()
    gradient = jax.jit(jax.grad(lambda model: jnp.sum(model.project(x, t, cond)[1] ** 2)))(model)
    moved = [bool(np.any(layer)) for layer in gradient.blocks.attn.proj.kernel[...]]
    assert moved == [True, True, False]
    assert np.any(gradient.projector.fc1.kernel) and not np.any(gradient.final.linear.kernel)
    with pytest.raises(ValueError, match="project of a DiT with repa_depth 0"):
        build().project(x, t, cond)


def test_bfloat16_changes_little():
    options = {**CASES["modern_cross_attention"], "repa_depth": 1}
    x, t, cond = inputs()
    model, half = build(**options), build(**options, dtype="bfloat16", residual_dtype="bfloat16")
    for a, b in zip(*(jax.jit(each.project)(x, t, cond) for each in (model, half)), strict=True):
        assert b.dtype == jnp.float32
        assert 1e-4 < np.abs(a - b).max() / np.std(a) < 0.2


def test_every_matrix_of_every_design_is_split_over_both_mesh_axes():
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(1, 2, 2), ("data", "fsdp", "tensor"))
    for name, options in CASES.items():
        model = build(**options, repa_depth=1, repa_width=6, repa_hidden=10)
        for path, sharding in jax.tree_util.tree_leaves_with_path(make_shardings(model, model.partition_rules, mesh)):
            leaf = path_name(path)
            if leaf.startswith("blocks/") and leaf.endswith("kernel"):
                axes = {"fsdp"} if "modulation" in leaf else {"fsdp", "tensor"}
                assert set(sharding.spec) - {None} == axes, (name, leaf)


@pytest.mark.parametrize("block", ["cross_attention", "in_context"])
def test_a_model_without_classes_is_told_the_time_alone(block):
    spec = ConditioningSpec()
    model = abstract_backbone(
        "dit", input_shape=SHAPE, out_channels=4, conditioning=spec, depth=1, width=16, heads=2, block=block
    )
    x, t, _ = inputs()
    run = jax.jit(lambda model, t: model(x, t, Conditioning()))
    assert np.abs(run(fill(model), t) - run(fill(model), 2 * t)).max() > 1e-3
    assert model.sequence_length == 8 + (block == "in_context")
