"""Step hooks that an optimiser has when the step is made of it are called too."""

import torch

from trainyard.optim.plain import PlainStep


def test_a_hook_from_before():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append("before"))
    step = PlainStep(optimizer)
    step()
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    step()
    assert calls == ["before", "before", "after"]
