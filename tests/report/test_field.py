"""Field: who is shown, what is drawn of them."""

import numpy as np
import pyarrow.compute as pc
import pytest

from learned_opt.bench.results import Results
from learned_opt.errors import LearnedOptError
from learned_opt.report.field import Field

LEARNED = "l<sub>&"


def entrant(field: Field, rule: str, trials: int):
    return next(e for e in field.entrants if (e.rule, e.tuning_trials) == (rule, trials))


def test_shown_are_learned_rules_and_hand_made_ones_at_their_largest_budget(results):
    field = Field(results)
    assert [(e.rule, e.tuning_trials) for e in field.shown] == [
        (LEARNED, 0),
        ("adam", 4),
        ("momentum", 4),
        ("sgd", 4),
    ]
    assert len(field.entrants) == 7
    assert field.families == ["welsch", "re_zn", "strict_saddle"]


def test_names_say_the_tuning_only_where_it_differs(results):
    field = Field(results)
    assert field.name(entrant(field, "adam", 4)) == "adam"
    assert field.name(entrant(field, "adam", 0)) == "adam (defaults)"
    assert field.html(entrant(field, LEARNED, 0)) == "l&lt;sub&gt;&amp;"
    drop = pc.and_(
        pc.equal(results.runs["rule"], "sgd"), pc.equal(results.runs["tuning_trials"], 4)
    )
    mixed = Field(Results(results.runs.filter(pc.invert(drop)), results.tuning, results.metadata))
    assert mixed.common_trials is None
    assert mixed.name(entrant(mixed, "adam", 4)) == "adam (4 trials)"


def test_band_is_made_of_the_quartiles_of_runs(results):
    field = Field(results)
    who = entrant(field, "sgd", 4)
    band = field.gap_band("welsch", who)
    rows = field.rows("welsch", who)
    losses = np.stack(field.lists("curve_loss", rows))
    assert band.steps.tolist() == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 400]
    for value in (band.low, band.median, band.high):
        assert (np.abs(losses - value).min(axis=0) == 0).all()
    ordered = np.sort(losses, axis=0)
    np.testing.assert_array_equal(band.median, ordered[2])
    np.testing.assert_array_equal([band.low, band.high], ordered[[1, 4]])


def test_gap_is_relative_to_reference_and_minimum(results):
    runs = results.runs
    at = runs.column_names.index("reference")
    doubled = runs.set_column(at, "reference", pc.multiply(runs["reference"], 2.0))
    field = Field(results)
    other = Field(Results(doubled, results.tuning, results.metadata))
    who = entrant(field, "adam", 4)
    np.testing.assert_allclose(
        other.gap_band("welsch", who).median, field.gap_band("welsch", who).median / 2
    )
    np.testing.assert_array_equal(
        other.loss_band("welsch", who).median, field.loss_band("welsch", who).median
    )


def test_diverged_runs_count_as_infinitely_far(results):
    field = Field(results)
    band = field.gap_band("welsch", entrant(field, "sgd", 0))  # 2 of 6 runs diverge after step 32
    late = band.steps > 32
    assert np.isinf(band.high[late]).all() == np.isinf(band.high[late]).any()
    assert np.isfinite(band.median).all()
    assert np.isfinite(band.high[~late]).all()
    assert np.isinf(band.high[late]).all()


def test_levels_leave_out_the_minimum(results):
    assert Field(results).levels("welsch") == [1.0, 0.3]


def test_entrant_that_did_not_run_has_nothing(results):
    part = results.filter(task="welsch")
    field = Field(part)
    assert len(field.rows("monkey_saddle", field.shown[0])) == 0
    assert field.gap_band("monkey_saddle", field.shown[0]).steps.size == 0


def test_empty_results_are_refused(empty):
    with pytest.raises(LearnedOptError, match="results hold no runs"):
        Field(empty)
