"""`LearnedOpt/CoordUpdate-v0`: the update itself, one policy shared by all coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from envs.single import OptimizationEnv
from envs.vector import OptimizationVectorEnv
from learned_opt.actuators import Actuator, CoordUpdate

_SETTINGS: Mapping[str, Any] = {"task": "strict_saddle", "learning_rate": (-2.5, -0.5)}


class CoordUpdateEnv(OptimizationEnv):
    r"""Write the step coordinate by coordinate, within a radius that is steered too.

    ## Description

    The agent is the update rule. It sees a few numbers about each of the $P$ parameters and answers
    with three for each; a policy is meant to be shared by all coordinates, so one that was trained
    on 10 parameters runs on any number. Permuting the coordinates permutes the step.

    The direction is normalised: its length is a radius that the agent steers, not a learning rate,
    so an answer has no units. Observations, rewards and the effect of an action are the same for
    $f \to a f + b$ and for $x \to c x$ (with the initial step size scaled along).

    ## Action Space

    Three numbers $(p_i, q_i, u_i) \in [-1, 1]^3$ for each coordinate $i$; values outside are
    clipped.

    {action_table}

    $$ z_i = \left( \frac{m_i}{\mathrm{rms}(m)} - 2 p_i \right) e^{\tanh q_i}, \qquad
       \ln R \leftarrow \mathrm{clip}(\ln R + \kappa \bar u), \qquad
       x_i \leftarrow x_i - R\, \frac{z_i}{\mathrm{rms}(z)} $$

    Here $m$ is the mean of the gradients at decay 0.9, this step's included, $\mathrm{rms}$ the
    root mean square over coordinates, $\bar u$ the mean of $u_i$ over coordinates and $\kappa$ the
    `gain`. The radius starts at $R = \eta_0\, \mathrm{rms}(g_0)$, the step of gradient descent, and
    stays within a factor $10^4$ of that. The weight $e^{\tanh q_i}$ lies between 0.47 and 2.14. The
    action 0 is normalised momentum, so training starts from an optimizer that works.

    ## Observation Space

    One row of numbers for each coordinate; the last six, from `gradient growth` on, are about the
    whole and the same in every row. "Over its root mean square" is over the coordinates of that
    quantity. Values are clipped to their ranges; what needs a last step is 0 at the start.

    {observation_table}

    `info["opt"]` holds the gap, the best gap, the loss, the gradients paid for, the kicks (none
    here), whether the run has diverged, and the radius as `step_size`. It is for metrics and plots;
    the gap rests on the minimum, which no optimizer knows.

    ## Rewards

    The reward of a step is the rise of a potential,

    $$ r = \Phi' - \Phi, \qquad
       \Phi = -\ln\left( \frac{f - f^*}{f_0 - f^*} + \delta \right), $$

    with the loss $f$, its value at the start $f_0$, the problem's minimum $f^*$ and $\delta$ the
    `target`. Loops earn nothing, and the undiscounted return is how far the log gap has come down,
    at most $\ln(1 + 1/\delta)$, 13.8 by default. A diverged lane falls to $-\ln 10^3 - 1$, about
    -7.9, one below the lowest that any other can reach. With `best_so_far=True` the best loss so
    far is scored, so that a temporary rise costs nothing.

    ## Starting State

    A problem is drawn from a pool of `num_instances` instances of the task, with the starting point
    that the instance prescribes. The initial step size, which sets the first radius, is
    $\eta_0 = 10^U / L$ with $U$ uniform in `learning_rate` and $L$ the task's typical curvature. A
    seed names a stream of episodes: `reset(seed=s)` starts its first, `reset()` the next.

    ## Episode End

    {episode_end}

    ## Arguments

    {arguments}

    ```python
    import envs
    import gymnasium

    env = gymnasium.make("LearnedOpt/CoordUpdate-v0", task="rosenbrock", learning_rate=(-2, -1))
    observation, info = env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    ```

    ## Vectorized environment

    {vectorized_environment}

    ## Version History

    - v0: initial version.

    ## References

    - Li and Malik 2017, "Learning to optimize neural nets" (arXiv:1703.00441), for a policy shared
      over coordinates.
    - Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient descent"
      (arXiv:1606.04474).
    """

    actuator_class: ClassVar[type[Actuator]] = CoordUpdate
    default_settings = _SETTINGS


class CoordUpdateVectorEnv(OptimizationVectorEnv):
    """Many lanes of `CoordUpdateEnv`."""

    actuator_class: ClassVar[type[Actuator]] = CoordUpdate
    default_settings = _SETTINGS
