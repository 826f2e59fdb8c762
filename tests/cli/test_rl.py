"""``learned-opt rl``: from training to the picture, and what it says about bad input."""

import json

import pytest
import torch

pytest.importorskip("stable_baselines3")

from learned_opt.cli.main import main
from learned_opt.rl import video
from learned_opt.rules.weights import load_rule, read_metadata

SETTINGS = '{"num_instances": 16, "max_episode_steps": 6, "task_settings": {"dim": 2}}'


def run(capsys, *words):
    main(["rl", *map(str, words)])
    return capsys.readouterr().out


def fails(capsys, *words):
    with pytest.raises(SystemExit) as caught:
        main(["rl", *map(str, words)])
    assert caught.value.code == 2
    return capsys.readouterr().err


def train(capsys, out, *words):
    return run(
        capsys,
        *("train", "--task", "octopus", "--env-settings", SETTINGS, "--num-lanes", 64),
        *("--total-steps", 4096, "--hidden", 8, "--out", out, "--wandb", "disabled", *words),
    )


def test_from_training_to_the_picture(capsys, tmp_path, monkeypatch):
    out = tmp_path / "agent"
    best = out / "best.safetensors"
    assert train(capsys, out).strip() == str(best)
    header = read_metadata(best)
    assert json.loads(header["env"])["id"] == "envs:LearnedOpt/HyperControl-v0"
    assert json.loads(header["env"])["kwargs"]["task"] == "octopus"
    assert header["steps"] in {"0", "2048", "4096"}
    assert load_rule(best).hidden == (8,)

    rows = json.loads(run(capsys, "eval", best, "--num-lanes", 16))
    assert list(rows) == ["policy", "state-blind", "replay", "nothing"]
    assert all(row["length"] <= 6 for row in rows.values())
    longer = json.loads(run(capsys, "eval", best, "--num-lanes", 16, "--num-steps", 30))
    assert longer["policy"]["length"] > 6
    other = json.loads(run(capsys, "eval", best, "--num-lanes", 16, "--task", "rosenbrock"))
    assert other["policy"]["return"] != rows["policy"]["return"]

    again = tmp_path / "again.safetensors"
    words = ("export", out, "--out", again, "--learning-rate", 0.5, "--scope", "tensor")
    assert run(capsys, *words).strip() == str(again)
    assert (load_rule(again).learning_rate, load_rule(again).scope) == (0.5, "tensor")

    written = []
    monkeypatch.setattr(
        video, "write_video", lambda *args, **kwargs: written.append((args, kwargs))
    )
    picture = tmp_path / "new" / "episode.gif"
    words = ("watch", best, "--out", picture, "--num-steps", 2, "--fps", 7)
    assert run(capsys, *words).strip() == str(picture)
    ((frames, path), settings) = written[0]
    assert (len(frames), path, settings) == (3, picture, {"fps": 7})


def test_a_run_is_not_overwritten_but_resumed(capsys, tmp_path):
    train(capsys, tmp_path)
    before = load_rule(tmp_path / "last.safetensors").state_dict()
    words = ("--task", "octopus", "--env-settings", SETTINGS, "--num-lanes", 64, "--hidden", 8)
    words += ("--total-steps", 4096, "--wandb", "disabled", "--out", tmp_path)
    assert "already holds a run" in fails(capsys, "train", *words)
    train(capsys, tmp_path, "--resume")
    after = load_rule(tmp_path / "last.safetensors").state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert "seed: 0 there, 1 here" in fails(capsys, "train", *words, "--resume", "--seed", 1)


def test_bad_input_is_one_sentence(capsys, tmp_path):
    out = ("--out", tmp_path, "--wandb", "disabled")
    for words, message in (
        (("train", "--env", "HyperContol-v0", *out), "did you mean 'HyperControl-v0'?"),
        (("train", "--algo", "pppo", *out), "unknown algorithm 'pppo'; did you mean 'ppo'?"),
        (("train", "--task", "octopsu", *out), "did you mean 'octopus'?"),
        (("train", "--env-settings", "{", *out), "--env-settings must be JSON, got '{'"),
        (("train", "--env-settings", "[]", *out), "--env-settings must be a JSON object, got '[]'"),
        (("train", "--algo", "dqn", *out), "dqn needs discrete actions"),
        (("train", "--num-lanes", "0", *out), "num_lanes must be positive, got 0"),
        (
            ("train", "--agent-settings", '{"seed": 1}', *out),
            "--agent-settings must not hold 'seed', which has an option of its own",
        ),
        (("train", "--agent-settings", '{"gae": 1}', *out), "unknown setting 'gae'"),
        (("train", "--agent-settings", '{"epochs": 2.5}', *out), "epochs must be a whole number"),
        (("train", "--agent-settings", '{"gae_lambda": "1"}', *out), "must be a number, got '1'"),
        (
            ("train", "--agent-settings", '{"exploration": 1}', *out),
            "exploration must be a list of numbers, got 1",
        ),
        (
            ("train", "--agent-settings", '{"bootstrap_truncated": 1}', *out),
            "bootstrap_truncated must be true or false, got 1",
        ),
        (("eval", tmp_path / "none.safetensors"), "no weight file at"),
        (("export", tmp_path / "none"), "no checkpoint at"),
    ):
        err = fails(capsys, *words)
        assert message in err
        assert err.splitlines()[-1].startswith("learned-opt: ") and "Traceback" not in err


def test_rules_that_are_no_agents_are_refused(capsys, tmp_path):
    from learned_opt.rules.policy import PolicyRule
    from learned_opt.rules.weights import save_rule

    foreign = save_rule(PolicyRule(), tmp_path / "foreign.safetensors")
    assert "does not say what it was trained on; name it with --env" in fails(
        capsys, "eval", foreign
    )
    words = ("eval", foreign, "--env", "HyperControl-v0", "--num-lanes", 4, "--num-steps", 2)
    assert json.loads(run(capsys, *words))["policy"]["length"] == 2
    from learned_opt.rules import get_rule

    adam = save_rule(get_rule("adam"), tmp_path / "adam.safetensors")
    assert "holds the rule 'adam' and no policy" in fails(capsys, "watch", adam)
