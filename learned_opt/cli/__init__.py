"""The command line: ``learned-opt run | train | diagnose | rl | bench | report | check | list``."""
