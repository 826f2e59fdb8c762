"""What finished results look like: an offline HTML page, static figures, W&B runs.

Everything here reads `learned_opt.bench.results.Results`, or for `health` and `diagnosis` what a
meta-training or `learned_opt.meta.diagnosis` left, and nothing else; no rule is run.
"""
