"""How much of what Adam's steps promise does Adam keep, with minibatches?

A guard compares the fall of the loss with the fall that the fallback's steps promise to first
order, the product of a step with the gradient of its own minibatch. On the problems of
`_real_problems.py` Adam runs at its defaults, and the fall of its training loss over each fifth of
the horizon is put over the sum of its promises. Far below 1, no rule can be asked to keep them all.

    python experiments/promises.py       # a minute on one core

Writes results.json into --out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from _real_problems import Problem, problems
from rich.console import Console
from rich.table import Table

from learned_opt.cli.failures import run_script
from learned_opt.rules import get_rule

RATE = 1e-3
PARTS = 5


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the experiment."""

    seed: int = 0
    """Seed of initial weights and minibatches."""
    out: Path = Path("runs/promises")
    """Folder for results."""
    smoke: bool = False
    """One problem, to see that it runs."""


def kept(problem: Problem, seed: int) -> list[float]:
    """Fall of the training loss over the promises, for each fifth of the horizon."""
    model = problem.model(seed)
    adam = get_rule("adam", learning_rate=RATE)
    parameters = dict(model.named_parameters())
    point = {name: p.detach()[None] for name, p in parameters.items()}
    state = adam.init(point)
    batches = problem.batches(seed)
    shares, promised, before = [], 0.0, training_loss(problem, model)
    for step in range(1, problem.num_steps + 1):
        batch = next(batches)
        loss = problem.loss(model(batch.inputs), batch.targets)
        slopes = torch.autograd.grad(loss, list(parameters.values()))
        grads = {name: g[None] for name, g in zip(parameters, slopes, strict=True)}
        point = {name: p.detach()[None] for name, p in parameters.items()}
        with torch.no_grad():
            updates, state = adam(grads, state, point)
            for name, p in parameters.items():
                promised -= (grads[name] * updates[name]).sum().item()
                p.add_(updates[name][0])
        if step % (problem.num_steps // PARTS) == 0:
            after = training_loss(problem, model)
            shares.append((before - after) / promised)
            promised, before = 0.0, after
    return shares


def training_loss(problem: Problem, model: torch.nn.Module) -> float:
    """On all training examples."""
    with torch.no_grad():
        return problem.loss(model(problem.train.inputs), problem.train.targets).item()


def main(settings: Settings) -> None:
    """Measure, write."""
    torch.set_num_threads(1)
    table = Table("problem", *(f"fifth {k + 1}" for k in range(PARTS)))
    found = {}
    for problem in problems()[-1:] if settings.smoke else problems():
        found[problem.name] = kept(problem, settings.seed)
        table.add_row(problem.name, *(f"{share:.2f}" for share in found[problem.name]))
    Console().print(table)
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main, Settings, __doc__)
