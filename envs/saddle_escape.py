"""`LearnedOpt/SaddleEscape-v0`: when to kick, how hard, when to speed up, when to go back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from envs.single import OptimizationEnv
from envs.vector import OptimizationVectorEnv
from learned_opt.actuators import Actuator, SaddleEscape

_SETTINGS: Mapping[str, Any] = {
    "task": "strict_saddle",
    "learning_rate": (-1.5, -0.5),
    "gap_unit": "saddle",
    "best_so_far": True,
    "kick_cost": 0.02,
}


class SaddleEscapeEnv(OptimizationEnv):
    r"""Choose, step by step: continue, speed up, brake, kick or go back.

    ## Description

    A heavy ball starts near a saddle, where gradients are small and a downhill direction hides
    among uphill ones. The agent presses one of nine buttons before each step. A kick in the right
    place saves hundreds of steps, one in the wrong place throws away what was gained; the way back
    to the best point is open.

    Every choice costs the one gradient of its step: curvature is read off the steps themselves, so
    a trained policy runs inside any training loop. Observations and the effect of a choice are the
    same for $f \to a f + b$ and for $x \to c x$ (with the initial step size scaled along).

    ## Action Space

    One of nine choices.

    {action_table}

    With step size $\eta$, momentum $\beta$ and $s$ the length of the longest step so far (of the
    one about to be made, if that is longer), a step is
    $m \leftarrow \beta m + g$, $x \leftarrow x - \eta m$, changed by the choice as follows.

    - *continue*: nothing.
    - *accelerate*: $\eta$ times 1.41, $\mathrm{logit}\, \beta$ up by 0.35, before the step.
    - *brake*: $\eta$ halved, $\mathrm{logit}\, \beta$ down by 0.35, before the step.
    - *reset momentum*: $m = g$ in this step.
    - *kick 0.001*, *kick 0.01*, *kick 0.1*: the step, and on top of it a random direction, of
      length 0.001, 0.01 or 0.1 times $s$ on average.
    - *kick along negative curvature*: the step, and on top of it 0.1 $s$ along the direction in
      which a step has seen the most negative curvature, towards the side that is downhill. What was
      seen fades by a tenth a step.
    - *return to best*: no step but a jump to the best point so far; the momentum is lost.

    $\eta$ stays within a factor $10^4$ of its start, $\beta$ within [0.01, 0.99].

    `info["action_mask"]` says which choices are allowed. Kicks are not until `cooldown` steps have
    passed since the last one (the first is free), nor once `kick_budget` is spent; the kick along
    negative curvature not until such was seen; the return not while the best point is the current
    one. A masked choice counts as *continue*.

    ## Observation Space

    What the last step did, in cosines, ratios and counts; then the controls, the gradient's and the
    curvature's history, and the kicks. Values are clipped to their ranges. Everything about steps
    is 0 at the start, where none has been made; only the persistence, with no momentum yet, is at
    its least.

    {observation_table}

    `info["opt"]` holds the gap, the best gap, the loss, the gradients paid for, the kicks made,
    whether the run has diverged, step size and momentum. It is for metrics and plots; the gap rests
    on the minimum, which no optimizer knows.

    ## Rewards

    The reward of a step is the rise of a potential, less the price $c$ of a kick if one was made,

    $$ r = \Phi' - \Phi - c\, [\text{kick}], \qquad
       \Phi = -\ln\left( \frac{\min_t f_t - f^*}{f_s - f^*} + \delta \right), $$

    with the best loss so far $\min_t f_t$ (the current one with `best_so_far=False`), its value
    $f_s$ at the saddle or plateau that the problem starts at (at the start $f_0$ with
    `gap_unit="start"`), the problem's minimum $f^*$, $\delta$ the `target` and $c$ the `kick_cost`.
    A temporary rise costs nothing, coming down to the saddle earns only the logarithm of how far
    above it the start lies, and the undiscounted return is how far the best log gap has come down,
    less the kicks. A diverged lane falls to one below the potential of a gap a thousand times that
    of the start.

    ## Starting State

    A problem is drawn from a pool of `num_instances` instances of the task, with the starting point
    that the instance prescribes, which for saddles lies close to one. The initial step size is
    $\eta_0 = 10^U / L$ with $U$ uniform in `learning_rate` and $L$ the task's typical curvature;
    momentum is 0.9, the ball at rest and a kick allowed at once. A seed names a stream of episodes:
    `reset(seed=s)` starts its first, `reset()` the next.

    ## Episode End

    {episode_end}

    ## Arguments

    {arguments}

    ```python
    import envs
    import gymnasium

    env = gymnasium.make("LearnedOpt/SaddleEscape-v0", task="octopus", actuator={"cooldown": 4})
    observation, info = env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    ```

    ## Vectorized environment

    {vectorized_environment}

    ## Version History

    - v0: initial version.

    ## References

    - Jin et al. 2017, "How to escape saddle points efficiently" (arXiv:1703.00887), for kicks where
      the gradient is small.
    - Du et al. 2017, "Gradient descent can take exponential time to escape saddle points"
      (arXiv:1705.10412).
    - Huang and Ontañón 2022, "A closer look at invalid action masking in policy gradient
      algorithms" (arXiv:2006.14171).
    """

    actuator_class: ClassVar[type[Actuator]] = SaddleEscape
    default_settings = _SETTINGS


class SaddleEscapeVectorEnv(OptimizationVectorEnv):
    """Many lanes of `SaddleEscapeEnv`."""

    actuator_class: ClassVar[type[Actuator]] = SaddleEscape
    default_settings = _SETTINGS
