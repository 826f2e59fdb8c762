"""Failures as one sentence and an exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import tyro

from learned_opt.errors import LearnedOptError
from learned_opt.meta.interrupts import Interrupted

EXIT_BAD_INPUT = 2
EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130


@contextmanager
def failures_in_one_sentence(program: str, *, interrupted: str = "interrupted") -> Iterator[None]:
    """Print what went wrong without a traceback, as far as it is the user's to mend, and exit.

    Args:
        program: name that the sentence begins with.
        interrupted: what is said of Ctrl-C.

    Raises:
        SystemExit: with the exit code.
    """
    try:
        yield
    except Interrupted as error:
        _fail(program, str(error), error.exit_code)
    except LearnedOptError as error:
        _fail(program, str(error), EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        _fail(program, interrupted, EXIT_INTERRUPTED)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _fail(program, "no space left on the disk; what was finished is kept", EXIT_FAILURE)
        where = f"'{error.filename}': " if error.filename else ""
        _fail(program, f"{where}{error.strerror or error}", EXIT_BAD_INPUT)


def run_script(
    main: Callable[[Any], Any], settings: type, description: str | None, *, resumes: bool = False
) -> None:
    """Run a script: its settings from the command line, its failures in one sentence.

    Args:
        main: what it does.
        settings: dataclass of its options.
        description: what `--help` says first.
        resumes: whether a second call skips what is done.
    """
    given: Any = tyro.cli(settings, description=description)
    interrupted = "interrupted"
    if resumes:
        interrupted += "; what was finished is kept, the same command goes on from there"
    with failures_in_one_sentence(Path(sys.argv[0]).name, interrupted=interrupted):
        main(given)


def _fail(program: str, sentence: str, code: int) -> NoReturn:
    print(f"{program}: {sentence}", file=sys.stderr)
    raise SystemExit(code)
