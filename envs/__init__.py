"""Gymnasium environments in which agents learn to optimize."""
