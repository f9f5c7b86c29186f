"""Training and sampling on one GPU, beside a large matrix product and, where PyTorch is installed, a plain PyTorch DiT.

    PYTHONPATH=. python benchmarks/gpu.py
    PYTHONPATH=. python benchmarks/gpu.py --parts dit,torch --batch-sizes 128,256
    PYTHONPATH=. python benchmarks/gpu.py --tiny

Needs jax, flax and einops, no network and no data: latents are random numbers. Each part runs in a process of its own,
so that none finds the memory taken. FLOPs are counted from the trace, two a multiply-add, three forward passes a
training step; MFU is against the matrix product of the same run. A training step is noise, forward, backward, AdamW and
EMA in bfloat16 with float32 weights, on the best of the batch sizes that fit; the loss is the squared error of ε, and
the PyTorch step computes the same. `--tiny` runs every line on small models, on a CPU too; its figures mean nothing.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

PARTS = ("product", "dit", "dit-sample", "unet", "unet-sample", "torch")
CLASSES = 1000
LATENTS = (32, 32, 4)
DIT = {"depth": 28, "width": 1152, "heads": 16, "patch_size": 2}
TINY_DIT = {"depth": 2, "width": 64, "heads": 4, "patch_size": 8}
TINY_UNET = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (2,)}
LEARNING_RATE, EMA_DECAY, LABEL_DROP = 1e-4, 0.9999, 0.1
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory")


def main() -> None:
    """Runs the parts, each in a process, and prints the table; or one part, and prints its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="parts to run, separated by commas")
    parser.add_argument("--batch-sizes", default="64,128,192,256,384", help="batch sizes of training, growing")
    parser.add_argument("--remat", default="none,dots", help="rematerialisation policies to try")
    parser.add_argument("--steps", type=int, default=10, help="timed training steps")
    parser.add_argument("--samples", type=int, default=64, help="images drawn at once, before guidance doubles them")
    parser.add_argument("--sampler-steps", type=int, default=250)
    parser.add_argument("--torch-python", default=sys.executable, help="the Python that has PyTorch")
    parser.add_argument("--tiny", action="store_true", help="small models and counts, to see that everything runs")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tiny:
        options.batch_sizes, options.steps, options.samples, options.sampler_steps = "2,4", 2, 2, 3
    if options.part:
        print(json.dumps(measure(options.part, options)))
        return
    found: dict[str, Any] = {}
    for part in options.parts.split(","):
        found[part] = run_part(part, options)
        report(part, found)


def run_part(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of a part, from a process of its own; `error` instead if it failed."""
    python = options.torch_python if part == "torch" else sys.executable
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95", **os.environ}
    command = [python, os.path.abspath(__file__), *sys.argv[1:], "--part", part]
    process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if process.returncode:
        return {"error": f"exit status {process.returncode}, see above"}
    return json.loads(process.stdout.splitlines()[-1])


def measure(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one part."""
    if part == "product":
        return measure_product(options)
    if part == "torch":
        return measure_torch(options)
    name, _, sampling = part.partition("-")
    return measure_sampling(name, options) if sampling else measure_training(name, options)


def report(part: str, found: dict[str, Any]) -> None:
    """Prints a part's figures, with their share of the matrix product and the ratio to PyTorch."""
    figures = found[part]
    print(f"\n{part}" + (f"   {figures.pop('title')}" if "title" in figures else ""))
    if "error" in figures:
        print(f"  failed: {figures['error']}", flush=True)
        return
    peak = found.get("product", {}).get("tflops_per_second")
    if peak and part != "product" and "tflops_per_second" in figures:
        figures["mfu_of_product"] = figures["tflops_per_second"] / peak
    ours = found.get("dit", {}).get("images_per_second")
    if part == "torch" and ours and "images_per_second" in figures:
        figures["ours_over_torch"] = ours / figures["images_per_second"]
    for name, value in figures.items():
        print(f"  {name:<22} {value:,.4g}" if isinstance(value, float) else f"  {name:<22} {value}", flush=True)


def best_of(options: argparse.Namespace, remats: list[str], time_step: Callable[[int, str], dict]) -> dict[str, Any]:
    """The figures with the most images per second, over batch sizes that fit in memory and policies."""
    found = []
    for remat in remats:
        for batch_size in map(int, options.batch_sizes.split(",")):
            try:
                found.append({"batch_size": batch_size, "remat": remat, **time_step(batch_size, remat)})
            except Exception as error:
                if not any(words in str(error) for words in OUT_OF_MEMORY):
                    raise
                print(f"batch {batch_size}, remat {remat}: out of memory", file=sys.stderr)
                break
            print(found[-1], file=sys.stderr, flush=True)
    if not found:
        raise SystemExit(f"no batch of {options.batch_sizes} fits in memory")
    return max(found, key=lambda figures: figures["images_per_second"])


def median_seconds(step: Callable[[], None], repeats: int) -> float:
    """The median time of a step that waits for its result, after two that do not count."""
    seconds = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def measure_product(options: argparse.Namespace) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    from diffusion_jax.parallel.peak import matmul_flops_per_second

    size = 512 if options.tiny else 16384
    speed = matmul_flops_per_second(size, jnp.bfloat16, repeats=10)
    device = jax.devices()[0]
    title = f"{size}³ bfloat16, {device.device_kind}, JAX {jax.__version__}"
    return {"title": title, "tflops_per_second": speed / 1e12}


def make_network(name: str, options: argparse.Namespace, remat: str) -> tuple[Any, Any, Any]:
    """The network, a function from labels to its condition, and what counts its multiply-adds takes."""
    import jax
    from flax import nnx

    from diffusion_jax.models.backbones import BACKBONES
    from diffusion_jax.models.conditioning.encoders import ClassTokens, Conditioned
    from diffusion_jax.models.conditioning.parts import Conditioning, ConditioningSpec
    from diffusion_jax.models.presets import preset

    labels = ConditioningSpec(num_classes=CLASSES, null_class=True)
    common = {"input_shape": LATENTS, "out_channels": LATENTS[-1], "remat": remat, "dtype": "bfloat16"}

    def make(key: jax.Array) -> Any:
        rngs = nnx.Rngs(key)
        if name == "dit":
            return BACKBONES["dit"](**common, **(TINY_DIT if options.tiny else DIT), conditioning=labels, rngs=rngs)
        section = dict(preset("ldm-8-imagenet256").section()) | (TINY_UNET if options.tiny else {}) | common
        tokens = ConditioningSpec(token_length=1, token_width=512)
        unet = BACKBONES[section.pop("name")](**section, conditioning=tokens, rngs=rngs)
        return Conditioned(unet, ClassTokens(labels, 512, rngs=rngs))

    return jax.jit(make)(jax.random.key(0)), lambda label: Conditioning(label=label), labels


def forward_macs(network: Any) -> int:
    """Multiply-adds of one forward pass of one image."""
    import jax.numpy as jnp

    from diffusion_jax.models.conditioning.parts import Conditioning
    from diffusion_jax.models.macs import count_macs

    label = jnp.zeros(1, jnp.int32)
    x, time = jnp.zeros((1, *LATENTS)), jnp.zeros(1)
    return count_macs(lambda network, *given: network(*given), network, x, time, Conditioning(label=label))


def measure_training(name: str, options: argparse.Namespace) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    import optax

    from diffusion_jax.diffusion.losses import SimpleLoss
    from diffusion_jax.diffusion.paths import DiscretePath
    from diffusion_jax.diffusion.predictions import Prediction
    from diffusion_jax.optim.ema_profiles import ema_update
    from diffusion_jax.optim.optimizer import adamw

    path, prediction, loss = DiscretePath(), Prediction("epsilon"), SimpleLoss()
    optimizer, _ = adamw(lr=LEARNING_RATE)

    def time_step(batch_size: int, remat: str) -> dict[str, Any]:
        network, condition, _ = make_network(name, options, remat)
        x0 = jax.random.normal(jax.random.key(1), (batch_size, *LATENTS))
        label = jnp.arange(batch_size, dtype=jnp.int32) % CLASSES
        index = jnp.arange(batch_size)

        def mean_loss(network: Any, key: jax.Array) -> jax.Array:
            loss_key, drop_key = jax.random.split(key)
            dropped = jax.random.uniform(drop_key, label.shape) < LABEL_DROP
            cond = condition(jnp.where(dropped, CLASSES, label))
            return loss(network, path, prediction, x0, cond, loss_key, index)[0].mean()

        def train_step(state: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
            network, ema, moments = state
            value, gradients = jax.value_and_grad(mean_loss)(network, key)
            updates, moments = optimizer.update(gradients, moments, network)
            network = optax.apply_updates(network, updates)
            return (network, ema_update(ema, network, EMA_DECAY), moments), value

        state = (network, jax.tree.map(jnp.copy, network), optimizer.init(network))
        start = time.perf_counter()
        compiled = jax.jit(train_step, donate_argnums=0).lower(state, jax.random.key(2)).compile()
        compile_seconds = time.perf_counter() - start
        memory = compiled.memory_analysis()
        flops = 3 * 2 * forward_macs(network) * batch_size
        parameters = sum(leaf.size for leaf in jax.tree.leaves(network))
        del network
        kept = [state]
        del state

        def step() -> None:
            kept[0], value = compiled(kept[0], jax.random.key(3))
            value.block_until_ready()

        seconds = median_seconds(step, options.steps)
        return {
            "images_per_second": batch_size / seconds,
            "seconds_per_step": seconds,
            "tflops_per_second": flops / seconds / 1e12,
            "memory_gib": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30,
            "compile_seconds": compile_seconds,
            "parameters": parameters,
        }

    model = {"dit": "DiT-XL/2 256", "unet": "LDM-8 UNet, ImageNet 256"}[name]
    return {"title": f"{model}, training", **best_of(options, options.remat.split(","), time_step)}


def measure_sampling(name: str, options: argparse.Namespace) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    from diffusion_jax.diffusion.denoiser import denoiser
    from diffusion_jax.diffusion.guidance import ClassifierFreeGuidance
    from diffusion_jax.diffusion.paths import DiscretePath
    from diffusion_jax.diffusion.predictions import Prediction
    from diffusion_jax.diffusion.samplers import SAMPLERS, initial_noise, sample

    kind = {"dit": "ddpm", "unet": "ddim"}[name]
    path, prediction, sampler = DiscretePath(), Prediction("epsilon"), SAMPLERS[kind](steps=options.sampler_steps)
    network, condition, _ = make_network(name, options, "none")
    index = jnp.arange(options.samples)
    label, null = index.astype(jnp.int32) % CLASSES, jnp.full(options.samples, CLASSES, jnp.int32)

    def draw(network: Any, key: jax.Array) -> jax.Array:
        guided = ClassifierFreeGuidance(cfg_scale=1.5)(network, condition(label), condition(null))
        noise = initial_noise(sampler, path, key, index, LATENTS)
        return sample(sampler, path, denoiser(guided, prediction), noise, key, index)

    compiled = jax.jit(draw).lower(network, jax.random.key(0)).compile()
    seconds = []
    for number in range(3):
        start = time.perf_counter()
        compiled(network, jax.random.key(number)).block_until_ready()
        seconds.append(time.perf_counter() - start)
    flops = 2 * 2 * forward_macs(network) * options.samples * options.sampler_steps
    return {
        "title": f"{options.sampler_steps} steps of {kind} with classifier-free guidance, latents only",
        "images_per_second": options.samples / min(seconds),
        "batch_size": options.samples,
        "tflops_per_second": flops / min(seconds) / 1e12,
    }


def measure_torch(options: argparse.Namespace) -> dict[str, Any]:
    """The training step of DiT in plain PyTorch: torch.compile, SDPA, autocast to bfloat16, fused AdamW, EMA."""
    if importlib.util.find_spec("torch") is None:
        return {"title": "not measured: PyTorch is not installed"}
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")

    def time_step(batch_size: int, remat: str) -> dict[str, Any]:
        torch.manual_seed(0)
        network = torch_dit(**(TINY_DIT if options.tiny else DIT)).to(device)
        parameters = list(network.parameters())
        ema = [parameter.detach().clone() for parameter in parameters]
        optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=device == "cuda")
        alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, device=device), 0)
        x0 = torch.randn(batch_size, *LATENTS, device=device)
        label = torch.arange(batch_size, device=device) % CLASSES
        call = torch.compile(network, mode=None if options.tiny else "max-autotune-no-cudagraphs")

        def step() -> None:
            t = torch.randint(0, 1000, (batch_size,), device=device)
            noise = torch.randn_like(x0)
            level = alpha_bar[t].view(-1, 1, 1, 1)
            x = level.sqrt() * x0 + (1 - level).sqrt() * noise
            dropped = torch.rand(batch_size, device=device) < LABEL_DROP
            with torch.autocast(device, torch.bfloat16):
                out = call(x, t.float(), torch.where(dropped, CLASSES, label))
            loss = (out.float() - noise).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            torch._foreach_lerp_(ema, [parameter.detach() for parameter in parameters], 1 - EMA_DECAY)
            loss.item()

        start = time.perf_counter()
        step()
        compile_seconds = time.perf_counter() - start
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = median_seconds(step, options.steps)
        return {
            "images_per_second": batch_size / seconds,
            "seconds_per_step": seconds,
            "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan"),
            "compile_seconds": compile_seconds,
            "parameters": sum(parameter.numel() for parameter in parameters),
        }

    title = f"plain DiT-XL/2 256, training, PyTorch {torch.__version__}"
    return {"title": title, **best_of(options, ["none"], time_step)}


def torch_dit(depth: int, width: int, heads: int, patch_size: int) -> Any:
    """DiT with adaLN-Zero blocks as a `torch.nn.Module` over channels-last latents."""
    import math

    import torch
    from torch import nn
    from torch.nn import functional

    side, channels = LATENTS[0] // patch_size, LATENTS[-1]

    def sincos(count: int) -> Iterator[torch.Tensor]:
        rows, columns = torch.meshgrid(torch.arange(count), torch.arange(count), indexing="ij")
        frequencies = 10000.0 ** -(torch.arange(width // 4) / (width // 4))
        for position in (columns, rows):
            angles = position.reshape(-1, 1).float() * frequencies
            yield from (angles.sin(), angles.cos())

    def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return x * (1 + scale[:, None]) + shift[:, None]

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6, elementwise_affine=False) for _ in range(2))
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.modulation = nn.Linear(width, 6 * width)

        def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=1)
            batch, tokens, _ = x.shape
            h = modulate(self.norm1(x), shift1, scale1)
            q, k, v = self.qkv(h).view(batch, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            h = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
            x = x + gate1[:, None] * self.proj(h)
            h = modulate(self.norm2(x), shift2, scale2)
            return x + gate2[:, None] * self.fc2(functional.gelu(self.fc1(h), approximate="tanh"))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(patch_size**2 * channels, width)
            self.time1, self.time2 = nn.Linear(256, width), nn.Linear(width, width)
            self.label = nn.Embedding(CLASSES + 1, width)
            self.blocks = nn.ModuleList([Block() for _ in range(depth)])
            self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
            self.modulation = nn.Linear(width, 2 * width)
            self.final = nn.Linear(width, patch_size**2 * channels)
            self.register_buffer("positions", torch.cat(list(sincos(side)), dim=1)[None])

        def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            batch, p = x.shape[0], patch_size
            patches = x.view(batch, side, p, side, p, channels).transpose(2, 3).reshape(batch, side * side, -1)
            tokens = self.embed(patches) + self.positions
            angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(128, device=x.device) / 128)
            time = self.time2(functional.silu(self.time1(torch.cat([angles.cos(), angles.sin()], dim=1))))
            condition = functional.silu(time + self.label(label))
            for block in self.blocks:
                tokens = block(tokens, condition)
            shift, scale = self.modulation(condition).chunk(2, dim=1)
            out = self.final(modulate(self.norm(tokens), shift, scale))
            return out.view(batch, side, side, p, p, channels).transpose(2, 3).reshape(x.shape)

    return Network()


if __name__ == "__main__":
    main()
