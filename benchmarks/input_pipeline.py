"""Images per second of the input pipeline: decoding and transform, per core, beside plain decoding by Pillow.

    python benchmarks/input_pipeline.py --folder /data/imagenet
    python benchmarks/input_pipeline.py                       # rendered shapes, written as JPEG files of 500×375 pixels

"Pillow" opens, decodes and converts each file to an array and does nothing else. The transform adds what training
needs: the orientation of the EXIF tag, the crop and the resize. Both are timed in one thread by its processor time, in
turns. The pipeline then reads batches as training does, with threads and with reading processes, by the clock.
"""

import argparse
import contextlib
import io
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from diffusion_jax.data import DataConfig, batches, open_source
from diffusion_jax.data.folder import ImageFolder
from diffusion_jax.data.transforms import ImageDecoder


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="images in class folders; rendered shapes if it is not given")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--images", type=int, default=200, help="files that are decoded in one thread")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each measurement")
    parser.add_argument("--batches", type=int, default=20, help="batches of 64 that the pipeline reads")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.folder or stack.enter_context(tempfile.TemporaryDirectory())
        if options.folder is None:
            write_shapes(pathlib.Path(folder), options.images)
        report(folder, options)


def report(folder: str, options: argparse.Namespace) -> None:
    """Measures and prints."""
    decode = ImageDecoder(options.image_size)
    source = ImageFolder(folder, "all", decode)
    chosen = np.random.default_rng(0).permutation(len(source))[: options.images]
    paths = [source.path(int(index)) for index in chosen]
    files = [pathlib.Path(path).read_bytes() for path in paths]
    plain, whole = [], []
    for _ in range(options.rounds):
        plain.append(rate(lambda: [pillow(data) for data in files], len(files)))
        whole.append(rate(lambda: [decode(data, path) for data, path in zip(files, paths, strict=True)], len(files)))
    ratio = statistics.median(each / base for each, base in zip(whole, plain, strict=True))
    widths, heights = zip(*(Image.open(io.BytesIO(data)).size for data in files), strict=True)
    print(
        f"{len(files)} files of {np.mean([len(data) for data in files]) / 1e3:.0f} kB, {np.median(widths):.0f}×"
        f"{np.median(heights):.0f} pixels, to {options.image_size}×{options.image_size}; {os.cpu_count()} cores"
    )
    print(f"Pillow, per core                 {statistics.median(plain):8.0f} images/s")
    print(f"decoding + transform, per core   {statistics.median(whole):8.0f} images/s   {ratio:.2f} of Pillow")
    data = DataConfig(name=f"folder:{folder}", split="all", image_size=options.image_size)
    for threads, workers in ((1, 0), (8, 0), (2, os.cpu_count() or 1)):
        speed, per_core = pipeline(data, threads, workers, options.batches)
        title = f"pipeline, {threads} threads" + (f" in each of {workers} processes" if workers else "")
        print(f"{title:<44}{speed:8.0f} images/s   {per_core:.0f} per core")


def pillow(data: bytes) -> np.ndarray:
    """Decodes a file and nothing else."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def rate(work: Callable[[], object], images: int) -> float:
    """Images per second of this thread's processor time."""
    clock = time.thread_time()
    work()
    return images / (time.thread_time() - clock)


def pipeline(data: DataConfig, threads: int, workers: int, number: int) -> tuple[float, float]:
    """Images per second by the clock and per core, once the pipeline runs."""
    reader = batches(open_source(data), seed=0, batch_size=64, num_threads=threads, num_workers=workers)
    for _ in range(4):
        next(reader)
    clock = time.perf_counter()
    read_seconds = sum(next(reader)["read_seconds"] for _ in range(number))
    seconds = time.perf_counter() - clock
    reader.close()
    return 64 * number / seconds, 64 * number / read_seconds


def write_shapes(folder: pathlib.Path, number: int) -> None:
    """Writes rendered images as photographs are stored: JPEG of quality 90, 500×375 pixels."""
    source = open_source(DataConfig(name=f"shapes:images={number}", image_size=128))
    for index in range(number):
        image = Image.fromarray(source[index]["image"]).resize((500, 375), Image.Resampling.BICUBIC)
        image.save(folder / f"{index:05}.jpg", quality=90)


if __name__ == "__main__":
    main()
