"""The documentation page of each environment, from its docstring and its actuator.

``python -m envs.docs docs/environments`` writes one page per environment and an index. Tables are
made from the code, so that a page cannot say anything else than what is played.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator, registry

from envs.core import Settings
from envs.single import OptimizationEnv
from learned_opt.actuators import Actuator
from learned_opt.errors import unknown_name

_EPISODE_END = """\
1. Termination: the relative gap has come down to `target`.
2. Termination: the run has diverged, the loss not finite or its gap above 1000 times that of
   the start.
3. Truncation: after {max_episode_steps} steps."""

_ARGUMENTS = """\
Keyword arguments of `gymnasium.make`, all of them JSON-able, so that the spec of an environment
is a full record. Those of the actuator go into one dictionary.

{argument_table}"""

_VECTORIZED = """\
The native vector form steps all lanes as one tensor. Lane `i` after `reset(seed=s)` goes
through what a single environment goes through after `reset(seed=s + i)`, whatever other lanes
run beside it. It also takes `max_episode_steps`, {max_episode_steps} if made by id, and
`autoreset_mode`, which may be `NextStep` (the default), `SameStep` or `Disabled`.

```python
import envs
import gymnasium

lanes = gymnasium.make_vec(
    "{env_id}", num_envs=64, vectorization_mode="vector_entry_point"
)
observations, infos = lanes.reset(seed=0)
```"""

_COMMAND = "python -m envs.docs docs/environments"


def environment_ids() -> list[str]:
    """The registered ids of this package, sorted."""
    return sorted(env_id for env_id in registry if env_id.startswith("LearnedOpt/"))


def page(env_id: str) -> str:
    """The documentation page of an environment.

    Args:
        env_id: a registered id, such as ``LearnedOpt/HyperControl-v0``.

    Returns:
        Markdown: the docstring of the environment's class, in which ``{action_table}``,
        ``{observation_table}`` and ``{argument_table}`` are replaced by tables, ``{episode_end}``,
        ``{arguments}`` and ``{vectorized_environment}`` by what all environments share,
        ``{max_episode_steps}`` by the registered limit and ``{task}`` by the default task.

    Raises:
        LearnedOptError: if there is no such environment.
    """
    creator = _creator(env_id)
    # Spaces depend on the task alone: the smallest pool will do.
    env = creator(num_instances=1)
    actuator = env.core.actuator
    summary, _, body = inspect.cleandoc(creator.__doc__ or "").partition("\n\n")
    for name, text in {
        # What all environments share, with placeholders of its own.
        "episode_end": _EPISODE_END,
        "arguments": _ARGUMENTS,
        "vectorized_environment": _VECTORIZED,
        "env_id": env_id,
        "action_table": _action_table(actuator),
        "observation_table": _observation_table(actuator),
        "argument_table": _argument_table(creator),
        "max_episode_steps": str(gym.spec(env_id).max_episode_steps),
        "task": env.core.settings.task,
    }.items():
        body = body.replace(f"{{{name}}}", text)
    facts = _table(
        ("", ""),
        (
            ("Action space", f"`{_space(env.action_space)}`"),
            ("Observation space", f"`{_space(env.observation_space)}`"),
            ("Creation", f'`gymnasium.make("{env_id}")` after `import envs`'),
        ),
    )
    made = f"<!-- Made by `{_COMMAND}`; edit the docstring of `{creator.__name__}` instead. -->"
    return f"{made}\n\n# {env_id}\n\n{summary}\n\n{facts}\n\n{body}\n"


def index() -> str:
    """The page that lists all environments."""
    rows = []
    for env_id in environment_ids():
        creator = _creator(env_id)
        task = _settings(creator)["task"]
        steps = gym.spec(env_id).max_episode_steps
        summary = inspect.cleandoc(creator.__doc__ or "").splitlines()[0]
        rows.append((f"[{env_id}]({_file_name(env_id)})", summary, f"`{task}`", str(steps)))
    columns = ("environment", "what the agent does", "task by default", "steps")
    return "\n\n".join((
        f"<!-- Made by `{_COMMAND}`. -->",
        "# Environments",
        inspect.cleandoc("""
            Optimization as a decision process: an agent steers an update rule, or writes the
            update, on problems drawn from one of the library's tasks. All environments share the
            reward, the settings and the native vector form described on each page.
        """),
        _table(columns, rows) + "\n",
    ))


def write(folder: Path | str) -> list[Path]:
    """Write the pages of all environments and the index.

    Args:
        folder: where to; made if missing.

    Returns:
        The files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = {_file_name(env_id): page(env_id) for env_id in environment_ids()}
    texts["index.md"] = index()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def _creator(env_id: str) -> type[OptimizationEnv]:
    if env_id not in environment_ids():
        raise unknown_name("environment", env_id, environment_ids())
    entry_point = gym.spec(env_id).entry_point
    assert isinstance(entry_point, str)
    return load_env_creator(entry_point)  # type: ignore[return-value]


def _file_name(env_id: str) -> str:
    """``LearnedOpt/HyperControl-v0`` -> ``hyper_control.md``."""
    name = gym.spec(env_id).name
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() + ".md"


def _action_table(actuator: Actuator) -> str:
    names = actuator.actions.names
    if actuator.actions.is_discrete:
        return _table(("Num", "Action"), ((str(i), name) for i, name in enumerate(names)))
    rows = ((str(i), name, "-1", "1") for i, name in enumerate(names))
    return _table(("Num", "Action", "Min", "Max"), rows)


def _observation_table(actuator: Actuator) -> str:
    return _table(
        ("Num", "Observation", "Meaning", "Min", "Max"),
        (
            (str(i), feature.name, feature.meaning, f"{feature.low:g}", f"{feature.high:g}")
            for i, feature in enumerate(actuator.features)
        ),
    )


def _argument_table(creator: type[OptimizationEnv]) -> str:
    """Settings with this environment's defaults, then the keyword arguments of its actuator."""
    settings = _settings(creator)
    rows = [
        (f"`{name}`", f"`{settings[name]!r}`", meaning)
        for name, meaning in _entries(Settings, "Attributes").items()
    ]
    signature = inspect.signature(creator.actuator_class)
    rows += [
        (f"`actuator={{'{name}': ...}}`", f"`{signature.parameters[name].default!r}`", meaning)
        for name, meaning in _entries(creator.actuator_class, "Args").items()
    ]
    rows.append(("`render_mode`", "`None`", "`'rgb_array'` for frames, or None."))
    return _table(("Argument", "Default", "Meaning"), rows)


def _settings(creator: type[OptimizationEnv]) -> dict[str, Any]:
    """All settings with this environment's defaults."""
    return vars(Settings()) | dict(creator.default_settings)


def _entries(documented: type, section: str) -> dict[str, str]:
    """The entries of a section of a docstring, each on one line, as markdown."""
    text = inspect.cleandoc(documented.__doc__ or "")
    block = re.search(rf"^{section}:\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
    assert block is not None, f"{documented.__name__} has no section {section}"
    found: dict[str, str] = {}
    for name, meaning in re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", block[1], re.MULTILINE):
        found[name] = re.sub(r"\s+", " ", meaning).replace("``", "`")
    return found


def _space(space: gym.Space[Any]) -> str:
    """A space without its bounds, which the tables list."""
    if isinstance(space, gym.spaces.Box):
        return f"Box{space.shape} of {space.dtype}"
    return str(space)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *(list(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: list[str] | None = None) -> None:
    """Write the pages to the folder that the command line names.

    Args:
        arguments: of the command line; None takes the program's own.

    Raises:
        SystemExit: if there is not exactly one argument.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) != 1:
        raise SystemExit(f"usage: {_COMMAND}")
    for path in write(given[0]):
        print(path)


if __name__ == "__main__":
    main()
