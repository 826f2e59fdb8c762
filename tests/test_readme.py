"""The README is executed and its map of the code is true."""

import re
from pathlib import Path

import learned_opt

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_quick_start_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_map_of_the_code_names_what_exists():
    section = README.split("## Map of the code")[1].split("\n## ")[0]
    named = re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)
    assert len(named) >= 12
    for name in named:
        assert (ROOT / name).exists(), f"README maps {name}, which does not exist"


def test_pictures_and_targets_exist():
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / picture).exists(), picture
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)`", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_public_names_are_documented():
    for name in ("LearnedOptimizer", "load_rule", "list_rules", "get_task", "run_benchmark"):
        assert getattr(learned_opt, name).__doc__
