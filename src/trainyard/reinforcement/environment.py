"""Episodes of an environment with gymnasium's interface, which can be continued from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Episodes:
    """Steps through episodes one after another.

    The state of an environment cannot be saved in a checkpoint. The saved state is the number of the episode and the
    actions since its start. If the environment is deterministic for a given seed, the repeated actions restore its
    state.

    Args:
        environment: an environment with `reset(seed=)` and `step(action)` of `gymnasium.Env`.
        seed: a function from the number of an episode to the seed of its `reset`.

    Attributes:
        actions: the number of actions.
        number: the number of episodes that have ended.
        observation: the observation before the next action.
    """

    def __init__(self, environment: Any, seed: Callable[[int], int]) -> None:
        self._environment = environment
        self._seed = seed
        self.actions = environment.action_space.n
        self.number = 0
        self._actions: list[int] = []
        self.observation = self._begin()

    def step(self, action: int) -> tuple[Tensor, float, bool]:
        """Make a step, and start the next episode if this episode has ended; `observation` belongs to the next step.

        Returns:
            The next observation, the reward, and whether the episode was terminated (not truncated by a time limit).
        """
        seen, reward, terminated, truncated, _ = self._environment.step(action)
        self._actions.append(action)
        following = as_observation(seen)
        self.observation = following
        if terminated or truncated:
            self.number += 1
            self.observation = self._begin()
        return following, float(reward), bool(terminated)

    def _begin(self) -> Tensor:
        self._actions = []
        seen, _ = self._environment.reset(seed=self._seed(self.number))
        return as_observation(seen)

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number, "actions": list(self._actions)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = state["number"]
        self.observation = self._begin()
        for action in state["actions"]:
            self.step(action)


def as_observation(seen: Any) -> Tensor:
    """Return an observation as a tensor, float32."""
    return torch.as_tensor(seen, dtype=torch.float32)
