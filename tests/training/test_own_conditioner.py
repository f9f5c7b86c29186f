"""A conditioner of one's own, in this file alone, trains and samples every backbone that takes tokens."""

import dataclasses
import sys
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import diffusion_jax as dj
from diffusion_jax.errors import UserError
from diffusion_jax.models.conditioning.conditioners import Arrays, Conditioner
from diffusion_jax.models.conditioning.parts import Conditioning, ConditioningSpec
from diffusion_jax.records import Field, Record, RecordSpec
from diffusion_jax.smoke import tiny_options


class BoxTokens(nnx.Module):
    """Embeds boxes and their classes as one token each; trained with the backbone."""

    def __init__(self, classes: int, width: int, rngs: nnx.Rngs):
        self.classes = nnx.Embed(classes, width, rngs=rngs)
        self.corners = nnx.Linear(4, width, rngs=rngs)

    def __call__(self, cond: Conditioning) -> Conditioning:
        boxes, kind = cond.tokens[..., :4], cond.tokens[..., 4].astype(jnp.int32)  # [B, M, 4], [B, M]
        return cond._replace(tokens=self.corners(boxes) + self.classes(jnp.maximum(kind, 0)))  # [B, M, D]


@dataclasses.dataclass(frozen=True)
class Boxes(Conditioner):
    """Boxes with classes as tokens; empty places are masked, and the null condition masks all.

    Attributes:
      num_classes: of the boxes.
      most: boxes of a record.
      width: of a token.
      null_rate: probability of the null condition in training.
    """

    num_classes: int
    most: int = 3
    width: int = 16
    null_rate: float = 0.2

    reads: ClassVar[tuple[str, ...]] = ("boxes", "box_labels")

    @property
    def spec(self) -> ConditioningSpec:
        return ConditioningSpec(token_length=self.most, token_width=self.width)

    @property
    def array_spec(self) -> RecordSpec:
        return {"boxes_and_labels": Field((self.most, 5), "float32")}

    @property
    def drop_rate(self) -> float:
        return self.null_rate

    def arrays(self, record: Record, seed: int, position: int) -> dict[str, np.ndarray]:
        labels = np.asarray(record["box_labels"], np.float32)[:, None]
        return {"boxes_and_labels": np.concatenate([np.asarray(record["boxes"], np.float32), labels], 1)}

    def encoder(self, rngs: nnx.Rngs) -> BoxTokens:
        return BoxTokens(self.num_classes, self.width, rngs)

    def __call__(self, arrays: Arrays, networks: Any = None) -> Conditioning:
        tokens = arrays["boxes_and_labels"]
        return Conditioning(tokens=tokens, token_mask=tokens[..., 4] >= 0)

    def null(self, arrays: Arrays, networks: Any = None) -> Conditioning:
        tokens = arrays["boxes_and_labels"]
        return Conditioning(tokens=tokens, token_mask=jnp.zeros(tokens.shape[:2], bool))

    def mirror(self, arrays: Arrays, flip: jax.Array) -> Arrays:
        left, top, right, bottom, kind = jnp.moveaxis(arrays["boxes_and_labels"], -1, 0)  # [B, M] each
        mirrored = jnp.stack([1 - right, top, 1 - left, bottom, kind], -1)  # [B, M, 5]
        return {"boxes_and_labels": jnp.where(flip[:, None, None], mirrored, arrays["boxes_and_labels"])}


MODELS = {
    "dit": {"depth": 1, "width": 32, "heads": 2, "patch_size": 4, "block": "cross_attention"},
    "dit in context": {"depth": 1, "width": 32, "heads": 2, "patch_size": 4, "block": "in_context"},
    "ldm_transformer": {"depth": 1, "width": 32, "heads": 2, "patch_size": 4},
    "uvit": {"depth": 3, "width": 32, "heads": 2, "patch_size": 4},
    "unet": {"model_channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "norm_groups": 4, "num_heads": 2},
    "iuvit": {"depth": 3, "width": 32, "heads": 2, "patch_size": 4},
    "ascend": tiny_options("ascend"),
}


def config(model):
    return {
        "data": {"name": "shapes:shapes=3,images=32", "image_size": 16, "flip": True},
        "conditioner": {"name": f"{__name__}:Boxes"},
        "autoencoder": {"name": "identity"},
        "model": {"name": model.split()[0], **MODELS[model]},
        "path": {"name": "linear"},
        "prediction": {"kind": "velocity"},
        "loss": {"name": "flow_matching"},
        "optimizer": {"name": "adamw"},
        "ema": {"name": "constant", "max_decay": 0.5},
        "train": {"steps": 2, "batch_size": 8, "save_every": 2, "log_every": 1},
        "sampler": {"name": "probability_flow", "steps": 2},
        "guidance": {"name": "cfg", "cfg_scale": 2.0},
        "sample": {"batch_size": 1},
        "mesh": {"data": 8},
    }


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """The class is found by name as one of a user's own module is."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Boxes.__module__])


BOXES = {
    "boxes": np.array([[[0.1, 0.1, 0.5, 0.5], [0.5, 0.5, 0.9, 0.9], [-1, -1, -1, -1]]] * 2, np.float32),
    "box_labels": np.array([[1, 2, -1]] * 2, np.int32),
}


@pytest.mark.usefixtures("shared_compilations")
@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=[pytest.mark.slow] * (name == "ascend")) for name in MODELS]
)
def test_it_trains_and_samples_every_backbone_of_tokens(model, tmp_path):
    run = dj.train(config(model), tmp_path)
    assert np.all(np.isfinite(run.log()["loss"]))
    spec = run.metadata.facts.record_spec
    assert spec["boxes"] == Field((3, 4), "float32") and spec["box_labels"] == Field((3,), "int32")
    samples = run.sample(**BOXES)
    assert samples.images.shape == (2, 16, 16, 3) and samples.labels is None
    if model == "dit":
        with pytest.raises(UserError, match="this run needs boxes, box_labels of every sample"):
            run.sample(2)
        with pytest.raises(UserError, match="'caption' is of no use to this run: it reads boxes, box_labels"):
            run.sample(caption=["a star"])
        cond = run.restored().system.conditioner.arrays({name: value[0] for name, value in BOXES.items()}, 0, 0)
        assert cond["boxes_and_labels"].shape == (3, 5)


def test_boxes_are_mirrored_with_the_image():
    conditioner = Boxes(8)
    arrays = {"boxes_and_labels": jnp.array([[[0.1, 0.2, 0.4, 0.6, 5.0]]] * 2)}
    mirrored = conditioner.mirror(arrays, jnp.array([True, False]))["boxes_and_labels"]
    np.testing.assert_allclose(mirrored[0, 0], [0.6, 0.2, 0.9, 0.6, 5.0], rtol=1e-6)
    np.testing.assert_array_equal(mirrored[1], arrays["boxes_and_labels"][1])


def test_data_without_the_fields_is_refused(tmp_path):
    sections = config("dit")
    sections["data"] = {"name": "digits", "image_size": 16, "channels": 3}
    with pytest.raises(UserError, match=r"reads 'boxes', which the records of data 'digits' do not hold"):
        dj.train(sections, tmp_path)
