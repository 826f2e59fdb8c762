"""Every actuator makes its tensors where its input lies."""

import pytest
import torch

from learned_opt.actuators import get_actuator, list_actuators


@pytest.mark.parametrize("name", list_actuators())
def test_everything_stays_on_the_device_of_the_parameters(name):
    actuator = get_actuator(name)
    with torch.device("meta"):
        params = torch.empty(3, 4)
        rate = torch.empty(3)
        loss = torch.empty(3)
    state = actuator.init(params, learning_rate=rate)
    seen, state = actuator.observe(params, loss, params, state)
    mask = actuator.mask(state)
    assert seen.device.type == "meta"
    assert mask is None or mask.device.type == "meta"
    shape = (3, 4, 3) if actuator.per_coordinate else (3, actuator.actions.size)
    action = (
        params.new_empty(3, dtype=torch.int64)
        if actuator.actions.is_discrete
        else (params.new_empty(shape))
    )
    step = actuator.act(action, params, params, state, lambda _: torch.empty_like(params))
    assert step.updates.device.type == "meta"
