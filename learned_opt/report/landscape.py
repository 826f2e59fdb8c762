"""The loss surface of the very instance whose paths are drawn, from its task and seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from learned_opt.bench.results import Results
from learned_opt.bench.suites import SuiteEntry
from learned_opt.bench.units import derive_seed
from learned_opt.errors import LearnedOptError
from learned_opt.report.field import TaskInfo
from learned_opt.tasks.base import ClosedFormTask, Problems, Task
from learned_opt.trees import unflatten

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """A two-dimensional task, frozen at one of its instances.

    Attributes:
        task: the task.
        problem: the one instance, float64.
    """

    task: Task
    problem: Problems

    def __call__(self, points: Floats) -> Floats:
        """Losses at points.

        Args:
            points: ``[M, 2]``.

        Returns:
            ``[M]`` losses.
        """
        flat = torch.as_tensor(points, dtype=torch.float64)
        problems = self.problem.repeat(len(flat))
        with torch.no_grad():
            losses = self.task.loss(unflatten(flat, problems.params), problems)
        return np.asarray(losses.numpy(), dtype=np.float64)

    def marks(self) -> list[tuple[float, float, str]]:
        """Known critical points ``(x, y, kind)`` of the task that this instance shares.

        Instances may shift or scale the canonical function; a point whose value differs here is
        not one of theirs.
        """
        if not isinstance(self.task, ClosedFormTask):
            return []
        points = self.task.critical_points()
        found = []
        for point in points:
            here = float(self(point.x.numpy()[None, :])[0])
            if abs(here - point.value) <= 1e-9 * max(1.0, abs(point.value)):
                found.append((float(point.x[0]), float(point.x[1]), point.kind))
        return found


def rebuild(results: Results, info: TaskInfo, run: dict[str, Any]) -> Landscape | None:
    """The landscape a run moved on.

    Args:
        results: whose metadata say how each task was built.
        info: the run's task.
        run: the run's row: its seed, instance, first point and first loss.

    Returns:
        The landscape; None if the metadata do not name the task, if this version cannot build it,
        or if what is rebuilt does not have the run's first loss at its first point: better no
        picture than a wrong one.
    """
    entry = results.metadata.get("entries", {}).get(info.label)
    if entry is None or info.dim != 2:
        return None
    try:
        task = SuiteEntry(**entry).build()
    except (LearnedOptError, TypeError):
        return None
    seed = derive_seed(run["seed"], "evaluation", info.label)
    problems = task.sample(info.num_instances, seed=seed, dtype=torch.float64)
    landscape = Landscape(task=task, problem=problems.select(torch.tensor([run["instance"]])))
    start = np.array([[run["path_x"][0], run["path_y"][0]]])
    here, then = float(landscape(start)[0]), float(run["curve_loss"][0])
    scale = max(abs(then), abs(run["reference"] - run["minimum"]))
    # Runs in float32 start at the rounded point; 1e-4 of the scale forgives that and no more.
    return landscape if abs(here - then) <= 1e-4 * scale else None
