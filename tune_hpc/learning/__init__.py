"""The learning itself, in PyTorch and without Ray: data, batches, models, optimizers, the training loop."""
