"""Bundled weights, named by the stem of their file, each with a model card beside it."""
