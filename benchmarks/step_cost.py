"""What does a step of a learned optimizer cost, beside a step of `torch.optim.Adam`?

Two measurements on one thread, the optimizers in turn, so that what else the machine does falls on
all of them alike; CPU time, medians and their quartiles:

- the step alone, for a model of many parameters, its gradients those of a noisy quadratic;
- forward, backward and step of perceptrons from 9,000 to 20 million parameters.

Ratios are to Adam (``foreach=True``); the learned optimizers have the bundled weights.

    python benchmarks/step_cost.py
    python benchmarks/step_cost.py --smoke
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from learned_opt import LearnedOptimizer
from learned_opt.cli.failures import run_script

Build = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the measurement."""

    num_parameters: int = 10_000_000
    """Of the step alone."""
    num_tensors: int = 30
    """Tensors that they are split into."""
    widths: tuple[tuple[int, ...], ...] = (
        (64, 64, 64, 10),
        (784, 1024, 1024, 10),
        (784, 4096, 4096, 10),
    )
    """Perceptrons."""
    batch: int = 128
    """Examples in a step."""
    num_repeats: int = 15
    """Timings per figure."""
    smoke: bool = False
    """Sizes at which nothing is learned about speed, to see that it runs."""


def contestants(*, with_lstm: bool) -> dict[str, Build]:
    """By name; Adam first."""
    builds: dict[str, Build] = {
        "adam": lambda p: torch.optim.Adam(p, lr=1e-4, foreach=True),
        "controller": lambda p: LearnedOptimizer(p, "controller", guard=False),
        "controller + guard": lambda p: LearnedOptimizer(p, "controller"),
    }
    if with_lstm:
        builds["lstm"] = lambda p: LearnedOptimizer(p, "lstm", guard=False)
        builds["lstm + guard"] = lambda p: LearnedOptimizer(p, "lstm")
    return builds


def compare(
    title: str, works: dict[str, tuple[Callable[[], None], Callable[[], None]]], n: int
) -> None:
    """Time the second of each pair, after the first; all in turn; print ratios to the first."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(n + 8):
        for name, (prepare, work) in works.items():
            prepare()
            start = time.process_time()
            work()
            # The first steps fill memories.
            if repeat >= 8:
                times[name].append(time.process_time() - start)
    unit = statistics.median(next(iter(times.values())))
    print(title)
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(
            f"  {name:20s} {1e3 * middle:9.3f} ms   ratio {middle / unit:6.2f} "
            f"[{low / unit:.2f}, {high / unit:.2f}]",
            flush=True,
        )


def step_alone(build: Build, settings: Settings) -> tuple[Callable[[], None], Callable[[], None]]:
    """New gradients, and a step."""
    rng = torch.Generator().manual_seed(0)
    rows = settings.num_parameters // settings.num_tensors // 256
    shapes = [(rows, 256)] * settings.num_tensors
    parameters = [nn.Parameter(torch.randn(shape, generator=rng)) for shape in shapes]
    curvature = torch.linspace(-0.1, 1, 256)
    noises = [torch.randn(rows, 256, generator=rng) for _ in range(3)]
    optimizer = build(parameters)
    calls = [0]

    def prepare() -> None:
        calls[0] += 1
        for k, p in enumerate(parameters):
            p.grad = curvature * p.detach() + 0.3 * noises[(k + calls[0]) % len(noises)]

    def step() -> None:
        optimizer.step()

    return prepare, step


def whole_step(
    build: Build, widths: Sequence[int], batch: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Forward, backward and a step."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    inputs: Tensor = torch.randn(batch, widths[0])
    labels = torch.randint(widths[-1], (batch,))
    optimizer = build(list(model.parameters()))

    def step() -> None:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        if isinstance(optimizer, LearnedOptimizer):
            optimizer.step(loss=loss.detach())
        else:
            optimizer.step()

    return lambda: None, step


def main(settings: Settings) -> None:
    """Measure both."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    size, repeats, widths = settings.num_parameters, settings.num_repeats, settings.widths
    if settings.smoke:
        settings = Settings(num_parameters=100_000, num_repeats=2, widths=(), smoke=True)
        size, repeats, widths = 100_000, 2, ((8, 16, 4),)
    compare(
        f"step of {size} parameters in {settings.num_tensors} tensors",
        {n: step_alone(b, settings) for n, b in contestants(with_lstm=False).items()},
        repeats,
    )
    for layers in widths:
        small = sum(a * b for a, b in pairwise(layers)) < 50_000
        compare(
            f"training step of {'-'.join(map(str, layers))}, batch {settings.batch}",
            {
                n: whole_step(b, layers, settings.batch)
                for n, b in contestants(with_lstm=small).items()
            },
            repeats,
        )


if __name__ == "__main__":
    run_script(main, Settings, __doc__)
