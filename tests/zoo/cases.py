"""Models of other libraries that are trained as anybody would, each small, with data of its kind."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainyard.models import BaseModel

CLASSES, WORDS = 4, 20


@dataclass(frozen=True)
class Case:
    """A model of a library.

    Attributes:
        library: the package that it needs.
        name: of the model, as the page has it.
        config: of the model.
        data: the kind of its batches, a key of `DATA`.
        alone: what the probe of a stack says, where the model trains one by one.
    """

    library: str
    name: str
    config: Mapping[str, Any] = field(repr=False)
    data: str = "images"
    alone: str | None = None

    def __str__(self) -> str:
        return f"{self.library} {self.name}"


def timm(name: str, **more: Any) -> Case:
    return Case("timm", name, {"_target_": "trainyard.models.Timm", "name": name, "num_classes": CLASSES, **more})


def torchvision(name: str) -> Case:
    target = "trainyard.models.TorchvisionModel"
    return Case("torchvision", name, {"_target_": target, "name": name, "num_classes": CLASSES})


def transformers(kind: str, task: str, data: str = "texts", **entries: Any) -> Case:
    sizes = {"model_type": kind, **(entries or BERT)}
    config = {"_target_": "trainyard.models.Transformers", "task": task, "config": sizes}
    return Case("transformers", f"{kind}, {task}", config | {"num_classes": None if "lm" in task else CLASSES}, data)


def supervised(library: str, name: str, target: str, data: str = "images", **more: Any) -> Case:
    return Case(library, name, {"_target_": "trainyard.models.Supervised", "net": {"_target_": target, **more}}, data)


SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32}
BERT = SIZES | {"vocab_size": WORDS, "max_position_embeddings": 32}
DISTILBERT = {"vocab_size": WORDS, "dim": 16, "n_heads": 2, "n_layers": 2, "hidden_dim": 32}
DECODER = {"_target_": "x_transformers.Decoder", "dim": 16, "depth": 2, "heads": 2, "rotary_pos_emb": True}
GPT2 = {"vocab_size": WORDS, "n_embd": 16, "n_head": 2, "n_layer": 2, "bos_token_id": 0, "eos_token_id": 0}
VIT = {"image_size": 32, "patch_size": 8, "dim": 16, "depth": 2, "heads": 2, "mlp_dim": 32, "num_classes": CLASSES}
UNET = {"spatial_dims": 2, "in_channels": 3, "out_channels": CLASSES, "features": (8, 8, 8, 16, 16, 8)}


class Graphs(nn.Module):
    """Classes of graphs: two convolutions and the mean over nodes."""

    def __init__(self) -> None:
        super().__init__()
        geometric = importlib.import_module("torch_geometric.nn")
        self.convolutions = geometric.GCN(4, 16, num_layers=2)
        self.pool = geometric.global_mean_pool
        self.head = nn.Linear(16, CLASSES)

    def forward(self, batch: Any) -> Any:
        return self.head(self.pool(self.convolutions(batch.x, batch.edge_index), batch.batch))


class Denoiser(BaseModel):
    """Predicts the noise in images, as a model of diffusion learns to."""

    def __init__(self) -> None:
        super().__init__()
        unet = importlib.import_module("diffusers").UNet2DModel
        sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
        kinds = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
        self.net = unet(sample_size=32, in_channels=3, out_channels=3, **sizes, **kinds)

    def forward(self, x: Tensor, y: Tensor | None = None, mode: str = "tensor") -> Any:
        if mode != "loss":
            return self.net(x, torch.zeros(len(x), device=x.device)).sample
        noise, time = torch.randn_like(x), torch.rand(len(x), device=x.device)
        mixed = x * (1 - time).view(-1, 1, 1, 1) + noise * time.view(-1, 1, 1, 1)
        return {"loss": nn.functional.mse_loss(self.net(mixed, 1000 * time).sample, noise)}


def module() -> Any:
    """Return a LightningModule, whose class exists only where Lightning is installed."""
    lightning = importlib.import_module("lightning")

    class Classifier(lightning.LightningModule):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 16), nn.ReLU(), nn.Linear(16, CLASSES))

        def forward(self, x: Tensor) -> Any:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    globals()["Classifier"] = Classifier  # so that it can be pickled
    Classifier.__module__, Classifier.__qualname__ = __name__, "Classifier"
    return Classifier()


CASES = [
    timm("resnet10t"),
    timm("convnext_atto"),
    timm("mobilenetv3_small_050"),
    timm("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2),
    torchvision("resnet18"),
    torchvision("mobilenet_v3_small"),
    torchvision("shufflenet_v2_x0_5"),
    torchvision("squeezenet1_1"),
    transformers("bert", "sequence_classification"),
    transformers("electra", "sequence_classification", **BERT, embedding_size=16),
    transformers("roberta", "token_classification", "tags", **BERT),
    transformers("distilbert", "sequence_classification", **DISTILBERT),
    transformers("gpt2", "causal_lm", "tokens", **GPT2),
    transformers("vit", "image_classification", "images", image_size=32, patch_size=8, **SIZES),
    Case(
        *("torch_geometric", "GCN for graphs"),
        {"_target_": "trainyard.models.Supervised", "net": {"_target_": Graphs}},
        "graphs",
    ),
    supervised("monai", "BasicUNet, 2d", "monai.networks.nets.BasicUNet", "masks", **UNET),
    supervised(
        *("segmentation_models_pytorch", "Unet, resnet18", "segmentation_models_pytorch.Unet", "masks"),
        encoder_name="resnet18",
        encoder_weights=None,
        classes=CLASSES,
    ),
    Case("diffusers", "UNet2DModel, denoising", {"_target_": Denoiser}),
    supervised("vit_pytorch", "ViT", "vit_pytorch.ViT", **VIT),
    supervised("vit_pytorch", "SimpleViT", "vit_pytorch.SimpleViT", **VIT),
    Case(
        *("x_transformers", "decoder with rotary embeddings"),
        {
            "_target_": "trainyard.models.Supervised",
            "net": {
                "_target_": "x_transformers.TransformerWrapper",
                "num_tokens": WORDS,
                "max_seq_len": 16,
                "attn_layers": {
                    "_target_": "x_transformers.Decoder",
                    "dim": 16,
                    "depth": 2,
                    "heads": 2,
                    "rotary_pos_emb": True,
                },
            },
            "loss": {"_target_": "trainyard.models.transformers.cross_entropy", "_partial_": True},
        },
        "sequences",
    ),
    Case(
        *("lightning", "a LightningModule"),
        {"_target_": "trainyard.models.Lightning", "module": {"_target_": module}},
        alone="reads or changes Python state",
    ),
]
