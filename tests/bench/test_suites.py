import pytest
import torch

from learned_opt.bench.suites import SUITES, SuiteEntry, get_suite
from learned_opt.errors import LearnedOptError
from learned_opt.tasks.transforms import Rotated

ENTRIES = {entry.label: entry for suite in SUITES.values() for entry in suite}


def test_the_suites_are_those_promised() -> None:
    assert set(SUITES) == {"saddle-core", "plateau-core", "valley", "nets", "rotated", "quick"}


@pytest.mark.parametrize("name", SUITES)
def test_labels_are_unique_and_mean_the_same_everywhere(name: str) -> None:
    labels = [entry.label for entry in SUITES[name]]
    assert len(set(labels)) == len(labels)
    assert all(ENTRIES[entry.label] == entry for entry in SUITES[name])


@pytest.mark.parametrize("label", ENTRIES)
def test_every_entry_builds_a_task_with_usable_facts(label: str) -> None:
    entry = ENTRIES[label]
    task = entry.build()
    assert isinstance(task, Rotated) == entry.rotate == label.endswith("-rotated")
    facts = task.sample(2, dtype=torch.float64).facts
    assert (facts.minimum < facts.reference).all()
    assert (facts.next_level < facts.reference).all()
    assert (facts.minimum <= facts.next_level).all()
    assert task.budget >= 100 and task.smoothness > 0 and task.radius > 0


def test_planar_tasks_are_not_rotated_and_high_saddles_come_both_ways() -> None:
    assert all(entry.build().dim > 2 for entry in ENTRIES.values() if entry.rotate)
    core = {entry.label: entry for entry in SUITES["saddle-core"]}
    assert core["strict_saddle-100"].settings == core["strict_saddle-100-rotated"].settings
    planar = [entry for entry in SUITES["quick"] if entry.build().dim == 2]
    assert len(planar) >= 2 and 5 <= len(SUITES["quick"]) <= 6


def test_unknown_names_are_refused() -> None:
    with pytest.raises(LearnedOptError, match="unknown suite 'sadle-core'; did you mean"):
        get_suite("sadle-core")
    with pytest.raises(LearnedOptError, match="unknown task 'octopsu'"):
        SuiteEntry("a", "octopsu").build()
    with pytest.raises(LearnedOptError, match=r"task 'octopus'.*colour"):
        SuiteEntry("a", "octopus", {"colour": 1}).build()
