"""Training loop of deep Q-learning: steps in an environment, and batches from a replay memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainyard.checks import integer, number
from trainyard.errors import ConfigError, FindingError, counted
from trainyard.models import call
from trainyard.reinforcement.dqn import DQN
from trainyard.reinforcement.environment import Episodes, as_observation
from trainyard.reinforcement.memory import ReplayMemory
from trainyard.rng import derive
from trainyard.runner.simulation import SimulationTrainLoop

if TYPE_CHECKING:
    from trainyard.runner.runner import Runner


class DQNLoop(SimulationTrainLoop):
    """Makes a step in the environment for each iteration, and trains on transitions from the memory.

    An evaluation plays the same episodes each time, without exploration, and returns their mean `return`.

    Args:
        max_iters, val_begin, val_interval: see `SimulationTrainLoop`.
        environment: a function that returns an environment with discrete actions and gymnasium's interface (`_partial_:
            true`).
        memory: the number of transitions in the replay memory.
        warm_up: the number of random steps before the first iteration.
        batch_size: transitions per batch.
        exploration: the fraction of random actions at the end.
        exploration_iters: the number of iterations in which this fraction decreases from 1.
        follow: the update rate of the target network per iteration.
        episodes: the number of episodes per evaluation.
    """

    results = ("return",)

    def __init__(
        self,
        max_iters: int,
        environment: Callable[[], Any],
        val_begin: int = 1,
        val_interval: int = 1000,
        memory: int = 20_000,
        warm_up: int = 500,
        batch_size: int = 64,
        exploration: float = 0.05,
        exploration_iters: int = 3000,
        follow: float = 0.01,
        episodes: int = 5,
    ) -> None:
        super().__init__(max_iters, val_begin, val_interval)
        if not callable(environment):
            accepted = "a function that returns an environment (in a config, a `_target_` with `_partial_: true`)"
            raise ConfigError("environment", environment, accepted)
        self._make = environment
        self.memory = ReplayMemory(integer("memory", memory, at_least=1))
        self.warm_up = integer("warm_up", warm_up, at_least=1)
        self.batch_size = integer("batch_size", batch_size, at_least=1)
        self.exploration = number("exploration", exploration, at_least=0, at_most=1)
        self.exploration_iters = integer("exploration_iters", exploration_iters, at_least=1)
        self.share = number("follow", follow, above=0, at_most=1)
        self.episodes = integer("episodes", episodes, at_least=1)
        self._played: Episodes | None = None
        self._loaded: dict[str, Any] | None = None

    def sanity_check(self, runner: Runner) -> None:
        """Check that the model has as many action values as the environment has actions.

        Raises:
            ConfigError: the numbers differ, the actions are not discrete, or the model is not a `DQN`.
        """
        super().sanity_check(runner)
        _dqn(runner)
        environment = self._make()
        actions = getattr(environment.action_space, "n", None)
        if actions is None:
            found = f"its action_space is a {type(environment.action_space).__name__}"
            raise FindingError("loop.environment", found, "discrete actions (action_space.n)")
        seen, _ = environment.reset(seed=0)
        with torch.no_grad():
            values = call(runner.model, self._batch_of(runner, as_observation(seen)), "predict")
        if values.shape[-1] != actions:
            found = f"the net has {counted(values.shape[-1], 'output')}"
            raise FindingError("model", found, f"{counted(actions, 'output')}, one for each action")

    def next_batch(self, runner: Runner) -> dict[str, Tensor]:
        """Make a step (before the first iteration, `warm_up` steps), and return a batch from the memory."""
        while len(self.memory) < min(self.warm_up, self.memory.size):
            self._step(runner, 1.0)
        fallen = min(1.0, runner.iter / self.exploration_iters)
        self._step(runner, 1 + (self.exploration - 1) * fallen)
        return self.memory.sample(self.batch_size, runner.device)

    def after_step(self, runner: Runner) -> None:
        _dqn(runner).follow(self.share)

    def evaluate(self, runner: Runner) -> Mapping[str, float]:
        environment, total = self._make(), 0.0
        for episode in range(self.episodes):
            seen, _ = environment.reset(seed=derive(runner.seed, "evaluation", episode) % 2**31)
            ended = False
            while not ended:
                action = self._best(runner, runner.eval_model, as_observation(seen))
                seen, reward, terminated, truncated, _ = environment.step(action)
                total += float(reward)
                ended = terminated or truncated
        return {"return": total / self.episodes}

    def _step(self, runner: Runner, exploration: float) -> None:
        episodes = self._episodes(runner)
        observation = episodes.observation
        actions = int(episodes.actions)
        by_chance = torch.rand(()).item() < exploration
        action = int(torch.randint(actions, ())) if by_chance else self._best(runner, runner.model, observation)
        following, reward, done = episodes.step(action)
        self.memory.add(
            observation=observation,
            action=torch.tensor(action),
            reward=torch.tensor(reward),
            following=following,
            done=torch.tensor(float(done)),
        )

    def _best(self, runner: Runner, model: Any, observation: Tensor) -> int:
        with torch.no_grad():
            return int(call(model, self._batch_of(runner, observation), "predict").argmax())

    @staticmethod
    def _batch_of(runner: Runner, observation: Tensor) -> dict[str, Tensor]:
        return {"observation": observation.unsqueeze(0).to(runner.device)}

    def _episodes(self, runner: Runner) -> Episodes:
        if self._played is None:
            self._played = Episodes(self._make(), lambda number: derive(runner.seed, "episode", number) % 2**31)
            if self._loaded is not None:
                self._played.load_state_dict(self._loaded)
        return self._played

    def state_dict(self) -> dict[str, Any]:
        played = self._loaded if self._played is None else self._played.state_dict()
        return super().state_dict() | {"memory": self.memory.state_dict(), "episodes": played}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.memory.load_state_dict(state["memory"])
        self._played, self._loaded = None, state["episodes"]


def _dqn(runner: Runner) -> DQN:
    """Return the model of the run.

    Raises:
        ConfigError: it is not a `DQN`.
    """
    model: Any = runner.model
    if not isinstance(model, DQN):
        raise ConfigError("model", type(model).__name__, "a trainyard.reinforcement.DQN, because the loop is a DQNLoop")
    return model
