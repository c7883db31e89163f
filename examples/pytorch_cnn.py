"""Tune a CNN for digits with PyTorch, and load the best model."""

import torch
from ray import tune
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from tune_hpc import Experiment, Space, run


def make_model(width):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 10))


def train(config, report, checkpoint):
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.images[:, None] / 16).float(), torch.tensor(digits.target))
    train_set, valid_set = random_split(data, [0.8, 0.2], torch.Generator().manual_seed(0))
    torch.manual_seed(config["seed"])
    loader = DataLoader(train_set, config["batch_size"], shuffle=True, num_workers=1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = make_model(config["width"]).to(device)
    adam = torch.optim.Adam(model.parameters(), lr=config["lr"])
    state = checkpoint.load() or {"epoch": 0, "model": model.state_dict(), "adam": adam.state_dict()}
    model.load_state_dict(state["model"])
    adam.load_state_dict(state["adam"])
    for epoch in range(state["epoch"] + 1, config["epochs"] + 1):
        for images, labels in loader:
            adam.zero_grad()
            nn.functional.cross_entropy(model(images.to(device)), labels.to(device)).backward()
            adam.step()
        images, labels = valid_set[:]
        accuracy = (model(images.to(device)).argmax(1).cpu() == labels).float().mean().item()
        report(epoch, {"accuracy": accuracy})
        checkpoint.save(epoch, lambda: {"epoch": epoch, "model": model.state_dict(), "adam": adam.state_dict()})


space = Space({"lr": tune.loguniform(1e-4, 1e-1), "width": tune.choice([4, 8, 16]), "batch_size": 64, "epochs": 5})
experiment = Experiment("digits", space, train, metric="accuracy", mode="max", searcher="tpe", num_samples=8)

if __name__ == "__main__":
    results = run(experiment)
    model = make_model(results.best_config()["width"])
    model.load_state_dict(torch.load(results.best_checkpoint())["model"])
    print("best accuracy", results.best()["accuracy"], "with", results.best_config())
