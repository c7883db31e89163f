"""Tune a Trainer of Hugging Face.

    python examples/transformers_trainer.py

The model is a small BERT with random weights, so that nothing is downloaded. It learns whether the token 1 occurs in a
sequence of random tokens.
"""

import tempfile

import torch
from ray import tune
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from tune_hpc import Experiment, Space, run


class Report(TrainerCallback):
    def __init__(self, report):
        self.report = report

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.report(state.global_step, {"valid_loss": metrics["eval_loss"]})


def make_data(size, seed):
    tokens = torch.randint(0, 16, (size, 8), generator=torch.Generator().manual_seed(seed))
    labels = (tokens == 1).any(1).long()
    return [{"input_ids": ids, "labels": label} for ids, label in zip(tokens, labels, strict=True)]


def train(config, report):
    sizes = {"hidden_size": config["width"], "intermediate_size": config["width"], "num_hidden_layers": 1}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, seed=config["seed"], learning_rate=config["lr"], lr_scheduler_type=config["schedule"],
            per_device_train_batch_size=32, num_train_epochs=config["epochs"], eval_strategy="epoch",
            save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        Trainer(
            model_init=lambda: BertForSequenceClassification(BertConfig(vocab_size=16, num_attention_heads=2, **sizes)),
            args=arguments, train_dataset=make_data(512, seed=0), eval_dataset=make_data(128, seed=1),
            callbacks=[Report(report)],
        ).train()  # fmt: skip


schedules = tune.choice(["linear", "cosine"])
space = Space({"lr": tune.loguniform(1e-4, 1e-1), "schedule": schedules, "width": 32, "epochs": 3})
experiment = Experiment("bert", space, train, metric="valid_loss", mode="min", searcher="tpe", num_samples=6)

if __name__ == "__main__":
    results = run(experiment)
    print(results.top(3))
