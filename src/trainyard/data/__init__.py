"""Data sets, and the loaders of their splits (docs/data.md)."""

from trainyard.data.array_data import ArrayData, input_spec
from trainyard.data.arrays import Arrays
from trainyard.data.base import SPLITS, Batch, Data, Loader, arranged
from trainyard.data.byte_pairs import BytePairs
from trainyard.data.dataloader import WorkerLoader
from trainyard.data.digits import Digits
from trainyard.data.hf import HuggingFace
from trainyard.data.image_folder import ImageFolder
from trainyard.data.loaders import Loaders, as_data
from trainyard.data.order import EpochBatchSampler, epoch_order
from trainyard.data.rings import Rings
from trainyard.data.stream import ShardLoader, Stream
from trainyard.data.tensor_loader import ImageLoader, TensorLoader
from trainyard.data.text import Text, WindowLoader
from trainyard.data.tokens import Tokens
from trainyard.data.topics import help_topics
from trainyard.data.torchvision import Torchvision
from trainyard.data.wrappers import ClassBalancedDataset, FirstSamples, RepeatDataset, pseudo_collate

__all__ = [
    "SPLITS",
    "ArrayData",
    "Arrays",
    "Batch",
    "BytePairs",
    "ClassBalancedDataset",
    "Data",
    "Digits",
    "EpochBatchSampler",
    "FirstSamples",
    "HuggingFace",
    "ImageFolder",
    "ImageLoader",
    "Loader",
    "Loaders",
    "RepeatDataset",
    "Rings",
    "ShardLoader",
    "Stream",
    "TensorLoader",
    "Text",
    "Tokens",
    "Torchvision",
    "WindowLoader",
    "WorkerLoader",
    "arranged",
    "as_data",
    "epoch_order",
    "help_topics",
    "input_spec",
    "pseudo_collate",
]
