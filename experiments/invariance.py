"""Does a learned rule care about units, precision, dimension and run length?

Times to 1 % and 0.01 % of the gap on the same instances, with the loss or the coordinates in other
units, in float32, in more dimensions, and what is left of the gap after ten times the budget. Units
should change nothing: what differs by more than 5 % is marked.

    python experiments/invariance.py                  # a few minutes
    python experiments/invariance.py --rule lstm      # a rule with units, for contrast
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from learned_opt.cli.failures import run_script
from learned_opt.rules import load_rule
from learned_opt.rules.base import Rule
from learned_opt.tasks import Rotated, Scaled, Task, get_task
from learned_opt.unroll import Carry, unroll

TARGETS = (1e-2, 1e-4)
TOLERANCE = 0.05
CHUNK = 50

TASKS: dict[str, Callable[[], Task]] = {
    "strict saddle, rotated": lambda: Rotated(get_task("strict_saddle", dim=10)),
    "strict saddle, axis-aligned": lambda: get_task("strict_saddle", dim=10),
    "monkey saddle": lambda: get_task("monkey_saddle"),
    "matrix factorization": lambda: get_task("matrix_factorization"),
    "deep linear, depth 3": lambda: get_task("deep_linear", depth=3),
    "Welsch": lambda: get_task("welsch"),
    "saturated unit": lambda: get_task("saturated_unit"),
    "soft committee": lambda: get_task("soft_committee"),
}
UNITS: dict[str, dict[str, float]] = {
    **{f"loss x {scale:g}": {"value_scale": scale} for scale in (1e-6, 1e-3, 1e3, 1e6)},
    "loss + 10": {"value_shift": 10.0},
    **{f"x x {scale:g}": {"coordinate_scale": scale} for scale in (1e-3, 1e-1, 1e1, 1e3)},
}
DIMENSIONS = (2, 10, 100, 1000, 10_000)
LARGEST_ROTATED = 1000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to look at."""

    rule: str = "controller"
    """Bundled weights by name, or a weight file."""
    num_instances: int = 25
    """Problems of each task; in a thousand dimensions and more, five."""
    budget: int = 300
    """Gradient evaluations of a run."""
    seed: int = 0
    """Seed of instances and noise."""
    out: Path = Path("runs/invariance")
    """Folder for the numbers."""
    smoke: bool = False
    """Two tasks, 4 instances, few dimensions, to see that it runs."""


def play(
    rule: Rule, task: Task, *, num_instances: int, budget: int, seed: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Mean times to the targets, `budget` where they are not reached, and gaps in the end.

    Args:
        rule: the rule, float32.
        task: what to minimise.
        num_instances: problems.
        budget: steps.
        seed: of problems and noise.
        dtype: type of the problems.

    Returns:
        ``[targets]`` mean times and ``[num_instances]`` last gaps.
    """
    problems = task.sample(num_instances, seed=seed, dtype=dtype)
    facts = problems.facts
    rng, carry = torch.Generator().manual_seed(seed), None
    times = torch.full((len(TARGETS), num_instances), float(budget), dtype=torch.float64)
    gaps = torch.empty(0)
    for start in range(0, budget, CHUNK):
        carried: Carry | None = carry
        with torch.no_grad():
            run = unroll(
                task,
                rule,
                problems,
                num_steps=min(CHUNK, budget - start),
                rng=rng,
                carry=carried,
            )
        carry = run.carry
        gaps = run.losses.double() - facts.minimum.double()[:, None]
        gaps = gaps / (facts.reference - facts.minimum).double()[:, None]
        for row, target in enumerate(TARGETS):
            hit = gaps <= target
            first = start + hit.int().argmax(1).double()
            times[row] = torch.where(hit.any(1), torch.minimum(times[row], first), times[row])
    return times.mean(1), gaps[:, -1]


def change(times: Tensor, reference: Tensor) -> float:
    """The largest relative change of a mean time."""
    return float((times / reference - 1).abs().max())


def main(settings: Settings) -> None:
    """Run everything and print two tables."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rule = load_rule(settings.rule)
    names = list(TASKS)[:2] if settings.smoke else list(TASKS)
    instances = 4 if settings.smoke else settings.num_instances
    run = {"num_instances": instances, "budget": settings.budget, "seed": settings.seed}
    numbers: dict[str, dict[str, object]] = {"units": {}, "dimensions": {}}

    units = Table("task", "steps", "float32", *UNITS, "gap after 10 x", title="Change of the time")
    for name in names:
        task = TASKS[name]()
        base, _ = play(rule, task, **run, dtype=torch.float64)  # type: ignore[arg-type]
        single, _ = play(rule, task, **run, dtype=torch.float32)  # type: ignore[arg-type]
        changes = {"float32": change(single, base)}
        for label, scales in UNITS.items():
            times, _ = play(rule, Scaled(task, **scales), **run, dtype=torch.float64)  # type: ignore[arg-type]
            changes[label] = change(times, base)
        longer = {**run, "budget": 10 * settings.budget}
        _, left = play(rule, task, **longer, dtype=torch.float64)  # type: ignore[arg-type]
        worst = float(left.max())
        numbers["units"][name] = {"times": base.tolist(), "changes": changes, "left": worst}
        shown = [f"{c:.1%}{' !' if c > TOLERANCE else ''}" for c in changes.values()]
        steps = " / ".join(f"{t:.1f}" for t in base.tolist())
        units.add_row(name, steps, *shown, f"{worst:.0e}")

    dims = Table(
        "dimension", "axis-aligned", "rotated", title="Strict saddle: steps to the targets"
    )
    for dim in DIMENSIONS[:2] if settings.smoke else DIMENSIONS:
        few = {**run, "num_instances": instances if dim < LARGEST_ROTATED else 5}
        task = get_task("strict_saddle", dim=dim)
        shown, found = [], {}
        for label in ("axis-aligned", "rotated"):
            if label == "rotated" and dim > LARGEST_ROTATED:
                shown.append("")
                continue
            seen = Rotated(task) if label == "rotated" else task
            times, _ = play(rule, seen, **few, dtype=torch.float64)  # type: ignore[arg-type]
            found[label] = times.tolist()
            shown.append(" / ".join(f"{t:.1f}" for t in times.tolist()))
        numbers["dimensions"][str(dim)] = found
        dims.add_row(str(dim), *shown)

    console = Console(width=190)
    console.print(units)
    console.print(dims)
    settings.out.mkdir(parents=True, exist_ok=True)
    path = settings.out / "numbers.json"
    path.write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    run_script(main, Settings, __doc__)
