"""``learned-opt rl``: train agents, look how well they play, watch them, export them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from learned_opt.cli.options import LocalOptions, TrackedOptions
from learned_opt.cli.progress import console, progress_bar
from learned_opt.errors import LearnedOptError, require
from learned_opt.rl.checkpoints import export_checkpoint
from learned_opt.rl.config import AgentConfig
from learned_opt.rl.environments import make_lanes, resolve_environment
from learned_opt.rl.evaluate import evaluate_with_controls, summarize
from learned_opt.rl.train import AgentResult, train_agent
from learned_opt.rules.policy import PolicyRule
from learned_opt.rules.weights import load_rule, read_metadata
from learned_opt.tracking import open_tracker


@dataclass(frozen=True, kw_only=True)
class RlTrain:
    """Train an agent on an environment and export its policy as an update rule."""

    env: str = "HyperControl-v0"
    """Environment: HyperControl-v0, CoordUpdate-v0, SaddleEscape-v0 or LearningRate-v0."""
    algo: str = "ppo"
    """Algorithm: ppo, maskable-ppo, recurrent-ppo, sac or dqn."""
    task: str | None = None
    """Task whose problems are played; the environment's own by default."""
    env_settings: str = "{}"
    """Further settings of the environment, as JSON: '{"task_settings": {"dim": 8}}'."""
    agent_settings: str = "{}"
    """Further entries of AgentConfig, as JSON: '{"rollout_steps": 64, "gae_lambda": 0.9}'."""
    total_steps: int | None = None
    """Decisions to train for, over all lanes; the algorithm's own number by default."""
    num_lanes: int | None = None
    """Environments that move together; the algorithm's own number by default."""
    learning_rate: float | None = None
    """Adam's first learning rate; the algorithm's own by default."""
    gamma: float | None = None
    """Discount; the algorithm's own by default."""
    ent_coef: float | None = None
    """Weight of the entropy bonus (on-policy); the algorithm's own by default."""
    hidden: tuple[int, ...] | None = None
    """Units of the policy's hidden layers; the algorithm's own by default."""
    evaluate_every: int | None = None
    """Steps between evaluations on held-out instances; the algorithm's own by default."""
    patience: int | None = None
    """Evaluations without a better score after which training ends; never by default."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints."""
    out: Path = Path("runs/agent")
    """Folder for best.safetensors, last.safetensors, history.jsonl and the checkpoint."""
    resume: bool = False
    """Go on from the checkpoint in the output folder, bit for bit."""
    shared: TrackedOptions = field(default_factory=TrackedOptions)

    def main(self) -> None:
        """Train and say where the weights are."""
        self.shared.apply()
        optional = (
            "total_steps",
            "num_lanes",
            "learning_rate",
            "gamma",
            "ent_coef",
            "hidden",
            "evaluate_every",
            "patience",
        )
        given = {name: getattr(self, name) for name in optional}
        named = {name: value for name, value in given.items() if value is not None}
        further = _json_object("--agent-settings", self.agent_settings)
        own = {"env", "env_settings", "algo", "seed", "checkpoint_seconds", *optional}
        for name in sorted(own & set(further)):
            raise LearnedOptError(
                f"--agent-settings must not hold '{name}', which has an option of its own"
            )
        config = AgentConfig.for_algorithm(
            self.algo,
            env=self.env,
            env_settings={
                **_json_object("--env-settings", self.env_settings),
                **({} if self.task is None else {"task": self.task}),
            },
            seed=self.shared.seed,
            checkpoint_seconds=self.checkpoint_seconds,
            **{**further, **named},
        )
        result = train(config, out=self.out, options=self.shared, resume=self.resume)
        print(result.best)


@dataclass(frozen=True, kw_only=True)
class RlEval:
    """Let a policy play, beside the same policy blindfolded, replayed and switched off."""

    rule: tyro.conf.Positional[str]
    """Exported policy: a .safetensors file, or the name of a bundled one."""
    env: str | None = None
    """Environment; the one it was trained on by default."""
    task: str | None = None
    """Task; the one it was trained on by default."""
    env_settings: str | None = None
    """Settings of the environment, as JSON; those of the training by default."""
    num_lanes: int = 512
    """Episodes."""
    num_steps: int | None = None
    """Longest episode; the environment's own limit by default."""
    instance_seed: int = 2_000_003
    """Pool of problem instances; another one than in training by default."""
    shared: LocalOptions = field(default_factory=LocalOptions)

    def main(self) -> None:
        """Play and print a table."""
        self.shared.apply()
        rule = _policy(self.rule)
        env, settings = _environment(self.rule, self.env, self.env_settings, self.task)
        settings["instance_seed"] = self.instance_seed
        played = evaluate_with_controls(
            rule,
            env,
            settings,
            num_lanes=self.num_lanes,
            seed=self.shared.seed,
            num_steps=self.num_steps,
        )
        rows = {name: summarize(episodes) for name, episodes in played.items()}
        played_in = resolve_environment(env).rpartition("/")[2]
        table = Table(title=f"{Path(self.rule).name} on {played_in}")
        table.add_column("policy")
        for name in rows["policy"]:
            table.add_column(name.replace("_", " "), justify="right")
        for name, summary in rows.items():
            table.add_row(name, *(f"{value:.3f}" for value in summary.values()))
        console.print(table)
        print(json.dumps(rows))


@dataclass(frozen=True, kw_only=True)
class RlWatch:
    """Draw one episode of a policy as a moving picture."""

    rule: tyro.conf.Positional[str]
    """Exported policy: a .safetensors file, or the name of a bundled one."""
    env: str | None = None
    """Environment; the one it was trained on by default."""
    task: str | None = None
    """Task; the one it was trained on by default."""
    env_settings: str | None = None
    """Settings of the environment, as JSON; those of the training by default."""
    out: Path = Path("runs/agent.gif")
    """Picture: .gif or .mp4."""
    num_steps: int | None = None
    """Longest episode; the environment's own limit by default."""
    fps: int = 15
    """Frames a second."""
    shared: LocalOptions = field(default_factory=LocalOptions)

    def main(self) -> None:
        """Play, draw and say where the picture is."""
        from learned_opt.rl.evaluate import film
        from learned_opt.rl.video import write_video

        self.shared.apply()
        rule = _policy(self.rule)
        env, settings = _environment(self.rule, self.env, self.env_settings, self.task)
        if self.num_steps is not None:
            settings["max_episode_steps"] = self.num_steps
        lanes = make_lanes(
            env, {**settings, "render_mode": "rgb_array"}, num_lanes=1, autoreset="Disabled"
        )
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_video(film(rule, lanes, seed=self.shared.seed), self.out, fps=self.fps)
        print(self.out)


@dataclass(frozen=True, kw_only=True)
class RlExport:
    """Export the agent of a checkpoint as an update rule."""

    folder: tyro.conf.Positional[Path]
    """Folder of the run."""
    out: Path = Path("runs/agent.safetensors")
    """Weight file to write."""
    learning_rate: float | None = None
    """Initial step size of the rule; the middle of those trained on by default."""
    scope: str = "problem"
    """Decide once for the whole problem, as in training, or for each tensor: problem or tensor."""

    def main(self) -> None:
        """Export and say where the weights are."""
        print(
            export_checkpoint(
                self.folder, self.out, learning_rate=self.learning_rate, scope=self.scope
            )
        )


@dataclass(frozen=True, kw_only=True)
class Rl:
    """Agents that steer optimizers: train, eval, watch, export."""

    command: (
        Annotated[RlTrain, tyro.conf.subcommand("train")]
        | Annotated[RlEval, tyro.conf.subcommand("eval")]
        | Annotated[RlWatch, tyro.conf.subcommand("watch")]
        | Annotated[RlExport, tyro.conf.subcommand("export")]
    )

    def main(self) -> None:
        """Do what was asked for."""
        self.command.main()


def train(
    config: AgentConfig, *, out: Path, options: TrackedOptions, resume: bool = False
) -> AgentResult:
    """`train_agent` under a progress bar, tracked; the arguments are its own."""
    name = f"{config.algo}-{resolve_environment(config.env).rpartition('/')[2]}"
    tracker = open_tracker(
        options.wandb,
        project=options.project,
        group="agents",
        name=name,
        config=config.to_json(),
        directory=out,
        x_axis="environment_step",
    )
    with progress_bar() as bar:
        line = bar.add_task(f"training {name}", total=config.total_steps, note="")

        def on_progress(done: int, total: int, note: str) -> None:
            bar.update(line, completed=done, total=total, note=note)

        try:
            result = train_agent(
                config, out=out, tracker=tracker, resume=resume, on_progress=on_progress
            )
        finally:
            tracker.finish()
    console.print(f"best policy: {result.best}, mean return {result.best_score:.2f}")
    return result


def _json_object(option: str, text: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise LearnedOptError(f"{option} must be JSON, got '{text}': {error}") from error
    require(isinstance(given, dict), f"{option} must be a JSON object, got '{text}'")
    return dict(given)


def _policy(path: str) -> PolicyRule:
    rule = load_rule(path)
    require(isinstance(rule, PolicyRule), f"'{path}' holds the rule '{rule.name}' and no policy")
    assert isinstance(rule, PolicyRule)
    return rule


def _environment(
    path: str, env: str | None, settings: str | None, task: str | None
) -> tuple[str, dict[str, Any]]:
    """The environment that a user means: the one of the training unless told otherwise."""
    header = read_metadata(path)
    trained: dict[str, Any] = json.loads(header.get("env") or "{}")
    require(
        env is not None or "id" in trained,
        f"'{path}' does not say what it was trained on; name it with --env",
    )
    chosen = resolve_environment(env or trained["id"])
    is_same = chosen == trained.get("id")
    given = _json_object("--env-settings", settings) if settings is not None else {}
    if settings is None and is_same:
        given = dict(trained["kwargs"])
    if task is not None and task != given.get("task"):
        given.pop("task_settings", None)
        given["task"] = task
    return chosen, given
