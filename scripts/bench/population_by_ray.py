"""Population-based training by Ray Tune, as its guide writes it: the other side of cases/population.py.

It imports nothing of this project, and trains like `train.py model=mlp` on the digits (`digits_by_hand.py`): the same
split and network, Adam, a validation and a checkpoint after each epoch. After each epoch the worst quarter goes on from
checkpoints of the best, with other values. All members run at once, each in a process with one thread.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
import torch
from digits_by_hand import evaluate, make_loaders, make_model, train_epoch
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining
from torch import nn


def train(config: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(config["seed"])
    train_loader, val_loader = make_loaders(64)
    model = make_model([64, 64])
    optimizer = torch.optim.Adam(model.parameters(), lr=config["lr"], weight_decay=config["weight_decay"])
    criterion = nn.CrossEntropyLoss()
    epoch = 0
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder, "checkpoint.pt"))
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = config["lr"], config["weight_decay"]
        epoch = state["epoch"]
    while epoch < config["epochs"]:
        loss = train_epoch(model, train_loader, optimizer, criterion)
        val_loss, accuracy = evaluate(model, val_loader, criterion)
        epoch += 1
        with tempfile.TemporaryDirectory() as folder:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
            torch.save(state, Path(folder, "checkpoint.pt"))
            values = {"loss": loss, "val_loss": val_loss, "accuracy": accuracy}
            tune.report(values, checkpoint=tune.Checkpoint.from_directory(folder))


def main(population: int, epochs: int, folder: str) -> None:
    cpus = len(os.sched_getaffinity(0))
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    scheduler = PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=1,
        quantile_fraction=0.25,
        hyperparam_mutations={"lr": tune.loguniform(1e-4, 1e-1), "weight_decay": tune.uniform(0, 0.1)},
    )
    space = {"lr": tune.loguniform(1e-4, 1e-1), "weight_decay": tune.uniform(0, 0.1)}
    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": cpus / population}),
        param_space={**space, "seed": tune.randint(0, 1000), "epochs": epochs},
        tune_config=tune.TuneConfig(metric="accuracy", mode="max", num_samples=population, scheduler=scheduler),
        run_config=tune.RunConfig(storage_path=folder, verbose=0, stop={"training_iteration": epochs}),
    )
    found = tuner.fit()
    ends = [each.metrics["training_iteration"] for each in found]
    assert not found.errors, found.errors
    assert ends == [epochs] * population, ends
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
