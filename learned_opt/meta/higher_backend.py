"""Meta-gradients through unmodified modules and ``torch.optim`` optimizers, by way of ``higher``.

`learned_opt.unroll` moves many problems at once and wants the loss written batch-first. This module
takes a network as it is, one problem at a time, and an optimizer of ``torch.optim`` whose settings
become meta-parameters, or any `Rule`. It is also the independent check of `unroll`.

``higher`` (Grefenstette et al. 2019, arXiv:1910.01727) is imported here and nowhere else. Limits:

- It reimplements SGD, Adam, RMSprop, Adagrad, Adadelta, Adamax, Rprop and ASGD as of 2019.
  ``maximize`` and decoupled weight decay are unknown to it, and are refused here. Its Adam adds
  ``eps`` before the bias correction of the second moment; torch now adds it after.
- It takes square roots of Adam's betas outside autograd, so betas cannot be meta-parameters; train
  the rule ``"adam"`` instead.
- The network must be called as a whole; calling a part of a bare container fails.
- The graph of every step is kept, with or without second derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import higher
import torch
from torch import Tensor, nn

from learned_opt.errors import require
from learned_opt.rules.base import Rule

LossFunction = Callable[[nn.Module, Any], Tensor]
"""From the network and one batch to the 0-d loss."""


def higher_unroll(
    module: nn.Module,
    loss_function: LossFunction,
    batches: Sequence[Any],
    optimizer: torch.optim.Optimizer | Rule,
    *,
    override: Mapping[str, Tensor] | None = None,
    second_order: bool = False,
    rng: torch.Generator | None = None,
) -> Tensor:
    """Train a copy of `module`, keeping the graph from the meta-parameters to the losses.

    Args:
        module: the network; left as it is.
        loss_function: the loss of a network on a batch.
        batches: one batch per evaluation: ``T`` for the steps and one for the last loss. Pass
            ``[data] * (T + 1)`` to train on all data.
        optimizer: an optimizer over ``module.parameters()``, left as it is, or a rule. A rule sees
            one problem; its theta are the meta-parameters.
        override: settings of a ``torch.optim`` optimizer, such as ``lr``, as 0-d tensors that take
            their place; gradients flow to them.
        second_order: also differentiate through the gradients that the optimizer sees.
        rng: CPU generator for rules that draw random numbers.

    Returns:
        ``[T + 1]`` losses, attached to the meta-parameters; entry ``t`` is the loss after ``t``
        steps.

    Raises:
        LearnedOptError: if there are fewer than two batches, `override` accompanies a rule or names
            no setting of the optimizer, or ``higher`` would silently compute something else.

    Examples:
        >>> module = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(module.weight)
        >>> learning_rate = torch.tensor(0.1, requires_grad=True)
        >>> losses = higher_unroll(
        ...     module,
        ...     lambda network, batch: network(batch).square().sum() / 2,
        ...     [torch.ones(1, 1)] * 2,
        ...     torch.optim.SGD(module.parameters(), lr=1.0),
        ...     override={"lr": learning_rate},
        ... )
        >>> losses[-1].backward()  # the loss is (1 - lr)^2 / 2
        >>> round(learning_rate.grad.item(), 6)
        -0.9
    """
    require(len(batches) >= 2, f"batches must hold at least two, got {len(batches)}")
    settings: dict[str, list[Any]]
    if isinstance(optimizer, Rule):
        require(not override, "override must be empty for a rule; its theta are its parameters")
        settings = {"rule": [optimizer], "names": [[k for k, _ in module.named_parameters()]]}
        optimizer = _RuleShell(module.parameters())
    else:
        _require_supported(optimizer, override or {})
        settings = {name: [value] for name, value in (override or {}).items()}

    def seen(grads: list[Tensor]) -> list[Tensor]:
        return list(grads) if second_order else [g if g is None else g.detach() for g in grads]

    losses: list[Tensor] = []
    # First-order mode needs the graph of the parameters too: higher's own switch would cut it.
    with higher.innerloop_ctx(module, optimizer, override=settings) as (network, inner):
        for batch in batches[:-1]:
            losses.append(loss_function(network, batch))
            step = {"loss": [losses[-1] if second_order else losses[-1].detach()], "rng": [rng]}
            inner.step(losses[-1], override=step, grad_callback=seen)
        losses.append(loss_function(network, batches[-1]))
    return torch.stack(losses)


def _require_supported(optimizer: torch.optim.Optimizer, override: Mapping[str, Tensor]) -> None:
    """Refuse what ``higher`` would get wrong without a word."""
    kind = type(optimizer).__name__
    require(
        type(optimizer) in higher.optim._opt_mapping,
        f"optimizer {kind} is not among those that higher can differentiate",
    )
    for group in optimizer.param_groups:
        for flag in ("maximize", "decoupled_weight_decay"):
            require(not group.get(flag, False), f"{kind}({flag}=True) is unknown to higher")
        for name in override:
            require(
                name in group and name != "params",
                f"override names '{name}', which is no setting of {kind}",
            )
    require("betas" not in override, "override must not name betas: higher cuts their gradient")


@final
class _RuleShell(torch.optim.Optimizer):
    """Names the parameters to ``higher``; the rule itself travels in the overrides, uncopied."""

    def __init__(self, params: Iterable[Tensor]) -> None:
        super().__init__(params, {"rule": None, "names": None, "loss": None, "rng": None})


@final
class _DifferentiableRule(higher.optim.DifferentiableOptimizer):  # type: ignore[misc]
    """A `Rule` as ``higher`` sees an optimizer: a batch of one problem."""

    rule_state: Any = None

    def _update(self, grouped_grads: list[list[Tensor | None]], **kwargs: Any) -> None:
        del kwargs
        (group,), (grads,) = self.param_groups, grouped_grads
        rule: Rule = group["rule"]
        names: list[str] = group["names"]
        params = {k: p.unsqueeze(0) for k, p in zip(names, group["params"], strict=True)}
        gradients = {
            # A parameter that the loss does not use has no gradient; a rule sees zeros there.
            k: torch.zeros_like(params[k]) if g is None else g.unsqueeze(0)
            for k, g in zip(names, grads, strict=True)
        }
        if self.rule_state is None:
            self.rule_state = rule.init(params)
        updates, self.rule_state = rule(
            gradients, self.rule_state, params, loss=group["loss"].reshape(1), rng=group["rng"]
        )
        group["params"] = [(params[k] + updates[k]).squeeze(0) for k in names]


higher.register_optim(_RuleShell, _DifferentiableRule)
