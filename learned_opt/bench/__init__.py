"""Racing rules: suites, tuning, the runner, event times, statistics, results."""
