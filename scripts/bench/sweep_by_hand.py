"""Training written by hand with PyTorch, Hydra and MLflow: the other side of cases/sweep.py.

It imports nothing of this project, and trains like `train.py model=mlp` on the digits: the same split by class, the
same network and initialization, Adam, a validation after each epoch. A job has one thread, as OMP_NUM_THREADS says.
"""

from pathlib import Path

import hydra
import mlflow
import torch
from digits_by_hand import evaluate, make_loaders, make_model, train_epoch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import nn


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
