"""Tune a CNN for digits with a DataLoader, and load the best model.

python examples/pytorch_cnn.py
"""

import torch
from ray import tune
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from tune_hpc import Experiment, Space, run


def make_model(config):
    convolution = nn.Conv2d(1, config["width"], kernel_size=3)
    return nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(36 * config["width"], 10))


def train(config, report, checkpoint):
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.images[:, None] / 16).float(), torch.tensor(digits.target))
    train_set, valid_set = random_split(data, [0.8, 0.2], torch.Generator().manual_seed(0))
    torch.manual_seed(config["seed"])
    loader = DataLoader(train_set, config["batch_size"], shuffle=True, num_workers=config["num_workers"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = make_model(config).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config["lr"])
    first_epoch = 1
    if state := checkpoint.load():
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first_epoch = state["epoch"] + 1
    for epoch in range(first_epoch, config["epochs"] + 1):
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images.to(device)), labels.to(device)).backward()
            optimizer.step()
        with torch.no_grad():
            images, labels = valid_set[:]
            accuracy = (model(images.to(device)).argmax(1).cpu() == labels).float().mean().item()
        report(epoch, {"accuracy": accuracy})
        state = {"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        checkpoint.save(epoch, lambda: state)


varied = {"lr": tune.loguniform(1e-4, 1e-1), "width": tune.choice([4, 8, 16])}
space = Space(varied | {"batch_size": 64, "num_workers": 0, "epochs": 5})
experiment = Experiment("digits", space, train, metric="accuracy", mode="max", searcher="tpe", num_samples=8)

if __name__ == "__main__":
    results = run(experiment)
    model = make_model(results.best_config())
    model.load_state_dict(torch.load(results.best_checkpoint())["model"])
    print(results.best_config())
