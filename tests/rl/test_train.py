"""Agents learn, and a run that is stopped and resumed ends like one that never was."""

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from learned_opt.errors import LearnedOptError
from learned_opt.meta.checkpoint import read_checkpoint, write_checkpoint
from learned_opt.meta.config import stream_seed
from learned_opt.meta.interrupts import Interrupted
from learned_opt.rl.checkpoints import export_checkpoint, load_agent
from learned_opt.rl.config import AgentConfig
from learned_opt.rl.evaluate import evaluate_rule_in_env, summarize
from learned_opt.rl.optional import require_module
from learned_opt.rl.train import train_agent
from learned_opt.rules.weights import load_rule, read_metadata
from learned_opt.tracking import JsonLinesTracker

SETTINGS = {"num_instances": 16, "max_episode_steps": 12, "task_settings": {"dim": 3}}
MINIBATCHES = {"num_instances": 16, "max_episode_steps": 12, "task": "breast_cancer_mlp"}
SMALL = {
    "env_settings": {**SETTINGS, "task": "octopus"},
    "num_lanes": 8,
    "num_eval_lanes": 4,
    "evaluate_every": 64,
    "hidden": (8,),
    "total_steps": 320,
    "checkpoint_seconds": 0.0,
}
ON = {"rollout_steps": 8, "minibatches": 2, "epochs": 2}
# the replay buffer overflows, and random warm-up decisions end, within a run
OFF = {
    "target_update_interval": 48,
    "learning_starts": 40,
    "buffer_size": 200,
    "gradient_steps": 4,
    "batch_size": 16,
}
OFF["rollout_steps"] = 4
CONFIGS = {
    "ppo": AgentConfig.for_algorithm("ppo", **SMALL, **ON),
    "ppo-coordinates": AgentConfig.for_algorithm("ppo", **SMALL, **ON, env="CoordUpdate-v0"),
    "maskable-ppo": AgentConfig.for_algorithm(
        "maskable-ppo", **SMALL, **ON, env="SaddleEscape-v0", gamma=0.9, bootstrap_truncated=True
    ),
    "recurrent-ppo": AgentConfig.for_algorithm("recurrent-ppo", **SMALL, **ON, lstm_units=4),
    "sac": AgentConfig.for_algorithm("sac", **SMALL, **OFF),
    "dqn": AgentConfig.for_algorithm("dqn", **SMALL, **OFF, env="SaddleEscape-v0"),
    "dqn-minibatches": AgentConfig.for_algorithm(
        "dqn", **{**SMALL, "env_settings": MINIBATCHES}, **OFF, env="LearningRate-v0"
    ),
}
PPO = CONFIGS["ppo"]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same(a, b, where=""):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a.nan_to_num(), b.nan_to_num()), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}.{i}")
    else:
        assert a == b, where


def assert_same_run(result, other):
    for name in ("best", "last"):
        file, other_file = getattr(result, name), getattr(other, name)
        assert_same(load_rule(file).state_dict(), load_rule(other_file).state_dict())
        assert read_metadata(file) == read_metadata(other_file)
    assert result.history.read_bytes() == other.history.read_bytes()
    # critics, optimizers, replayed transitions, lanes and random generators as well
    assert_same(read_checkpoint(result.checkpoint), read_checkpoint(other.checkpoint))
    assert (result.best_score, result.best_step) == (other.best_score, other.best_step)


class Stop(Exception):
    pass


def stop_at(step):
    def on_progress(done, total, note):
        del total, note
        if done >= step:
            raise Stop

    return on_progress


@pytest.mark.parametrize("name", CONFIGS)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, name):
    config = CONFIGS[name]
    reference = train_agent(config, out=tmp_path / "whole")
    torch.rand(7)  # what the process's own generators do in between is of no account
    out = tmp_path / "cut"
    for step in (128, 256):
        with pytest.raises(Stop):
            train_agent(config, out=out, on_progress=stop_at(step), resume=step > 128)
    result = train_agent(config, out=out, resume=True)
    assert_same_run(result, reference)
    start, *_, end = lines(reference.history)
    assert (start["step"], end["step"]) == (0, 320)
    first = load_rule(result.best).state_dict()
    assert any((value != 0).any() for value in first.values())


def test_rollouts_after_the_checkpoint_are_done_again(tmp_path):
    reference = train_agent(PPO, out=tmp_path / "whole")
    out = tmp_path / "cut"
    with pytest.raises(Stop):
        train_agent(PPO, out=out, on_progress=stop_at(128))
    kept = (out / "checkpoint.pt").read_bytes()
    with pytest.raises(Stop):
        train_agent(PPO, out=out, on_progress=stop_at(256), resume=True)
    (out / "checkpoint.pt").write_bytes(kept)
    assert_same_run(train_agent(PPO, out=out, resume=True), reference)


def test_a_finished_run_is_not_trained_further(tmp_path):
    result = train_agent(PPO, out=tmp_path)
    before = read_checkpoint(result.checkpoint), result.history.read_bytes()
    calls = []
    again = train_agent(PPO, out=tmp_path, resume=True, on_progress=lambda *a: calls.append(a[0]))
    assert calls == [320]
    assert_same(before[0], read_checkpoint(again.checkpoint))
    assert before[1] == again.history.read_bytes()


def test_a_signal_is_obeyed_before_the_next_rollout(tmp_path):
    reference = train_agent(PPO, out=tmp_path / "whole")
    rarely = replace(PPO, checkpoint_seconds=3600.0)

    def on_progress(done, total, note):
        del total, note
        if done == 128:
            os.kill(os.getpid(), signal.SIGTERM)

    former = signal.getsignal(signal.SIGTERM)
    out = tmp_path / "cut"
    with pytest.raises(Interrupted, match="interrupted after 128 of 320 steps") as caught:
        train_agent(rarely, out=out, on_progress=on_progress)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is former
    assert read_checkpoint(out / "checkpoint.pt")["agent"]["counters"]["num_timesteps"] == 128
    result = train_agent(PPO, out=out, resume=True)
    assert_same_run(result, reference)


CHILD = """
import sys
import torch
torch.set_num_threads(1)
from learned_opt.meta.interrupts import Interrupted
from learned_opt.rl.config import AgentConfig
from learned_opt.rl.train import train_agent

def report(done, total, note):
    print(done, flush=True)
    if done == 128:
        sys.stdin.read()  # until the signal is sent

try:
    train_agent({config!r}, out=sys.argv[1], on_progress=report)
except Interrupted as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_processes_go_on_bit_for_bit(tmp_path, name, number):
    config = CONFIGS[name]
    reference = train_agent(config, out=tmp_path / "whole")
    out = tmp_path / "cut"
    with subprocess.Popen(
        [sys.executable, "-c", CHILD.format(config=config), str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as child:
        for line in child.stdout:
            if int(line) == 128:
                child.send_signal(number)
                break
        _, message = child.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert child.returncode == -number
    else:
        assert child.returncode == 143
        assert "interrupted after 128 of 320 steps" in message
    assert_same_run(train_agent(config, out=out, resume=True), reference)


def test_training_starts_from_next_to_nothing_and_moves(tmp_path):
    for name in ("ppo", "sac"):
        config = CONFIGS[name]
        with pytest.raises(Stop):
            train_agent(config, out=tmp_path / name, on_progress=stop_at(0))
        rule = load_rule(tmp_path / name / "best.safetensors")
        seen = torch.randn(256, 15, generator=torch.Generator().manual_seed(0))
        decided, _ = rule.decide(seen, {})
        assert 1e-4 < decided.abs().max() < 0.1
        result = train_agent(config, out=tmp_path / name, resume=True)
        moved, _ = load_rule(result.last).decide(seen, {})
        assert (moved - decided).abs().max() > 1e-3


def test_the_score_is_that_of_the_exported_rule_on_other_instances(tmp_path):
    result = train_agent(PPO, out=tmp_path)
    record = lines(result.history)
    assert [line["step"] for line in record] == [0, 64, 128, 192, 256, 320]
    assert result.best_score == max(line["eval/return"] for line in record)
    assert result.last_score == record[-1]["eval/return"] == result.metrics["return"]
    header = read_metadata(result.best)
    assert json.loads(header["scores"])["return"] == result.best_score
    assert json.loads(header["env"]) == {
        "id": "envs:LearnedOpt/HyperControl-v0",
        "kwargs": PPO.to_json()["env_settings"],
    }
    assert (header["algo"], header["seed"], header["tasks"]) == ("ppo", "0", '["octopus"]')
    # the held-out episodes, played again: other instances than those of the training
    held_out = {**PPO.env_settings, "instance_seed": PPO.eval_instance_seed}
    rule, seed = load_rule(result.last), stream_seed("held-out agents", 0) >> 1
    for settings, is_same in ((held_out, True), (PPO.env_settings, False)):
        episodes = evaluate_rule_in_env(rule, PPO.env, settings, num_lanes=4, seed=seed)
        assert (summarize(episodes)["return"] == result.last_score) == is_same


def test_patience(tmp_path):
    # with a vanishing learning rate no evaluation beats the first by more than rounding
    still = replace(PPO, learning_rate=1e-12, patience=2, total_steps=6400)
    result = train_agent(still, out=tmp_path)
    assert result.steps < 6400
    assert result.steps - result.best_step == 2 * PPO.evaluate_every
    again = train_agent(still, out=tmp_path, resume=True)
    assert again.steps == result.steps


def test_the_tracker_sees_what_the_history_holds(tmp_path):
    tracker = JsonLinesTracker(tmp_path / "tracked.jsonl")
    result = train_agent(PPO, out=tmp_path / "run", tracker=tracker)
    tracker.finish()
    tracked = lines(tmp_path / "tracked.jsonl")
    assert tracked[:6] == lines(result.history)
    assert tracked[6]["summary"]["best_score"] == result.best_score
    assert tracked[7]["path"] == str(result.best)
    assert tracked[5]["train/learning_rate"] == pytest.approx(PPO.learning_rate_at(1.0))


def test_the_generators_of_the_process_are_left_alone(tmp_path):
    def draw():
        return torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002

    def seed():
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        random.seed(5)

    seed()
    expected = draw()
    seed()
    train_agent(replace(PPO, total_steps=64), out=tmp_path)
    assert draw() == expected


def test_other_seeds_are_other_runs(tmp_path):
    results = [
        train_agent(replace(PPO, seed=seed, total_steps=64), out=tmp_path / str(seed))
        for seed in (0, 1)
    ]
    saved = [read_checkpoint(result.checkpoint) for result in results]
    seeds = [set(state["env"]["lanes"]["seeds"].tolist()) for state in saved]
    assert len(seeds[0]) == 8 and not seeds[0] & seeds[1]
    assert not torch.equal(
        saved[0]["agent"]["policy"]["action_net.weight"],
        saved[1]["agent"]["policy"]["action_net.weight"],
    )


def test_a_checkpoint_can_be_loaded_and_exported(tmp_path):
    for name, config in CONFIGS.items():
        short = replace(config, total_steps=64)
        result = train_agent(short, out=tmp_path / name)
        loaded, model = load_agent(tmp_path / name)
        assert loaded == short
        assert model.num_timesteps == 64 * model.get_env().agents_per_lane
        path = export_checkpoint(
            tmp_path / name, tmp_path / f"{name}.safetensors", learning_rate=0.5, scope="tensor"
        )
        rule = load_rule(path)
        assert (rule.learning_rate, rule.scope) == (0.5, "tensor")
        assert_same(rule.state_dict(), load_rule(result.last).state_dict())
    middle = export_checkpoint(tmp_path / "ppo", tmp_path / "m.safetensors", scope="problem")
    last = load_rule(tmp_path / "ppo" / "last.safetensors")
    assert load_rule(middle).learning_rate == last.learning_rate != 0.5


def test_folders_and_checkpoints_that_do_not_fit(tmp_path):
    with pytest.raises(LearnedOptError, match="no checkpoint at"):
        load_agent(tmp_path)
    short = replace(PPO, total_steps=64)
    train_agent(short, out=tmp_path)
    with pytest.raises(LearnedOptError, match=r"already holds a run; resume .--resume. goes on"):
        train_agent(short, out=tmp_path)
    with pytest.raises(LearnedOptError, match=r"gamma: .* there, 0.5 here"):
        train_agent(replace(short, gamma=0.5), out=tmp_path, resume=True)
    path = tmp_path / "checkpoint.pt"
    saved = read_checkpoint(path)
    write_checkpoint(path, {**saved, "agent": {**saved["agent"], "policy": {}}})
    with pytest.raises(LearnedOptError, match="does not fit this version"):
        train_agent(short, out=tmp_path, resume=True)
    write_checkpoint(path, {**saved, "kind": "other"})
    with pytest.raises(LearnedOptError, match="is of another kind or version than agents"):
        load_agent(tmp_path)
    path.write_bytes(b"nonsense")
    with pytest.raises(LearnedOptError, match="is damaged or not a checkpoint"):
        train_agent(short, out=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env": "HyperContrl-v0"}, "did you mean 'HyperControl-v0'"),
        ({"decay": "linaer"}, "did you mean 'linear'"),
        ({"activation": "tahn"}, "did you mean 'tanh'"),
        ({"num_lanes": 0}, "num_lanes must be positive, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive, got nan"),
        ({"gamma": 1.5}, r"gamma must lie in \[0, 1\], got 1.5"),
        ({"exploration": (1.0,)}, "exploration must be two shares"),
        ({"hidden": (8, 0)}, "hidden must be positive"),
        (
            {"lstm_units": 3},
            "lstm_units must be positive for recurrent-ppo and 0 otherwise, got 3 for ppo",
        ),
        ({"algo": "recurrent-ppo"}, "lstm_units must be positive for recurrent-ppo"),
        ({"ent_coef": -1.0}, "ent_coef must not be negative, got -1.0"),
        ({"seed": -1}, "seed must lie in"),
        ({"patience": 0}, "patience must be positive or None, got 0"),
        ({"checkpoint_seconds": -1}, "checkpoint_seconds must not be negative"),
        ({"minibatches": 3}, "minibatches must divide"),
        ({"env_settings": {"instance_seed": 1_000_003}}, "eval_instance_seed must differ"),
        ({"env_settings": {"task": object()}}, "env_settings must be JSON-able"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(LearnedOptError, match=message):
        AgentConfig(**settings)


def test_without_the_extra_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "learned_opt.rl.adapter", raising=False)
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.vec_env", None)
    with pytest.raises(
        LearnedOptError, match=r"needs stable_baselines3: install learned_opt\[rl\]"
    ):
        train_agent(PPO, out=tmp_path)
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(LearnedOptError, match=r"needs sb3_contrib: install learned_opt\[rl\]"):
        require_module("sb3_contrib")


@pytest.mark.slow
def test_agents_learn(tmp_path):
    config = AgentConfig.for_algorithm(
        "ppo", env_settings={"task": "random_quadratic"}, total_steps=700_000
    )
    result = train_agent(config, out=tmp_path)
    start, *_ = lines(result.history)
    assert start["eval/median_log10_gap"] > -2.2
    assert result.metrics["median_log10_gap"] < start["eval/median_log10_gap"] - 1.2
    assert result.metrics["diverged"] == 0


def test_names_that_do_not_exist():
    with pytest.raises(LearnedOptError, match="unknown algorithm 'pop'; did you mean 'ppo'"):
        AgentConfig(algo="pop")
    with pytest.raises(LearnedOptError, match="unknown algorithm 'sax'; did you mean 'sac'"):
        AgentConfig.for_algorithm("sax")
    with pytest.raises(LearnedOptError, match="unknown setting 'gama'; did you mean 'gamma'"):
        AgentConfig.for_algorithm("ppo", gama=1)
    with pytest.raises(LearnedOptError, match=r"needs nowhere: install learned_opt\[rl\]"):
        require_module("nowhere.module")


def test_settings_survive_json():
    for config in CONFIGS.values():
        assert AgentConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_learning_rates_go_down():
    config = AgentConfig(learning_rate=2.0, final_learning_rate_fraction=0.1)
    assert [config.learning_rate_at(p) for p in (0, 0.5, 1, 1.2)] == pytest.approx([
        2,
        1.1,
        0.2,
        0.2,
    ])
    cosine = replace(config, decay="cosine")
    assert [cosine.learning_rate_at(p) for p in (0, 0.5, 1)] == pytest.approx([2, 1.1, 0.2])
    assert cosine.learning_rate_at(0.25) > config.learning_rate_at(0.25)
    assert replace(config, decay="constant").learning_rate_at(0.9) == 2.0
