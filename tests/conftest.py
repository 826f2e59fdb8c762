"""Settings that every test shares: one thread; seeds come from the tests themselves."""

import torch

torch.set_num_threads(1)
