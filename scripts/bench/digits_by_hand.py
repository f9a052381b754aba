"""The training that scripts of other sides share, written by hand with PyTorch: an MLP on the digits."""

import torch
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
