"""`LearnedOpt/LearningRate-v0`: the learning rate of a real network, up, down or kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from envs.single import OptimizationEnv
from envs.vector import OptimizationVectorEnv
from learned_opt.actuators import Actuator, LearningRate

_SETTINGS: Mapping[str, Any] = {
    "task": "digits_mlp",
    "learning_rate": (-2.0, 0.5),
    "num_instances": 256,
    "target": 1e-3,
}


class LearningRateEnv(OptimizationEnv):
    r"""Turn the learning rate of a network's training up or down, or keep it.

    ## Description

    A small perceptron learns handwritten digits by stochastic gradient descent, 128 examples a
    step, and the agent moves its learning rate by one notch at a time. It is the oldest of these
    games and the closest to what people do by hand. Unlike its model, Fu et al. 2016, whose agents
    add or subtract 0.005, a notch here is a factor, which fits any scale.

    Gradients and the loss that the agent sees come from minibatches; the reward is counted on all
    training data, so luck with a batch earns nothing.

    ## Action Space

    One of three choices.

    {action_table}

    *Up* multiplies the learning rate $\eta$ by `factor`, *down* divides it, within a factor $10^4$
    of the initial one; then $m \leftarrow \mu m + g$, $x \leftarrow x - \eta m$ with the fixed
    `momentum` $\mu$.

    ## Observation Space

    What the last step did, in cosines, ratios and counts; then the control. Values are clipped to
    their ranges. Everything about steps is 0 at the start, where none has been made; only the
    persistence, with no momentum yet, is at its least.

    {observation_table}

    `info["opt"]` holds the gap, the best gap, the loss, the gradients paid for, the kicks (none
    here), whether the run has diverged, and the learning rate as `step_size`. It is for metrics and
    plots: gaps and losses are those on all training data.

    ## Rewards

    The reward of a step is the rise of a potential,

    $$ r = \Phi' - \Phi, \qquad
       \Phi = -\ln\left( \frac{f - f^*}{f_0 - f^*} + \delta \right), $$

    with the loss $f$, its value at the start $f_0$, the bound $f^* = 0$ and $\delta$ the `target`.
    Loops earn nothing, and the undiscounted return is how far the log gap has come down, at most
    $\ln(1 + 1/\delta)$, 6.9 by default. A diverged lane falls to $-\ln 10^3 - 1$, about -7.9, one
    below the lowest that any other can reach. With `best_so_far=True` the best loss so far is
    scored, so that a temporary rise costs nothing.

    ## Starting State

    A problem is drawn from a pool of `num_instances` instances of the task: sets of initial weights
    of the network, on the same data. The initial learning rate is $\eta_0 = 10^U / L$ with $U$
    uniform in `learning_rate` and $L$ the task's typical curvature, 1 here. A seed names a stream
    of episodes, their minibatches included: `reset(seed=s)` starts its first, `reset()` the next.

    ## Episode End

    {episode_end}

    ## Arguments

    {arguments}

    ```python
    import envs
    import gymnasium

    env = gymnasium.make("LearnedOpt/LearningRate-v0", actuator={"momentum": 0.9})
    observation, info = env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    ```

    ## Vectorized environment

    {vectorized_environment}

    ## Version History

    - v0: initial version.

    ## References

    - Fu et al. 2016, "Deep Q-networks for accelerating the training of deep neural networks"
      (arXiv:1606.01467).
    - Daniel, Taylor and Nowozin 2016, "Learning step size controllers for robust neural network
      training" (AAAI).
    """

    actuator_class: ClassVar[type[Actuator]] = LearningRate
    default_settings = _SETTINGS


class LearningRateVectorEnv(OptimizationVectorEnv):
    """Many lanes of `LearningRateEnv`."""

    actuator_class: ClassVar[type[Actuator]] = LearningRate
    default_settings = _SETTINGS
