"""What finished results look like: an offline HTML page, static figures, W&B runs.

Everything here reads `learned_opt.bench.results.Results` and nothing else; no rule is run.
"""
