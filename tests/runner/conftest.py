import pytest


@pytest.fixture
def parts():
    """The arguments of a small Runner that learns; a test replaces what it is about."""
    return {
        "model": {"_target_": "trainyard.models.MLP", "in_features": "auto", "num_classes": "auto", "hidden": [16]},
        "data": {"_target_": "trainyard.data.Rings", "num_samples": 320, "batch_size": 32},
        "optim": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01},
        "loop": {"_target_": "trainyard.runner.EpochBasedTrainLoop", "max_epochs": 3},
        "metrics": {
            "accuracy": {"_target_": "trainyard.metrics.Accuracy"},
            "loss": {"_target_": "trainyard.metrics.CrossEntropy"},
        },
        "objective": "val/accuracy",
        "direction": "maximize",
        "device": "cpu",
    }
