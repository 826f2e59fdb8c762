"""Settings that every test shares: one thread, denormals kept; seeds come from the tests."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _denormals():
    """Commands flush denormal numbers to zero for their whole process; tests start without that."""
    torch.set_flush_denormal(False)
