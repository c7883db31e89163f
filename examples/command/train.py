"""Fit a straight line by gradient descent: a script that tune_hpc tunes without a change.

Run it alone, or search its arguments:

    python examples/command/train.py --lr 0.1 --layers 2
    tune-hpc run --command 'python examples/command/train.py --lr {lr}' --set lr=0.1,0.01 --metric val_loss --mode min
    tune-hpc run examples/command/search.yaml
"""

import argparse
import json
import random

parser = argparse.ArgumentParser(description="Fit a line by a product of weights, one per layer.")
parser.add_argument("--lr", type=float, default=0.1, help="learning rate")
parser.add_argument("--layers", type=int, default=1, help="number of weights whose product is the slope")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()

generator = random.Random(arguments.seed)
inputs = [generator.uniform(-1, 1) for _ in range(200)]
samples = [(x, 3 * x + generator.gauss(0, 0.1)) for x in inputs]
train, valid = samples[:150], samples[150:]


def slope(weights):
    """Return the product of the weights."""
    product = 1.0
    for weight in weights:
        product *= weight
    return product


weights = [1.0] * arguments.layers
for epoch in range(1, arguments.epochs + 1):
    error = sum(2 * (slope(weights) * x - y) * x for x, y in train) / len(train)
    gradients = [error * slope(weights[:i] + weights[i + 1 :]) for i in range(len(weights))]
    weights = [weight - arguments.lr * gradient for weight, gradient in zip(weights, gradients, strict=True)]
    loss = sum((slope(weights) * x - y) ** 2 for x, y in valid) / len(valid)
    print(json.dumps({"epoch": epoch, "val_loss": loss}))
