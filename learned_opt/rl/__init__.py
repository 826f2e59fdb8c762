"""Agents on the environments: training with stable-baselines3, evaluation, export to a rule."""
