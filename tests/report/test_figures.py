"""Static figures: real pictures, the same each time."""

import pytest
from matplotlib import image

from learned_opt.errors import LearnedOptError
from learned_opt.report.figures import curves_figure, leaderboard_figure


@pytest.mark.parametrize("draw", [leaderboard_figure, curves_figure])
def test_figure_is_a_picture_with_ink_and_is_deterministic(draw, results, tmp_path):
    path = draw(results, tmp_path / "deep" / "figure.png")
    pixels = image.imread(path)
    assert pixels.shape[1] > 900
    assert 0.005 < (pixels[..., :3].min(axis=-1) < 0.9).mean() < 0.5
    assert draw(results, tmp_path / "again.png").read_bytes() == path.read_bytes()


def test_leaderboard_without_hand_made_rules_still_draws(results, tmp_path):
    path = leaderboard_figure(results.filter(rule="l<sub>&"), tmp_path / "figure.png")
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("draw", [leaderboard_figure, curves_figure])
def test_empty_results_are_refused(draw, empty, tmp_path):
    with pytest.raises(LearnedOptError, match="results hold no runs"):
        draw(empty, tmp_path / "x.png")
