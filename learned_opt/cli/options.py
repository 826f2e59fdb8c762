"""What every command offers: seed, device, threads, output folder, tracking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from learned_opt.errors import LearnedOptError, require


@dataclass(frozen=True, kw_only=True)
class LocalOptions:
    """Shared by every command."""

    seed: int = 0
    """Seed of everything random; the same seed gives the same numbers."""
    threads: int = 1
    """Torch threads of training; races always run one a process. Small tensors do not gain."""

    def apply(self) -> None:
        """Check the values and set up torch for this process.

        Raises:
            LearnedOptError: if a value is out of range.
        """
        require(self.seed >= 0, f"--seed must not be negative, got {self.seed}")
        require(self.threads >= 1, f"--threads must be at least 1, got {self.threads}")
        torch.set_num_threads(self.threads)
        # Trajectories that decay for hundreds of steps reach denormals, which stall a CPU.
        torch.set_flush_denormal(True)


@dataclass(frozen=True, kw_only=True)
class TrackedOptions(LocalOptions):
    """Shared by commands that compute for long: who is told."""

    wandb: Literal["offline", "online", "disabled"] = "offline"
    """Weights & Biases mode; offline needs no account, online needs `wandb login`."""
    project: str = "learned_opt"
    """Weights & Biases project."""


@dataclass(frozen=True, kw_only=True)
class Options(TrackedOptions):
    """Shared by commands that may compute on another device."""

    device: str = "cpu"
    """Where tensors live: cpu, cuda, cuda:1, ..."""

    def apply(self) -> None:
        """The same, and see whether the device exists.

        Raises:
            LearnedOptError: if a value is out of range or the device does not exist.
        """
        LocalOptions.apply(self)
        try:
            torch.zeros(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise LearnedOptError(f"--device '{self.device}' cannot be used: {reason}") from error
