"""Optimizers that are learned: train them, plug them in, compare them.

Plug in::

    optimizer = learned_opt.LearnedOptimizer(model.parameters(), "lstm")

Train and compare: `meta_train`, `run_benchmark`, or the command line ``learned-opt``.
"""

from learned_opt.bench.results import Results as Results
from learned_opt.bench.runner import run_benchmark as run_benchmark
from learned_opt.errors import LearnedOptError as LearnedOptError
from learned_opt.meta.trainer import TrainConfig as TrainConfig
from learned_opt.meta.trainer import meta_train as meta_train
from learned_opt.optim import LearnedOptimizer as LearnedOptimizer
from learned_opt.rules import Rule as Rule
from learned_opt.rules import get_rule as get_rule
from learned_opt.rules import list_rules as list_rules
from learned_opt.rules import load_rule as load_rule
from learned_opt.rules import save_rule as save_rule
from learned_opt.tasks import ModuleTask as ModuleTask
from learned_opt.tasks import Problems as Problems
from learned_opt.tasks import Task as Task
from learned_opt.tasks import get_task as get_task
from learned_opt.tasks import list_tasks as list_tasks
from learned_opt.unroll import unroll as unroll

__version__ = "0.1.0"
