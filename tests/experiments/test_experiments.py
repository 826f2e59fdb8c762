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
def test_train_zoo_lstm(tmp_path):
    run("train_zoo_lstm.py", "--num-outer-steps", "3", "--out", tmp_path)
    assert (tmp_path / "lstm.safetensors").stat().st_size > 10_000
