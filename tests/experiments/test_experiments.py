"""Every experiment runs in its small size and writes what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def run(script, *argv):
    return subprocess.run(
        [sys.executable, EXPERIMENTS / script, *argv], check=True, capture_output=True, text=True
    )


@pytest.mark.slow
def test_l2l_headline(tmp_path):
    out = run("l2l_headline.py", "--smoke", "--out", tmp_path).stdout
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    momentum = numbers["quadratics"]["baselines"]["momentum"]["log10 of mean"]
    assert momentum["value"][1] <= momentum["value"][0] <= momentum["value"][2]
    assert set(numbers["digits"]) == {"sigmoid", "relu"}
    assert "LSTM, seed 0" in out
    assert (tmp_path / "quadratics.png").stat().st_size > 10_000
    assert (tmp_path / "digits.png").stat().st_size > 10_000


@pytest.mark.slow
def test_hyper_control(tmp_path):
    out = run("hyper_control.py", "--smoke", "--out", tmp_path).stdout
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    for entry in numbers["results"]:
        low, high = entry["best constant, absolute step size"][1:]
        assert low <= entry["best constant, absolute step size"][0] <= high
        # What is best for each instance is at least as good as what is best for all.
        for unit in ("relative", "absolute"):
            oracle = entry[f"hindsight oracle, {unit} step size"][0]
            assert oracle <= entry[f"best constant, {unit} step size"][0]
        assert set(entry["seed 0"]) == {"policy", "state-blind", "replay", "nothing"}
    assert "fixed, absolute" in out
    assert (tmp_path / "hyper_control.png").stat().st_size > 10_000


@pytest.mark.slow
def test_saddle_escape(tmp_path):
    out = run("saddle_escape.py", "--smoke", "--out", tmp_path).stdout
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert {"perturbed_gd", "noisy_gd", "escape-0"} <= set(
        numbers["race"]["strict_saddle-10-rotated"]
    )
    assert {"strict saddle", "convex bowl"} <= set(numbers["episodes"])
    assert "kicks forbidden" in out
    assert (tmp_path / "kicks.png").stat().st_size > 10_000


@pytest.mark.slow
def test_learning_rate_dqn(tmp_path):
    run("learning_rate_dqn.py", "--smoke", "--out", tmp_path)
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert set(numbers["schedules"]) == {"constant", "cosine", "exponential", "step, halfway"}
    assert all(0 < entry["loss"][0] < 2.5 for entry in numbers["schedules"].values())
    assert set(numbers["agents"]["seed 0"]) == {"policy", "state-blind", "replay", "nothing"}
    assert (tmp_path / "learning_rate_dqn.png").stat().st_size > 10_000


@pytest.mark.slow
def test_li_malik(tmp_path):
    run("li_malik.py", "--smoke", "--out", tmp_path)
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    for found in numbers.values():
        rivals = found["mean objective"]
        # Line searches never go up; their margins are against each other's and the agent's curves.
        for name in ("conjugate gradients", "L-BFGS"):
            assert all(b <= a + 1e-9 for a, b in zip(rivals[name], rivals[name][1:], strict=False))
        best = [min(values) for values in zip(*rivals.values(), strict=True)]
        own = found["agent 0"]["mean objective"]
        margin = [b - a for a, b in zip(own, best, strict=True)]
        assert found["agent 0"]["margin of victory"] == pytest.approx(margin)
    assert (tmp_path / "li_malik.png").stat().st_size > 10_000


@pytest.mark.slow
def test_real_training(tmp_path):
    argv = ("real_training.py", "--smoke", "--rules", "hyper-control", "--out", tmp_path)
    out = run(*argv).stdout
    numbers = json.loads((tmp_path / "results.json").read_text())
    names = {"AdamW, tuned, cosine", "Adam, untuned", "hyper-control"}
    assert set(numbers["overall"]) == names
    for problem, horizon in numbers["horizons"].items():
        for name, runs in numbers["runs"][problem].items():
            length = 1 if "cosine" in name else 3
            assert [found["steps"][-1] for found in runs] == [length * horizon] * 2
        assert numbers["problems"][problem]["AdamW, tuned, cosine"]["train"] == 1
    for row in numbers["overall"].values():
        low, high = row["validation"][1:]
        assert low <= row["validation"][0] <= high
    assert "hand-overs a run" in out
    assert (tmp_path / "table.md").read_text().count("| hyper-control |") == 1 + 6
    assert (tmp_path / "real_training.png").stat().st_size > 10_000
    # Nothing is run again.
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.json")}
    run(*argv)
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.json")}


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["hyper-control", "saddle-escape"])
def test_train_zoo_agents(tmp_path, agent):
    run("train_zoo_agents.py", agent, "--total-steps", "1000", "--out", tmp_path)
    assert (tmp_path / f"{agent}.safetensors").stat().st_size > 10_000


@pytest.mark.slow
def test_untuned_race(tmp_path):
    argv = ("untuned_race.py", "--smoke", "--rules", "lstm", "--out", tmp_path)
    first = run(*argv).stdout
    numbers = json.loads((tmp_path / "results.json").read_text())
    groups = {label: entry["group"] for label, entry in numbers["tasks"].items()}
    assert groups == {
        "x2_y4_y2": "trained",
        "matrix_factorization": "trained",
        "phase_retrieval": "unseen",
    }
    for entry in numbers["tasks"].values():
        estimate, low, high = entry["ratio"]
        assert 0 < low <= estimate <= high
        newton = entry["floors"]["newton"]["ratio"][0]
        assert newton > 1  # the oracle is faster than every tuned baseline
    assert numbers["one setting"]["best overall"] in numbers["one setting"]["baselines"]
    assert "| all | 3 |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "untuned_race.png").stat().st_size > 10_000
    again = run(*argv).stdout
    # Nothing is computed twice, and nothing changes.
    assert "finished" in first
    assert "finished" not in again
    assert "floor:" not in again
    assert "one setting, " not in again
    assert json.loads((tmp_path / "results.json").read_text()) == numbers


@pytest.mark.slow
def test_diagnosis(tmp_path):
    run("diagnosis.py", "--smoke", "--out", tmp_path)
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    variance = {
        (entry["estimate"], entry["horizon"]): entry["log10 variance"]
        for entry in numbers["by horizon"]
    }
    assert variance["back-propagation", 80] > 20 > variance["ES", 80]
    assert all(entry["end"] == "finished" for entry in numbers["runs"].values())
    for name in ("meta_loss", "variance", "bias", "health_back_propagation"):
        assert 5_000 < (tmp_path / f"diagnosis_{name}.png").stat().st_size < 80_000


@pytest.mark.slow
def test_ablation(tmp_path):
    run("ablation.py", "--smoke", "--out", tmp_path)
    numbers = json.loads((tmp_path / "smoke" / "results.json").read_text())
    assert numbers["whole"]["loss"] == 1 and numbers["whole"]["steps"]["trained"] == 1
    # The radius is what this rule decides first of all.
    assert numbers["decision: radius"]["steps"]["trained"] != 1
    assert len([name for name in numbers if name.startswith("decision")]) == 12
    assert (tmp_path / "smoke" / "ablation.png").stat().st_size > 10_000


@pytest.mark.slow
def test_ways_of_training(tmp_path):
    argv = ("ways_of_training.py", "--smoke", "--out", tmp_path)
    run(*argv)
    folder = tmp_path / "smoke"
    numbers = json.loads((folder / "results.json").read_text())
    assert len(numbers["ways"]) == 4
    assert numbers["ways"]["ppo"]["mean"]["ratio"]["trained"] == pytest.approx(1)
    for found in numbers["ways"].values():
        (run_of_seed,) = found["seeds"].values()
        # What goes beyond the time given is a part of the last step.
        assert run_of_seed["clock"][-1] == run_of_seed["seconds"] >= 1.2
        assert len(run_of_seed["scores"]) >= 2 and run_of_seed["nonfinite"] == 0
    assert (folder / "table.md").read_text().count("\n") == 2 + 4
    assert (folder / "ways_of_training.png").stat().st_size > 10_000
    files = {path: path.stat().st_mtime_ns for path in folder.glob("*/*")}
    assert len(files) == 4 * 3
    run(*argv)
    assert files == {path: path.stat().st_mtime_ns for path in folder.glob("*/*")}


@pytest.mark.slow
def test_promises(tmp_path):
    run("promises.py", "--smoke", "--out", tmp_path)
    (shares,) = json.loads((tmp_path / "results.json").read_text()).values()
    # At first a step keeps what it promises, in the end noise is most of it.
    assert shares[0] > 0.7 and max(shares[2:]) < 0.5
