"""Entry point: parse and run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from typing import Annotated, NoReturn

import tyro

from learned_opt.cli.bench import Bench
from learned_opt.cli.check import Check
from learned_opt.cli.diagnose import Diagnose
from learned_opt.cli.failures import failures_in_one_sentence
from learned_opt.cli.list import List
from learned_opt.cli.report import Report
from learned_opt.cli.rl import Rl
from learned_opt.cli.run import Run
from learned_opt.cli.train import Train

Command = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Diagnose, tyro.conf.subcommand("diagnose")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Rl, tyro.conf.subcommand("rl")]
    | Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[List, tyro.conf.subcommand("list")]
)

INTERRUPTED = (
    "interrupted; what was finished is kept, the same command goes on from there (train: with "
    "--resume)"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.

    Args:
        argv: arguments without the program's name; None takes them from the process.
    """
    # tyro types a union of commands as object.
    command: Run | Train | Diagnose | Bench | Report | Rl | Check | List = tyro.cli(
        Command,  # type: ignore[arg-type]
        prog="learned-opt",
        description="Optimizers that are learned: train them, race them, look at them.",
        args=argv,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if threading.current_thread() is threading.main_thread():
        # What Ctrl-C does, a polite kill does too: workers end, finished work stays.
        signal.signal(signal.SIGTERM, _interrupt)
    with failures_in_one_sentence("learned-opt", interrupted=INTERRUPTED):
        command.main()


def _interrupt(number: int, frame: object) -> NoReturn:
    del number, frame
    raise KeyboardInterrupt
