"""The page as text: complete, offline, deterministic, escaped."""

import html
import re

import pyarrow as pa
import pytest

from learned_opt.bench.results import Results
from learned_opt.errors import LearnedOptError
from learned_opt.report.field import Field
from learned_opt.report.page import write_report
from learned_opt.report.tables import fingerprint

LEARNED = "l<sub>&"


def without_plotly(page: str) -> str:
    """The page without the inlined library: its longest script."""
    return page.replace(max(re.findall(r"<script>.*?</script>", page, re.DOTALL), key=len), "")


@pytest.fixture(scope="module")
def page(results, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("page")
    history = folder / "history.jsonl"
    history.write_text("\n".join(f'{{"step": {i}, "meta_loss": {1 / (i + 1)}}}' for i in range(9)))
    path = write_report(
        results, folder / "deep" / "report.html", title="A & <b>", training_history=history
    )
    return path.read_text(encoding="utf-8")


def replace_column(results: Results, name: str, values) -> Results:
    runs = results.runs
    at = runs.column_names.index(name)
    column = pa.array(values, type=runs.schema.field(name).type)
    return Results(runs.set_column(at, name, column), results.tuning, results.metadata)


def test_page_names_every_rule_and_task(page, results):
    text = without_plotly(page)
    field = Field(results)
    for name in [e.rule for e in field.entrants] + [t.label for t in field.tasks]:
        assert html.escape(name) in text, name
    for word in ("Leaderboard", "Paths", "Targets over time", "Profiles", "Curves", "Training"):
        assert f"<h2>{word}</h2>" in text
    for fact in (
        "n = 6",
        "B = 400",
        "K = 0, 4",
        "float64",
        fingerprint(results),
        "learned-opt bench",
    ):
        assert fact in text


def test_page_loads_nothing(page):
    text = without_plotly(page)
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"' >]*)""", text)
    assert links
    assert all(link.startswith(("#", "data:,")) for link in links)
    assert not re.findall(r"https?://", text)
    assert not re.findall(r"@import|url\(", text)
    assert page.count("<script>") == 2


def test_page_is_a_few_megabytes(page):
    assert len(without_plotly(page)) < 400_000


def test_names_and_title_are_escaped(page):
    text = without_plotly(page)
    assert LEARNED not in text
    assert "<h1>A &amp; &lt;b&gt;</h1>" in text
    assert '"name":"l\\u003csub' not in text  # plotly would read <sub> in a name as markup
    assert "l&lt;sub&gt;&amp;" in text


def test_same_results_give_the_same_bytes(results, tmp_path):
    first = write_report(results, tmp_path / "a.html", seed=3).read_bytes()
    assert write_report(results, tmp_path / "b.html", seed=3).read_bytes() == first


def test_summary_says_who_won(page):
    lead = re.search(r'<p class="lead">(.*?)</p>', page, re.DOTALL).group(1)
    assert "l&lt;sub&gt;&amp;</b>, solves 100" in lead
    assert "<b>adam</b> with 4 tuning trials a task" in lead
    assert "is faster than the best hand-made rule of each task" in lead


def test_leaderboard_holds_defaults_but_no_middle_budgets(page):
    board = re.search(r'aria-label="leaderboard, all">(.*?)</table>', page, re.DOTALL).group(1)
    kinds = re.findall(r'<tr class="(\w+)">', board)
    assert sorted(kinds) == ["learned"] + ["muted"] * 3 + ["shown"] * 3
    assert kinds[0] == "learned"


def test_divergences_are_listed(page):
    table = re.search(r'aria-label="divergences">(.*?)</table>', page, re.DOTALL).group(1)
    assert "2 of 6" in table
    assert "sgd" in table
    assert table.count("<tr") == 2


def test_alarm_box_passes_fires_or_does_not_apply(results, tmp_path):
    def box(some: Results) -> str:
        text = write_report(some, tmp_path / "page.html").read_text(encoding="utf-8")
        return re.search(r'<div class="box.*?</div>', text, re.DOTALL).group(0)

    assert "Sanity check passed" in box(results)
    assert "not applicable" in box(results.filter(task=["welsch"]))
    rules, times = results.column("rule"), results.column("t_solve")
    leaked = replace_column(
        results,
        "t_solve",
        [2.0 if r == LEARNED else t for r, t in zip(rules, times, strict=True)],
    )
    assert 'class="box bad"' in box(leaked)
    assert "means leakage" in box(leaked)


def test_pages_without_learned_or_without_hand_made_rules(results, tmp_path):
    for rules in (["adam", "sgd"], [LEARNED]):
        text = write_report(results.filter(rule=rules), tmp_path / "x.html").read_text("utf-8")
        assert html.escape(rules[0]) in text
        assert "nan" not in without_plotly(text).lower().replace("isnan", "")


def test_bad_input_is_named(results, empty, tmp_path):
    with pytest.raises(LearnedOptError, match="results hold no runs"):
        write_report(empty, tmp_path / "x.html")
    with pytest.raises(LearnedOptError, match=r"training history .* does not exist"):
        write_report(results, tmp_path / "x.html", training_history=tmp_path / "none.jsonl")
    assert not (tmp_path / "x.html").exists()
