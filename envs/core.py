"""The functional core: optimization as a decision process, on many lanes at once.

Everything here is a pure function of tensors whose first axis counts lanes. The shells in
`envs.single` and `envs.vector` add what gymnasium asks for.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import FunctionType, MethodType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs import streams
from envs.state import State
from envs.streams import Keys
from learned_opt.actuators import Actuator
from learned_opt.actuators.base import Noise, Step
from learned_opt.errors import LearnedOptError, require, unknown_name
from learned_opt.tasks import get_task
from learned_opt.tasks.base import Problems, Task
from learned_opt.tasks.transforms import transformed
from learned_opt.trees import Tree, flatten, num_matrices, unflatten
from learned_opt.unroll import loss_and_grads

_INSTANCE, _LEARNING_RATE, _STEPS = range(3)
_DIVERGENCE = 1e3
_NUMBER = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is played and how it is scored; JSON-able, so that an `EnvSpec` is a full record.

    Attributes:
        task: name of a registered task.
        task_settings: keyword arguments of the task.
        transforms: how the task is seen, inside first, such as ``({"name": "rotated"},)``.
        learning_rate: decades between which the initial step size is drawn, log-uniform, in units
            of one over the task's typical curvature.
        num_instances: size of the pool of problem instances from which episodes draw.
        instance_seed: which pool; another one holds other instances.
        target: relative gap at which the episode is won, the ``delta`` of the potential.
        gap_unit: what gaps are relative to: ``start``, the gap of the start, or ``saddle``, the gap
            of the saddle or plateau that the problem starts at. A start may lie far above its
            saddle; only in units of the saddle does the target lie beyond it.
        best_so_far: score the best loss so far, so that a temporary rise costs nothing.
        kick_cost: reward lost for a kick.
        dtype: ``float32`` or ``float64``.
        compile: let `torch.compile` make one piece of code of a step: twice as fast for closed-form
            tasks after the few seconds of the first step. It needs a C++ compiler, and results
            differ from those without it in rounding.
    """

    task: str = "strict_saddle"
    task_settings: Mapping[str, Any] = field(default_factory=dict)
    transforms: Sequence[Mapping[str, Any]] = ()
    learning_rate: tuple[float, float] = (-2.5, 0.5)
    num_instances: int = 4096
    instance_seed: int = 0
    target: float = 1e-6
    gap_unit: str = "start"
    best_so_far: bool = False
    kick_cost: float = 0.0
    dtype: str = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        require(
            isinstance(self.learning_rate, Sequence)
            and len(self.learning_rate) == 2
            and self.learning_rate[0] <= self.learning_rate[1],
            f"learning_rate must be two decades, low and high, got {self.learning_rate}",
        )
        require(
            self.num_instances >= 1, f"num_instances must be positive, got {self.num_instances}"
        )
        require(0 < self.target < 1, f"target must lie in (0, 1), got {self.target}")
        if self.gap_unit not in {"start", "saddle"}:
            raise unknown_name("gap_unit", self.gap_unit, ("saddle", "start"))
        require(self.kick_cost >= 0, f"kick_cost must not be negative, got {self.kick_cost}")
        require(
            self.dtype in {"float32", "float64"},
            f"dtype must be float32 or float64, got '{self.dtype}'",
        )


class OptimizationCore:
    r"""The decision process: a task's problems, an actuator to move on them, a score.

    The reward of a step is the rise of a potential,

    $$ \Phi = -\log\left( \frac{f - f^*}{u} + \delta \right), $$

    with the gap `u` of the start or of its saddle, so any loop earns nothing and the undiscounted
    return is the fall of the log gap. A lane whose loss is not finite or a thousand times above its
    start has diverged: its potential is set one below the lowest it could have without that, and
    its episode is over.

    Args:
        settings: what is played and how it is scored.
        actuator: what decisions do.

    Raises:
        LearnedOptError: if the task is unknown or a setting is out of range.
    """

    def __init__(self, settings: Settings, actuator: Actuator) -> None:
        self.settings, self.actuator = settings, actuator
        task = get_task(settings.task, **settings.task_settings)
        self.task: Task = transformed(task, settings.transforms)
        self.dtype = getattr(torch, settings.dtype)
        require(
            not (settings.compile and self.task.is_stochastic),
            f"compile must be False for a task with minibatches or noise, as '{settings.task}' is",
        )
        require(
            not settings.compile or has_compiler(),
            "compile must be False without a C++ compiler; none was found, nor named in CXX",
        )
        self._compiled: Callable[..., dict[str, Any]] | None = None
        if settings.compile:
            # What torch compiles it keeps by the code of a function, for all that run it: for one
            # core after the other it would look up one's tensors by the names of another's.
            body = type(self)._whole
            code = body.__code__.replace(co_name=f"whole_{next(_NUMBER)}")
            own = FunctionType(code, body.__globals__, closure=body.__closure__)
            self._compiled = torch.compile(MethodType(own, self), dynamic=False)
        exact = self.task.sample(
            settings.num_instances, seed=settings.instance_seed, dtype=torch.float64
        )
        cast = exact.to(dtype=self.dtype, device="cpu")
        # What batches are drawn for; they take their type from it.
        self._template = cast.select(torch.zeros(1, dtype=torch.int64))
        # Levels stay in float64: they are subtracted from losses.
        self._pool = replace(cast, facts=exact.facts)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Shape of one lane's observation."""
        features = len(self.actuator.features)
        return (self.task.dim, features) if self.actuator.per_coordinate else (features,)

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of one lane's continuous action."""
        size = self.actuator.actions.size
        return (self.task.dim, size) if self.actuator.per_coordinate else (size,)

    def initial(self, keys: Keys) -> State:
        """The first states of the episodes that `keys` name."""
        s = self.settings
        index = (streams.uniform(streams.combine(keys, _INSTANCE)) * s.num_instances).astype(int)
        problems = self._pool.select(torch.from_numpy(index))
        low, high = s.learning_rate
        decades = low + (high - low) * streams.uniform(streams.combine(keys, _LEARNING_RATE))
        rate = torch.from_numpy(10**decades / self.task.smoothness)
        point = flatten(problems.params)
        lanes = len(keys)
        zeros = torch.zeros(lanes, dtype=torch.int64)
        keys = streams.combine(keys, _STEPS)
        seen, exact, grads = self._evaluate(point, problems, keys, zeros)
        started = self.actuator.init(
            point, learning_rate=rate, num_matrices=num_matrices(problems.params)
        )
        observation, actuator = self.actuator.observe(grads, seen, point, started)
        facts = problems.facts
        # A start or a saddle at the minimum would make every ratio meaningless.
        tiny = torch.finfo(torch.float64).tiny
        first = (exact - facts.minimum).clamp_min(tiny)
        unit = first
        if s.gap_unit == "saddle":
            fall = facts.reference - facts.minimum
            unit = torch.where(fall > tiny, fall, first)
        gap = first / unit
        return State(
            keys=keys,
            problems=problems,
            point=point,
            grads=grads,
            loss=exact,
            actuator=actuator,
            observation=observation,
            unit=unit,
            ceiling=_DIVERGENCE * gap,
            gap=gap,
            has_diverged=torch.zeros(lanes, dtype=torch.bool),
            best_gap=gap,
            potential=-torch.log(gap + s.target),
            kicks=zeros,
            steps=zeros,
        )

    def transition(self, state: State, action: Tensor) -> State:
        """Carry one decision out in every lane."""
        if self._compiled is not None:
            with torch.no_grad():
                changed = self._compiled(state, action, self._noise(state))
            return replace(state, **changed)
        step = self._act(state, action, lambda _: self._noise(state))
        point = state.point + step.updates
        evaluated = self._evaluate(point, state.problems, state.keys, state.steps + 1)
        return replace(state, **self._follow(state, step, point, *evaluated))

    def _act(self, state: State, action: Tensor, noise: Noise) -> Step:
        return self.actuator.act(action, state.grads, state.point, state.actuator, noise)

    def _follow(
        self, state: State, step: Step, point: Tensor, seen: Tensor, exact: Tensor, grads: Tensor
    ) -> dict[str, Any]:
        """What a step changes in the state."""
        observation, actuator = self.actuator.observe(grads, seen, point, step.state)
        gap = (exact - state.problems.facts.minimum) / state.unit
        has_diverged = ~(gap <= state.ceiling)
        best_gap = torch.where(has_diverged, state.best_gap, torch.minimum(state.best_gap, gap))
        scored = best_gap if self.settings.best_so_far else gap
        potential = -torch.log(scored.clamp_min(0) + self.settings.target)
        lowest = -torch.log(state.ceiling + self.settings.target)
        return {
            "point": point,
            "grads": grads,
            "loss": exact,
            "actuator": actuator,
            "observation": observation,
            "gap": gap,
            "has_diverged": has_diverged,
            "best_gap": best_gap,
            "potential": torch.where(has_diverged, lowest - 1, potential),
            "kicks": state.kicks if step.kicked is None else state.kicks + step.kicked,
            "steps": state.steps + 1,
        }

    def _whole(self, state: State, action: Tensor, noise: Tensor) -> dict[str, Any]:
        """A step without anything that cannot be compiled."""
        step = self._act(state, action, lambda _: noise)
        point = state.point + step.updates

        def total(x: Tensor) -> tuple[Tensor, Tensor]:
            params = unflatten(x, state.problems.params)
            loss = self.task.loss(params, state.problems)
            return loss.sum(), loss

        grads, loss = torch.func.grad(total, has_aux=True)(point)
        return self._follow(state, step, point, loss, loss.double(), grads)

    def reward(self, state: State, following: State) -> Tensor:
        """``[N]`` float64 rise of the potential, less the price of kicks."""
        rise = following.potential - state.potential
        if not self.settings.kick_cost:
            return rise
        return rise - self.settings.kick_cost * (following.kicks - state.kicks)

    def metrics(self, state: State) -> dict[str, Tensor]:
        """What is worth plotting, ``[N]`` each; policies do not see it.

        Args:
            state: where the lanes stand.

        Returns:
            ``gap`` and ``best_gap``, ``log10_gap`` (of the one that is scored plus the target; of
            ``e`` times the ceiling where the run has diverged), ``loss``, ``num_gradients``,
            ``kicks``, ``diverged`` and the actuator's controls, with underscores for spaces.
        """
        controls = self.actuator.controls(state.actuator)
        return {
            "gap": state.gap,
            "best_gap": state.best_gap,
            "log10_gap": state.potential / -math.log(10),
            "loss": state.loss,
            "num_gradients": state.steps,
            "kicks": state.kicks,
            "diverged": state.has_diverged,
            **{name.replace(" ", "_"): values for name, values in controls.items()},
        }

    def terminal(self, state: State) -> Tensor:
        """``[N]`` bool: the target is reached, or the run has diverged."""
        return (state.gap <= self.settings.target) | state.has_diverged

    def _evaluate(
        self, point: Tensor, problems: Problems, keys: Keys, steps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss that the actuator sees, the exact one in float64, and gradients ``[N, P]``."""
        params = unflatten(point, problems.params)
        if not self.task.is_stochastic:
            loss, grads = loss_and_grads(self.task, params, problems, None)
            return loss, loss.double(), flatten(grads)
        loss, grads = loss_and_grads(self.task, params, problems, self._batch(keys, steps))
        with torch.no_grad():
            exact = self.task.loss(params, problems)
        return loss, exact.double(), flatten(grads)

    def _batch(self, keys: Keys, steps: Tensor) -> Tree | None:
        """Each lane's own minibatch, from a generator of its own."""
        rng = torch.Generator()
        batches = []
        for key in streams.combine(keys, steps.numpy()):
            rng.manual_seed(int(key >> np.uint64(1)))
            batches.append(self.task.batch(self._template, rng))
        return _concatenate(batches)  # type: ignore[arg-type]

    def _noise(self, state: State) -> Tensor:
        keys = streams.combine(state.keys, state.steps.numpy())
        noise = streams.normal(keys, state.point.shape[1]).to(self.dtype)
        used = self.task.used(state.problems)
        if used is None:
            return noise
        # Actuators divide by the root of the number of coordinates: all of them, used or not.
        return noise * used * (used.shape[1] / used.sum(1, keepdim=True)).sqrt()


def has_compiler() -> bool:
    """Whether there is what `torch.compile` needs."""
    usual = "clang++" if sys.platform == "darwin" else "g++"
    return shutil.which(os.environ.get("CXX", usual)) is not None


class Playable:
    """What the two shells of an environment share: its actuator and its settings.

    Attributes:
        actuator_class: what decisions do.
        default_settings: entries of `Settings` that differ from their defaults.
    """

    actuator_class: ClassVar[type[Actuator]]
    default_settings: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def build_core(
        cls, actuator: Mapping[str, Any] | None, settings: Mapping[str, Any]
    ) -> OptimizationCore:
        """The decision process of this environment.

        Args:
            actuator: keyword arguments of the actuator.
            settings: entries of `Settings`.

        Returns:
            The core.

        Raises:
            LearnedOptError: if a setting is unknown or out of range.
        """
        known = {entry.name for entry in fields(Settings)}
        for key in settings:
            if key not in known:
                raise unknown_name("setting", key, known)
        try:
            moved = cls.actuator_class(**(actuator or {}))
        except TypeError as error:
            raise LearnedOptError(f"actuator: {error}") from error
        return OptimizationCore(Settings(**{**cls.default_settings, **settings}), moved)


def _concatenate(trees: list[Tree]) -> Tree:
    """One batch from single ones."""
    first = trees[0]
    return {
        key: _concatenate([t[key] for t in trees])  # type: ignore[misc]
        if isinstance(leaf, dict)
        else torch.cat([t[key] for t in trees])  # type: ignore[misc]
        for key, leaf in first.items()
    }


def episode_keys(seeds: Keys, episodes: NDArray[np.int64]) -> Keys:
    """The streams of the lanes' episodes."""
    return streams.combine(streams.mix(seeds), episodes.astype(np.uint64))
