"""How it moves: update rules, hand-made and learned.

Importing this package registers every rule.
"""

from learned_opt.rules.adaptive import Adagrad as Adagrad
from learned_opt.rules.adaptive import Adam as Adam
from learned_opt.rules.adaptive import AdamW as AdamW
from learned_opt.rules.adaptive import Lion as Lion
from learned_opt.rules.adaptive import RMSprop as RMSprop
from learned_opt.rules.base import HandMade as HandMade
from learned_opt.rules.base import Rule as Rule
from learned_opt.rules.base import build_rule as build_rule
from learned_opt.rules.base import describe_rule as describe_rule
from learned_opt.rules.base import get_rule as get_rule
from learned_opt.rules.base import register_rule as register_rule
from learned_opt.rules.base import registered_rules as registered_rules
from learned_opt.rules.classic import SGD as SGD
from learned_opt.rules.classic import ClippedGD as ClippedGD
from learned_opt.rules.classic import Momentum as Momentum
from learned_opt.rules.classic import Nesterov as Nesterov
from learned_opt.rules.classic import NormalizedGD as NormalizedGD
from learned_opt.rules.controller import Controller as Controller
from learned_opt.rules.guarded import Guarded as Guarded
from learned_opt.rules.learnable_adam import LearnableAdam as LearnableAdam
from learned_opt.rules.lstm import CoordinatewiseLSTM as CoordinatewiseLSTM
from learned_opt.rules.mlp_lopt import MLPLOpt as MLPLOpt
from learned_opt.rules.noisy import SGLD as SGLD
from learned_opt.rules.noisy import NoisyGD as NoisyGD
from learned_opt.rules.perturbed import PerturbedGD as PerturbedGD
from learned_opt.rules.perturbed import PerturbedGDTheory as PerturbedGDTheory
from learned_opt.rules.policy import PolicyRule as PolicyRule
from learned_opt.rules.residual import Residual as Residual
from learned_opt.rules.rnnprop import RNNProp as RNNProp
from learned_opt.rules.small_fc_lopt import SmallFCLOpt as SmallFCLOpt
from learned_opt.rules.weights import list_rules as list_rules
from learned_opt.rules.weights import load_rule as load_rule
from learned_opt.rules.weights import save_rule as save_rule
