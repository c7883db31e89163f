"""Tune a LightningModule through a callback, and load the best model.

python examples/lightning_mlp.py
"""

import pytorch_lightning as pl
import torch
from ray import tune
from sklearn.datasets import load_wine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from tune_hpc import Experiment, Space, run


class Classifier(pl.LightningModule):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.network = nn.Sequential(
            nn.BatchNorm1d(13), nn.Linear(13, config["width"]), nn.ReLU(), nn.Linear(config["width"], 3)
        )

    def training_step(self, batch, batch_index):
        inputs, labels = batch
        return nn.functional.cross_entropy(self.network(inputs), labels)

    def validation_step(self, batch, batch_index):
        inputs, labels = batch
        self.log("valid_loss", nn.functional.cross_entropy(self.network(inputs), labels))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.config["lr"])


class Report(pl.Callback):
    def __init__(self, report, checkpoint):
        self.report, self.checkpoint = report, checkpoint

    def on_validation_end(self, trainer, module):
        epoch = trainer.current_epoch + 1
        self.report(epoch, {"valid_loss": trainer.callback_metrics["valid_loss"].item()})
        self.checkpoint.keep(epoch, module.state_dict)


def train(config, report, checkpoint):
    pl.seed_everything(config["seed"], verbose=False)
    wine = load_wine()
    data = TensorDataset(torch.tensor(wine.data).float(), torch.tensor(wine.target))
    train_set, valid_set = random_split(data, [0.8, 0.2], torch.Generator().manual_seed(0))
    trainer = pl.Trainer(
        max_epochs=config["epochs"], callbacks=[Report(report, checkpoint)], devices=1, num_sanity_val_steps=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Classifier(config), DataLoader(train_set, 32, shuffle=True), DataLoader(valid_set, 64))


space = Space({"lr": tune.loguniform(1e-3, 1e-1), "width": tune.choice([8, 32]), "epochs": 5})
experiment = Experiment(
    "wine", space, train, metric="valid_loss", mode="min", judge="best", searcher="random", num_samples=6
)

if __name__ == "__main__":
    results = run(experiment)
    model = Classifier(results.best_config())
    model.load_state_dict(torch.load(results.best_checkpoint()))
    print(f"best loss {results.best()['valid_loss']:.4f} with", results.best_config())
