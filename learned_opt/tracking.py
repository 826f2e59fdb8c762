"""Where metrics go: Weights & Biases (offline by default), a file of JSON lines, or nowhere.

Every caller makes the same calls whatever the destination, and no destination can stop a run: what
goes wrong inside W&B is reported once, in one line, and the run goes on. This is the only module
that imports wandb, and only when a `WandbTracker` is made.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, final

from learned_opt.errors import require, unknown_name

WandbMode = Literal["offline", "online", "disabled"]
"""What W&B does with a run: keep it in a folder, also send it, or forget it."""

_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Where metrics, tables, figures and files of one run go."""

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Note metrics at a point of the run.

        Args:
            metrics: name -> number.
            step: where on the x-axis, such as gradient evaluations or outer steps.
        """

    def summary(self, metrics: Mapping[str, float | str]) -> None:
        """Note what describes the whole run; a later value replaces an earlier one."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Note a table of numbers, strings, booleans and None, row by row."""

    def figure(self, name: str, path: Path) -> None:
        """Note a picture file."""

    def artifact(self, name: str, path: Path, *, kind: str) -> None:
        """Note a file to be kept with the run, such as weights (`kind` ``"model"``)."""

    def finish(self) -> None:
        """Close the run; calls after this one are ignored."""


@final
class NullTracker:
    """Notes nothing."""

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Ignore metrics."""

    def summary(self, metrics: Mapping[str, float | str]) -> None:
        """Ignore a summary."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Ignore a table."""

    def figure(self, name: str, path: Path) -> None:
        """Ignore a figure."""

    def artifact(self, name: str, path: Path, *, kind: str) -> None:
        """Ignore a file."""

    def finish(self) -> None:
        """Nothing to close."""


@final
class JsonLinesTracker:
    r"""Appends one JSON object per call to a file, flushed at once: readable while the run goes on.

    A line from `log` is ``{"step": 3, "meta_loss": 0.5}``; the other calls write ``{"summary":
    {...}}``, ``{"table": name, "columns": [...], "rows": [...]}``, ``{"figure": name, "path":
    ...}`` and ``{"artifact": name, "path": ..., "kind": ...}``. Numbers that are not finite
    become the strings ``"nan"``, ``"inf"`` and ``"-inf"``, which `float` reads back; JSON has no
    such numbers.

    Args:
        path: the file; its folder is made, and lines already there are kept.

    Examples:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "history.jsonl"
        >>> tracker = JsonLinesTracker(path)
        >>> tracker.log({"meta_loss": 0.5}, step=3)
        >>> tracker.finish()
        >>> path.read_text()
        '{"step": 3, "meta_loss": 0.5}\n'
    """

    def __init__(self, path: Path | str) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._file = target.open("a", encoding="utf-8")

    def _write(self, record: Mapping[str, Any]) -> None:
        if not self._file.closed:
            self._file.write(json.dumps(_jsonable(record), allow_nan=False) + "\n")
            self._file.flush()

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Append ``{"step": step, **metrics}``."""
        self._write({"step": step, **metrics})

    def summary(self, metrics: Mapping[str, float | str]) -> None:
        """Append the summary."""
        self._write({"summary": dict(metrics)})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Append the table."""
        self._write({"table": name, "columns": list(columns), "rows": [list(r) for r in rows]})

    def figure(self, name: str, path: Path) -> None:
        """Append the figure's path."""
        self._write({"figure": name, "path": str(path)})

    def artifact(self, name: str, path: Path, *, kind: str) -> None:
        """Append the file's path and kind."""
        self._write({"artifact": name, "path": str(path), "kind": kind})

    def finish(self) -> None:
        """Close the file."""
        self._file.close()


@final
class WandbTracker:
    """Sends everything to one Weights & Biases run; needs no account and no network by default.

    Charts are drawn against `x_axis` rather than W&B's count of calls. The terminal stays quiet.
    Whatever W&B raises, here or in any method, becomes one warning in this module's log; a run that
    cannot be opened online is kept offline instead.

    Args:
        project: W&B project.
        group: runs that belong together, or None.
        name: what the run is called, or None to let W&B choose.
        config: settings of the run, JSON-able.
        mode: ``offline`` keeps the run in a folder, ``online`` also sends it, ``disabled`` drops
            it.
        directory: where W&B makes its ``wandb`` folder.
        x_axis: what `log`'s step counts.

    Attributes:
        run_dir: the folder of the run, or None if there is none.

    Raises:
        LearnedOptError: if `mode` is unknown or `project` empty.
    """

    run_dir: Path | None

    def __init__(
        self,
        *,
        project: str,
        group: str | None = None,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        mode: WandbMode = "offline",
        directory: Path | str = ".",
        x_axis: str = "gradient_evaluations",
    ) -> None:
        require(bool(project), f"project must not be empty, got {project!r}")
        _require_known("W&B mode", mode, ("offline", "online", "disabled"))
        self.run_dir = None
        self._x_axis = x_axis
        self._last_step = -1
        self._has_warned = False
        self._run: Any = None

        def start(how: WandbMode) -> None:
            self._run = _init_wandb(
                project=project,
                group=group,
                name=name,
                config=_jsonable(dict(config or {})),
                mode=how,
                directory=Path(directory),
            )

        self._attempt(lambda: start(mode))
        if self._run is None and mode == "online":
            self._attempt(lambda: start("offline"))
        self._attempt(self._describe)

    def _describe(self) -> None:
        if self._run is None:
            return
        self._run.define_metric(self._x_axis)
        self._run.define_metric("*", step_metric=self._x_axis)
        folder = Path(self._run.dir).parent
        self.run_dir = folder if folder.name.startswith(("offline-run-", "run-")) else None

    def _attempt(self, action: Callable[[], None]) -> None:
        """Do it; whatever W&B raises becomes this tracker's one warning."""
        try:
            action()
        except Exception as error:
            if not self._has_warned:
                self._has_warned = True
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                _log.warning("W&B tracking failed; the run goes on: %s", reason)

    def _on_run(self, action: Callable[[Any], None]) -> None:
        if self._run is not None:
            self._attempt(lambda: action(self._run))

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Log metrics at `step` of the x-axis."""
        row = {**metrics, self._x_axis: step}
        # W&B drops rows whose own counter goes backwards; the x-axis places such rows rightly.
        own_step = {"step": step} if step >= self._last_step else {}
        self._last_step = max(self._last_step, step)
        self._on_run(lambda run: run.log(row, **own_step))

    def summary(self, metrics: Mapping[str, float | str]) -> None:
        """Update the run's summary."""
        self._on_run(lambda run: run.summary.update(dict(metrics)))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""

        def action(run: Any) -> None:
            import wandb

            # Mixed columns (a number here, None or "inf" there) are ordinary in results.
            table = wandb.Table(
                columns=list(columns), data=[list(r) for r in rows], allow_mixed_types=True
            )
            run.log({name: table})

        self._on_run(action)

    def figure(self, name: str, path: Path) -> None:
        """Log a picture."""

        def action(run: Any) -> None:
            import wandb

            run.log({name: wandb.Image(str(path))})

        self._on_run(action)

    def artifact(self, name: str, path: Path, *, kind: str) -> None:
        """Log a file as an artifact."""

        def action(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(name, type=kind)
            artifact.add_file(str(path))
            run.log_artifact(artifact)

        self._on_run(action)

    def finish(self) -> None:
        """Close the run."""
        self._on_run(lambda run: run.finish())
        self._run = None


def _init_wandb(
    *,
    project: str,
    group: str | None,
    name: str | None,
    config: Mapping[str, Any],
    mode: WandbMode,
    directory: Path,
) -> Any:
    import wandb

    directory.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
        silent=True,
        console="off",
        # A server out of reach, or a key that nobody types, costs seconds and not the run.
        init_timeout=20.0,
        login_timeout=20.0,
        disable_git=True,
        save_code=False,
        disable_job_creation=True,
        x_disable_stats=True,
    )
    return wandb.init(
        project=project,
        group=group,
        name=name,
        config=dict(config),
        mode=mode,
        dir=str(directory),
        reinit="create_new",
        settings=settings,
    )


def open_tracker(
    where: str,
    *,
    project: str = "learned_opt",
    group: str | None = None,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    directory: Path | str = ".",
    x_axis: str = "gradient_evaluations",
) -> Tracker:
    """Make the tracker that a command line names.

    Args:
        where: ``offline`` or ``online`` for W&B, ``jsonl`` for JSON lines, ``disabled`` for none.
        project: W&B project.
        group: W&B group, or None.
        name: the run's name, or None; also the stem of the JSON lines file (``metrics`` if None).
        config: settings of the run; JSON lines start with them as ``{"summary": {...}}``.
        directory: where files go.
        x_axis: what steps count, for W&B's charts.

    Returns:
        The tracker.

    Raises:
        LearnedOptError: if `where` is unknown.

    Examples:
        >>> open_tracker("disabled").log({"loss": 1.0}, step=0)
    """
    _require_known("tracker", where, ("offline", "online", "jsonl", "disabled"))
    if where == "disabled":
        return NullTracker()
    if where == "jsonl":
        tracker = JsonLinesTracker(Path(directory) / f"{name or 'metrics'}.jsonl")
        if config:
            tracker.summary(config)
        return tracker
    return WandbTracker(
        project=project,
        group=group,
        name=name,
        config=config,
        mode="online" if where == "online" else "offline",
        directory=directory,
        x_axis=x_axis,
    )


def _require_known(kind: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise unknown_name(kind, name, known)


def _jsonable(value: Any) -> Any:
    """The same value in what JSON can hold: plain numbers, strings, lists and objects."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if hasattr(value, "tolist"):  # tensors and numpy scalars
        return _jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
