"""Training in PyTorch without Ray: data sets, batching, models, optimizers, and the training loop."""
