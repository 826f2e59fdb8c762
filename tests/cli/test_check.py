"""Bundled weights keep what their headers promise, and others are found out."""

import json

import pytest

from learned_opt.cli.main import main
from learned_opt.meta.presets import SCORE
from learned_opt.rules.base import get_rule
from learned_opt.rules.weights import load_rule, read_metadata, save_rule


@pytest.mark.slow
def test_all_bundled_weights_score_what_they_claim(capsys):
    main(["check"])
    shown = capsys.readouterr().out
    for name in (
        "lstm",
        "rnnprop",
        "mlp-lopt",
        "residual",
        "learnable-adam",
        "small-fc",
        "controller",
        "hyper-control",
        "saddle-escape",
    ):
        assert name in shown


def test_a_claim_that_is_wrong_is_found_out(tmp_path, capsys):
    claimed = json.loads(read_metadata("lstm")["scores"])[SCORE] - 0.5
    path = save_rule(load_rule("lstm"), tmp_path / "boast.safetensors", metadata={
        "scores": {SCORE: claimed},
    })  # fmt: skip
    with pytest.raises(SystemExit):
        main(["check", str(path)])
    shown = capsys.readouterr()
    assert f"{claimed:.4f}" in shown.out
    assert "scores differ by more than 0.02" in shown.err and "boast" in shown.err


def test_weights_without_a_score_cannot_be_checked(tmp_path, capsys):
    path = save_rule(get_rule("lstm", hidden_size=2), tmp_path / "quiet.safetensors")
    with pytest.raises(SystemExit):
        main(["check", str(path)])
    assert "no score that can be checked" in capsys.readouterr().err
