"""Proximal policy optimization of a policy's rule, for the time that it takes to the targets.

The rule's decisions are drawn around what its network puts out, and decisions after which problems
were solved sooner than a critic expected become likelier. Nothing is differentiated through the
inner loop, so chaos and branches cost nothing, and credit goes to single decisions, where evolution
strategies spread it over all of theta.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from learned_opt.actuators import Actuator, get_actuator
from learned_opt.errors import require
from learned_opt.meta.arena import Standing
from learned_opt.meta.arenas import Arenas
from learned_opt.meta.critic import Critic
from learned_opt.meta.estimators import Estimate, MetaGradient, trainable
from learned_opt.meta.horizons import Horizon
from learned_opt.meta.paces import Paces
from learned_opt.meta.rollout import Rollout, advantages, beside_twins, log_likelihood, standardised
from learned_opt.rules.base import Rule
from learned_opt.rules.policy import PolicyRule
from learned_opt.tasks.base import Task
from learned_opt.trees import Tree, select, tree_map

_REFILL = 8
"""Steps between two looks for lanes that have ended."""

_FARTHEST = 0.03
"""Divergence from the policy that played beyond which a minibatch's lanes with noise teach nothing:
what is learned from them is noise for the most part, and Adam's steps are as long as ever."""

_KEPT = ("pool_seed", "memory", "std", "order", "used", "cost", "metrics")
"""Entries of a state that a checkpoint holds as they are."""

_PULL = 1e-2
"""Weight of the square by which outputs leave [-1, 1], where decisions are cut off."""


@final
@dataclass(kw_only=True)
class PPOState:
    """Where a run of `ProximalPolicy` stands.

    Attributes:
        arenas: the arenas, rebuilt from `pool_seed` when a run is taken up again.
        pool_seed: seed of the pools of problems.
        standings: where their lanes stand.
        memory: the network's memory of all lanes.
        critic: what expects the cost to come.
        paces: how long the targets and the episodes of each task take.
        rollout: what was done last.
        std: standard deviation of its decisions, where there is no noise.
        order: ``[N]`` lanes in the order in which this pass takes them.
        used: minibatches of the rollout that were used.
        cost: mean cost of a step of the rollout.
        metrics: of the rollout.
    """

    arenas: Arenas
    pool_seed: int
    standings: list[Standing]
    memory: Tree
    critic: Critic
    paces: Paces
    rollout: Rollout | None = None
    std: float = 0.0
    order: Tensor | None = None
    used: int = 0
    cost: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


@final
@dataclass(frozen=True, kw_only=True)
class ProximalPolicy(MetaGradient[PPOState]):
    """The clipped policy gradient, one minibatch an outer step.

    All deterministic tasks are played in one batch, each task with minibatches or noise in a batch
    of its own. There a change of decisions is kept up for a rollout and counts as one decision with
    one likelihood and all that came of it as its surplus: what a single step is worth does not show
    among minibatches. With twins, two lanes begin a rollout at the same place and try opposite
    changes amid the same noise; what came of one beside the other is their surplus, and the next
    rollout begins where the first of them went; until then lanes that ended stand still. A surplus
    counts in proportion to the mean length of the task's episodes, so that a task does not count
    less for being slow.

    A rule that asks whether there is noise (`PolicyRule.belief`) is told, so that what it learns
    amid noise and what it learns without may stay apart (`PolicyRule.outputs_told`). The critic
    sees what no rule can: the gap, the best gap and the task (an asymmetric critic), which takes
    away most of the variance.

    Attributes:
        tasks: what to train on.
        task_weights: relative share of the lanes; None makes them equal.
        num_lanes: episodes side by side.
        rollout_steps: steps between two updates of the policy.
        horizon: how long episodes last.
        stochastic_stretch: those of tasks with minibatches or noise last this many times longer.
        epsilon: the smallest relative gap that counts, one for all tasks or one for each.
        exploration: standard deviation of decisions at the start and in the end.
        noise_exploration: factor on it in lanes with noise.
        twins: whether lanes with noise come in twos, see above.
        epochs: passes over a rollout.
        minibatches: parts of a pass.
        pool_size: problems drawn at the start, from which episodes draw.
        gae_lambda: decay of the advantage estimator.
        clip_range: change of a likelihood ratio beyond which nothing is gained.
        dtype: type of the problems.

    References:
        Schulman et al. 2017 (arXiv:1707.06347); Schulman et al. 2016 (arXiv:1506.02438) for the
        advantages; Pinto et al. 2018 (arXiv:1710.06542) for asymmetric critics; Li and Malik 2017
        (arXiv:1606.01885) for policy search over update rules; Raffin et al. 2022
        (arXiv:2005.05719) for exploration that lasts.
    """

    tasks: Sequence[Task]
    task_weights: tuple[float, ...] | None = None
    num_lanes: int = 2048
    rollout_steps: int = 32
    horizon: Horizon
    epsilon: float | tuple[float, ...] = 1e-5
    exploration: tuple[float, float] = (0.3, 0.1)
    epochs: int = 3
    minibatches: int = 4
    stochastic_stretch: float = 1.0
    noise_exploration: float = 1.0
    twins: bool = False
    pool_size: int = 16384
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        for name in ("num_lanes", "rollout_steps", "epochs", "minibatches", "pool_size"):
            require(getattr(self, name) >= 1, f"{name} must be positive, got {getattr(self, name)}")
        require(len(self.tasks) >= 1, "tasks must hold at least one task, got none")
        require(
            len(self.epsilons) == len(self.tasks) and all(0 < least < 1 for least in self.epsilons),
            f"epsilon must lie in (0, 1), one for all or one for each of {len(self.tasks)} tasks, "
            f"got {self.epsilon}",
        )
        require(
            0 < self.stochastic_stretch < math.inf,
            f"stochastic_stretch must be positive and finite, got {self.stochastic_stretch}",
        )
        weights = self.task_weights
        require(
            weights is None or (len(weights) == len(self.tasks) and min(weights) > 0),
            f"task_weights must be positive, one for each of {len(self.tasks)} tasks, "
            f"got {weights}",
        )
        require(min(self.exploration) > 0, f"exploration must be positive, got {self.exploration}")
        require(
            0 < self.noise_exploration < math.inf,
            f"noise_exploration must be positive and finite, got {self.noise_exploration}",
        )
        require(0 <= self.gae_lambda <= 1, f"gae_lambda must lie in [0, 1], got {self.gae_lambda}")
        require(self.clip_range > 0, f"clip_range must be positive, got {self.clip_range}")
        require(
            self.num_lanes >= self.minibatches * len(self.tasks),
            "the number of problems that move together must be at least minibatches times tasks, "
            f"{self.minibatches * len(self.tasks)}, got {self.num_lanes}",
        )

    @property
    def epsilons(self) -> tuple[float, ...]:
        """The smallest relative gap that counts in each task."""
        if isinstance(self.epsilon, tuple):
            return self.epsilon
        return (self.epsilon,) * len(self.tasks)

    def estimate(
        self, rule: Rule, state: PPOState | None, *, progress: float, rng: torch.Generator
    ) -> Estimate[PPOState]:
        """The gradient of one minibatch; every `epochs` times `minibatches` calls play on."""
        policy = _steerable(rule)
        state = self._begin(policy, progress, rng) if state is None else replace(state)
        if state.rollout is None or state.used == self.epochs * self.minibatches:
            with torch.no_grad():
                self._play(policy, state, progress, rng)
        assert state.rollout is not None
        part = state.used % self.minibatches
        if part == 0:
            state.order = torch.randperm(self.num_lanes, generator=rng)
        assert state.order is not None
        lanes = state.order.tensor_split(self.minibatches)[part]
        with torch.enable_grad():
            loss, change = self._surrogate(policy, state, lanes)
            grads = torch.autograd.grad(loss, trainable(rule), materialize_grads=True)
        state.used += 1
        return Estimate(
            meta_loss=torch.tensor(state.cost),
            grads=grads,
            state=state,
            diagnostics={"rollout_part": float(state.used)},
            metrics={**state.metrics, **change},
        )

    def check(self, rule: Rule) -> None:
        """See `MetaGradient.check`."""
        _steerable(rule)

    def _begin(self, policy: PolicyRule, progress: float, rng: torch.Generator) -> PPOState:
        pool_seed = int(torch.randint(2**62, (), generator=rng))
        arenas = self._arenas(policy.actuator, pool_seed)
        standings = arenas.start(progress, rng)
        memory = policy.init_memory([self.num_lanes])
        num_seen = arenas.seen_by_critic(standings).shape[1] - len(self.tasks)
        return PPOState(
            arenas=arenas,
            pool_seed=pool_seed,
            standings=standings,
            memory=memory,
            critic=Critic(
                num_seen,
                len(self.tasks),
                seed=int(torch.randint(2**31, (), generator=rng)),
            ),
            paces=Paces.of(len(self.tasks)),
        )

    def _arenas(self, actuator: Actuator, pool_seed: int) -> Arenas:
        return Arenas.build(
            self.tasks,
            weights=self.task_weights or (1.0,) * len(self.tasks),
            epsilons=self.epsilons,
            actuator=actuator,
            num_lanes=self.num_lanes,
            pool_size=self.pool_size,
            pool_seed=pool_seed,
            horizon=self.horizon,
            stochastic_stretch=self.stochastic_stretch,
            twins=self.twins,
            dtype=self.dtype,
        )

    def _exploration_at(self, progress: float) -> float:
        first, last = self.exploration
        return float(first * (last / first) ** progress)

    def _deviations(self, state: PPOState) -> Tensor:
        """``[N, 1]`` standard deviation of the decisions in each lane."""
        share = torch.where(state.arenas.is_noisy, self.noise_exploration, 1.0)
        return (state.std * share.to(self.dtype))[:, None]

    def _play(
        self, policy: PolicyRule, state: PPOState, progress: float, rng: torch.Generator
    ) -> None:
        """Play `rollout_steps` steps, value them, and teach the critic."""
        state.std = self._exploration_at(progress)
        observations, actions, likelihoods, fresh, moving = [], [], [], [], []
        outcomes, kinds, before, after = [], [], [], []
        arenas, paces, std = state.arenas, state.paces, self._deviations(state)
        is_noisy, origins = arenas.is_noisy, arenas.origins
        memory = select(state.memory, origins)
        for k in range(self.rollout_steps):
            is_fresh = torch.zeros(self.num_lanes, dtype=torch.bool)
            if k % _REFILL == 0:
                state.standings, is_fresh = arenas.refill(state.standings, k == 0, progress, rng)
                memory = _forget(memory, is_fresh)
            if k == 0:
                state.memory = memory
            moving.append(~torch.cat([s["over"] for s in state.standings]))
            seen = arenas.observation(state.standings)
            before.append(arenas.seen_by_critic(state.standings))
            mean, memory = policy.outputs_told(seen, memory, is_noisy)
            drawn = torch.randn(mean.shape, generator=rng, dtype=mean.dtype)
            # Among minibatches no single decision shows: the same change of all steps does.
            if k == 0:
                kept = _opposite(drawn, origins)
            drawn = torch.where(is_noisy[:, None], kept, drawn)
            action = mean + std * drawn
            kinds.append(arenas.kinds(state.standings))
            state.standings, outcome = arenas.step(
                state.standings, action.clamp(-1, 1), paces.pace[kinds[-1]], rng
            )
            outcomes.append(outcome)
            after.append(arenas.seen_by_critic(state.standings))
            observations.append(seen)
            actions.append(action)
            likelihoods.append(log_likelihood(action, mean, std))
            fresh.append(is_fresh)
        weights = torch.stack(moving).float()
        seen_before = torch.stack(before)
        expected = state.critic(seen_before)
        costs = torch.stack([outcome.cost for outcome in outcomes]).float()
        over = torch.stack([outcome.over for outcome in outcomes])
        following = state.critic(torch.stack(after)) * ~over
        surplus = advantages(costs, expected, following, over, weights, decay=self.gae_lambda)
        is_moving = weights.bool()
        targets = (expected + surplus)[is_moving]
        # What is kept up is one decision, and all that came of it is its surplus.
        total = ((costs + following - expected) * weights).sum(0)
        total = beside_twins(total, origins) if self.twins else total
        # These tasks have the same lanes however long their episodes are, of which a rollout is the
        # smaller a part; among the others long episodes fill the more lanes.
        surplus = torch.where(is_noisy, total * paces.length[kinds[-1]].float(), surplus)
        residual = (targets - expected[is_moving]).var() / targets.var()
        state.critic = copy.deepcopy(state.critic)
        state.critic.learn(seen_before[is_moving], targets, rng=rng)
        state.rollout = Rollout(
            memory=state.memory,
            observations=torch.stack(observations),
            actions=torch.stack(actions),
            log_likelihoods=torch.stack(likelihoods),
            advantages=-standardised(surplus, is_noisy, weights),
            fresh=torch.stack(fresh),
            weights=weights,
        )
        state.memory, state.used = memory, 0
        state.cost = costs[is_moving].mean().item()
        state.paces = paces.after(outcomes, kinds, is_moving)
        state.metrics = {
            "explained_variance": 1 - residual.item(),
            "moving": weights.mean().item(),
            "exploration": state.std,
            "pace": state.paces.pace.log().mean().exp().item(),
        }

    def _surrogate(
        self, policy: PolicyRule, state: PPOState, lanes: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """The clipped objective on some lanes, and how far the policy has moved there."""
        rollout = state.rollout
        assert rollout is not None
        std, is_noisy = self._deviations(state)[lanes], state.arenas.is_noisy[lanes]
        memory = select(rollout.memory, lanes)
        means, beliefs = [], []
        for k in range(self.rollout_steps):
            if k % _REFILL == 0:
                memory = _forget(memory, rollout.fresh[k, lanes])
            seen = rollout.observations[k, lanes]
            mean, memory = policy.outputs_told(seen, memory, is_noisy)
            means.append(mean)
            beliefs.append(policy.belief(memory))
        mean = torch.stack(means)
        weights = rollout.weights[:, lanes]
        difference = (
            log_likelihood(rollout.actions[:, lanes], mean, std) - rollout.log_likelihoods[:, lanes]
        )
        # A change that was kept up is one decision, so it has one likelihood.
        whole = (difference * weights).sum(0) / weights.sum(0).clamp_min(1)
        difference = torch.where(is_noisy, whole, difference)
        ratio = difference.exp()
        with torch.no_grad():
            moved = (ratio - 1 - difference) * weights
            change = {
                name: (moved[:, own].sum() / weights[:, own].sum()).item()
                for name, own in (
                    ("kl_divergence", ~is_noisy),
                    ("kl_divergence_amid_noise", is_noisy),
                )
                if weights[:, own].any()
            }
        gains = rollout.advantages[:, lanes]
        if change.get("kl_divergence_amid_noise", 0.0) > _FARTHEST:
            gains = gains * ~is_noisy
        cut = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
        surrogate = torch.minimum(ratio * gains, cut * gains).mean()
        outside = (mean.abs() - 1).clamp_min(0).square().mean()
        loss = _PULL * outside - surrogate
        if isinstance(beliefs[0], Tensor):
            # Whether there is noise is known here, so it need not be found out from costs.
            belief = torch.stack(beliefs)  # type: ignore[arg-type]
            truth = is_noisy.to(belief).expand_as(belief)
            loss = loss + F.binary_cross_entropy_with_logits(belief, truth, weight=weights)
        return loss, change

    def pack(self, state: PPOState) -> dict[str, Any]:
        """See `MetaGradient.pack`."""
        actuator = state.arenas.parts[0].actuator
        return {
            **{name: getattr(state, name) for name in _KEPT},
            "actuator": [actuator.name, actuator.config()],
            "standings": state.arenas.pack(state.standings),
            "critic": state.critic.pack(),
            "paces": state.paces.pack(),
            "rollout": None if state.rollout is None else dict(vars(state.rollout)),
        }

    def unpack(self, packed: Mapping[str, Any]) -> PPOState:
        """Undo `pack`."""
        kept = {name: packed[name] for name in _KEPT}
        arenas = self._arenas(
            get_actuator(packed["actuator"][0], **packed["actuator"][1]), packed["pool_seed"]
        )
        rollout = packed["rollout"]
        return PPOState(
            **kept,
            arenas=arenas,
            standings=arenas.unpack(packed["standings"]),
            critic=Critic.unpack(packed["critic"]),
            paces=Paces.unpack(packed["paces"]),
            rollout=None if rollout is None else Rollout(**rollout),
        )


def _steerable(rule: Rule) -> PolicyRule:
    """A rule whose decisions can be drawn."""
    require(
        isinstance(rule, PolicyRule)
        and rule.head == "clip"
        and not rule.actuator.per_coordinate
        and rule.scope == "problem",
        "the estimator 'ppo' needs a rule that decides by numbers once for all parameters, such as "
        f"'controller', got '{rule.name}'",
    )
    assert isinstance(rule, PolicyRule)
    return rule


def _opposite(drawn: Tensor, origins: Tensor) -> Tensor:
    """``[N, A]`` what was drawn, for twins the opposite of what was drawn for their origins."""
    is_own = origins == torch.arange(len(origins))
    return torch.where(is_own[:, None], drawn, -drawn[origins])


def _forget(memory: Tree, is_fresh: Tensor) -> Tree:
    """The memory, empty where an episode begins."""
    return tree_map(lambda leaf: leaf * ~is_fresh[:, None], memory)
