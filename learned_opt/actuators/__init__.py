"""Act: how a decision becomes an update.

`additive` and `bounded` turn one number per coordinate into a step. An `Actuator` is a whole update
rule whose decisions are left open: a policy fills them in, as an agent in an environment or as the
network of a rule.
"""

from learned_opt.actuators.base import ActionSpace as ActionSpace
from learned_opt.actuators.base import Actuator as Actuator
from learned_opt.actuators.base import get_actuator as get_actuator
from learned_opt.actuators.base import list_actuators as list_actuators
from learned_opt.actuators.coord_update import CoordUpdate as CoordUpdate
from learned_opt.actuators.coordinate import additive as additive
from learned_opt.actuators.coordinate import bounded as bounded
from learned_opt.actuators.hyper_control import HyperControl as HyperControl
from learned_opt.actuators.learning_rate import LearningRate as LearningRate
from learned_opt.actuators.saddle_escape import SaddleEscape as SaddleEscape
from learned_opt.actuators.trust_region import TrustRegion as TrustRegion
