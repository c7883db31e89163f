import math

import numpy as np
import pytest
import torch

from tune_hpc.learning import tasks
from tune_hpc.learning.batching import Batching
from tune_hpc.learning.config import complete
from tune_hpc.learning.data import ImageData
from tune_hpc.learning.models import build_model
from tune_hpc.learning.tasks import ImageClassification, LineFit

CPU = torch.device("cpu")


def make_task(config, images, num_hidden=0, **replica):
    return ImageClassification(complete(config), images, CPU, num_hidden, **replica)


def loss_and_gradients(config, images, num_steps, **replica):
    """What the last of some steps gives at the initial parameters: the earlier ones move the dropout generator only."""
    model = build_model(complete(config))
    task = make_task(config, images, model.num_hidden, **replica)
    for step in range(num_steps):
        loss = task.loss(model, step)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([loss.detach()[None], *(gradient.flatten() for gradient in gradients)])


SMALL_CNN = {"model": "cnn", "width": 0.05, "precision": "float64"}


class TestReplicas:
    @pytest.mark.parametrize("num_replicas", [1, 2, 3, 4])
    @pytest.mark.parametrize("batch_size", [3, 7, 50], ids=lambda size: f"batch_{size}")
    @pytest.mark.parametrize("dropout", [0.0, 0.5], ids=lambda dropout: f"dropout_{dropout}")
    def test_the_mean_of_their_gradients_is_that_of_the_whole_batch(self, images, dropout, batch_size, num_replicas):
        config = {**SMALL_CNN, "dropout": dropout, "batch_size": batch_size}
        whole = loss_and_gradients(config, images, 2)
        shares = [
            loss_and_gradients(config, images, 2, replica=replica, num_replicas=num_replicas)
            for replica in range(num_replicas)
        ]
        torch.testing.assert_close(torch.stack(shares).mean(0), whole, rtol=0, atol=1e-12)

    def test_softmax_s_gradients_too(self, images):
        config = {"initial_weights": "pytorch", "precision": "float64", "batch_size": 100}
        shares = [loss_and_gradients(config, images, 1, replica=replica, num_replicas=3) for replica in range(3)]
        whole = loss_and_gradients(config, images, 1)
        torch.testing.assert_close(torch.stack(shares).mean(0), whole, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("num_replicas", [1, 2, 3, 4])
    def test_their_shares_are_the_batch_in_pieces_that_differ_by_one_at_most(self, images, num_replicas):
        replicas = [
            make_task({"batch_size": 10}, images, replica=replica, num_replicas=num_replicas)
            for replica in range(num_replicas)
        ]
        labels = [task.batch(3)[1] for task in replicas]
        assert torch.equal(torch.cat(labels), make_task({"batch_size": 10}, images).batch(3)[1])
        assert max(map(len, labels)) - min(map(len, labels)) <= 1


class TestBatches:
    def test_pixels_are_fractions_of_full_brightness_in_the_order_of_the_policy(self, images):
        task = make_task({"batch_size": 20, "seed": 4}, images)
        chosen = Batching("shuffled", 600, 20, 4).indices(7)
        pictures, labels, mask = task.batch(7)
        assert torch.equal(pictures, images.train_images[chosen].float() / 255)
        assert torch.equal(labels, images.train_labels[chosen])
        assert mask is None

    def test_a_dropout_mask_zeroes_its_share_and_scales_up_the_rest(self, images):
        _, _, mask = make_task({"batch_size": 500, "dropout": 0.2}, images, num_hidden=100).batch(0)
        assert mask.shape == (500, 100)
        assert set(mask.unique().tolist()) == {0.0, 1.25}
        assert (mask == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)

    def test_the_masks_go_on_where_the_state_was_taken(self, images):
        config = {"batch_size": 5, "dropout": 0.5}
        task, other = (make_task(config, images, num_hidden=30) for _ in range(2))
        first = task.batch(0)[2]
        state = task.state_dict()
        second = task.batch(1)[2]
        other.load_state_dict(state)
        assert torch.equal(other.batch(1)[2], second)
        assert not torch.equal(first, second)

    def test_nothing_is_dropped_where_nothing_is_hidden(self, images):
        assert make_task({"dropout": 0.5}, images, num_hidden=0).batch(0)[2] is None


@pytest.fixture
def three_and_two():
    """Black images but for one bright pixel each: of three for validation, and two for the test."""
    arrays = {"name": np.array("mnist")}
    splits = {"train": ([0], [0]), "valid": ([1, 2, 2], [1, 2, 5]), "test": ([3, 9], [4, 9])}
    for split, (pixels, labels) in splits.items():
        pictures = np.zeros((len(labels), 1, 28, 28), dtype=np.uint8)
        for picture, pixel in zip(pictures, pixels, strict=True):
            picture[0, 0, pixel] = 255
        arrays |= {f"{split}_images": pictures, f"{split}_labels": np.array(labels)}
    return ImageData.from_arrays(arrays)


class TestEvaluation:
    @pytest.fixture
    def model(self):
        """Its logit of class c is log(3) where pixel c is white and 0 where it is black."""
        model = build_model(complete({"precision": "float64"}))
        with torch.no_grad():
            model.output.weight[:, :10] = math.log(3) * torch.eye(10, dtype=torch.float64)
        return model

    def evaluate(self, images, model, **config):
        return make_task({"precision": "float64", "batch_size": 1, **config}, images).evaluate(model)

    def test_loss_and_accuracy_are_the_means_over_each_split(self, three_and_two, model):
        # The softmax gives the bright class 3/12 and each of the nine others 1/12.
        bright, dark = math.log(4), math.log(12)
        assert self.evaluate(three_and_two, model) == pytest.approx(
            {
                "valid_loss": (bright + bright + dark) / 3,
                "valid_accuracy": 2 / 3,
                "test_loss": (dark + bright) / 2,
                "test_accuracy": 1 / 2,
            },
            abs=1e-14,
        )

    def test_only_the_first_images_count_where_fewer_are_asked_for(self, three_and_two, model):
        bright, dark = math.log(4), math.log(12)
        assert self.evaluate(three_and_two, model, num_evaluation_images=2) == pytest.approx(
            {"valid_loss": bright, "valid_accuracy": 1.0, "test_loss": (dark + bright) / 2, "test_accuracy": 0.5},
            abs=1e-14,
        )
        one = self.evaluate(three_and_two, model, num_evaluation_images=1)
        assert one == pytest.approx(
            {"valid_loss": bright, "valid_accuracy": 1.0, "test_loss": dark, "test_accuracy": 0.0}, abs=1e-14
        )

    def test_the_size_of_a_forward_pass_does_not_matter(self, images, monkeypatch):
        model = build_model(complete({"initial_weights": "pytorch", "precision": "float64"}))
        whole = self.evaluate(images, model)
        monkeypatch.setattr(tasks, "EVALUATION_CHUNK", 7)
        assert self.evaluate(images, model) == pytest.approx(whole, abs=1e-13)

    def test_nothing_is_dropped(self, images):
        model = build_model(complete({"model": "cnn", "width": 0.05}))
        evaluations = [
            make_task({"dropout": dropout}, images, num_hidden=model.num_hidden).evaluate(model)
            for dropout in (0.0, 0.9)
        ]
        assert evaluations[0] == evaluations[1]


class TestLineFit:
    @pytest.fixture
    def line(self):
        return LineFit(complete({"model": "line", "precision": "float64"}), CPU)

    def test_the_loss_is_the_sum_of_squared_errors_over_all_points_at_every_step(self, line):
        model = build_model(complete({"model": "line", "precision": "float64"}))
        by_hand = sum((0.3 * x - 0.3 - (1 - x)) ** 2 for x in (1, 2, 3, 4))
        assert by_hand == pytest.approx(23.66)
        for step in (0, 1, 1000):
            assert line.loss(model, step).item() == pytest.approx(by_hand, abs=1e-14)

    def test_every_step_is_a_pass_and_there_is_nothing_to_evaluate_on(self, line):
        assert [line.epoch(step) for step in (0, 1, 7)] == [0, 1, 7]
        assert line.evaluate(build_model(complete({"model": "line"}))) == {}
        assert line.num_steps is None
