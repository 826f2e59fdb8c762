"""How much faster is the batched engine than a loop of torch.optim over single problems?

The work: Adam on every task of saddle-core, 64 instances x 64 learning rates. The engine moves
all 4,096 problems of a task as one batch through `unroll`; the loop does what a user would write by
hand, one problem after the other, with `torch.optim.Adam`. Both take the same number of steps on
the same instances, side by side in one process on one thread. The loop runs `--num-looped` of the
problems and its time is scaled up to all of them (its cost is proportional to their number).

    python benchmarks/engine_speed.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

import learned_opt.tasks  # noqa: F401  (registers the tasks)
from learned_opt.bench.suites import SuiteEntry, get_suite
from learned_opt.cli.failures import run_script
from learned_opt.rules.base import get_rule
from learned_opt.tasks.base import Problems, Task
from learned_opt.unroll import unroll


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the measurement."""

    suite: str = "saddle-core"
    """Suite by name."""
    num_instances: int = 64
    """Problem instances per task."""
    num_settings: int = 64
    """Learning rates per instance."""
    num_steps: int = 20
    """Steps per run."""
    num_looped: int = 16
    """Problems that the loop really runs; its time is scaled up from these."""
    num_repeats: int = 3
    """Timings per figure; medians are reported."""


def median_seconds(work: Callable[[], None], num_repeats: int) -> float:
    """Median wall time of `work` after one warm-up."""
    work()
    times = []
    for _ in range(num_repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def engine(task: Task, problems: Problems, rates: torch.Tensor, num_steps: int) -> torch.Tensor:
    """All problems as one batch."""
    rng = torch.Generator().manual_seed(0)
    rule = get_rule("adam", learning_rate=rates)
    return unroll(task, rule, problems, num_steps=num_steps, rng=rng).losses


def loop(task: Task, problems: Problems, rates: torch.Tensor, num_steps: int) -> torch.Tensor:
    """One problem after the other, as by hand."""
    losses = []
    for i in range(problems.num_problems):
        problem = problems.select(torch.tensor([i]))
        params = {k: p.clone().requires_grad_() for k, p in problem.params.items()}
        optimizer = torch.optim.Adam(params.values(), lr=rates[i].item())
        trace = []
        for _ in range(num_steps):
            optimizer.zero_grad()
            loss = task.loss(params, problem).sum()
            loss.backward()
            optimizer.step()
            trace.append(loss.item())
        trace.append(task.loss(params, problem).item())
        losses.append(trace)
    return torch.tensor(losses, dtype=torch.float64)


def measure(entry: SuiteEntry, settings: Settings) -> tuple[float, float]:
    """Seconds of engine and loop on one task, after checking that their losses agree."""
    task = entry.build()
    instances = task.sample(settings.num_instances, seed=0, dtype=torch.float64)
    problems = instances.repeat(settings.num_settings)
    grid = torch.logspace(-4, -1, settings.num_settings, dtype=torch.float64)
    rates = grid.repeat_interleave(settings.num_instances)
    total = problems.num_problems
    some = torch.linspace(0, total - 1, settings.num_looped).long()

    same = loop(task, problems.select(some), rates[some], settings.num_steps)
    batch = engine(task, problems, rates, settings.num_steps)[some]
    torch.testing.assert_close(batch, same, rtol=1e-6, atol=1e-9)

    fast = median_seconds(
        lambda: engine(task, problems, rates, settings.num_steps), settings.num_repeats
    )
    slow = median_seconds(
        lambda: loop(task, problems.select(some), rates[some], settings.num_steps),
        settings.num_repeats,
    )
    slow *= total / settings.num_looped
    print(
        f"{entry.label:28s} dim {task.dim:4d}  engine {fast:7.3f} s  loop {slow:8.1f} s"
        f"  ratio {slow / fast:7.1f}",
        flush=True,
    )
    return fast, slow


def main(settings: Settings) -> None:
    """Measure every task of the suite."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    times = [measure(entry, settings) for entry in get_suite(settings.suite)]
    ratios = [slow / fast for fast, slow in times]
    fast, slow = (sum(column) for column in zip(*times, strict=True))
    print(
        f"{settings.suite}, Adam, {settings.num_instances} instances x {settings.num_settings} "
        f"settings, {settings.num_steps} steps, 1 thread, torch {torch.__version__}: "
        f"whole suite {slow / fast:.1f} times faster (median over tasks "
        f"{statistics.median(ratios):.1f}, lowest {min(ratios):.1f})"
    )


if __name__ == "__main__":
    run_script(main, Settings, __doc__)
