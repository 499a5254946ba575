"""Schedules, weights and losses are the field's own, by transformers, scikit-learn and arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from newsdesk.config import TrainingSection  # noqa: E402
from newsdesk.training.batches import rate_factor, warmup_steps  # noqa: E402
from newsdesk.training.train_step import build_loss, build_optimiser, row_weights  # noqa: E402


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(40, 10), (40, 0), (7, 7), (1, 0), (5, 4)])
def test_the_schedules_are_those_of_transformers(schedule: str, steps: int, warmup: int):
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    if schedule == "constant":
        theirs = transformers.get_constant_schedule_with_warmup(optimiser, warmup)
    else:
        make = getattr(transformers, f"get_{schedule}_schedule_with_warmup")
        theirs = make(optimiser, warmup, steps)
    for step in range(steps + 2):
        ours = rate_factor(step, steps=steps, warmup=warmup, schedule=schedule)
        assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimiser.step()
        theirs.step()


def test_warmup_is_a_number_of_steps_or_a_share_of_all():
    assert warmup_steps(500, 1000) == 500
    assert warmup_steps(500, 300) == 150
    assert warmup_steps(0.06, 1000) == 60
    assert warmup_steps(0.06, 10) == 1
    assert warmup_steps(0.06, 1) == warmup_steps(500, 1) == 0
    assert warmup_steps(0, 10) == warmup_steps(0.0, 10) == 0


def model_with_head() -> torch.nn.Module:
    model = torch.nn.Module()
    model.frozen = torch.nn.Linear(3, 3).requires_grad_(False)
    model.lora_A = torch.nn.Linear(3, 2, bias=False)
    model.modules_to_save = torch.nn.Linear(3, 2)
    return model


@pytest.mark.parametrize(("head_rate", "expected"), [(None, 1e-3), (5e-3, 5e-3)])
def test_only_trained_parameters_are_optimised_each_with_its_rate_and_biases_are_not_decayed(
    head_rate, expected
):
    model = model_with_head()
    training = TrainingSection(learning_rate=1e-3, head_learning_rate=head_rate, weight_decay=0.1)
    optimiser = build_optimiser(model, training)
    assert isinstance(optimiser, torch.optim.AdamW)
    settings = {
        id(parameter): (group["lr"], group["full"], group["weight_decay"])
        for group in optimiser.param_groups
        for parameter in group["params"]
    }
    assert settings == {
        id(model.lora_A.weight): (1e-3, 1e-3, 0.1),
        id(model.modules_to_save.weight): (expected, expected, 0.1),
        id(model.modules_to_save.bias): (expected, expected, 0.0),
    }


def test_balanced_weights_are_those_of_scikit_learn():
    utils = pytest.importorskip("sklearn.utils.class_weight")
    labels = np.array([0] * 7 + [1] * 2 + [2])
    expected = utils.compute_class_weight("balanced", classes=np.arange(3), y=labels)
    loss = build_loss(TrainingSection(class_weights="balanced"), labels, 3)
    np.testing.assert_allclose(loss.weight, expected, rtol=1e-6)
    assert row_weights(loss, labels).mean() == pytest.approx(1.0)


def test_a_class_without_rows_weighs_nothing_and_changes_no_other():
    labels = np.array([0, 0, 0, 2])
    loss = build_loss(TrainingSection(class_weights="balanced"), labels, 3)
    assert loss.weight.tolist() == pytest.approx([2 / 3, 0.0, 2.0])


def test_the_loss_is_cross_entropy_with_what_the_recipe_adds():
    logits, labels = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.1, 0.2]]), torch.tensor([0, 2])
    log_probabilities = logits.log_softmax(1)
    picked = log_probabilities[torch.arange(2), labels]
    rows = np.array([0, 0, 0, 1, 1, 2])

    def mean(loss: torch.nn.CrossEntropyLoss) -> float:
        return float(loss(logits, labels)) / row_weights(loss, labels.numpy()).sum()

    plain = build_loss(TrainingSection(), rows, 3)
    assert mean(plain) == pytest.approx(float(-picked.mean()))

    smooth = build_loss(TrainingSection(label_smoothing=0.1), rows, 3)
    expected = -(0.9 * picked + 0.1 * log_probabilities.mean(1)).mean()
    assert mean(smooth) == pytest.approx(float(expected))

    balanced = build_loss(TrainingSection(class_weights="balanced"), rows, 3)
    weights = torch.tensor([2 / 3, 2.0])
    assert mean(balanced) == pytest.approx(float(-(weights * picked).sum() / weights.sum()))
    assert not math.isclose(mean(balanced), mean(plain), rel_tol=1e-3)
