"""What expects the cost to come, for policy gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn


@final
class Critic(nn.Module):
    """A small network, taught by regression.

    Args:
        num_features: numbers that it sees, beside one for each task.
        num_tasks: tasks, told apart by one number each.
        hidden: units of both hidden layers.
        learning_rate: of its Adam.
        seed: seed of its weights.
    """

    def __init__(
        self,
        num_features: int,
        num_tasks: int,
        *,
        hidden: int = 96,
        learning_rate: float = 2e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.settings = {
            "num_features": num_features,
            "num_tasks": num_tasks,
            "hidden": hidden,
            "learning_rate": learning_rate,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(num_features + num_tasks, hidden),
                nn.Tanh(),
                nn.Linear(hidden, hidden),
                nn.Tanh(),
                nn.Linear(hidden, 1),
            )
        self.optimizer = torch.optim.Adam(self.parameters(), lr=learning_rate)

    def forward(self, seen: Tensor) -> Tensor:
        """Expected costs to come, ``[..., F] -> [...]``."""
        expected: Tensor = self.layers(seen)[..., 0]
        return expected

    def learn(
        self,
        seen: Tensor,
        targets: Tensor,
        *,
        rng: torch.Generator,
        epochs: int = 2,
        minibatches: int = 8,
    ) -> None:
        """Fit costs that were seen.

        Args:
            seen: ``[B, F]`` what it sees.
            targets: ``[B]`` costs to come.
            rng: generator, advanced.
            epochs: passes.
            minibatches: parts of a pass.
        """
        with torch.enable_grad():
            for _ in range(epochs):
                order = torch.randperm(len(targets), generator=rng)
                for rows in order.tensor_split(minibatches):
                    loss = (self(seen[rows]) - targets[rows]).square().mean()
                    self.optimizer.zero_grad()
                    loss.backward()
                    self.optimizer.step()

    def pack(self) -> dict[str, Any]:
        """Plain containers of tensors and numbers, for a checkpoint."""
        return {
            "settings": self.settings,
            "weights": self.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> Critic:
        """Undo `pack`."""
        critic = cls(**packed["settings"])
        critic.load_state_dict(packed["weights"])
        critic.optimizer.load_state_dict(packed["optimizer"])
        return critic
