"""The pages say what the code does: committed ones are fresh, tables complete, examples run."""

import re
from dataclasses import fields
from pathlib import Path

import gymnasium as gym
import pytest

import envs  # noqa: F401  (registers the ids)
from envs import docs
from envs.core import Settings
from learned_opt.errors import LearnedOptError

COMMITTED = Path(__file__).parents[2] / "docs" / "environments"
IDS = docs.environment_ids()
SECTIONS = [
    "Description",
    "Action Space",
    "Observation Space",
    "Rewards",
    "Starting State",
    "Episode End",
    "Arguments",
    "Vectorized environment",
    "Version History",
    "References",
]


def sections(page):
    parts = re.split(r"^## (.*)$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def table(text):
    """Cells of the first table below its head."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return rows[2:]


def test_the_committed_pages_are_what_the_code_says(tmp_path):
    paths = docs.write(tmp_path / "environments")
    assert sorted(p.name for p in paths) == sorted(p.name for p in COMMITTED.iterdir())
    for path in paths:
        committed = (COMMITTED / path.name).read_text(encoding="utf-8")
        assert committed == path.read_text(encoding="utf-8"), f"run {docs._COMMAND}"


def test_there_are_four_environments_and_the_index_links_to_each():
    assert len(IDS) == 4
    rows = table(docs.index())
    for env_id, row in zip(IDS, rows, strict=True):
        name, link = re.fullmatch(r"\[(.*)\]\((.*)\)", row[0]).groups()
        assert name == env_id
        assert (COMMITTED / link).read_text().count(f"# {env_id}\n") == 1
        assert row[3] == str(gym.spec(env_id).max_episode_steps)


@pytest.mark.parametrize("env_id", IDS)
def test_a_page_has_gymnasiums_sections_in_order_and_no_gaps(env_id):
    page = docs.page(env_id)
    assert list(sections(page)) == SECTIONS
    assert not re.search(r"\{(task|[a-z]{2,}_[a-z_]+)\}", page)
    steps = gym.spec(env_id).max_episode_steps
    assert f"Truncation: after {steps} steps." in page


@pytest.mark.parametrize("env_id", IDS)
def test_every_action_and_feature_is_in_its_table(env_id):
    env = gym.make(env_id, num_instances=1).unwrapped
    actuator, found = env.core.actuator, sections(docs.page(env_id))
    actions = table(found["Action Space"])
    assert [row[:2] for row in actions] == [
        [str(i), name] for i, name in enumerate(actuator.actions.names)
    ]
    if isinstance(env.action_space, gym.spaces.Box):
        assert {(float(row[2]), float(row[3])) for row in actions} == {(-1.0, 1.0)}
    rows = table(found["Observation Space"])
    assert [row[1] for row in rows] == [feature.name for feature in actuator.features]
    assert [row[2] for row in rows] == [feature.meaning for feature in actuator.features]
    space = env.observation_space
    assert [float(row[3]) for row in rows] == space.low.reshape(-1, len(rows))[0].tolist()
    assert [float(row[4]) for row in rows] == space.high.reshape(-1, len(rows))[0].tolist()


@pytest.mark.parametrize("env_id", IDS)
def test_arguments_are_listed_with_the_values_that_are_played(env_id):
    rows = {row[0].strip("`"): row[1:] for row in table(sections(docs.page(env_id))["Arguments"])}
    settings = [entry.name for entry in fields(Settings)]
    assert list(rows)[: len(settings)] == settings
    assert all(meaning for _, meaning in rows.values())
    env = gym.make(env_id).unwrapped
    for name in settings:
        assert rows[name][0] == f"`{getattr(env.core.settings, name)!r}`"
    for name, value in env.core.actuator.config().items():
        assert rows[f"actuator={{'{name}': ...}}"][0] == f"`{value!r}`"
    assert len(rows) == len(settings) + len(env.core.actuator.config()) + 1


@pytest.mark.parametrize("env_id", IDS)
def test_examples_run(env_id):
    blocks = re.findall(r"^```python\n(.*?)^```", docs.page(env_id), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        names = {}
        exec(block, names)
        made = names.get("env") or names["lanes"]
        assert made.unwrapped.core.actuator.name in docs._file_name(env_id)
        assert made.unwrapped.state.steps.sum() == ("env" in names)


def test_an_unknown_id_is_refused():
    with pytest.raises(LearnedOptError, match="unknown environment 'LearnedOpt/HyperContrl-v0'"):
        docs.page("LearnedOpt/HyperContrl-v0")


def test_the_command_wants_a_folder(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"usage: python -m envs\.docs docs/environments"):
        docs.main([])
    docs.main([str(tmp_path)])
    printed = capsys.readouterr().out.split()
    assert sorted(printed) == sorted(str(path) for path in tmp_path.iterdir())
