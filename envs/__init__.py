"""Gymnasium environments in which agents learn to optimize.

Importing this package registers ``LearnedOpt/HyperControl-v0``, ``LearnedOpt/CoordUpdate-v0``,
``LearnedOpt/SaddleEscape-v0`` and ``LearnedOpt/LearningRate-v0``, each as a single environment and
as a native vector environment::

    import envs
    import gymnasium as gym

    env = gym.make("LearnedOpt/HyperControl-v0", task="octopus")
    lanes = gym.make_vec(
        "LearnedOpt/HyperControl-v0", num_envs=1024, vectorization_mode="vector_entry_point"
    )
"""

from gymnasium.envs.registration import register, registry

_ENVIRONMENTS = {
    "HyperControl": ("hyper_control", 64),
    "CoordUpdate": ("coord_update", 40),
    "SaddleEscape": ("saddle_escape", 512),
    "LearningRate": ("learning_rate", 100),
}

for _name, (_module, _max_episode_steps) in _ENVIRONMENTS.items():
    _id = f"LearnedOpt/{_name}-v0"
    # A second import (a reload, another spelling of the module) must not warn of overriding.
    if _id not in registry:
        register(
            id=_id,
            entry_point=f"envs.{_module}:{_name}Env",
            vector_entry_point=f"envs.{_module}:{_name}VectorEnv",
            max_episode_steps=_max_episode_steps,
        )
