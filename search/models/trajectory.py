"""A toy policy, not an image model: it plans how a point passes an obstacle; every action has its own noise level.

After Streaming Diffusion Policy (arXiv:2406.04806). A plan is H actions, positions (x, y) of the point. They fall into
equal chunks; of chunk c the time is (c + t) / chunks while t falls from 1 to 0, so that a run (a *tick*) ends with the
first chunk clean and every other one where the chunk before it began. The plan then rolls on by one chunk. As
dx/dt = velocity / chunks, a diffusers scheduler runs all of it; one chunk is the ordinary sampler, bit for bit.

Nothing in this file depends on schedules: it is an example of a network that a user brings.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

HORIZON, DIMS = 16, 2
TIMES = 1000  # timesteps run from this, nothing but noise, to 0
CLEARANCE = 0.7  # height at which a demonstration passes the obstacle, which is RADIUS around (0, 0)
RADIUS = 0.35
SIDES = {"": 0.0, "above": 1.0, "below": -1.0}
LINE = re.compile(r"start (-?[01](?:\.\d+)?) goal (-?[01](?:\.\d+)?)(?: (above|below))?")


def condition(lines: Sequence[str]) -> Tensor:
    """Tasks [B, 4] of lines such as `start -0.4 goal 0.8 above`: position (x, y), goal and side.

    A point starts at x = -1 and goes to x = 1; start and goal are heights in -1..1. Without a side
    both are allowed. ValueError for other lines.
    """
    rows = []
    for line in lines:
        match = LINE.fullmatch(line.strip())
        if match is None or max(abs(float(match[1])), abs(float(match[2]))) > 1:
            raise ValueError(
                f"{line[:60]!r} is not a task; type one such as 'start -0.4 goal 0.8 above', heights in -1..1"
            )
        rows.append([-1.0, float(match[1]), float(match[2]), SIDES[match[3] or ""]])
    return torch.tensor(rows)


def demonstrations(start: Tensor, goal: Tensor, side: Tensor, clearance: float | Tensor = CLEARANCE) -> Tensor:
    """Plans [B, H, 2] of an expert from heights [B] of start and goal, on a side that is 1 (above) or -1 (below)."""
    u = torch.linspace(0, 1, HORIZON + 1)[1:].expand(len(start), -1)
    x = 2 * u - 1
    smooth = u * u * (3 - 2 * u)
    straight = start[:, None] + (goal - start)[:, None] * smooth
    swerve = side * clearance - (start + goal) / 2
    return torch.stack([x, straight + swerve[:, None] * (1 - x**4)], dim=-1)


def times(t: Tensor | float, chunks: int) -> Tensor:
    """Timestep of each of the H actions where the run is at timestep t: a row of the level grid (steps x chunks)."""
    chunk = torch.arange(HORIZON) * chunks // HORIZON
    return (chunk * TIMES + t) / chunks


class Attention(nn.Module):
    """Multi-head attention of tokens [B, N, W] to themselves or to others [B, M, W]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, tokens: Tensor, others: Tensor | None = None) -> Tensor:
        others = tokens if others is None else others
        q, k, v = (self._heads(x) for x in (self.query(tokens), self.key(others), self.value(others)))
        return self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class MLP(nn.Module):
    """Two layers, four times as wide between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.down(gelu(self.up(tokens)))


class Layer(nn.Module):
    """Self-attention of the actions, cross-attention to the task, an MLP; modulated by the time of each action."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.mix, self.look, self.mlp = Attention(width, heads), Attention(width, heads), MLP(width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.table = nn.Parameter(torch.zeros(6, width))

    def forward(self, tokens: Tensor, modulation: Tensor, task: Tensor) -> Tensor:
        """Tokens [B, H, W] of tokens, modulation [B, H, 6, W] and task [B, 4, W]."""
        shift, scale, gate, shift2, scale2, gate2 = (modulation + self.table).unbind(-2)
        tokens = tokens + gate * self.mix(self.norm(tokens) * (1 + scale) + shift)
        tokens = tokens + self.look(self.norm(tokens), task)
        return tokens + gate2 * self.mlp(self.norm(tokens) * (1 + scale2) + shift2)


class TrajectoryDenoiser(nn.Module):
    """The velocity, noise minus data, of noised plans."""

    def __init__(self, width: int = 48, heads: int = 4, depth: int = 6) -> None:
        super().__init__()
        self.config = {"width": width, "heads": heads, "depth": depth}
        self.embed, self.place = nn.Linear(DIMS, width), nn.Parameter(0.02 * torch.randn(HORIZON, width))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.modulate = nn.Linear(width, 6 * width)
        self.scale, self.shift = nn.Parameter(torch.randn(4, width)), nn.Parameter(0.02 * torch.randn(4, width))
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, DIMS)
        frequencies = torch.exp(-torch.linspace(0, 9, width // 2))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, actions: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """Velocity [B, H, 2] of noised actions [B, H, 2] for condition [B, 4].

        `timestep` is one number for all, one per plan [B] or one per action [B, H], each from 0 to 1000.
        """
        timestep = timestep.to(actions.dtype)
        timestep = timestep.reshape(-1, 1) if timestep.dim() < 2 else timestep
        angles = timestep.expand(actions.shape[:2])[..., None] * self.frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))
        modulation = self.modulate(time).unflatten(-1, (6, -1))
        task = condition[..., None] * self.scale + self.shift
        tokens = self.embed(actions) + self.place
        for layer in self.layers:
            tokens = layer(tokens, modulation, task)
        return self.head(self.norm(tokens))


class TrajectoryPipeline:
    """A denoiser and a diffusers scheduler of flow matching."""

    def __init__(self, denoiser: nn.Module, scheduler: Any) -> None:
        self.denoiser, self.scheduler = denoiser, scheduler

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "TrajectoryPipeline":
        folder = Path(folder)
        denoiser = TrajectoryDenoiser(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
        weights = {name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()}
        denoiser.load_state_dict(weights)
        return cls(denoiser.eval(), DPMSolverMultistepScheduler.from_pretrained(folder))

    def save_pretrained(self, folder: str | Path) -> None:
        """Weights in float16, and the configurations of both."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.denoiser.config) + "\n", encoding="utf-8")
        weights = {name: weight.half().contiguous() for name, weight in self.denoiser.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        self.scheduler.save_pretrained(folder)

    @torch.no_grad()
    def __call__(
        self,
        lines: Sequence[str],
        num_inference_steps: int = 20,
        generator: Sequence[torch.Generator] | None = None,
        chunks: int = 1,
    ) -> Tensor:
        """Plans [B, H, 2], one line and generator each; with more `chunks` after one tick from a demonstrated plan."""
        task = condition(lines)
        generators = generator or [None] * len(task)
        noise = torch.cat([torch.randn(1, HORIZON, DIMS, generator=each) for each in generators])
        return self.tick(self.noised(expert(task), noise, chunks), task, num_inference_steps, chunks)

    def tick(self, plan: Tensor, task: Tensor, steps: int, chunks: int) -> Tensor:
        """A noised plan [B, H, 2] with each chunk brought to where the chunk before it was."""
        self.scheduler.set_timesteps(steps)
        for t in self.scheduler.timesteps:
            plan = self.scheduler.step(self.velocity(plan, t, task, chunks), t, plan, return_dict=False)[0]
        return plan

    def velocity(self, plan: Tensor, t: Tensor, task: Tensor, chunks: int) -> Tensor:
        """dx/dt [B, H, 2] of a run at timestep t."""
        timesteps = times(t, chunks).expand(plan.shape[:2])
        return self.denoiser(plan, timesteps, task) / chunks

    @staticmethod
    def noised(plan: Tensor, noise: Tensor, chunks: int) -> Tensor:
        """A plan [B, H, 2] with the noise that each chunk has before a tick; with one chunk it is noise alone."""
        if chunks == 1:
            return noise
        level = times(float(TIMES), chunks)[:, None] / TIMES
        return (1 - level) * plan + level * noise

    @torch.no_grad()
    def stream(
        self, line: str, ticks: int, steps: int, chunks: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """The actions of an episode [ticks * H / chunks, 2]: each tick executes one chunk and updates the task."""
        task = condition([line])

        def noise() -> Tensor:
            return torch.randn(1, HORIZON, DIMS, generator=generator)

        first = self.tick(noise(), task, steps, 1)
        plan, size, done = self.noised(first, noise(), chunks), HORIZON // chunks, []
        for _ in range(ticks):
            plan = self.tick(plan, task, steps, chunks)
            done.append(plan[0, :size])
            task = torch.cat([plan[:, size - 1], task[:, 2:]], dim=1)
            plan = torch.cat([plan[:, size:], noise()[:, :size]], dim=1)
        return torch.cat(done)


def expert(task: Tensor) -> Tensor:
    """Demonstrations [B, H, 2] for tasks [B, 4] that begin at the start; the nearer side where none is asked for."""
    nearer = torch.where(task[:, 1] + task[:, 2] < 0, -1.0, 1.0)
    return demonstrations(task[:, 1], task[:, 2], torch.where(task[:, 3] == 0, nearer, task[:, 3]))


def clears(actions: Tensor) -> Tensor:
    """Whether each path [B, N, 2] stays out of the obstacle, between its points too [B]."""
    share = torch.linspace(0, 1, 9)[:, None]
    between = actions[:, :-1, None] + share * (actions[:, 1:, None] - actions[:, :-1, None])
    return between.norm(dim=-1).flatten(1).min(dim=1).values > RADIUS
