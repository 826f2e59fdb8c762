"""The outer loop: meta-gradients and the training of rules."""
