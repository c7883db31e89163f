"""Tune a pipeline of scikit-learn by cross-validation, and refit the best one.

python examples/sklearn_svm.py
"""

from ray import tune
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from tune_hpc import Experiment, Space, run


def load_data():
    return train_test_split(*load_breast_cancer(return_X_y=True), test_size=0.25, random_state=0)


def make_model(config):
    return make_pipeline(StandardScaler(), SVC(C=config["C"], gamma=config["gamma"]))


def train(config, report):
    X, _, y, _ = load_data()
    report(1, {"accuracy": cross_val_score(make_model(config), X, y, cv=config["folds"]).mean()})


space = Space({"C": tune.loguniform(1e-2, 1e2), "gamma": tune.loguniform(1e-4, 1), "folds": 5})
experiment = Experiment("svm", space, train, metric="accuracy", mode="max", searcher="gp", num_samples=12)

if __name__ == "__main__":
    results = run(experiment)
    X, X_test, y, y_test = load_data()
    model = make_model(results.best_config()).fit(X, y)
    print(f"validation accuracy {results.best()['accuracy']:.4f}, test accuracy {model.score(X_test, y_test):.4f}")
