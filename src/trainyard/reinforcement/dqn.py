"""Deep Q-network."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainyard.checks import number
from trainyard.errors import ConfigError
from trainyard.models.base import MODES, BaseModel, Preprocessor


class DQN(BaseModel):
    """Double Q-learning of action values from transitions, with a slowly updated target network.

    Sources: Mnih et al., Human-level control through deep reinforcement learning, 2015; van Hasselt et al., Deep
    Reinforcement Learning with Double Q-learning, 2016. The loss is the Huber loss.

    Args:
        net: a module from observations `[B, ...]` to values `[B, actions]`.
        discount: the discount factor of future rewards.
        data_preprocessor: see `BaseModel`.
    """

    def __init__(self, net: nn.Module, discount: float = 0.99, data_preprocessor: Preprocessor = None) -> None:
        super().__init__(data_preprocessor)
        self.net = net
        self.discount = number("discount", discount, at_least=0, at_most=1)
        self.target = copy.deepcopy(net).requires_grad_(False)

    def forward(self, observation: Tensor, mode: str = "tensor", **transition: Any) -> Any:  # type: ignore[override]
        """Return the loss of transitions (`action`, `reward`, `following`, `done`, each `[B, ...]`), or the values."""
        if mode not in MODES:
            raise ConfigError("mode", mode, f"one of {', '.join(MODES)}", options=MODES)
        values = self.net(observation)
        if mode != "loss":
            return values
        with torch.no_grad():
            following = transition["following"]
            best = self.net(following).argmax(-1, keepdim=True)
            future = self.target(following).gather(-1, best).squeeze(-1)
            wanted = transition["reward"] + self.discount * (1 - transition["done"]) * future
        taken = values.gather(-1, transition["action"].unsqueeze(-1)).squeeze(-1)
        return {"loss": F.smooth_l1_loss(taken, wanted)}

    @torch.no_grad()
    def follow(self, share: float) -> None:
        """Move the target network towards the network by this fraction of the difference."""
        for held, own in zip(self.target.parameters(), self.net.parameters(), strict=True):
            held.lerp_(own, share)
