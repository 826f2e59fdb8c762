"""How each rule is drawn, everywhere the same: colour, dash, marker and width."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Okabe & Ito 2008, safe for colour-blind readers, without the yellow that white paper swallows.
# Learned rules take the front, hand-made rules the back, so the two meet only when both are many.
_COLOURS = ("#D55E00", "#0072B2", "#CC79A7", "#009E73", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot", "solid")
_MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")

_MATPLOTLIB_DASHES: dict[str, str | tuple[int, tuple[float, ...]]] = {
    "solid": "-",
    "dash": (0, (5, 2)),
    "dot": (0, (1, 1.5)),
    "dashdot": (0, (5, 1.5, 1, 1.5)),
    "longdash": (0, (9, 3)),
    "longdashdot": (0, (9, 2, 1, 2)),
}
_SVG_DASHES = {
    "solid": "",
    "dash": "6 3",
    "dot": "1.5 3",
    "dashdot": "6 3 1.5 3",
    "longdash": "10 4",
    "longdashdot": "10 3 1.5 3",
}


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a rule is drawn.

    Attributes:
        colour: ``#rrggbb``.
        dash: a plotly dash name.
        marker: a plotly marker symbol.
        width: line width in pixels; learned rules are thicker.
    """

    colour: str
    dash: str
    marker: str
    width: float

    @property
    def matplotlib_dash(self) -> str | tuple[int, tuple[float, ...]]:
        """The dash in matplotlib's terms."""
        return _MATPLOTLIB_DASHES[self.dash]

    @property
    def svg_dash(self) -> str:
        """The dash as an SVG ``stroke-dasharray``, empty for a solid line."""
        return _SVG_DASHES[self.dash]

    def rgba(self, opacity: float) -> str:
        """The colour with an opacity, for CSS and plotly."""
        red, green, blue = (int(self.colour[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({red},{green},{blue},{opacity:g})"


def rule_styles(learned: Iterable[str], hand_made: Iterable[str]) -> dict[str, Style]:
    """A distinct style for each rule, the same for the same set of rules.

    Args:
        learned: names of learned rules: solid, thick, from the front of the palette.
        hand_made: names of hand-made rules: dashed, thin, from its back.

    Returns:
        Name -> style; pairs of colour and dash are distinct for up to 35 hand-made rules.

    Examples:
        >>> styles = rule_styles(["lstm"], ["adam", "sgd"])
        >>> styles["lstm"].dash, styles["adam"].dash, styles["sgd"].colour
        ('solid', 'dash', '#56B4E9')
    """
    styles = {
        name: Style(
            colour=_COLOURS[i % len(_COLOURS)],
            dash="solid",
            marker=_MARKERS[i % len(_MARKERS)],
            width=3.5,
        )
        for i, name in enumerate(sorted(set(learned)))
    }
    used = {style.colour for style in styles.values()}
    free = [c for c in reversed(_COLOURS) if c not in used] or list(reversed(_COLOURS))
    for i, name in enumerate(sorted(set(hand_made) - set(styles))):
        # The shift per round keeps pairs distinct when the two lengths share a divisor.
        dash = (i + i // len(free)) % (len(_DASHES) - 1)
        styles[name] = Style(
            colour=free[i % len(free)],
            dash=_DASHES[dash],
            marker=_MARKERS[(i + len(used)) % len(_MARKERS)],
            width=1.8,
        )
    return styles
