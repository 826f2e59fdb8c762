"""Failures: one sentence, the right exit code, no traceback."""

import errno
import sys
from dataclasses import dataclass

import pytest

from learned_opt.cli.failures import failures_in_one_sentence, run_script
from learned_opt.errors import LearnedOptError
from learned_opt.meta.interrupts import Interrupted


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (LearnedOptError("lr must be positive, got 0"), 2, "lr must be positive, got 0"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.json"), 2, "'a.json': No such file"),
        (OSError(errno.ENOSPC, "full"), 1, "no space left on the disk; what was finished is kept"),
        (
            KeyboardInterrupt(),
            130,
            "interrupted; go on with --resume",
        ),
        (Interrupted("ended after 3 steps", signal_number=15), 143, "ended after 3 steps"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(error, code, sentence, capsys):
    with (
        pytest.raises(SystemExit) as end,
        failures_in_one_sentence("race.py", interrupted="interrupted; go on with --resume"),
    ):
        raise error
    assert end.value.code == code
    assert capsys.readouterr().err == f"race.py: {sentence}\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), failures_in_one_sentence("race.py"):
        raise ZeroDivisionError


def test_a_script_gets_its_settings_and_fails_under_its_own_name(monkeypatch, capsys):
    @dataclass
    class Settings:
        num_trials: int = 64

    def main(settings):
        raise LearnedOptError(f"num_trials must be positive, got {settings.num_trials}")

    monkeypatch.setattr(sys, "argv", ["/somewhere/race.py", "--num-trials", "-3"])
    with pytest.raises(SystemExit) as end:
        run_script(main, Settings, "Race.")
    assert end.value.code == 2
    assert capsys.readouterr().err == "race.py: num_trials must be positive, got -3\n"


@pytest.mark.parametrize("resumes", [True, False])
def test_an_interrupted_script_says_whether_it_goes_on(resumes, monkeypatch, capsys):
    @dataclass
    class Settings:
        pass

    def main(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["/somewhere/race.py"])
    with pytest.raises(SystemExit) as end:
        run_script(main, Settings, "Race.", resumes=resumes)
    assert end.value.code == 130
    sentence = capsys.readouterr().err
    assert sentence.startswith("race.py: interrupted")
    assert ("goes on from there" in sentence) == resumes
