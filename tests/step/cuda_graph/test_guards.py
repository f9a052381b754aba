"""Guards of a captured step."""

from __future__ import annotations

import torch
from torch import nn

from trainyard.step.cuda_graph.guards import ModuleGuards


def test_a_number_in_a_tensor_on_the_cpu_is_guarded() -> None:
    """A graph on a device holds its value, as it holds that of a float."""
    module = nn.Linear(2, 2)
    module.scale = torch.tensor(2.0)
    module.table = torch.arange(3)  # no graph on a device can read it
    guards = ModuleGuards({"head": module}, torch.device("cuda"))
    assert guards.changed() is None
    module.table += 1
    assert guards.changed() is None
    module.scale += 1
    assert guards.changed() == "head.scale"
    guards.take()
    module.scale = torch.tensor(4.0)
    assert guards.changed() == "head.scale"
    del module.scale
    assert guards.changed() == "the set of attributes and tensors of the model"


def test_a_number_on_the_device_of_the_graph_may_change() -> None:
    module = nn.Linear(2, 2)
    module.last_loss = torch.tensor(2.0)
    guards = ModuleGuards({"": module}, torch.device("cpu"))
    module.last_loss = torch.tensor(3.0)
    assert guards.changed() is None
