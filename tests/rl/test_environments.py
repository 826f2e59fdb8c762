"""stable-baselines3 accepts the environments."""

import warnings

import gymnasium as gym
import pytest
from stable_baselines3.common.env_checker import check_env


@pytest.mark.parametrize("name", ["HyperControl", "SaddleEscape", "LearningRate"])
def test_the_checker_of_stable_baselines3_is_silent(name):
    env = gym.make(f"envs:LearnedOpt/{name}-v0", num_instances=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_observations_for_each_coordinate_are_a_matrix_on_purpose():
    env = gym.make("envs:LearnedOpt/CoordUpdate-v0", num_instances=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # One row a coordinate: the adapter shows each of them as an agent of its own.
        warnings.filterwarnings("ignore", message=".*unconventional shape.*")
        check_env(env.unwrapped)
