"""An exported rule decides as the agent did, in the environment and in any inner loop."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from torch import nn

from learned_opt.actuators import get_actuator
from learned_opt.errors import LearnedOptError
from learned_opt.rl.adapter import LaneAdapter
from learned_opt.rl.agents import build_agent
from learned_opt.rl.config import AgentConfig
from learned_opt.rl.environments import make_lanes
from learned_opt.rl.export import export_agent, save_agent
from learned_opt.rules.weights import load_rule, read_metadata
from learned_opt.unroll import unroll

SETTINGS = {
    "num_instances": 32,
    "max_episode_steps": 20,
    "task": "octopus",
    "task_settings": {"dim": 3},
    "learning_rate": (-1.0, -1.0),
}
CASES = [
    ("ppo", "HyperControl-v0", {"noise": False}, "clip"),
    ("ppo", "LearningRate-v0", {}, None),
    ("ppo", "CoordUpdate-v0", {}, "clip"),
    ("recurrent-ppo", "HyperControl-v0", {"noise": False}, "clip"),
    ("sac", "HyperControl-v0", {"noise": False}, "squash"),
    ("maskable-ppo", "SaddleEscape-v0", {"kick_budget": 0}, "argmax"),
    ("dqn", "SaddleEscape-v0", {"kick_budget": 0}, "argmax"),
]


def agent(algo, env, actuator, **changes):
    settings = {**SETTINGS, "actuator": actuator}
    config = AgentConfig.for_algorithm(
        algo,
        env=env,
        env_settings=settings,
        num_lanes=4,
        hidden=(16, 8),
        rollout_steps=8,
        **{**({"lstm_units": 8} if algo == "recurrent-ppo" else {}), **changes},
    )
    model = build_agent(config, LaneAdapter(make_lanes(env, settings, num_lanes=4)))
    # Trained agents decide firmly; fresh ones would hide every mistake behind small numbers.
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.7)
    return model, settings


def drive(model, env, settings, num_lanes=16):
    """Play the agent without exploration: its observations, decisions and the losses."""
    lanes = make_lanes(env, settings, num_lanes=num_lanes, autoreset="Disabled")
    seen, info = lanes.reset(seed=7)
    start = lanes.unwrapped.state
    per_lane = int(np.prod(seen.shape[1:-1]))
    memory, record = None, []
    losses = [start.loss]
    for step in range(20):
        is_masked = type(model).__name__ == "MaskablePPO"
        kwargs = {"action_masks": info["action_mask"]} if is_masked else {}
        decided, memory = model.predict(
            seen.reshape(num_lanes * per_lane, -1).astype(np.float32),
            state=memory,
            episode_start=np.full(num_lanes * per_lane, step == 0),
            deterministic=True,
            **kwargs,
        )
        record.append((seen, decided, info.get("action_mask")))
        seen, _, _, _, info = lanes.step(decided.reshape(num_lanes, *_shape(lanes)))
        losses.append(lanes.unwrapped.state.loss)
    return lanes.unwrapped.core, start, record, torch.stack(losses, dim=1)


def _shape(lanes):
    return lanes.unwrapped.single_action_space.shape


@pytest.mark.parametrize(("algo", "env", "actuator", "head"), CASES)
def test_decisions_are_those_of_the_agent(algo, env, actuator, head):
    model, settings = agent(algo, env, actuator)
    rule = export_agent(model)
    assert head is None or rule.head == head
    _, _, record, _ = drive(model, env, settings)
    memory = {}
    if rule.lstm_units:
        empty = torch.zeros(16, rule.lstm_units)
        memory = {"hidden": empty, "cell": empty}
    all_decided = []
    for seen, decided, allowed in record:
        mask = torch.from_numpy(allowed) if algo == "maskable-ppo" else None
        mine, memory = rule.decide(torch.from_numpy(seen), memory, mask=mask)
        all_decided.append(decided)
        if rule.head == "argmax":
            np.testing.assert_array_equal(mine.numpy(), decided)
        else:
            np.testing.assert_allclose(
                mine.numpy().reshape(decided.shape), decided, rtol=1e-5, atol=1e-6
            )
    # the agents do decide: not always the same, and at the bounds as well
    spread = np.stack(all_decided)
    assert len(np.unique(spread)) > 1
    if rule.head == "clip":
        assert (abs(spread) == 1).any() and (abs(spread) < 1).any()


@pytest.mark.parametrize(("algo", "env", "actuator", "head"), CASES)
def test_an_unrolled_rule_is_the_agent_in_its_environment(algo, env, actuator, head):
    del head
    model, settings = agent(algo, env, actuator)
    if algo == "dqn":  # DQN knows no masks: what it asks for and is refused counts as "continue"
        with torch.no_grad():
            model.policy.q_net.q_net[-1].bias[4:] -= 1e3
    core, start, record, losses = drive(model, env, settings)
    rate = float(10 ** settings["learning_rate"][0] / core.task.smoothness)
    rule = export_agent(model, learning_rate=rate, scope="problem")
    run = unroll(
        core.task,
        rule,
        start.problems,
        num_steps=20,
        rng=torch.Generator().manual_seed(0),
    )
    assert (losses[:, 0] != losses[:, -1]).all()
    tolerance = 1e-3 if rule.lstm_units else 1e-5
    torch.testing.assert_close(
        run.losses.double(), losses.double(), rtol=tolerance, atol=tolerance, equal_nan=True
    )
    if rule.head == "argmax":
        chosen = torch.tensor(np.stack([decided for _, decided, _ in record]))
        assert len(chosen.unique()) > 1


def test_masked_choices_are_never_made():
    model, settings = agent("maskable-ppo", "SaddleEscape-v0", {})
    rule = export_agent(model)
    _, _, record, _ = drive(model, "SaddleEscape-v0", settings)
    num_masked = 0
    for seen, decided, mask in record:
        free, _ = rule.decide(torch.from_numpy(seen), {})
        mine, _ = rule.decide(torch.from_numpy(seen), {}, mask=torch.from_numpy(mask))
        np.testing.assert_array_equal(mine.numpy(), decided)
        assert mask[np.arange(16), mine.numpy()].all()
        num_masked += int((free != mine).sum())
    assert num_masked > 10


def test_the_file_says_what_the_agent_sees_and_does(tmp_path):
    model, _ = agent("ppo", "HyperControl-v0", {"gain": 0.5})
    rule = export_agent(model, learning_rate=0.25, scope="tensor")
    path = save_agent(rule, tmp_path / "agent.safetensors", about={"algo": "ppo", "steps": "3"})
    loaded, header = load_rule(path), read_metadata(path)
    assert loaded.config() == rule.config()
    assert loaded.config()["actuator_config"]["gain"] == 0.5
    assert (loaded.learning_rate, loaded.scope) == (0.25, "tensor")
    for name, value in rule.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    features = json.loads(header["features"])
    assert [f["name"] for f in features] == [f.name for f in rule.actuator.features]
    actions = json.loads(header["actions"])
    assert actions == {"names": ["step size", "momentum", "noise"], "discrete": False}
    assert (header["algo"], header["steps"]) == ("ppo", "3")


def test_the_copy_is_a_copy():
    model, _ = agent("ppo", "HyperControl-v0", {})
    rule = export_agent(model)
    before = rule.layers[0].weight.clone()
    with torch.no_grad():
        model.policy.mlp_extractor.policy_net[0].weight.add_(1)
    assert torch.equal(rule.layers[0].weight, before)
    assert not rule.layers[0].weight.requires_grad and not rule.training


def test_agents_of_other_shapes_are_refused():
    model, _ = agent("ppo", "HyperControl-v0", {})
    with pytest.raises(LearnedOptError, match="does not fit the actuator 'coord_update'"):
        export_agent(model, actuator=get_actuator("coord_update"))
    between = model.policy.mlp_extractor.policy_net
    between[1] = nn.ReLU()
    with pytest.raises(LearnedOptError, match="linear layers with tanh or relu between"):
        export_agent(model)
    between[1] = between[3] = nn.GELU()
    with pytest.raises(LearnedOptError, match="got Linear, GELU"):
        export_agent(model)
    model.policy = nn.Linear(1, 1)
    with pytest.raises(LearnedOptError, match="policy of type Linear cannot be exported"):
        export_agent(model)
    model.env = None
    with pytest.raises(LearnedOptError, match="actuator must be given"):
        export_agent(model)
    model, _ = agent("recurrent-ppo", "HyperControl-v0", {})
    model.policy.lstm_actor = nn.LSTM(15, 8, num_layers=2)
    with pytest.raises(LearnedOptError, match="one LSTM layer at most"):
        export_agent(model)
