"""A run that is stopped, in whatever way, and resumed ends like one that never was."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from learned_opt.errors import LearnedOptError
from learned_opt.meta.checkpoint import read_checkpoint, require_same_settings, write_checkpoint
from learned_opt.meta.config import TrainConfig
from learned_opt.meta.horizons import Fixed, LogUniform
from learned_opt.meta.interrupts import Interrupted, deferred_signals
from learned_opt.meta.trainer import meta_train
from learned_opt.rules.classic import SGD
from learned_opt.rules.lstm import CoordinatewiseLSTM
from learned_opt.rules.weights import load_rule, read_metadata
from learned_opt.tasks.quadratics import RandomQuadratic

TASKS = [RandomQuadratic(dim=3), RandomQuadratic(dim=2)]
CONFIG = TrainConfig(
    num_outer_steps=14,
    num_problems=4,
    truncation=3,
    horizon=LogUniform(3, 12),
    random_scaling=1.0,
    evaluate_every=4,
    num_eval_problems=5,
    log_every=3,
    averaging=0.2,
    checkpoint_seconds=0.0,
)

CHILD = f"""
import sys
import torch
torch.set_num_threads(1)
from learned_opt.meta.config import TrainConfig
from learned_opt.meta.horizons import LogUniform
from learned_opt.meta.interrupts import Interrupted
from learned_opt.meta.trainer import meta_train
from learned_opt.rules.lstm import CoordinatewiseLSTM
from learned_opt.tasks.quadratics import RandomQuadratic

def report(done, total, note):
    print(done, flush=True)
    if done == 6:
        sys.stdin.read()  # until the signal is sent

try:
    meta_train(
        CoordinatewiseLSTM(hidden_size=4),
        [RandomQuadratic(dim=3), RandomQuadratic(dim=2)],
        config={CONFIG!r},
        out=sys.argv[1],
        on_progress=report,
    )
except Interrupted as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def lstm():
    return CoordinatewiseLSTM(hidden_size=4)


def train(out, *, rule=None, config=CONFIG, **options):
    rule = rule or lstm()
    result = meta_train(rule, TASKS, config=config, out=out, **options)
    return rule, result


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nothing stopped."""
    return train(tmp_path_factory.mktemp("reference"))


def assert_same_weights(rule, other):
    for k, v in rule.state_dict().items():
        assert torch.equal(v, other.state_dict()[k])


def assert_same_run(run, reference):
    (rule, result), (other, other_result) = run, reference
    assert_same_weights(rule, other)
    for name in ("best", "last"):
        file, other_file = getattr(result, name), getattr(other_result, name)
        assert_same_weights(load_rule(file), load_rule(other_file))
        assert read_metadata(file) == read_metadata(other_file)
    assert result.history.read_bytes() == other_result.history.read_bytes()
    assert (result.best_score, result.best_step, result.last_score) == (
        other_result.best_score,
        other_result.best_step,
        other_result.last_score,
    )


class Stop(Exception):
    pass


def stop_at(step):
    def on_progress(done, total, note):
        del total, note
        if done == step:
            raise Stop

    return on_progress


@pytest.mark.parametrize("step", [1, 4, 9, 13, 14])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, reference, step):
    with pytest.raises(Stop):
        train(tmp_path, on_progress=stop_at(step))
    assert_same_run(train(tmp_path, resume=True), reference)


def test_steps_after_the_checkpoint_are_done_again(tmp_path, reference):
    with pytest.raises(Stop):
        train(tmp_path, on_progress=stop_at(5))
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(Stop):
        train(tmp_path, on_progress=stop_at(11), resume=True)
    (tmp_path / "checkpoint.pt").write_bytes(kept)  # as if nothing had been saved since step 5
    assert_same_run(train(tmp_path, resume=True), reference)


def test_how_often_to_save_may_change_and_changes_nothing(tmp_path, reference):
    rarely = replace(CONFIG, checkpoint_seconds=3600.0)
    with pytest.raises(Stop):
        train(tmp_path, on_progress=stop_at(5))
    rule, result = train(tmp_path, resume=True, config=rarely)
    assert_same_weights(rule, reference[0])
    assert result.best_score == reference[1].best_score


def test_a_finished_run_is_not_trained_further(tmp_path, reference):
    train(tmp_path)
    calls = []
    run = train(tmp_path, resume=True, on_progress=lambda *args: calls.append(args))
    assert not calls
    assert_same_run(run, reference)


def test_resume_without_a_checkpoint_starts(tmp_path, reference):
    assert_same_run(train(tmp_path / "new" / "folder", resume=True), reference)


def test_a_hand_made_rule_resumes_from_its_trained_theta(tmp_path):
    whole, _ = train(tmp_path / "whole", rule=SGD(learning_rate=0.01))
    with pytest.raises(Stop):
        train(tmp_path / "cut", rule=SGD(learning_rate=0.01), on_progress=stop_at(6))
    # the learning rate given now is a start, and this run is past it
    resumed, _ = train(tmp_path / "cut", rule=SGD(learning_rate=0.5), resume=True)
    assert torch.equal(resumed.learning_rate, whole.learning_rate)


def test_killed_processes_go_on_bit_for_bit(tmp_path, reference):
    numbers = (signal.SIGKILL, signal.SIGTERM)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path / number.name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for number in numbers
    ]
    for number, child in zip(numbers, children, strict=True):
        with child:
            for line in child.stdout:
                if int(line) == 6:
                    child.send_signal(number)
                    break
            _, message = child.communicate(timeout=60)
        out = tmp_path / number.name
        saved = read_checkpoint(out / "checkpoint.pt")
        if number == signal.SIGKILL:
            assert child.returncode == -number
            assert 5 <= saved["step"] < CONFIG.num_outer_steps
        else:
            assert child.returncode == 128 + number
            assert f"interrupted after {saved['step']} of 14 outer steps" in message
            assert "resume (--resume) goes on from there" in message
        assert_same_run(train(out, resume=True), reference)


def test_a_signal_is_obeyed_after_the_step_and_handlers_come_back(tmp_path, reference):
    former = signal.getsignal(signal.SIGTERM)
    rarely = replace(CONFIG, checkpoint_seconds=3600.0)

    def on_progress(done, total, note):
        del total, note
        if done == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="interrupted after 7 of 14 outer steps") as caught:
        train(tmp_path, config=rarely, on_progress=on_progress)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is former
    rule, _ = train(tmp_path, config=rarely, resume=True)
    assert_same_weights(rule, reference[0])


@pytest.fixture
def _interrupts():
    """A shell starts background jobs with SIGINT ignored; Ctrl-C as a terminal sends it."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("_interrupts")
def test_a_second_interrupt_ends_the_block_at_once():
    def press():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt), deferred_signals() as received:
        press()
        assert received() == signal.SIGINT
        press()


def test_other_threads_train_without_handlers(tmp_path, reference):
    runs = []
    thread = threading.Thread(target=lambda: runs.append(train(tmp_path)))
    thread.start()
    thread.join()
    assert_same_run(runs[0], reference)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    train(tmp_path)
    with pytest.raises(LearnedOptError, match=r"already holds a run; resume .--resume. goes on"):
        train(tmp_path)


def test_other_settings_are_refused(tmp_path):
    train(tmp_path)
    other = replace(CONFIG, learning_rate=1.0, horizon=Fixed(3))
    with pytest.raises(LearnedOptError) as caught:
        train(tmp_path, config=other, resume=True)
    assert "learning_rate: 0.003 there, 1.0 here" in str(caught.value)
    assert "horizon: {'kind': 'LogUniform'" in str(caught.value)
    assert "truncation" not in str(caught.value)
    with pytest.raises(LearnedOptError, match="rule: 'lstm' there, 'sgd' here"):
        train(tmp_path, rule=SGD(), resume=True)
    with pytest.raises(LearnedOptError, match=r"rule_config\.hidden_size: 4 there, 5 here"):
        train(tmp_path, rule=CoordinatewiseLSTM(hidden_size=5), resume=True)
    with pytest.raises(LearnedOptError, match=r"dims: \[3, 2\] there, \[3\] here"):
        meta_train(lstm(), TASKS[0], config=CONFIG, out=tmp_path, resume=True)


def test_a_sweep_of_another_size_is_refused(tmp_path):
    config = replace(CONFIG, num_eval_problems=4)
    train(tmp_path, rule=SGD(learning_rate=torch.full((4,), 0.01)), config=config)
    with pytest.raises(LearnedOptError, match="holds weights of other shapes than rule 'sgd'"):
        train(tmp_path, rule=SGD(learning_rate=0.01), config=config, resume=True)


def test_damaged_checkpoints_are_refused(tmp_path):
    train(tmp_path)
    path = tmp_path / "checkpoint.pt"
    good = path.read_bytes()
    middle = len(good) // 2
    for bad in (
        b"",
        b"nonsense",
        good[:middle],
        good[:middle] + b"\xff" * 512 + good[middle + 512 :],
    ):
        path.write_bytes(bad)
        with pytest.raises(LearnedOptError, match="is damaged or not a checkpoint"):
            train(tmp_path, resume=True)
    torch.save({"something": 1}, path)
    with pytest.raises(LearnedOptError, match="is of another kind or version"):
        train(tmp_path, resume=True)


def test_a_shortened_history_is_refused(tmp_path):
    train(tmp_path)
    (tmp_path / "history.jsonl").write_text("")
    with pytest.raises(LearnedOptError, match="has 0 bytes where the checkpoint expects"):
        train(tmp_path, resume=True)


def test_nothing_is_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("unpickled",)

    torch.save({"format": "x", "evil": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(LearnedOptError, match="is damaged or not a checkpoint"):
        read_checkpoint(tmp_path / "evil.pt")


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        write_checkpoint(path, {"step": lambda: 2})
    assert read_checkpoint(path) == {"step": 1}


def test_layouts_survive(tmp_path):
    transposed = torch.arange(12.0).reshape(3, 4).t()
    write_checkpoint(tmp_path / "c.pt", {"tensor": transposed})
    assert read_checkpoint(tmp_path / "c.pt")["tensor"].stride() == transposed.stride()


def test_a_run_of_a_rule_that_saw_something_else_is_not_gone_on_with(tmp_path, monkeypatch):
    """Its state may not even fit, such as after a change of an actuator."""
    train(tmp_path)
    monkeypatch.setattr(CoordinatewiseLSTM, "feature_schema", "another")
    with pytest.raises(LearnedOptError, match=r"feature_schema: '[0-9a-f]+' there, 'another' here"):
        train(tmp_path, resume=True)
    # One from before this was noted is taken as it is.
    content = read_checkpoint(tmp_path / "checkpoint.pt")
    del content["settings"]["feature_schema"]
    write_checkpoint(tmp_path / "checkpoint.pt", content)
    train(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("saved", "current", "said"),
    [
        ({"seed": 1}, {"seed": 2}, "(seed: 1 there, 2 here)"),
        ({"seed": 1}, {"dims": [2]}, "(seed: 1 there, None here; dims: None there, [2] here)"),
        ({"rule": {"a": 1}}, {"rule": {"a": 2}}, "(rule: {'a': 1} there, {'a': 2} here)"),
        (
            {"rule": {"a": "a" * 99, "b": 2}},
            {"rule": {"a": "a" * 99, "b": 3}},
            "(rule.b: 2 there, 3 here)",
        ),
        ({"dims": list(range(99))}, {"dims": [0]}, "(dims: 99 of them there, 1 here)"),
        (
            {"losses": [["1", "2"], ["3", "4"], ["5"], *[["9"]] * 20]},
            {"losses": [["1", "2"], ["3", "6"], ["7"], *[["9"]] * 20]},
            "(losses[1]: ['3', '4'] there, ['3', '6'] here)",
        ),
    ],
)
def test_a_refusal_to_go_on_names_what_differs_and_no_more(saved, current, said):
    require_same_settings(Path("c.pt"), current, current)
    with pytest.raises(LearnedOptError) as raised:
        require_same_settings(Path("c.pt"), saved, current)
    assert (
        str(raised.value) == f"checkpoint 'c.pt' was made with other settings {said}; cannot resume"
    )
