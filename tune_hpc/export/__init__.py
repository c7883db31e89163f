"""Export searches to TensorBoard, Optuna and MLflow."""
