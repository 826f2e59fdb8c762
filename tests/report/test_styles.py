"""Styles: distinct, stable, readable."""

from learned_opt.report.styles import rule_styles


def test_learned_rules_are_solid_and_thicker_and_no_two_rules_look_alike():
    hand_made = [f"rule{i}" for i in range(20)]
    styles = rule_styles(["lstm", "rnnprop"], hand_made)
    assert len({(s.colour, s.dash) for s in styles.values()}) == 22
    assert {styles[n].dash for n in ("lstm", "rnnprop")} == {"solid"}
    assert "solid" not in {styles[n].dash for n in hand_made}
    assert styles["lstm"].width > 1.5 * styles["rule0"].width
    assert not {styles["lstm"].colour, styles["rnnprop"].colour} & {
        styles[n].colour for n in hand_made
    }


def test_order_of_names_changes_nothing():
    assert rule_styles(["a", "b"], ["c", "d"]) == rule_styles(["b", "a"], ["d", "c", "d"])


def test_every_dash_exists_for_plotly_matplotlib_and_svg():
    styles = rule_styles(["lstm"], [f"rule{i}" for i in range(12)])
    assert all(s.matplotlib_dash and isinstance(s.svg_dash, str) for s in styles.values())
    assert styles["lstm"].rgba(0.5) == "rgba(213,94,0,0.5)"
