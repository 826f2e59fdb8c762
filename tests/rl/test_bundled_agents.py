"""The agents that ship: they load without the RL library and train a network they never saw."""

import json
import subprocess
import sys

import pytest
import torch

import learned_opt
from learned_opt.cli.main import main
from learned_opt.tasks import get_task

AGENTS = ("hyper-control", "saddle-escape")


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_trains_the_digits_perceptron_through_the_optimizer(name):
    task = get_task("digits_mlp", activation="relu")
    problems = task.sample(1, seed=0)
    params = {k: torch.nn.Parameter(v.clone()) for k, v in problems.params.items()}
    optimizer = learned_opt.LearnedOptimizer(params.values(), name)
    rng = torch.Generator().manual_seed(0)
    for _ in range(100):
        loss = task.loss(params, problems, task.batch(problems, rng)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
    # It starts at ln 10 = 2.3.
    assert task.loss(params, problems).item() < 0.3


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_solves_a_saddle_it_never_saw(name):
    task = get_task("strict_saddle", dim=50, index=3, largest_escape=0.2)
    problems = task.sample(8, seed=1)
    run = learned_opt.unroll(
        task,
        learned_opt.load_rule(name),
        problems,
        num_steps=200,
        rng=torch.Generator().manual_seed(0),
    )
    gap = (run.losses[:, -1] - problems.facts.minimum) / -problems.facts.minimum
    assert gap.median() < 1e-2


def test_agents_need_no_rl_library():
    code = (
        "import sys; sys.modules['stable_baselines3'] = sys.modules['gymnasium'] = None\n"
        "import learned_opt\n"
        f"for name in {AGENTS}: learned_opt.load_rule(name)\n"
        "assert not any(m.startswith(('stable_baselines3', 'envs')) for m, v in "
        "sys.modules.items() if v)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_bundled_agent_plays_by_name(capsys):
    main(["rl", "eval", "hyper-control", "--num-lanes", "4", "--num-steps", "3"])
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(rows) == {"policy", "state-blind", "replay", "nothing"}
    assert rows["policy"]["length"] <= 3
