r"""When a pair of inner loops gets new noise, and which noise its losses are credited to.

A pair runs with $\theta + \epsilon$ and $\theta - \epsilon$. Every estimator of this family is

$$ \hat g = \frac{1}{2 \sigma^2} \sum_t c_t \left( m_t^+ - m_t^- \right), $$

where $m_t^\pm$ is what the two say of inner step $t$. They differ in when $\epsilon$ is drawn and
in the credit $c_t$, and in nothing else. Unbiased are those whose credit is the sum of all the
noise that the episode has met so far, for that is the score of its whole past.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias, final

from torch import Tensor

Draw: TypeAlias = Callable[[int], Tensor]
"""From a number of pairs to that many independent perturbations ``[n, D]``."""


@final
@dataclass(frozen=True, kw_only=True)
class Noise:
    """The perturbations of ``P`` pairs.

    Attributes:
        current: ``[P, D]`` what is added to theta in one run and taken off in the other.
        credit: ``[P, D]`` what the losses are credited to.
    """

    current: Tensor
    credit: Tensor


class NoiseSchedule(ABC):
    """When noise is drawn and what it is credited with.

    Attributes:
        lanes: the multiples of the noise that a pair runs with. Where 0 is among them, an
            unperturbed run goes along, and all start each truncation from where that one stands.
    """

    lanes: ClassVar[tuple[int, ...]] = (1, -1)

    @abstractmethod
    def at_truncation(self, noise: Noise, draw: Draw) -> Noise:
        """The noise of all pairs when a truncation begins.

        Args:
            noise: that of the last truncation; zeros before the first.
            draw: source of new perturbations.

        Returns:
            That of this one.
        """

    @abstractmethod
    def at_episode(self, noise: Noise, fresh: Tensor, draw: Draw) -> Noise:
        """The noise of all pairs when some of them begin a fresh episode, anywhere in a truncation.

        Args:
            noise: that in force.
            fresh: positions of the pairs that begin anew.
            draw: source of new perturbations.

        Returns:
            That in force from now on.
        """


@final
@dataclass(frozen=True)
class PerTruncation(NoiseSchedule):
    """Truncated ES: fresh noise for every truncation, which alone is credited.

    All runs of a truncation start from one state, which an unperturbed run carries on (Vicol et
    al. 2021, arXiv:2112.13835, algorithm 1). What theta did before the truncation gets no credit,
    so the estimate is biased towards short-term gains, as truncated back-propagation is.
    """

    lanes: ClassVar[tuple[int, ...]] = (1, -1, 0)

    def at_truncation(self, noise: Noise, draw: Draw) -> Noise:
        """Fresh noise for all."""
        fresh = draw(len(noise.current))
        return Noise(current=fresh, credit=fresh)

    def at_episode(self, noise: Noise, fresh: Tensor, draw: Draw) -> Noise:
        """Nothing changes: the truncation's noise serves both episodes."""
        del fresh, draw
        return noise


@final
@dataclass(frozen=True)
class Accumulated(NoiseSchedule):
    """PES: fresh noise for every truncation, credited together with all before it.

    Unbiased for the gradient of the episode's loss under noise that changes with every truncation;
    the variance grows with the number of truncations. An episode that begins within a truncation
    starts its account with that truncation's noise, while the end of the one before it is still
    credited to the old account.

    References:
        Vicol, Metz and Sohl-Dickstein 2021 (arXiv:2112.13835), algorithm 2.
    """

    def at_truncation(self, noise: Noise, draw: Draw) -> Noise:
        """Fresh noise for all, on top of every account."""
        fresh = draw(len(noise.current))
        return Noise(current=fresh, credit=noise.credit + fresh)

    def at_episode(self, noise: Noise, fresh: Tensor, draw: Draw) -> Noise:
        """New accounts hold what has been in force since their episode began."""
        del draw
        credit = noise.credit.index_copy(0, fresh, noise.current[fresh])
        return Noise(current=noise.current, credit=credit)


@final
@dataclass(frozen=True)
class PerEpisode(NoiseSchedule):
    """ES-Single and NRES: one perturbation a pair from the first step of an episode to its last.

    Unbiased for the gradient of the episode's loss under noise that stays, which is the smoothed
    objective that full-horizon ES has; with the whole episode in one truncation it *is*
    full-horizon ES. Of all schedules that redraw the noise every so many truncations this one has
    the least variance, under the assumptions of Li et al. 2023.

    Both papers arrived at the same credit. ES-Single (Vicol 2023) starts all pairs together, as PES
    was published: each estimate sees one part of the episode. NRES (Li et al. 2023) has pairs at
    all parts of it. Full-horizon ES waits for the end of the episode before theta may move; here
    theta moves under way, so that an episode's later losses stem from several thetas.

    References:
        Vicol 2023 (arXiv:2304.11153); Li et al. 2023 (arXiv:2304.12180).
    """

    def at_truncation(self, noise: Noise, draw: Draw) -> Noise:
        """Nothing changes."""
        del draw
        return noise

    def at_episode(self, noise: Noise, fresh: Tensor, draw: Draw) -> Noise:
        """Fresh noise for those that begin anew."""
        drawn = draw(len(fresh))
        return Noise(
            current=noise.current.index_copy(0, fresh, drawn),
            credit=noise.credit.index_copy(0, fresh, drawn),
        )
