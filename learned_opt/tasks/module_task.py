"""Whatever a user has, as a Task: a module, a loss function and a data set."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from learned_opt.errors import LearnedOptError, require
from learned_opt.tasks.base import Facts, Problems, Task
from learned_opt.trees import Params, Tree


@final
class ModuleTask(Task):
    """Training any `nn.Module` on any supervised data.

    Problems differ in their initial parameters. Each copy is re-initialised by calling
    ``reset_parameters`` on every submodule that has it, under a seeded generator and in float64.
    Parameters that no such method resets start at the module's current values, the same in every
    problem. Frozen parameters and buffers are held fixed.

    The copies are evaluated through `torch.func.vmap`. Modules that keep running statistics or draw
    random numbers in training mode are refused: call ``module.eval()`` first, or replace them.

    Args:
        module: the model, called as ``module(inputs)``; copied, never changed.
        loss_fn: ``(outputs, targets)`` to a scalar.
        dataset: ``(inputs, targets)`` tensors, or a map-style data set of such pairs.
        batch_size: examples of one evaluation, drawn for each problem with replacement; None takes
            all.
        name: shown in results.
        kind: as in `Task`.
        budget: as in `Task`.
        smoothness: as in `Task`.
        radius: as in `Task`.
        minimum: a lower bound of the loss.
        reference: the loss of the plateau to leave behind; None takes each problem's initial loss.

    Raises:
        LearnedOptError: if the module has no trainable parameters, keeps running statistics, draws
            random numbers, or cannot be evaluated under vmap; if the data set is empty or uneven;
            if `batch_size` is not positive; or if `reference` is below `minimum`.

    Examples:
        >>> import torch
        >>> inputs = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
        >>> loss_fn = torch.nn.functional.mse_loss
        >>> task = ModuleTask(torch.nn.Linear(3, 1), loss_fn, (inputs, inputs.sum(1, keepdim=True)))
        >>> problems = task.sample(4, seed=0)
        >>> task.loss(problems.params, problems).shape
        torch.Size([4])
    """

    name: ClassVar[str] = "module"

    def __init__(
        self,
        module: nn.Module,
        loss_fn: Callable[[Any, Tensor], Tensor],
        dataset: tuple[Tensor, Tensor] | Dataset[Any],
        *,
        batch_size: int | None = None,
        name: str = "module",
        kind: str = "net",
        budget: int = 1000,
        smoothness: float = 1.0,
        radius: float = 1.0,
        minimum: float = 0.0,
        reference: float | None = None,
    ) -> None:
        require(
            batch_size is None or batch_size >= 1,
            f"batch_size must be positive or None, got {batch_size}",
        )
        require(
            reference is None or reference >= minimum,
            f"reference must not be below minimum = {minimum}, got {reference}",
        )
        _refuse_stateful(module)
        self.name = name  # type: ignore[misc]
        self.family, self.kind, self.budget = name, kind, budget
        self.smoothness, self.radius = smoothness, radius
        self.batch_size = batch_size
        self.minimum, self.reference = minimum, reference
        self._loss_fn = loss_fn
        self._inputs, self._targets = _stack(dataset)
        self._module = copy.deepcopy(module).cpu().double()
        self.shapes = {
            key: tuple(value.shape)
            for key, value in self._module.named_parameters()
            if value.requires_grad
        }
        require(bool(self.shapes), "module must have trainable parameters, got none")
        self._fixed = {
            key: value.detach()
            for key, value in (
                *self._module.named_parameters(),
                *self._module.named_buffers(),
            )
            if key not in self.shapes
        }
        self._probe()

    @property
    def is_stochastic(self) -> bool:
        """Whether evaluations see minibatches."""
        return self.batch_size is not None

    def batch(self, problems: Problems, rng: torch.Generator) -> Tree | None:
        """Draw ``{"index": [N, B]}``, examples with replacement; None without a batch size."""
        if self.batch_size is None:
            return None
        shape = (problems.num_problems, self.batch_size)
        index = torch.randint(len(self._inputs), shape, generator=rng)
        return {"index": index.to(problems.facts.minimum.device)}

    def loss(self, params: Params, problems: Problems, batch: Tree | None = None) -> Tensor:
        """The loss function on the minibatch, or on all data without one."""
        del problems
        like = next(iter(params.values()))
        inputs, targets = _like(self._inputs, like), _like(self._targets, like)
        if batch is None:
            return self._losses(params, inputs, targets, data_axis=None)
        index = batch["index"]
        assert isinstance(index, Tensor)
        return self._losses(params, inputs[index], targets[index], data_axis=0)

    def _losses(
        self, params: Params, inputs: Tensor, targets: Tensor, *, data_axis: int | None
    ) -> Tensor:
        like = next(iter(params.values()))
        fixed = {key: _like(value, like) for key, value in self._fixed.items()}

        def loss_of_one(one: Params, x: Tensor, y: Tensor) -> Tensor:
            outputs = torch.func.functional_call(self._module, {**fixed, **one}, (x,))
            return self._loss_fn(outputs, y)

        mapped = torch.func.vmap(loss_of_one, in_dims=(0, data_axis, data_axis), randomness="error")
        losses: Tensor = mapped(params, inputs, targets)
        return losses

    def _probe(self) -> None:
        """Evaluate two examples, so that an unfit module or loss function is refused at once."""
        params = {
            key: value.detach().unsqueeze(0)
            for key, value in self._module.named_parameters()
            if value.requires_grad
        }
        like = next(iter(params.values()))
        inputs, targets = _like(self._inputs[:2], like), _like(self._targets[:2], like)
        try:
            losses = self._losses(params, inputs, targets, data_axis=None)
        except Exception as error:
            first_line = str(error).strip().partition("\n")[0]
            raise LearnedOptError(
                f"module and loss_fn must run under torch.func.vmap: {first_line}"
            ) from error
        require(
            losses.shape == (1,),
            f"loss_fn must return a scalar, got a tensor of shape {tuple(losses.shape[1:])}",
        )

    def _sample(self, num_problems: int, rng: torch.Generator) -> Problems:
        params = self._reinitialised(num_problems, rng)
        if self.reference is None:
            like = next(iter(params.values()))
            inputs, targets = _like(self._inputs, like), _like(self._targets, like)
            reference = self._losses(params, inputs, targets, data_axis=None).detach()
        else:
            reference = torch.full((num_problems,), self.reference, dtype=torch.float64)
        minimum = torch.full_like(reference, self.minimum)
        return Problems(
            params=params,
            constants={},
            facts=Facts(
                minimum=minimum,
                reference=reference,
                next_level=minimum,
                levels=reference.unsqueeze(1),
                is_lower_bound=True,
            ),
        )

    def _reinitialised(self, num_problems: int, rng: torch.Generator) -> Params:
        """Parameters ``[N, *shape]`` of reset copies; the global generator is left as it was."""
        seed = int(torch.randint(2**62, (), generator=rng))
        copies: dict[str, list[Tensor]] = {key: [] for key in self.shapes}
        fresh = copy.deepcopy(self._module)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for _ in range(num_problems):
                for submodule in fresh.modules():
                    reset = getattr(submodule, "reset_parameters", None)
                    if callable(reset):
                        reset()
                named = dict(fresh.named_parameters())
                for key, drawn in copies.items():
                    drawn.append(named[key].detach().clone())
        return {key: torch.stack(drawn) for key, drawn in copies.items()}


def _like(tensor: Tensor, like: Tensor) -> Tensor:
    """Move to the device of `like`; cast to its dtype if floating point."""
    dtype = like.dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.to(like.device, dtype)


def _stack(dataset: tuple[Tensor, Tensor] | Dataset[Any]) -> tuple[Tensor, Tensor]:
    """All inputs and all targets, each as one tensor."""
    if isinstance(dataset, tuple):
        inputs, targets = dataset
    else:
        num_examples = len(dataset)  # type: ignore[arg-type]
        require(num_examples >= 1, "dataset must not be empty, got 0 examples")
        pairs = [dataset[i] for i in range(num_examples)]
        inputs = torch.stack([torch.as_tensor(x) for x, _ in pairs])
        targets = torch.stack([torch.as_tensor(y) for _, y in pairs])
    require(
        len(inputs) == len(targets),
        f"dataset must pair inputs with targets, got {len(inputs)} and {len(targets)}",
    )
    require(len(inputs) >= 1, "dataset must not be empty, got 0 examples")
    return inputs, targets


def _refuse_stateful(module: nn.Module) -> None:
    """Refuse what changes buffers or draws random numbers while it is evaluated."""
    for path, submodule in module.named_modules():
        label = f"{path or 'the module itself'} ({type(submodule).__name__})"
        require(
            not (
                isinstance(submodule, nn.modules.batchnorm._NormBase)
                and submodule.training
                and submodule.track_running_stats
            ),
            f"module must not update running statistics, but {label} does; call module.eval() "
            "or use GroupNorm",
        )
        require(
            not (
                isinstance(submodule, nn.modules.dropout._DropoutNd)
                and submodule.training
                and submodule.p > 0
            ),
            f"module must not draw random numbers, but {label} does; call module.eval() or set p=0",
        )
