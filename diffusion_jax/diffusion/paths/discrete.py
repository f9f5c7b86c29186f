"""The discrete process of DDPM: T noising steps with a table of β (docs/diffusion.md, eq. 2)."""

import dataclasses
from functools import cached_property
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import keys
from diffusion_jax.diffusion import schedules
from diffusion_jax.diffusion.point import Array, Point, Transition, namespace, safe_ratio
from diffusion_jax.diffusion.posterior import transitions
from diffusion_jax.diffusion.respacing import parse_respacing
from diffusion_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DiscretePath:
    """DDPM's chain: index n = 0 … T−1 stands for n + 1 noising steps, α = √ᾱ_n, σ = √(1 − ᾱ_n).

    Index n lies at time (n + 1)/T and time 0 is clean data. Between the nodes ln α is linear in time, so samplers of
    continuous time run on models of discrete time (Lu et al. 2022, appendix D; the network then receives the
    fractional index). `point` takes any time; training draws nodes.

    Attributes:
      schedule: name of the β schedule, see `schedules.betas`.
      num_timesteps: T of the schedule.
      beta_start: first β; None means the schedule's published value.
      beta_end: last β; None means the schedule's published value.
      zero_terminal_snr: rescale so that the last index carries no signal; needs v- or x0-prediction.
      respacing: keep only these timesteps, in ADM's notation ("", "250", "ddim50", "10,15,20"); β is rebuilt and the
        network receives the original index.
      rescale_timesteps: give the network the index times 1000/T.

    Raises:
      UserError: a value outside its range.
    """

    schedule: Literal[
        "linear",
        "scaled_linear",
        "cosine",
        "sqrt",
        "quad",
        "sqrt_linspace",
        "constant",
        "warmup10",
        "warmup50",
        "jsd",
        "sigmoid",
    ] = "linear"
    num_timesteps: int = 1000
    beta_start: float | None = None
    beta_end: float | None = None
    zero_terminal_snr: bool = False
    respacing: str = ""
    rescale_timesteps: bool = False

    def __post_init__(self):
        if self.num_timesteps < 1:
            raise UserError(f"path: num_timesteps must be at least 1, not {self.num_timesteps}")
        _ = self.timesteps, self.alpha_bar  # a bad schedule or respacing fails here, not at the first step

    @property
    def name(self) -> str:
        return "ddpm"

    @property
    def chain_length(self) -> int:
        """The number of timesteps in the (respaced) chain."""
        return len(self.timesteps)

    @property
    def time_min(self) -> float:
        return 1 / self.chain_length

    @property
    def time_max(self) -> float:
        return 1.0

    @cached_property
    def timesteps(self) -> np.ndarray:
        """[T] int64: the original index of each timestep in the (respaced) chain."""
        return parse_respacing(self.respacing, self.num_timesteps)

    @cached_property
    def alpha_bar(self) -> np.ndarray:
        """[T] float64: ᾱ of the (respaced) chain."""
        betas = schedules.betas(self.schedule, self.num_timesteps, self.beta_start, self.beta_end)
        alpha_bar = np.cumprod(1 - betas)
        if self.zero_terminal_snr:
            alpha_bar = schedules.zero_terminal_snr(alpha_bar)
        return alpha_bar[self.timesteps]

    @cached_property
    def betas(self) -> np.ndarray:
        """[T] float64: β' of the (respaced) chain, 1 − ᾱ_k/ᾱ_{k−1}."""
        return 1 - self.alpha_bar / np.append(1.0, self.alpha_bar[:-1])

    @cached_property
    def _log_alpha(self) -> np.ndarray:
        """[T + 1] ln α at times 0, 1/T, …, 1; the last is a filler where the terminal SNR is zero."""
        alpha_bar = self.alpha_bar
        if alpha_bar[-1] == 0:
            alpha_bar = np.append(alpha_bar[:-1], alpha_bar[-2])
        return np.append(0.0, np.log(alpha_bar) / 2)

    @cached_property
    def _transitions(self) -> Transition:
        """[T] reverse steps n → n − 1 (index 0 → data), by index."""
        chain = self.point(np.arange(self.chain_length, -1, -1) / self.chain_length)
        noisy, clean = (jax.tree.map(lambda field, s=s: field[s], chain) for s in (slice(None, -1), slice(1, None)))
        return jax.tree.map(lambda field: field[::-1], transitions(noisy, clean))

    def draw_time(self, key: jax.Array, index: jax.Array) -> jax.Array:
        """Uniform over the nodes: [B] float32; row b depends on (`key`, `index[b]`) alone."""
        draw = jax.vmap(lambda k: jax.random.randint(k, (), 1, self.chain_length + 1))
        return draw(keys.sample_keys(key, index)).astype(jnp.float32) / self.chain_length

    def nearest_trained(self, time: Array) -> Array:
        """The node nearest to `time`."""
        return namespace(time).round(time * self.chain_length).clip(1, self.chain_length) / self.chain_length

    def _position(self, time: Array) -> Array:
        """Time in units of nodes, exact where `time` is a node up to rounding."""
        xp = namespace(time)
        position = time * self.chain_length
        node = xp.round(position)
        tolerance = 8 * float(xp.finfo(time.dtype).eps) * self.chain_length
        return xp.where(xp.abs(position - node) < tolerance, node, position)

    def point(self, time: Array) -> Point:
        """The chain at `time`, any shape, in [0, 1]; derivatives are those of the cell towards the data."""
        xp = namespace(time)
        position = self._position(time)
        cell = xp.clip(xp.ceil(position) - 1, 0, self.chain_length - 1)
        below_node = cell + 1 - position
        table = xp.asarray(self._log_alpha, dtype=time.dtype)
        cell = cell.astype(np.int32)
        slope = table[cell + 1] - table[cell]
        log_alpha = table[cell + 1] - below_node * slope
        alpha, alpha_dot = xp.exp(log_alpha), xp.exp(log_alpha) * slope * self.chain_length
        sigma = xp.sqrt(-xp.expm1(2 * log_alpha))
        if self.alpha_bar[-1] == 0:
            # ln α has no end there, so α itself is linear in the last cell.
            last = cell == self.chain_length - 1
            alpha_left = float(np.sqrt(self.alpha_bar[-2]))
            alpha = xp.where(last, alpha_left * below_node, alpha)
            alpha_dot = xp.where(last, -alpha_left * self.chain_length, alpha_dot)
            sigma = xp.where(last, xp.sqrt(1 - alpha**2), sigma)
        return Point(time, alpha, sigma, alpha_dot, safe_ratio(-alpha * alpha_dot, sigma), self._timestep(position))

    def _timestep(self, position: Array) -> Array:
        xp = namespace(position)
        scale = 1000 / self.num_timesteps if self.rescale_timesteps else 1.0
        nodes = xp.asarray(np.arange(1, self.chain_length + 1), dtype=position.dtype)
        return xp.interp(position, nodes, xp.asarray(self.timesteps * scale, dtype=position.dtype))

    def transition(self, time: Array) -> Transition:
        """The reverse step that starts at `time`, [B] or scalar, each a node of the chain."""
        xp = namespace(time)
        n = xp.clip(xp.round(time * self.chain_length).astype(np.int32) - 1, 0, self.chain_length - 1)
        return jax.tree.map(lambda field: xp.asarray(field, dtype=time.dtype)[n], self._transitions)

    def time_of_kappa(self, kappa: Array) -> Array:
        """The time at which σ/α is `kappa`; beyond the last node, 1."""
        xp = namespace(kappa)
        nodes = xp.asarray(-self._log_alpha, dtype=kappa.dtype)
        times = xp.asarray(np.arange(self.chain_length + 1) / self.chain_length, dtype=kappa.dtype)
        return xp.interp(xp.log1p(kappa**2) / 2, nodes, times)

    def prior_std(self, time: float) -> float:
        """1: the chain preserves unit variance."""
        return 1.0
