"""The ways in which published scores were computed, each under one name: a score without its protocol means little."""

import dataclasses
from typing import Any, Literal

from diffusion_jax.errors import UserError, did_you_mean
from diffusion_jax.evaluation.metrics.inception_score import DEFAULT_SPLITS, SplitConvention
from diffusion_jax.evaluation.networks.resize import ResizeRule, ScaleRule, VisionResizeRule
from diffusion_jax.pictures import Uint8Rule


@dataclasses.dataclass(frozen=True)
class ScoringRules:
    """Everything that must be equal for two scores to be comparable, but for the images.

    Attributes:
      name: by which `--protocol` and results call it.
      papers: whose tables it reproduces.
      resize: how images come to the 299 × 299 pixels of the Inception network.
      scale: how their 0 … 255 comes to about −1 … 1.
      uint8: how samples in −1 … 1 are to become uint8; "trunc(127.5x+128)" rounds to nearest.
      metrics: those that the papers report.
      sample_count: how many samples the papers draw.
      reference: of which images the statistics are to be.
      inception_score: how the images are split for the Inception Score.
      inception_splits: number of splits, or of images in each for "adm".
      logits: which logits the Inception Score is of.
      neighbours: k of precision and recall.
      strict: whether a point on the edge of a ball is outside it.
      kid_subsets: subsets that KID averages over.
      kid_subset_size: images of each side in a subset.
      kid_seed: of the subsets.
      dinov2_resize: how images come to the 224 × 224 pixels of DINOv2.
    """

    name: str
    papers: str
    resize: ResizeRule
    scale: ScaleRule
    uint8: Uint8Rule
    metrics: tuple[str, ...]
    sample_count: int
    reference: str
    inception_score: SplitConvention = "adm"
    inception_splits: int = DEFAULT_SPLITS["adm"]
    logits: Literal["logits_unbiased", "logits"] = "logits_unbiased"
    neighbours: int = 3
    strict: bool = False
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    kid_seed: int = 2020
    dinov2_resize: VisionResizeRule = "pil_bicubic_uint8"

    def describe(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {**dataclasses.asdict(self), "metrics": list(self.metrics)}


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        ScoringRules(
            name="adm",
            papers="ADM, DiT, SiT; precision and recall of LDM",
            resize="tf1_bilinear",
            scale="(x-128)/128",
            uint8="trunc(127.5x+128)",
            metrics=("fid", "sfid", "inception_score", "precision", "recall"),
            sample_count=50_000,
            reference="the whole training set (VIRTUAL_*.npz); precision and recall: its 10,000 images arr_0",
        ),
        ScoringRules(
            name="ldm",
            papers="LDM, LDM-Transformer: torch-fidelity",
            resize="tf1_bilinear",
            scale="(x-128)/128",
            uint8="trunc(127.5(x+1))",
            metrics=("fid", "inception_score", "kid"),
            sample_count=50_000,
            reference="LDM: the whole training set; LDM-Transformer: the ImageNet validation set",
            inception_score="torch_fidelity",
            inception_splits=10,
        ),
        ScoringRules(
            name="uvit",
            papers="U-ViT, IU-ViT, ASCEND: pytorch-fid",
            resize="half_pixel_bilinear",
            scale="x/127.5-1",
            uint8="trunc(127.5x+128)",
            metrics=("fid",),
            sample_count=50_000,
            reference="CIFAR-10 and CelebA: the training set; ImageNet: ADM's statistics; COCO: the validation set",
            inception_score="openai",
            inception_splits=10,
        ),
        ScoringRules(
            name="clean",
            papers="clean-fid",
            resize="pil_bicubic",
            scale="(x-128)/128",
            uint8="trunc(127.5x+128)",
            metrics=("fid", "kid"),
            sample_count=50_000,
            reference="a data set and split of clean-fid's own statistics",
            inception_score="torch_fidelity",
            inception_splits=10,
        ),
        ScoringRules(
            name="edm",
            papers="EDM, EDM2",
            resize="tf1_bilinear",
            scale="(x-128)/128",
            uint8="trunc(127.5x+128)",
            metrics=("fid",),
            sample_count=50_000,
            reference="the whole training set",
            dinov2_resize="bicubic_antialias",
        ),
    )
}
"""Protocols by name."""


def protocol_named(name: str) -> ScoringRules:
    """The protocol of a name; raises UserError if there is none."""
    if name not in PROTOCOLS:
        raise UserError(f"--protocol {name}: there is none of this name{did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name]
