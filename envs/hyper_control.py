"""`LearnedOpt/HyperControl-v0`: step size, momentum and noise, turned while the run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from envs.single import OptimizationEnv
from envs.vector import OptimizationVectorEnv
from learned_opt.actuators import Actuator, HyperControl

_SETTINGS: Mapping[str, Any] = {"task": "rippled_quadratic", "learning_rate": (-2.5, 0.5)}


class HyperControlEnv(OptimizationEnv):
    r"""Turn the step size, momentum and noise of a heavy ball while it minimises a function.

    ## Description

    A heavy ball rolls over the surface of a problem with $P$ parameters, and the agent turns three
    knobs before each of its steps: the step size $\eta$, the momentum $\beta$ and the size $\sigma$
    of the noise. Problems are instances of a task, `{task}` by default; the step size at the start
    is off by decades, so the first thing to learn is to find a good one.

    Nothing that the agent sees or does has a unit: observations, rewards and the effect of an
    action are the same for $f \to a f + b$ and for $x \to c x$ (with the initial step size scaled
    along). What is learned on one scale works on any other.

    ## Action Space

    Three numbers $u \in [-1, 1]^3$; values outside are clipped.

    {action_table}

    They move the controls by at most $\kappa$ e-folds (the `gain`), then the ball makes its step:

    $$ \ell \leftarrow \mathrm{clip}(\rho\, \ell + \kappa u_0, \pm \ln 10^4), \qquad
       \eta = \eta_0 e^{\ell} $$

    $$ \mathrm{logit}\, \beta \leftarrow \mathrm{logit}\, \beta + \kappa u_1, \quad
       \beta \in [0.01, 0.999], \qquad
       \sigma = e^{5 u_2 - 5} \in [e^{-10}, 1] $$

    $$ m \leftarrow \beta m + g, \qquad
       x \leftarrow x - \eta \left( m - \sigma\, \bar g\, \xi / \sqrt P \right) $$

    where $g$ is the gradient, $\bar g$ a running mean of its norm at decay 0.9 and $\xi$ standard
    normal: at $\sigma = 1$ the noise is as long as a gradient step. The anchor $\rho$ lets the step
    size forget its way back to the initial one. The action $(0, 0, -1)$ is gradient descent with
    momentum, its noise $4.5 \cdot 10^{-5}$ of the gradient. With `actuator={"noise": False}` the
    third number and its observation are absent.

    ## Observation Space

    What the last step did, in cosines, ratios and counts; then the controls. Values are clipped to
    their ranges. Everything about steps is 0 at the start, where none has been made; only the
    persistence, with no momentum yet, is at its least.

    {observation_table}

    `info["opt"]` holds the gap, the best gap, the loss, the gradients paid for, the kicks (none
    here), whether the run has diverged, and the controls. It is for metrics and plots; the gap
    rests on the minimum, which no optimizer knows.

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
    that the instance prescribes. The initial step size is $\eta_0 = 10^U / L$ with $U$ uniform in
    `learning_rate` and $L$ the task's typical curvature; momentum is 0.9 and the ball at rest. A
    seed names a stream of episodes: `reset(seed=s)` starts its first, `reset()` the next.

    ## Episode End

    {episode_end}

    ## Arguments

    {arguments}

    ```python
    import envs
    import gymnasium

    env = gymnasium.make("LearnedOpt/HyperControl-v0", task="octopus", actuator={"gain": 0.5})
    observation, info = env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    ```

    ## Vectorized environment

    {vectorized_environment}

    ## Version History

    - v0: initial version.

    ## References

    - Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient descent"
      (arXiv:1606.04474).
    - Almeida et al. 2021, "A generalizable approach to learning optimizers" (arXiv:2106.00958), for
      unit-free observations and multiplicative control.
    - Ng, Harada and Russell 1999, "Policy invariance under reward transformations", for rewards
      that are differences of a potential.
    """

    actuator_class: ClassVar[type[Actuator]] = HyperControl
    default_settings = _SETTINGS


class HyperControlVectorEnv(OptimizationVectorEnv):
    """Many lanes of `HyperControlEnv`."""

    actuator_class: ClassVar[type[Actuator]] = HyperControl
    default_settings = _SETTINGS
