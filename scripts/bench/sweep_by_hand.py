"""Training written by hand with PyTorch, Hydra and MLflow: the other side of cases/sweep.py.

It imports nothing of this project, and trains like `train.py model=mlp` on the digits: the same split by class, the
same network and initialization, Adam, a validation after each epoch. A job has one thread, as OMP_NUM_THREADS says.
"""

from pathlib import Path

import hydra
import mlflow
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

Loader = DataLoader[tuple[torch.Tensor, ...]]


def make_loaders(batch_size: int) -> tuple[Loader, Loader]:
    x, y = load_digits(return_X_y=True)
    x_train, x_rest, y_train, y_rest = train_test_split(x / 16, y, test_size=0.3, stratify=y, random_state=0)
    x_val, _, y_val, _ = train_test_split(x_rest, y_rest, test_size=2 / 3, stratify=y_rest, random_state=0)
    train, val = (
        TensorDataset(torch.tensor(inputs, dtype=torch.float32), torch.tensor(labels))
        for inputs, labels in ((x_train, y_train), (x_val, y_val))
    )
    return DataLoader(train, batch_size=batch_size, shuffle=True), DataLoader(val, batch_size=256)


def make_model(hidden: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = 64
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return model


def train_epoch(model: nn.Module, loader: Loader, optimizer: torch.optim.Optimizer, criterion: nn.Module) -> float:
    model.train()
    total, count = 0.0, 0
    for inputs, labels in loader:
        optimizer.zero_grad()
        loss = criterion(model(inputs), labels)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(labels)
        count += len(labels)
    return total / count


@torch.no_grad()
def evaluate(model: nn.Module, loader: Loader, criterion: nn.Module) -> tuple[float, float]:
    model.eval()
    total, correct, count = 0.0, 0, 0
    for inputs, labels in loader:
        outputs = model(inputs)
        total += criterion(outputs, labels).item() * len(labels)
        correct += int((outputs.argmax(dim=1) == labels).sum().item())
        count += len(labels)
    return total / count, correct / count


@hydra.main(version_base="1.3", config_path="conf", config_name="by_hand")
def main(cfg: DictConfig) -> float:
    torch.manual_seed(cfg.seed)
    train_loader, val_loader = make_loaders(cfg.batch_size)
    model = make_model(cfg.hidden)
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg.lr)
    criterion = nn.CrossEntropyLoss()

    mlflow.set_tracking_uri(cfg.tracking_uri)
    mlflow.set_experiment(cfg.experiment_name)
    with mlflow.start_run():
        params = OmegaConf.to_container(cfg, resolve=True)
        assert isinstance(params, dict)
        mlflow.log_params({str(key): value for key, value in params.items()})
        for epoch in range(cfg.epochs):
            train_loss = train_epoch(model, train_loader, optimizer, criterion)
            val_loss, val_accuracy = evaluate(model, val_loader, criterion)
            metrics = {"train/loss": train_loss, "val/loss": val_loss, "val/accuracy": val_accuracy}
            mlflow.log_metrics(metrics, step=epoch + 1)
        checkpoint = Path(HydraConfig.get().runtime.output_dir) / "last.pt"
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": cfg.epochs}, checkpoint)
        mlflow.log_artifact(str(checkpoint), "checkpoints")
    return val_accuracy


if __name__ == "__main__":
    main()
