"""How long the targets of each task take, and its episodes, followed as the rule improves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from learned_opt.meta.arena import Outcome

_FADING = 0.9
_FEW_REACHED, _SLOWEST = 0.05, 1000.0
"""At the start a pace of twenty steps; none is slower than a thousand."""
_LENGTH = 100.0
"""Steps of an episode before any has ended."""


@final
@dataclass(frozen=True, kw_only=True)
class Paces:
    """What was lately seen of each task, ``[tasks]`` sums that fade.

    Attributes:
        waited: shares of targets waited for, times steps.
        reached: shares of targets reached.
        moved: steps taken.
        ended: episodes that ended.
    """

    waited: Tensor
    reached: Tensor
    moved: Tensor
    ended: Tensor

    @classmethod
    def of(cls, num_tasks: int) -> Self:
        """Nothing seen yet."""
        none = torch.zeros(num_tasks, dtype=torch.float64)
        return cls(waited=none, reached=none, moved=none, ended=none)

    @property
    def pace(self) -> Tensor:
        """``[tasks]`` mean steps to a target, if leaving them is a matter of luck."""
        return ((self.waited + 1) / (self.reached + _FEW_REACHED)).clamp(1, _SLOWEST)

    @property
    def length(self) -> Tensor:
        """``[tasks]`` mean steps of an episode."""
        return (self.moved + _LENGTH) / (self.ended + 1)

    def after(self, outcomes: Sequence[Outcome], kinds: Sequence[Tensor], moving: Tensor) -> Paces:
        """What is seen with a rollout's outcomes added.

        Args:
            outcomes: of each step.
            kinds: ``[N]`` each lane's task at each step.
            moving: ``[K, N]`` bool, whether a lane's step counted.
        """
        kind = torch.stack(list(kinds))[moving]
        seen = {
            name: torch.stack([getattr(outcome, name) for outcome in outcomes])[moving].double()
            for name in ("waited", "reached", "over")
        }
        ended = seen.pop("over")
        seen |= {"moved": torch.ones_like(ended), "ended": ended}
        return Paces(**{
            name: _FADING * getattr(self, name).index_add(0, kind, new)
            for name, new in seen.items()
        })

    def pack(self) -> dict[str, Tensor]:
        """Plain tensors, for a checkpoint."""
        return dict(vars(self))

    @classmethod
    def unpack(cls, packed: Mapping[str, Tensor]) -> Self:
        """Undo `pack`."""
        return cls(**packed)
