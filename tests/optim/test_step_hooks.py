"""Step hooks that an optimizer has when the step is made of it are called too."""

import torch

from trainyard.optim.without_dynamo import UnwrappedStep


def test_a_hook_from_before() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append("before"))
    step = UnwrappedStep(optimizer)
    step()
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    step()
    assert calls == ["before", "before", "after"]
