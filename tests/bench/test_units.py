"""What results are a function of: the sources that numbers come from."""

import ast
from pathlib import Path

import learned_opt
from learned_opt.bench.units import HAND_MADE_SOURCES, library_version
from learned_opt.rules.base import HandMade, get_rule, registered_rules

ROOT = Path(learned_opt.__file__).parent


def files(sources):
    return {
        f for s in sources for f in ([ROOT / s] if s.endswith(".py") else (ROOT / s).glob("*.py"))
    }


def imported(file):
    """Files of the library that a file imports from."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("learned_opt."):
            path = ROOT.joinpath(*node.module.split(".")[1:])
            yield (
                path.with_suffix(".py")
                if path.with_suffix(".py").exists()
                else path / "__init__.py"
            )


def test_sources_of_hand_made_rules_import_nothing_beside_them():
    known = files(HAND_MADE_SOURCES) | {ROOT / "errors.py"}  # Texts change no number.
    for file in known - set((ROOT / "bench").glob("*.py")):
        assert set(imported(file)) <= known, file
    # Who runs is looked up by the benchmark, and a weight file is named in the unit.
    beside = {f for file in (ROOT / "bench").glob("*.py") for f in imported(file)} - known
    assert beside == {ROOT / "rules" / "weights.py"}
    rules = [get_rule(name) for name in registered_rules()]
    own = {type(r).__module__.split(".")[-1] for r in rules if isinstance(r, HandMade)}
    assert {f"rules/{name}.py" for name in own} <= set(HAND_MADE_SOURCES)


def test_learned_rules_have_a_digest_of_their_own():
    assert library_version("hand-made") != library_version("learned") == library_version()
    number = library_version().split("+")[0]
    assert library_version("hand-made").startswith(f"{number}+")
