"""Tasks: batches, replicas, augmentation, members and evaluation."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from tune_hpc.learning import evaluation
from tune_hpc.learning.batching import Batching
from tune_hpc.learning.config import complete
from tune_hpc.learning.data import ImageData
from tune_hpc.learning.models import build_model
from tune_hpc.learning.tasks import ImageClassification, LineRegression

CPU = torch.device("cpu")


def completed(members, **config):
    return [complete({**config, **member}) for member in members]


def make_task(config, images, num_hidden=0, members=({},), **replica):
    """Return the task of members with one configuration, apart from the keys in ``members``."""
    return ImageClassification(completed(members, **config), images, CPU, num_hidden, **replica)


def batch(task, step):
    return task.batch(task.batch_indices(step, step + 1)[0])


def losses_and_gradients(config, images, num_steps, members=({},), **replica):
    """Return loss and gradients of the last step at the initial parameters, a row for each member.

    Earlier steps only advance the random generators.
    """
    model = build_model(completed(members, **config))
    task = make_task(config, images, model.num_hidden, members, **replica)
    for indices in task.batch_indices(0, num_steps):
        model.zero_grad()
        losses = task.backward(model, indices)
    return torch.cat([losses[:, None], *(parameter.grad.flatten(1) for parameter in model.parameters())], dim=1)


SMALL_CNN = {"model": "cnn", "width": 0.05, "precision": "float64"}
SOFTMAX = {"initial_weights": "pytorch", "precision": "float64"}


class TestReplicas:
    @pytest.mark.parametrize("num_replicas", [1, 2, 3, 4])
    @pytest.mark.parametrize("batch_size", [3, 7, 50, 100], ids=lambda size: f"batch_{size}")
    @pytest.mark.parametrize(
        "config", [SMALL_CNN, SMALL_CNN | {"dropout": 0.5}, SOFTMAX], ids=["cnn", "dropout", "softmax"]
    )
    def test_mean_gradient_of_replicas_is_that_of_the_whole_batch(self, images, config, batch_size, num_replicas):
        config = {**config, "batch_size": batch_size}
        whole = losses_and_gradients(config, images, 2)
        shares = [
            losses_and_gradients(config, images, 2, replica=replica, num_replicas=num_replicas)
            for replica in range(num_replicas)
        ]
        torch.testing.assert_close(torch.stack(shares).mean(0), whole, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("num_replicas", [1, 2, 3, 4])
    def test_slices_of_replicas_partition_the_batch_evenly(self, images, num_replicas):
        replicas = [
            make_task({"batch_size": 10}, images, replica=replica, num_replicas=num_replicas)
            for replica in range(num_replicas)
        ]
        labels = [batch(task, 3)[1][0] for task in replicas]
        assert torch.equal(torch.cat(labels), batch(make_task({"batch_size": 10}, images), 3)[1][0])
        assert max(map(len, labels)) - min(map(len, labels)) <= 1


class TestBatches:
    def test_batches_are_scaled_images_in_the_order_of_the_policy(self, images):
        task = make_task({"batch_size": 20, "seed": 4}, images)
        indices = Batching("shuffled", 600, 20, 4).indices(7)
        pictures, labels, mask = batch(task, 7)
        assert torch.equal(pictures, images.train_images[indices].float()[None] / 255)
        assert torch.equal(labels, images.train_labels[indices][None])
        assert mask is None

    @pytest.mark.parametrize("batching", ["single_pass", "sequential", "shuffled", "random"])
    def test_batch_indices_of_a_window_equal_those_of_single_steps(self, images, batching):
        task = make_task({"batch_size": 70, "batching": batching}, images, members=[{"seed": 2}, {"seed": 5}])
        window = task.batch_indices(0, 8)
        assert window.shape == (8, 2 if batching in ("shuffled", "random") else 1, 70)
        for step in range(8):
            assert torch.equal(task.batch_indices(step, step + 1)[0], window[step])
            for stream, seed in enumerate((2, 5)[: window.shape[1]]):
                assert torch.equal(window[step, stream], Batching(batching, 600, 70, seed).indices(step))

    def test_epochs_match_the_batches(self, images):
        task, batching = make_task({"batch_size": 70}, images), Batching("shuffled", 600, 70, 0)
        steps = np.arange(100)
        assert task.epochs(steps).tolist() == [batching.epoch(step) for step in steps]

    def test_dropout_mask_zeroes_a_fraction_and_scales_the_rest(self, images):
        _, _, mask = batch(make_task({"batch_size": 500, "dropout": 0.2}, images, num_hidden=100), 0)
        assert mask.shape == (1, 100, 500)
        assert set(mask.unique().tolist()) == {0.0, 1.25}
        assert (mask == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)

    def test_no_mask_without_hidden_units(self, images):
        assert batch(make_task({"dropout": 0.5}, images, num_hidden=0), 0)[2] is None


AUGMENTED = {"max_shift": 2.0, "max_rotation": 15.0, "max_scaling": 0.1, "batch_size": 20}


class TestAugmentedBatches:
    def test_each_use_of_an_image_has_another_augmentation(self, images):
        task, plain = make_task(AUGMENTED, images), make_task({"batch_size": 20}, images)
        pictures, labels, _ = batch(task, 7)
        assert pictures.shape == (1, 20, 1, 28, 28)
        assert torch.equal(labels, batch(plain, 7)[1])
        # The brightness is similar, and each augmentation differs.
        assert pictures.mean().item() == pytest.approx(batch(plain, 7)[0].mean().item(), rel=0.2)
        assert not torch.equal(pictures, batch(task, 7)[0])

    def test_no_generator_without_augmentation(self, images):
        assert make_task({"batch_size": 20}, images).generators == []

    def test_dropout_does_not_depend_on_augmentation(self, images):
        config = {"dropout": 0.5, "batch_size": 20}
        masks = [batch(make_task({**config, **more}, images, 30), 0)[2] for more in ({}, AUGMENTED)]
        assert torch.equal(*masks)

    @pytest.mark.parametrize("batching", ["sequential", "shuffled"])
    def test_each_member_has_the_same_augmentation_as_alone(self, images, batching):
        members = [{"seed": seed} for seed in (5, 1, 5)]
        config = {**AUGMENTED, "batching": batching, "precision": "float64"}
        task = make_task(config, images, members=members)
        singles = [make_task({**config, **member}, images) for member in members]
        for step in range(3):
            pictures = batch(task, step)[0]
            assert pictures.shape == (3, 20, 1, 28, 28)
            assert not torch.equal(pictures[0], pictures[1])
            for member_pictures, single in zip(pictures, singles, strict=True):
                torch.testing.assert_close(member_pictures, batch(single, step)[0][0], rtol=0, atol=1e-14)

    def test_replicas_have_slices_of_one_batch(self, images):
        config = {**AUGMENTED, "precision": "float64"}
        pieces = [batch(make_task(config, images, replica=replica, num_replicas=3), 0)[0] for replica in range(3)]
        whole = batch(make_task(config, images), 0)[0]
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-14)

    def test_augmentation_and_masks_resume_from_a_state(self, images):
        members = [{"seed": 1}, {"seed": 2}]
        task, other = (make_task({**AUGMENTED, "dropout": 0.5}, images, 30, members) for _ in range(2))
        first = batch(task, 0)
        other.load_state_dict(task.state_dict())
        second, resumed = batch(task, 1), batch(other, 1)
        assert torch.equal(second[0], resumed[0])
        assert torch.equal(second[2], resumed[2])
        assert not torch.equal(first[2], second[2])

    def test_evaluation_images_are_not_augmented(self, images):
        config = {**SMALL_CNN, "num_evaluation_images": 50}
        model = build_model(completed([{}], **config))
        plain, augmented = (make_task({**config, **more}, images) for more in ({}, AUGMENTED))
        assert plain.evaluate(model) == augmented.evaluate(model)


class TestMembers:
    def test_members_with_one_seed_share_images(self, images):
        task = make_task({"batch_size": 20}, images, members=[{"optimizer": "adam"}, {"learning_rate": 0.5}])
        pictures, labels, _ = batch(task, 7)
        alone = batch(make_task({"batch_size": 20}, images), 7)
        assert torch.equal(pictures, alone[0])
        assert torch.equal(labels, alone[1])

    def test_members_with_several_seeds_have_the_same_batches_as_alone(self, images):
        members = [{"seed": seed} for seed in (5, 1, 5, 0)]
        pictures, labels, _ = batch(make_task({"batch_size": 20}, images, members=members), 7)
        assert pictures.shape == (4, 20, 1, 28, 28)
        for number, member in enumerate(members):
            alone = batch(make_task({"batch_size": 20, **member}, images), 7)
            assert torch.equal(pictures[number], alone[0][0])
            assert torch.equal(labels[number], alone[1][0])

    @pytest.mark.parametrize("batching", ["single_pass", "sequential"])
    def test_members_share_images_if_the_order_has_no_seed(self, images, batching):
        task = make_task({"batch_size": 20, "batching": batching}, images, members=[{"seed": 1}, {"seed": 2}])
        assert batch(task, 7)[0].shape == (1, 20, 1, 28, 28)

    def test_each_member_has_the_same_dropout_mask_as_alone(self, images):
        config = {"batch_size": 20}
        members = [{"seed": 5, "dropout": 0.5}, {"seed": 1, "dropout": 0.2}, {"seed": 5, "dropout": 0.7}]
        task = make_task(config, images, 30, members)
        singles = [make_task({**config, **member}, images, 30) for member in members]
        for step in range(3):
            mask = batch(task, step)[2]
            assert mask.shape == (3, 30, 20)
            for member_mask, single in zip(mask, singles, strict=True):
                assert torch.equal(member_mask, batch(single, step)[2][0])

    def test_members_with_one_seed_have_the_same_random_numbers(self, images):
        members = [{"dropout": 0.2}, {"dropout": 0.5}]
        _, _, mask = batch(make_task({"batch_size": 100}, images, 30, members), 0)
        assert ((mask[1] > 0) <= (mask[0] > 0)).all()

    def test_member_without_dropout_has_a_mask_of_ones(self, images):
        members = [{"dropout": 0.5}, {"dropout": 0.0}, {"dropout": 0.0, "seed": 3}]
        _, _, mask = batch(make_task({"batch_size": 100}, images, 30, members), 0)
        assert (mask[1:] == 1).all()
        assert (mask[0] == 0).any()

    def test_each_distinct_seed_has_a_generator_if_there_is_dropout(self, images):
        seeds = [{"seed": seed} for seed in (5, 1, 5)]
        assert len(make_task({"dropout": 0.5}, images, 30, seeds).generators) == 2
        assert make_task({}, images, 30, seeds).generators == []

    @pytest.mark.parametrize("seeds", [(0, 0, 0), (4, 1, 4)], ids=["one_seed", "several_seeds"])
    @pytest.mark.parametrize("config", [SOFTMAX, {**SMALL_CNN, "dropout": 0.5}], ids=["softmax", "cnn"])
    def test_each_member_has_the_same_loss_and_gradients_as_alone(self, images, config, seeds):
        config = {**config, "batch_size": 20}
        members = [{"seed": seed} for seed in seeds]
        together = losses_and_gradients(config, images, 2, members)
        alone = [losses_and_gradients({**config, **member}, images, 2) for member in members]
        torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-14)

    def test_losses_equal_those_of_the_backward_pass(self, images):
        config = {**SMALL_CNN, "batch_size": 20}
        model = build_model(completed([{}, {"seed": 1}], **config))
        task = make_task(config, images, model.num_hidden, [{}, {"seed": 1}])
        (indices,) = task.batch_indices(0, 1)
        assert torch.equal(task.losses(model, indices).detach(), task.backward(model, indices))


@pytest.fixture
def three_and_two():
    """Images with one bright pixel each: three for validation, and two for the test."""
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
        """A model whose logit of class c is log(3) if pixel c is white, and 0 if it is black."""
        model = build_model(completed([{}], precision="float64"))
        with torch.no_grad():
            model.output.weight[0, :, :10] = math.log(3) * torch.eye(10, dtype=torch.float64)
        return model

    def evaluate(self, images, model, **config):
        metrics = make_task({"precision": "float64", "batch_size": 1, **config}, images).evaluate(model)
        return {name: value for name, (value,) in metrics.items()}

    def test_metrics_are_means_over_each_split(self, three_and_two, model):
        # The probability of the bright class is 3/12, and that of each other class 1/12.
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

    def test_num_evaluation_images_selects_the_first_images(self, three_and_two, model):
        bright, dark = math.log(4), math.log(12)
        for number, test_loss, test_accuracy in ((2, (dark + bright) / 2, 0.5), (1, dark, 0.0)):
            assert self.evaluate(three_and_two, model, num_evaluation_images=number) == pytest.approx(
                dict(valid_loss=bright, valid_accuracy=1.0, test_loss=test_loss, test_accuracy=test_accuracy), abs=1e-14
            )

    def test_each_member_has_the_same_metrics_as_alone(self, images):
        members = [{"seed": seed} for seed in (3, 1, 2)]
        metrics = make_task(SOFTMAX, images, members=members).evaluate(build_model(completed(members, **SOFTMAX)))
        for number, member in enumerate(members):
            expected = self.evaluate(images, build_model(completed([member], **SOFTMAX)))
            assert {name: values[number] for name, values in metrics.items()} == pytest.approx(expected, abs=1e-14)

    def test_size_of_a_forward_pass_does_not_change_the_metrics(self, images, monkeypatch):
        model = build_model(completed([{}], initial_weights="pytorch", precision="float64"))
        whole = self.evaluate(images, model)
        monkeypatch.setattr(evaluation, "SKIPPING_SIZES", {"cpu": (90_000, 7, 7)})
        assert self.evaluate(images, model) == pytest.approx(whole, abs=1e-13)

    @pytest.mark.parametrize(
        ("numbers", "num_members", "size"),
        [(40_000, 1, 51), (40_000, 2, 25), (40_000, 8, 25), (80_000, 2, 51), (10_000_000, 1, 1000)],
    )
    def test_size_of_a_forward_pass_depends_on_the_largest_layer_between_25_and_1000(
        self, images, monkeypatch, numbers, num_members, size
    ):
        monkeypatch.setattr(evaluation, "FORWARD_SIZES", {"cpu": (numbers, 25, 1000)})
        pictures = images.valid_images.repeat(12, 1, 1, 1), images.valid_labels.repeat(12)
        many = ImageData("mnist", images.train_images, images.train_labels, *pictures, *pictures)
        # One feature in the first layer, that is 784 numbers for each image and member.
        members = [{}] * num_members
        model = build_model(completed(members, model="cnn", width=0.03))
        sizes = []
        model.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[1]))
        make_task({"model": "cnn", "width": 0.03}, many, model.num_hidden, members).evaluate(model)
        assert max(sizes) == sizes[0] == size
        assert sum(sizes) == 2400

    def test_skipped_black_pixels_do_not_change_the_metrics(self, images, monkeypatch):
        members = [{"seed": seed} for seed in (1, 2, 3)]
        model = build_model(completed(members, initial_weights="pytorch", precision="float64"))
        # The synthetic images get a black border.
        framed = dataclasses.replace(
            images,
            valid_images=functional.pad(images.valid_images[..., 4:-4, 4:-4], (4, 4, 4, 4)),
            test_images=functional.pad(images.test_images[..., 4:-4, 4:-4], (4, 4, 4, 4)),
        )
        task = make_task({"precision": "float64", "num_evaluation_images": 70}, framed, 0, members)
        inputs = []
        frozen = model.frozen()
        monkeypatch.setattr(type(model), "frozen", lambda _: lambda *given: inputs.append(given) or frozen(*given))
        without = task.evaluate(model)
        assert all(pixels.shape[1] == len(lit) <= 20 * 20 for pixels, lit in inputs)
        inputs.clear()
        monkeypatch.setattr(type(model), "skips_zero_pixels", False)
        whole = task.evaluate(model)
        assert all(pixels.shape[1:] == (1, 28, 28) and lit is None for pixels, lit in inputs)
        for name, values in whole.items():
            assert without[name] == pytest.approx(values, abs=1e-13)

    def test_evaluation_has_no_dropout(self, images):
        model = build_model(completed([{}], model="cnn", width=0.05))
        evaluations = [
            make_task({"dropout": dropout}, images, num_hidden=model.num_hidden).evaluate(model)
            for dropout in (0.0, 0.9)
        ]
        assert evaluations[0] == evaluations[1]


class TestLineRegression:
    @pytest.fixture
    def line(self):
        return LineRegression(completed([{}], model="line", precision="float64"), CPU)

    def test_line_loss_is_the_sum_of_squared_errors(self, line):
        model = build_model(completed([{}], model="line", precision="float64"))
        by_hand = sum((0.3 * x - 0.3 - (1 - x)) ** 2 for x in (1, 2, 3, 4))
        assert by_hand == pytest.approx(23.66)
        for step in (0, 1, 1000):
            (indices,) = line.batch_indices(step, step + 1)
            assert line.losses(model, indices).tolist() == pytest.approx([by_hand], abs=1e-14)
            assert line.backward(model, indices).tolist() == pytest.approx([by_hand], abs=1e-14)

    def test_gradient_formula_matches_autograd(self, line):
        model = build_model(completed([{}] * 50, model="line", precision="float64"))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            model.coefficients.uniform_(-5, 5, generator=generator)
        (indices,) = line.batch_indices(0, 1)
        losses = line.losses(model, indices)
        (expected,) = torch.autograd.grad(losses.sum(), [model.coefficients])
        torch.testing.assert_close(line.backward(model, indices), losses.detach(), rtol=1e-15, atol=0)
        # The terms of the sums are up to 200.
        torch.testing.assert_close(model.coefficients.grad, expected, rtol=0, atol=1e-12)

    def test_each_step_is_a_pass_and_there_are_no_evaluations(self, line):
        assert line.epochs(np.array([0, 1, 7])).tolist() == [0, 1, 7]
        assert line.evaluate(build_model(completed([{}], model="line"))) == {}
        assert (line.num_steps, line.generators) == (None, [])
        assert len(line.batch_indices(3, 10)) == 7
