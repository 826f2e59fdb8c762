"""Problems of several tasks in one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from learned_opt.errors import require
from learned_opt.tasks.base import Facts, Problems, Task, get_task, register_task
from learned_opt.tasks.transforms import transformed
from learned_opt.trees import Params, Tree, flatten, select, tree_map, unflatten

_DEFAULT: tuple[Mapping[str, Any], ...] = (
    {"task": "strict_saddle"},
    {"task": "monkey_saddle"},
    {"task": "rippled_quadratic"},
)


@final
@register_task
class Mixture(Task):
    """Problems of several tasks side by side, for training that should suit them all.

    Each problem belongs to one of the tasks, drawn by weight. All have as many coordinates as the
    largest task; those that a smaller one does not use have no effect and no gradient, and `used`
    tells them, so that noise is not spent on them. Losses are divided by their task's typical
    curvature, so that step sizes mean the same everywhere.

    Args:
        tasks: what to mix; each holds ``task``, and optionally ``task_settings``, ``transforms``
            (see `transformed`) and ``weight``, 1 by default.

    Raises:
        LearnedOptError: if there are none, an entry is unknown or negative, or a task draws
            minibatches or noise.
    """

    name = "mixture"
    kind = "multimodal"
    family = "mixture"
    budget = 1000

    def __init__(self, *, tasks: Sequence[Mapping[str, Any]] = _DEFAULT) -> None:
        require(len(tasks) >= 1, f"{self.name}: tasks must hold at least one task, got none")
        built, weights = [], []
        for entry in tasks:
            unknown = sorted(set(entry) - {"task", "task_settings", "transforms", "weight"})
            require(
                "task" in entry and not unknown,
                f"{self.name}: an entry must hold 'task' and may hold 'task_settings', "
                f"'transforms' and 'weight', got {dict(entry)}",
            )
            task = get_task(entry["task"], **entry.get("task_settings", {}))
            built.append(transformed(task, entry.get("transforms", ())))
            weights.append(float(entry.get("weight", 1.0)))
        self._mix(built, weights)

    @classmethod
    def of(cls, tasks: Sequence[Task], weights: Sequence[float]) -> Mixture:
        """A mixture of tasks that are there already.

        Args:
            tasks: what to mix.
            weights: how often each is drawn, relative to the others.

        Returns:
            The mixture.

        Raises:
            LearnedOptError: if a task draws minibatches or noise or the weights are wrong.
        """
        mixture = cls.__new__(cls)
        mixture._mix(tasks, weights)
        return mixture

    def _mix(self, tasks: Sequence[Task], weights: Sequence[float]) -> None:
        for task in tasks:
            require(
                not task.is_stochastic,
                f"{self.name}: tasks must not draw minibatches or noise, '{task.name}' does",
            )
        require(
            min(weights) >= 0 and sum(weights) > 0,
            f"{self.name}: weights must be non-negative and not all zero, got {list(weights)}",
        )
        self.tasks = list(tasks)
        self._weights = torch.tensor(list(weights), dtype=torch.float64)
        self.shapes = {"x": (max(task.dim for task in self.tasks),)}
        self.radius = max(task.radius for task in self.tasks)
        self.budget = max(task.budget for task in self.tasks)

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """Each problem's loss under its own task, ``[N]``."""
        del batch
        kind = problems.constants["kind"]
        assert isinstance(kind, Tensor)
        x = params["x"]
        parts, positions = [], []
        for k, task in enumerate(self.tasks):
            index = (kind == k).nonzero().squeeze(1)
            if len(index):
                constants = problems.constants[f"task{k}"]
                assert not isinstance(constants, Tensor)
                inner = replace(problems, constants=select(constants, index))
                like = {name: x.new_empty(1, *shape) for name, shape in task.shapes.items()}
                own = unflatten(x[index, : task.dim], like)
                parts.append(task.loss(own, inner) / task.smoothness)
                positions.append(index)
        return torch.cat(parts)[torch.cat(positions).argsort()]

    def used(self, problems: Problems) -> Tensor:
        """The first coordinates of each problem, as many as its task has, that it uses itself."""
        kind = problems.constants["kind"]
        assert isinstance(kind, Tensor)
        dims = torch.tensor([task.dim for task in self.tasks], device=kind.device)[kind]
        used = torch.arange(self.dim, device=kind.device) < dims[:, None]
        for k, task in enumerate(self.tasks):
            constants = problems.constants[f"task{k}"]
            assert not isinstance(constants, Tensor)
            own = task.used(replace(problems, constants=constants))
            if own is not None:
                used[:, : task.dim] &= own | (kind != k)[:, None]
        return used

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        kind = torch.multinomial(self._weights, num_problems, replacement=True, generator=rng)
        x = torch.zeros(num_problems, self.dim, dtype=torch.float64)
        levels = torch.zeros(3, num_problems, dtype=torch.float64)
        constants: Tree = {"kind": kind}
        is_lower_bound = False
        for k, task in enumerate(self.tasks):
            index = (kind == k).nonzero().squeeze(1)
            # One problem at least, so that every leaf of the constants is known.
            drawn = task._sample(max(1, len(index)), rng)
            drawn = drawn.select(torch.arange(len(index)))
            x[index, : task.dim] = flatten(drawn.params)
            facts = drawn.facts
            is_lower_bound |= facts.is_lower_bound
            levels[:, index] = (
                torch.stack((facts.minimum, facts.reference, facts.next_level)) / task.smoothness
            )
            constants[f"task{k}"] = tree_map(
                lambda leaf, index=index: leaf.new_zeros(num_problems, *leaf.shape[1:]).index_copy(  # type: ignore[misc]
                    0, index, leaf
                ),
                drawn.constants,
            )
        minimum, reference, next_level = levels
        return Problems(
            params={"x": x},
            constants=constants,
            facts=Facts(
                minimum=minimum,
                reference=reference,
                next_level=next_level,
                levels=torch.stack((reference, minimum), dim=1),
                is_lower_bound=is_lower_bound,
            ),
        )
