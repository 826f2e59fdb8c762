"""The command line: ``learned-opt run | train | bench | report | list``."""

from learned_opt.cli.main import main as main
