"""A checker for vector environments, what `gymnasium.utils.env_checker` is for single ones."""

from envs.testing.checker import check_vector_env as check_vector_env
