"""Models and the model contract (docs/models.md)."""

from trainyard.models.augment import Augment
from trainyard.models.base import BaseModel, call, total_loss
from trainyard.models.cnn import CNN
from trainyard.models.lightning import Lightning
from trainyard.models.mixing import CutMix, Mixup, RandomChoice
from trainyard.models.mlp import MLP
from trainyard.models.preprocessor import DataPreprocessor
from trainyard.models.resnet import ResNet
from trainyard.models.supervised import Supervised, has_mode_contract
from trainyard.models.table_encoder import TableEncoder
from trainyard.models.timm import Timm
from trainyard.models.torchvision import TorchvisionModel
from trainyard.models.transformer import Transformer
from trainyard.models.transformers import Transformers

__all__ = [
    "CNN",
    "MLP",
    "Augment",
    "BaseModel",
    "CutMix",
    "DataPreprocessor",
    "Lightning",
    "Mixup",
    "RandomChoice",
    "ResNet",
    "Supervised",
    "TableEncoder",
    "Timm",
    "TorchvisionModel",
    "Transformer",
    "Transformers",
    "call",
    "has_mode_contract",
    "total_loss",
]
