"""How much faster is meta-training through `unroll` than through `higher`?

The work: the gradient of the summed loss with respect to the LSTM's theta, through 20 steps on 64
random 10-dimensional quadratics. `unroll` moves the 64 as one batch; `higher` takes them one after
the other, as its interface demands, each as an unmodified `nn.Module`. Both see the same problems
and give the same meta-gradient (checked below), with second derivatives dropped and kept. Side by
side in one process on one thread; ratios of medians. Memory is what autograd saves for the backward
pass, per step and problem.

    python benchmarks/unroll_vs_higher.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from learned_opt.cli.failures import run_script
from learned_opt.meta.higher_backend import higher_unroll
from learned_opt.rules.lstm import CoordinatewiseLSTM
from learned_opt.tasks.base import get_task
from learned_opt.unroll import unroll


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the measurement."""

    num_problems: int = 64
    """Problems in the batch."""
    num_steps: int = 20
    """Unrolled steps."""
    num_repeats: int = 5
    """Timings per figure; medians are reported."""


class Point(nn.Module):
    """A module whose output is its only parameter."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(x.clone())

    def forward(self) -> Tensor:
        """The point itself."""
        return self.x


def timed(work: Callable[[], Tensor], num_repeats: int) -> tuple[float, float, Tensor]:
    """Median seconds, bytes saved for backward, and the result."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    seconds = []
    for _ in range(num_repeats):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), float(sum(storages.values())), result


def main(settings: Settings) -> None:
    """Measure with second derivatives dropped and kept."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    task = get_task("random_quadratic")
    rule = CoordinatewiseLSTM()
    theta = list(rule.parameters())
    problems = task.sample(settings.num_problems, seed=0)
    singles = [problems.select(torch.tensor([i])) for i in range(settings.num_problems)]

    def gradient(losses: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(losses.sum(), theta)])

    def ours(second_order: bool) -> Tensor:
        rng = torch.Generator().manual_seed(0)
        return gradient(
            unroll(
                task,
                rule,
                problems,
                num_steps=settings.num_steps,
                rng=rng,
                differentiable=True,
                second_order=second_order,
            ).losses
        )

    def theirs(second_order: bool, num_singles: int) -> Tensor:
        total = torch.zeros(sum(p.numel() for p in theta))
        for single in singles[:num_singles]:

            def loss(network: nn.Module, batch: object, single=single) -> Tensor:
                del batch
                return task.loss({"x": network().unsqueeze(0)}, single).sum()

            total += gradient(
                higher_unroll(
                    Point(single.params["x"][0]),
                    loss,
                    [None] * (settings.num_steps + 1),
                    rule,
                    second_order=second_order,
                )
            )
        return total

    for second_order in (False, True):
        fast, memory, first = timed(lambda s=second_order: ours(s), settings.num_repeats)
        slow, _, second = timed(
            lambda s=second_order: theirs(s, settings.num_problems), settings.num_repeats
        )
        # One problem: the graphs of a loop are freed one by one, and their addresses used again.
        _, their_memory, _ = timed(lambda s=second_order: theirs(s, 1), 1)
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3 * float(second.abs().max()))
        per = settings.num_steps * settings.num_problems
        print(
            f"second derivatives {'kept' if second_order else 'dropped':7s}"
            f"  unroll {1e3 * fast:7.1f} ms  higher {1e3 * slow:8.1f} ms  ratio {slow / fast:6.1f}"
            f"  saved per step and problem: unroll {memory / per / 1024:5.1f} KiB,"
            f" higher {their_memory / settings.num_steps / 1024:5.1f} KiB",
            flush=True,
        )


if __name__ == "__main__":
    run_script(main, Settings, __doc__)
