"""What several tests of meta-training begin with."""

import pytest
import torch

from learned_opt.rules import get_rule


@pytest.fixture
def bold():
    """A controller whose decisions are not all next to zero."""
    rule = get_rule("controller", lstm_units=4, seed=0)
    with torch.no_grad():
        rule.layers[-1].weight.mul_(20)
    return rule
