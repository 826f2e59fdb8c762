"""learned_opt: optimizers that are learned."""
