"""Steps a second of the environments, and of training an agent on them, on one thread.

HyperControl with all its features in 32 dimensions, 1,024 lanes, by gymnasium's own
`benchmark_vector_step` (random actions, so that lanes diverge and start anew all the time), as it
is and compiled (`compile=True`, where there is a C++ compiler); beside it the same environment one
lane at a time behind `SyncVectorEnv`, and DACBench's SGD environment where it is installed. Then
PPO of stable-baselines3 from end to end, on 4,096 lanes.

    python benchmarks/environment_speed.py
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from gymnasium.utils.performance import benchmark_vector_step
from gymnasium.vector import SyncVectorEnv

from envs.core import has_compiler
from learned_opt.cli.failures import run_script
from learned_opt.rl.config import AgentConfig
from learned_opt.rl.train import train_agent

ENVIRONMENT = "envs:LearnedOpt/HyperControl-v0"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the measurement."""

    tasks: tuple[str, ...] = ("strict_saddle", "rippled_quadratic", "random_quadratic")
    """Tasks by name."""
    dim: int = 32
    """Dimensions."""
    num_lanes: int = 1024
    """Lanes of the native vector environment."""
    num_sync: int = 16
    """Single environments behind `SyncVectorEnv`."""
    seconds: int = 3
    """Length of a timing."""
    num_repeats: int = 3
    """Timings per figure; medians are reported."""
    ppo_lanes: int = 4096
    """Lanes of the training."""
    ppo_steps: int = 1_500_000
    """Steps of the training."""


def median(measure: Callable[[], float], num_repeats: int) -> float:
    """Median of some measurements."""
    return statistics.median(measure() for _ in range(num_repeats))


def native(settings: Settings, task: str, *, compile: bool = False) -> float:
    """All lanes as one tensor."""
    lanes = gym.make_vec(
        ENVIRONMENT,
        num_envs=settings.num_lanes,
        vectorization_mode="vector_entry_point",
        compile=compile,
        **arguments(settings, task),
    )
    lanes.reset(seed=0)
    lanes.step(lanes.action_space.sample())
    return median(
        lambda: benchmark_vector_step(lanes, target_duration=settings.seconds, seed=0),
        settings.num_repeats,
    )


def one_by_one(settings: Settings, task: str) -> float:
    """Single environments in a loop."""

    def make() -> gym.Env[Any, Any]:
        return gym.make(ENVIRONMENT, disable_env_checker=True, **arguments(settings, task))

    lanes = SyncVectorEnv([make] * settings.num_sync)
    lanes.reset(seed=0)
    lanes.step(lanes.action_space.sample())
    return median(
        lambda: benchmark_vector_step(lanes, target_duration=settings.seconds, seed=0),
        settings.num_repeats,
    )


def arguments(settings: Settings, task: str) -> dict[str, Any]:
    """What both are made with."""
    return {"task": task, "task_settings": {"dim": settings.dim}, "num_instances": 1024}


def ppo(settings: Settings, task: str) -> float:
    """Steps a second of a whole training, set-up and two evaluations left out."""
    marks: list[tuple[float, int]] = []
    config = AgentConfig.for_algorithm(
        "ppo",
        env_settings=arguments(settings, task),
        total_steps=settings.ppo_steps,
        num_lanes=settings.ppo_lanes,
        rollout_steps=16,
        epochs=1,
        minibatches=8,
        evaluate_every=10 * settings.ppo_steps,
        num_eval_lanes=64,
        checkpoint_seconds=3600,
    )

    def note(done: int, total: int, text: str) -> None:
        del total, text
        marks.append((time.perf_counter(), done))

    with tempfile.TemporaryDirectory() as folder:
        train_agent(config, out=folder, on_progress=note)
    # From the third rollout, when everything is warm, to the start of the last one.
    (start, first), (end, last) = marks[2], marks[-1]
    return (last - first) / (end - start)


def dacbench(settings: Settings) -> float | None:
    """DACBench's SGD environment, if it can be had."""
    if importlib.util.find_spec("dacbench") is None:
        return None
    from dacbench.benchmarks import SGDBenchmark

    env = SGDBenchmark().get_environment()
    env.reset()
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < settings.seconds:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        steps += 1
        if terminated or truncated:
            env.reset()
    return steps / (time.perf_counter() - start)


def main(settings: Settings) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    titles = ("one by one", "native", "ratio", "compiled", "PPO")
    print(f"{'task':20s}", *[f"{title:>10s}" for title in titles], " steps/s")
    for task in settings.tasks:
        fast, slow = native(settings, task), one_by_one(settings, task)
        compiled = native(settings, task, compile=True) if has_compiler() else math.nan
        row = (slow, fast, fast / slow, compiled, ppo(settings, task))
        print(f"{task:20s}", *[f"{value:10.3g}" for value in row])
    other = dacbench(settings)
    print("DACBench SGD:", "not installed" if other is None else f"{other:.3g} steps/s")


if __name__ == "__main__":
    run_script(main, Settings, __doc__)
