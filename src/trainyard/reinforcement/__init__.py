"""Reinforcement learning: a complete example of a training loop without a data set (docs/runner.md)."""

from trainyard.reinforcement.dqn import DQN
from trainyard.reinforcement.environment import Episodes
from trainyard.reinforcement.loop import DQNLoop
from trainyard.reinforcement.memory import ReplayMemory

__all__ = ["DQN", "DQNLoop", "Episodes", "ReplayMemory"]
