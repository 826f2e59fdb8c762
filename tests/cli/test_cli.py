"""The command line: what it prints and writes, and one clear sentence for every wrong input."""

import errno
import json

import pytest

from learned_opt.bench import runner
from learned_opt.cli.main import main
from learned_opt.meta.horizons import Curriculum, Fixed, LogUniform
from learned_opt.rules.weights import read_metadata

TINY_BENCH = (
    "--num-instances", "2", "--num-tuning-instances", "2", "--tuning-trials", "0", "2",
    "--budget-scale", "0.05", "--wandb", "disabled",
)  # fmt: skip


def run(*argv):
    """Exit code of a command; 0 if it returns."""
    try:
        main([str(a) for a in argv])
    except SystemExit as stop:
        return stop.code or 0
    return 0


def sentence(capsys):
    return " ".join(capsys.readouterr().err.split())


def test_list_shows_every_task_rule_and_suite(capsys):
    assert run("list", "tasks") == 0
    out = capsys.readouterr().out
    for word in ("octopus", "strict_saddle", "digits_mlp", "saddle", "plateau", ">= 0"):
        assert word in out
    assert run("list", "rules") == 0
    assert "perturbed_gd" in capsys.readouterr().out
    assert run("list", "suites") == 0
    assert "plateau-core" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["run", "train", "diagnose", "bench", "report", "list"])
def test_help_names_the_shared_options(command, capsys):
    assert run(command, "--help") == 0
    out = capsys.readouterr().out
    for option in ("--seed", "--device", "--threads", "--out"):
        if command == "list" and option == "--out":
            continue
        assert option in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("bench", "sadle-core"), "unknown suite 'sadle-core'; did you mean 'saddle-core'?"),
        (("bench", "quick", "--rules", "adm"), "did you mean 'adam'?"),
        (("bench", "quick", "--workers", "0"), "workers must be positive, got 0"),
        (("bench", "quick", "--num-instances", "0"), "num_instances must be positive, got 0"),
        (("bench", "quick", "--device", "warp"), "--device 'warp' cannot be used"),
        (("train", "lstm", "--tasks", "octopsu"), "did you mean 'octopus'?"),
        (("train", "lstm", "--learning-rate", "-1"), "learning_rate must be positive, got -1"),
        (("train", "lstm", "--threads", "0"), "--threads must be at least 1, got 0"),
        (("train", "lstm", "--seed", "-1"), "--seed must not be negative, got -1"),
        (("train", "lstm", "--objective", "lgo_gap"), "did you mean 'log_gap'?"),
        (("train", "lstm", "--horizon", "1", "2", "3"), "--horizon takes one or two numbers"),
        (
            ("train", "lstm", "--horizon", "0"),
            "--horizon takes positive numbers of steps, got (0,)",
        ),
        (
            ("train", "lstm", "--curriculum", "9", "0"),
            "--curriculum takes positive numbers of steps",
        ),
        (("report", "no/such/folder"), "no/such/folder"),
        (("diagnose", "no/such/folder"), "'no/such/folder' holds no history.jsonl"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(argv, message, capsys, tmp_path):
    out = () if argv[0] in {"list", "report", "diagnose"} else ("--out", tmp_path / "out")
    assert run(*argv, *out) == 2
    err = sentence(capsys)
    assert message in err
    assert "Traceback" not in err


def test_bench_writes_results_page_and_figures_and_resumes(tmp_path, capsys):
    out = tmp_path / "race"
    argv = ("bench", "quick", "--rules", "adam", "sgd", "--out", out, *TINY_BENCH)
    assert run(*argv) == 0
    table = capsys.readouterr().out
    assert "adam" in table
    assert "report.html" in table
    assert (out / "report.html").stat().st_size > 1e6
    assert (out / "leaderboard.png").read_bytes()[:4] == b"\x89PNG"
    shards = {p: p.stat().st_mtime_ns for p in out.glob("*.parquet")}
    assert len(shards) >= 12
    assert run(*argv) == 0
    assert shards == {p: p.stat().st_mtime_ns for p in out.glob("*.parquet")}
    capsys.readouterr()
    assert run("report", out, "--out", out / "again.html", "--markdown", out / "table.md") == 0
    assert (out / "again.html").exists()
    header, rule, *lines = (out / "table.md").read_text().splitlines()
    assert header.count("|") == rule.count("|") == lines[0].count("|") >= 8
    assert {line.split(" ")[1] for line in lines} == {"adam", "sgd"}


def test_ctrl_c_keeps_finished_work_and_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    out = tmp_path / "race"
    finished = []
    real = runner.run_unit

    def interrupted(unit, folder):
        if len(finished) == 3:
            raise KeyboardInterrupt
        real(unit, folder)
        finished.append(unit)

    monkeypatch.setattr(runner, "run_unit", interrupted)
    argv = ("bench", "quick", "--rules", "sgd", "--out", out, *TINY_BENCH)
    assert run(*argv) == 130
    assert "interrupted" in sentence(capsys)
    kept = set(out.glob("runs-*.parquet"))
    assert len(kept) == 3
    monkeypatch.undo()
    assert run(*argv) == 0
    assert kept < set(out.glob("runs-*.parquet"))


def test_full_disk_is_one_sentence(tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    argv = ("bench", "quick", "--rules", "sgd", "--out", tmp_path / "race", *TINY_BENCH)
    assert run(*argv) != 0
    err = sentence(capsys)
    assert "space" in err
    assert "Traceback" not in err


def test_corrupt_weights_are_refused(tmp_path, capsys):
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes(b"not weights at all")
    assert run("bench", "quick", "--rules", weights, "--out", tmp_path / "o", *TINY_BENCH) == 2
    assert "mine.safetensors" in sentence(capsys)


def test_results_of_another_version_are_refused(tmp_path, capsys):
    out = tmp_path / "race"
    assert run("bench", "quick", "--rules", "sgd", "--out", out, *TINY_BENCH) == 0
    record = json.loads((out / "benchmark.json").read_text())
    record["format_version"] = 999
    (out / "benchmark.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert run("report", out) == 2
    assert "999" in sentence(capsys)


def test_train_writes_weights_that_load_and_resumes(tmp_path, capsys):
    out = tmp_path / "train"
    argv = (
        "train", "lstm", "--tasks", "random_quadratic", "--num-outer-steps", "4",
        "--num-problems", "4", "--horizon", "20", "--wandb", "disabled", "--out", out,
    )  # fmt: skip
    assert run(*argv) == 0
    assert capsys.readouterr().out.strip() == str(out / "best.safetensors")
    assert run(*argv) == 2
    assert "already holds a run" in sentence(capsys)
    assert run(*argv, "--resume") == 0


def test_a_curriculum_comes_before_the_horizon(tmp_path):
    argv = (
        "train", "lstm", "--tasks", "random_quadratic", "--num-outer-steps", "2",
        "--num-problems", "4", "--curriculum", "20", "40", "--horizon", "60", "80",
        "--wandb", "disabled", "--out", tmp_path,
    )  # fmt: skip
    assert run(*argv) == 0
    made = json.loads(read_metadata(tmp_path / "best.safetensors")["training"])["horizon"]
    assert made == Curriculum((Fixed(20), Fixed(40), LogUniform(60, 80))).config()


def test_diagnose_names_symptoms_and_draws_them(tmp_path, capsys):
    out = tmp_path / "train"
    argv = (
        "train", "lstm", "--tasks", "random_quadratic", "--num-outer-steps", "20",
        "--num-problems", "4", "--horizon", "20", "--learning-rate", "3",
        "--wandb", "disabled", "--out", out,
    )  # fmt: skip
    assert run(*argv) == 0
    capsys.readouterr()
    assert run("diagnose", out) == 0
    said = capsys.readouterr().out
    assert "held-out score never better than before training" in said
    assert "try: " in said
    assert said.splitlines()[-1] == str(out / "health.png")
    assert (out / "health.png").read_bytes()[:4] == b"\x89PNG"
    assert run("diagnose", out, "--out", tmp_path / "deep" / "mine.png") == 0
    assert (tmp_path / "deep" / "mine.png").exists()
