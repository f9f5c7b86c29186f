"""What samples are compared with: stored statistics in the formats of the field, or the images themselves."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.image_sets import DAMAGE, ImageSet, SampleFile, stated_info, with_progress
from diffusion_jax.evaluation.metrics.feature_statistics import FeatureStatistics
from diffusion_jax.evaluation.networks.combined_features import CombinedFeatures
from diffusion_jax.evaluation.settings import ImageSettings
from diffusion_jax.files import open_atomically, open_to_read, sha256_of

Moments = tuple[np.ndarray, np.ndarray]

# By tap: the names under which mean and covariance are kept; the first two are those of ADM's files and pytorch-fid's.
KEYS = {"2048": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s"), "dinov2": ("mu_dinov2", "sigma_dinov2")}

# By tap: the names under which features of single images are kept.
KEPT_KEYS = {"2048": "features", "clip": "embeddings"}

# Images kept for metrics that compare images one by one; as many as ADM's files hold.
KEPT_IMAGES = 10_000
STORED_PRECISION = 1e-5


@dataclasses.dataclass(frozen=True)
class Reference:
    """Statistics of real images.

    Attributes:
      name: what messages call it.
      moments: by tap, mean [D] and covariance [D, D], float64, of all the images.
      features: [M, 2048] of some or all of the images, for KID, precision and recall; None if there are none.
      facts: what a result states of it, ready for JSON.
      embeddings: [M, 768] of CLIP, of some or all of the images, for CMMD; None if there are none.
      images: uint8 [M, H, W, 3], those of the features; None if they are not kept.
    """

    name: str
    moments: Mapping[str, Moments]
    features: np.ndarray | None
    facts: dict[str, Any]
    embeddings: np.ndarray | None = None
    images: np.ndarray | None = None


def reference_from_images(
    images: ImageSet, extractor: CombinedFeatures, keep: int = KEPT_IMAGES, keep_images: bool = False
) -> Reference:
    """Measures real images.

    Args:
      images: every one is used once, as it is.
      extractor: with the taps that the metrics need.
      keep: features kept for KID, precision, recall and CMMD, of images evenly spaced over the set.
      keep_images: keep those images too.

    Raises:
      UserError: fewer than two images, or images that the extractor does not take.
    """
    statistics = {tap: FeatureStatistics(extractor.widths[tap]) for tap in extractor.taps if tap in KEYS}
    keep = min(keep, images.count)
    kept = np.zeros(images.count, bool)
    kept[np.arange(keep) * images.count // max(keep, 1)] = True
    rows: dict[str, list[np.ndarray]] = {tap: [] for tap in extractor.taps if tap in KEPT_KEYS}
    kept_images: list[np.ndarray] = []
    seen = 0
    for batch in with_progress(images):
        measured = extractor.measure(batch["image"])
        for tap, sums in statistics.items():
            sums.update(measured[tap])
        chosen = kept[seen : seen + len(batch["image"])]
        for tap, parts in rows.items():
            parts.append(measured[tap][chosen])
        if keep_images:
            kept_images.append(batch["image"][chosen])
        seen += len(batch["image"])
    facts = {
        **images.describe(),
        "count": seen,
        "image_shape": list(images.image_shape),
        "extractor": extractor.name,
        "weights_sha256": extractor.weights_sha256,
        "resize": extractor.resize,
        "scale": extractor.scale,
        "further": extractor.describe().get("further", []),
        "kept_features": keep,
    }
    moments = {tap: sums.finalise() for tap, sums in statistics.items()}
    features, embeddings = (np.concatenate(rows[tap]) if keep and tap in rows else None for tap in KEPT_KEYS)
    pixels = np.concatenate(kept_images) if keep and keep_images else None
    return Reference(images.name, moments, features, facts, embeddings, pixels)


def write_reference(path: epath.Path, reference: Reference) -> None:
    """Writes `mu`, `sigma`, `mu_s`, `sigma_s` under the names of ADM and pytorch-fid, `n`, `features`, and `info`.

    Those of other networks are `mu_dinov2`, `sigma_dinov2` and `embeddings`.
    `info` is a JSON string of the facts. pytorch-fid's own program reads the file, and ADM's one that holds images too,
    `arr_0`: it measures them again for precision and recall.

    Raises:
      UserError: the file cannot be written.
    """
    arrays: dict[str, Any] = {
        "n": np.array(reference.facts["count"]),
        "info": np.array(json.dumps(reference.facts)),
    }
    for tap, (mean, covariance) in reference.moments.items():
        mean_key, covariance_key = KEYS[tap]
        arrays |= {mean_key: mean, covariance_key: covariance}
    kept = {KEPT_KEYS["2048"]: reference.features, KEPT_KEYS["clip"]: reference.embeddings, "arr_0": reference.images}
    arrays |= {key: rows for key, rows in kept.items() if rows is not None}
    try:
        with open_atomically(path) as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror}); use another place") from error


def is_statistics_file(path: epath.Path) -> bool:
    """Whether a .npz holds stored statistics, not images alone."""
    try:
        with open_to_read(path) as file, np.load(file, allow_pickle=False) as archive:
            return "mu" in archive.files or "sigma" in archive.files
    except DAMAGE:
        return False


def read_reference(
    path: epath.Path,
    extractor: CombinedFeatures,
    allow_other_resize: bool = False,
    image_shape: tuple[int, int, int] | None = None,
    settings: ImageSettings | None = None,
) -> Reference:
    """Reads the statistics files of this library, of ADM (`VIRTUAL_*.npz`) and of pytorch-fid.

    Args:
      path: a .npz with `mu` and `sigma`, perhaps `mu_s` and `sigma_s`, and perhaps images `arr_0`, which are measured.
      extractor: through which the samples are seen.
      allow_other_resize: take statistics that were recorded under another resize rule, network or scale, as U-ViT's
        ImageNet numbers did, or of images of another size or other settings.
      image_shape: (H, W, C) of the samples; None if not known.
      settings: of the images that the samples' model was trained on; None if not known.

    Raises:
      UserError: a damaged file, a missing key, moments of another width or that are none, or a record that does not
        fit the extractor.
    """
    try:
        with open_to_read(path) as file, np.load(file, allow_pickle=False) as archive:
            names = set(archive.files)
            arrays = {key: archive[key] for keys in KEYS.values() for key in keys if key in names}
            info = stated_info(archive.zip) if "info" in names and archive.zip else {}
            count = int(archive["n"]) if "n" in names else None
            rows = {tap: archive[key] for tap, key in KEPT_KEYS.items() if key in names and tap in extractor.widths}
    except FileNotFoundError:
        raise UserError(f"--reference {path}: there is no such file") from None
    except DAMAGE as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: is damaged or no .npz file ({reason}); write or fetch it again") from error
    moments = {
        tap: _moments(path, arrays, tap, extractor.widths[tap])
        for tap, keys in KEYS.items()
        if tap in extractor.widths and (tap == "2048" or names & {*keys})
    }
    differing = _other_images(info, image_shape, settings)
    warnings = _check_record(path, info, extractor, differing, allow_other_resize)
    digest = sha256_of(path)
    absent = [tap for tap in KEPT_KEYS if tap in extractor.widths and tap not in rows]
    if absent and "arr_0" in names:
        measured = [extractor.measure(batch["image"]) for batch in SampleFile(path, beside_statistics=True).batches()]
        rows |= {tap: np.concatenate([each[tap] for each in measured]) for tap in absent}
    features, embeddings = (rows.get(tap) for tap in KEPT_KEYS)
    facts = {
        "file": path.name,
        "sha256": digest,
        "count": count,
        "recorded": info or "nothing: the file does not say how it was made",
        "kept_features": 0 if features is None else len(features),
        "warnings": warnings,
    }
    return Reference(str(path), moments, features, facts, embeddings)


def _moments(path: epath.Path, arrays: Mapping[str, np.ndarray], tap: str, width: int) -> Moments:
    mean_key, covariance_key = KEYS[tap]
    for key in (mean_key, covariance_key):
        if key not in arrays:
            raise UserError(
                f"{path}: has no '{key}'; statistics files have mu and sigma, and mu_s and sigma_s for sFID"
            )
    mean, covariance = (np.asarray(arrays[key], np.float64) for key in (mean_key, covariance_key))
    if mean.shape != (width,) or covariance.shape != (width, width):
        raise UserError(
            f"{path}: {mean_key} {list(mean.shape)} and {covariance_key} {list(covariance.shape)} are of another "
            f"network; [{width}] and [{width}, {width}] are needed"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path}: {mean_key} or {covariance_key} has values that are not finite; compute it again")
    if np.abs(covariance - covariance.T).max() > STORED_PRECISION * np.abs(covariance).max():
        raise UserError(f"{path}: {covariance_key} is not symmetric; it is damaged")
    return mean, covariance


def _other_images(
    info: dict[str, Any], image_shape: tuple[int, int, int] | None, settings: ImageSettings | None
) -> list[str]:
    """What the record says of its images that differs from what is known of the samples'."""
    differing = []
    recorded = ImageSettings.recorded(info.get("data"))
    if recorded is None and str(info.get("identity")).startswith(("folder:", "tfds:")):
        recorded = ImageSettings()  # the only ones there were for references that state none
    if recorded is not None and settings is not None:
        differing += recorded.differences(settings)
    size = tuple(info.get("image_shape", ()))[:2]
    if image_shape is not None and size and size != image_shape[:2]:
        differing.append("images of {}×{}, not {}×{}".format(*size, *image_shape[:2]))
    return differing


def _check_record(
    path: epath.Path, info: dict[str, Any], extractor: CombinedFeatures, differing: list[str], allow: bool
) -> list[str]:
    """What differs between the record and the extractor, after what is known to; an error unless it is allowed."""
    recorded = {each["name"]: each for each in info.get("further", [])}
    if "extractor" in info:
        recorded[info["extractor"]] = info
    facts = extractor.describe()
    differing = list(differing)
    if "extractor" in info and "2048" in extractor.widths and facts["name"] not in recorded:
        differing.append(f"extractor {info['extractor']}, not {facts['name']}")
    for each in (facts, *facts.get("further", [])):
        theirs = recorded.get(each["name"], {})
        differing += [
            f"{key} {theirs[key]}, not {each[key]}"
            for key in ("resize", "scale")
            if key in theirs and theirs[key] != each[key]
        ]
    if differing and not allow:
        raise UserError(
            f"{path}: was made with {'; '.join(differing)}; choose the protocol or the samples it was made for, make "
            "it anew (diffusion-jax reference), or --allow-other-resize to mix them and have it stated"
        )
    return [f"reference made with {text}" for text in differing]
