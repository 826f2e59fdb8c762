"""What is minimised: saddles, plateaus, valleys, matrix problems, networks.

Importing this package registers every task.
"""

from learned_opt.tasks.base import ClosedFormTask as ClosedFormTask
from learned_opt.tasks.base import CriticalPoint as CriticalPoint
from learned_opt.tasks.base import Facts as Facts
from learned_opt.tasks.base import Problems as Problems
from learned_opt.tasks.base import Task as Task
from learned_opt.tasks.base import get_task as get_task
from learned_opt.tasks.base import list_tasks as list_tasks
from learned_opt.tasks.base import register_task as register_task
from learned_opt.tasks.chain import Phi4Chain as Phi4Chain
from learned_opt.tasks.committee import SoftCommittee as SoftCommittee
from learned_opt.tasks.deep_linear import DeepLinear as DeepLinear
from learned_opt.tasks.low_dimensional import CubicValley as CubicValley
from learned_opt.tasks.low_dimensional import Himmelblau as Himmelblau
from learned_opt.tasks.low_dimensional import ProductSaddle as ProductSaddle
from learned_opt.tasks.low_dimensional import QuarticDoubleWell as QuarticDoubleWell
from learned_opt.tasks.low_dimensional import SexticDoubleWell as SexticDoubleWell
from learned_opt.tasks.matrix import MatrixFactorization as MatrixFactorization
from learned_opt.tasks.module_task import ModuleTask as ModuleTask
from learned_opt.tasks.networks import BreastCancerMLP as BreastCancerMLP
from learned_opt.tasks.networks import DeepSigmoidMLP as DeepSigmoidMLP
from learned_opt.tasks.networks import DigitsMLP as DigitsMLP
from learned_opt.tasks.octopus import Octopus as Octopus
from learned_opt.tasks.parity import ParityMLP as ParityMLP
from learned_opt.tasks.phase_retrieval import PhaseRetrieval as PhaseRetrieval
from learned_opt.tasks.plateaus import GemanMcClure as GemanMcClure
from learned_opt.tasks.plateaus import LogisticStaircase as LogisticStaircase
from learned_opt.tasks.plateaus import Welsch as Welsch
from learned_opt.tasks.quadratics import RandomQuadratic as RandomQuadratic
from learned_opt.tasks.re_zn import FourFoldSaddle as FourFoldSaddle
from learned_opt.tasks.re_zn import MonkeySaddle as MonkeySaddle
from learned_opt.tasks.re_zn import ReZn as ReZn
from learned_opt.tasks.saturation import SaturatedUnit as SaturatedUnit
from learned_opt.tasks.saturation import SigmoidRegression as SigmoidRegression
from learned_opt.tasks.strict_saddle import StrictSaddle as StrictSaddle
from learned_opt.tasks.styblinski_tang import StyblinskiTang as StyblinskiTang
from learned_opt.tasks.transforms import NoisyGradient as NoisyGradient
from learned_opt.tasks.transforms import RandomlyScaled as RandomlyScaled
from learned_opt.tasks.transforms import Rotated as Rotated
from learned_opt.tasks.transforms import Scaled as Scaled
from learned_opt.tasks.transforms import Shifted as Shifted
from learned_opt.tasks.transforms import TransformedTask as TransformedTask
from learned_opt.tasks.valleys import Rastrigin as Rastrigin
from learned_opt.tasks.valleys import Rosenbrock as Rosenbrock
