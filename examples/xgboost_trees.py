"""Tune boosted trees and stop bad trials early, with a tree as a step.

python examples/xgboost_trees.py
"""

import xgboost
from ray import tune
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

from tune_hpc import Experiment, Space, run


class Report(xgboost.callback.TrainingCallback):
    def __init__(self, report):
        self.report = report

    def after_iteration(self, model, epoch, evals_log):
        self.report(epoch + 1, {"rmse": evals_log["valid"]["rmse"][-1]})


def train(config, report):
    X, X_valid, y, y_valid = train_test_split(*load_diabetes(return_X_y=True), random_state=0)
    valid = xgboost.DMatrix(X_valid, y_valid)
    parameters = {"eta": config["eta"], "max_depth": config["max_depth"], "seed": config["seed"], "nthread": 1}
    xgboost.train(
        parameters, xgboost.DMatrix(X, y), num_boost_round=config["trees"],
        evals=[(valid, "valid")], verbose_eval=False, callbacks=[Report(report)],
    )  # fmt: skip


space = Space({"eta": tune.loguniform(1e-2, 1), "max_depth": tune.randint(1, 6), "trees": 60})
experiment = Experiment(
    "trees", space, train, metric="rmse", mode="min", judge="best",
    searcher="quasi_random", num_samples=16, scheduler="asha_stopping", budget="trees",
)  # fmt: skip

if __name__ == "__main__":
    results = run(experiment)
    curve = results.curve("rmse")[results.best_trial()["trial_id"]]
    print(results.counts(), results.best_config())
    print(f"best RMSE {curve.min():.2f} with {curve.idxmin()} trees")
