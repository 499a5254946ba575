"""The loop does what the recipe says, tells what happens as it happens, and ends with the best state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from newsdesk.config import LoraSection, ModelSection, TrainingSection  # noqa: E402
from newsdesk.errors import UserError  # noqa: E402
from newsdesk.metrics import evaluate_probabilities  # noqa: E402
from newsdesk.model.classifier import build_classifier, trainable_state  # noqa: E402
from newsdesk.model.network import Network, predict_logits  # noqa: E402
from newsdesk.runs.log import Event, Finished, Started, Step, Validation  # noqa: E402
from newsdesk.training.batches import Schedule  # noqa: E402
from newsdesk.training.held_out import HeldOut  # noqa: E402
from newsdesk.training.loop import EncodedRows, TrainingLoop, train  # noqa: E402

MAX_LENGTH = 32
NONE = EncodedRows([], np.array([], dtype=np.int64))


def rows_of(count: int, seed: int = 0) -> EncodedRows:
    """Rows of 4 to 13 tokens; each of three classes draws most of its tokens from ten of its own."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    token_ids = []
    for label in labels:
        own = generator.integers(10 + 10 * label, 20 + 10 * label, size=generator.integers(2, 8))
        other = generator.integers(50, 90, size=generator.integers(0, 5))
        token_ids.append(np.concatenate([[2], generator.permutation(np.concatenate([own, other])), [3]]))
    return EncodedRows(token_ids, labels)


@pytest.fixture
def network_of(tiny_base: Callable[..., Path]) -> Callable[..., Network]:
    """A fresh network without any dropout, always the same one."""

    def make(**lora: Any) -> Network:
        base = tiny_base("bert", classifier_dropout=0.0)
        torch.manual_seed(0)
        section = LoraSection.model_validate({"rank": 4} | lora)
        model = build_classifier(base, ("a", "b", "c"), ModelSection(dropout=0.0), section)
        return Network(model, torch.device("cpu"), "float32")

    return make


def section(**values: Any) -> TrainingSection:
    settings = {"epochs": 1.0, "min_steps": 0, "batch_size": 8, "learning_rate": 1e-2, "warmup": 0}
    settings |= {"schedule": "constant", "min_choosing_rows": 1}
    return TrainingSection.model_validate(settings | values)


def run(
    network: Network,
    training: TrainingSection,
    rows: EncodedRows | None = None,
    validation: EncodedRows = NONE,
    **settings: Any,
) -> list[Event]:
    rows = rows_of(40) if rows is None else rows
    return list(train(network, rows, validation, training, max_length=MAX_LENGTH, **settings))


def of_kind(events: list[Event], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def chosen_by(rows: EncodedRows, training: TrainingSection, states: int = 2) -> EncodedRows:
    """Of validation rows those that choose among several states."""
    choosing = HeldOut.of(rows.labels, states, training).choosing
    return EncodedRows([rows.token_ids[row] for row in choosing], rows.labels[choosing])


def validated(network: Network, rows: EncodedRows) -> tuple[float, float]:
    """Loss and accuracy of the network as it is."""
    probabilities = torch.from_numpy(predict_logits(network, rows.token_ids)).double().softmax(-1).numpy()
    metrics = evaluate_probabilities(probabilities, rows.labels, ("a", "b", "c"))
    return metrics.negative_log_likelihood, metrics.accuracy


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "epochs", "per_epoch", "total"),
    [
        (40, 8, 1, 1.0, 5, 5),
        (41, 8, 1, 2.0, 6, 12),
        (41, 8, 4, 1.0, 2, 2),
        (10, 4, 2, 2.5, 2, 5),
        (40, 8, 1, 0.01, 5, 1),
        (114_000, 16, 1, 5.0, 7125, 35_625),
    ],
)
def test_steps_are_counted_from_rows_batches_accumulation_and_epochs(
    rows, batch, accumulation, epochs, per_epoch, total
):
    training = section(batch_size=batch, accumulation=accumulation, epochs=epochs)
    schedule = Schedule.of(rows, training)
    assert (schedule.per_epoch, schedule.total) == (per_epoch, total)


def test_as_many_steps_happen_as_were_announced_and_an_epoch_learns_from_every_row(network_of):
    rows = rows_of(10)
    events = run(network_of(), section(batch_size=4, accumulation=2, epochs=2.5), rows)
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    steps = of_kind(events, Step)
    assert [step.step for step in steps] == list(range(1, events[0].steps + 1)) == [1, 2, 3, 4, 5]
    assert sum(step.rows for step in steps[:2]) == sum(step.rows for step in steps[2:4]) == 10
    assert sum(step.tokens for step in steps[:2]) == rows.lengths.sum()
    assert [step.epoch for step in steps] == [0.5, 1.0, 1.5, 2.0, 2.5]
    assert (events[0].rows, events[0].validation_rows, events[0].epochs) == (10, 0, 2.5)
    assert (events[0].device, events[0].precision, events[0].engine) == ("cpu", "float32", "fused encoder")
    assert (events[-1].reason, events[-1].step, events[-1].best_step) == ("completed", 5, 5)


def test_it_learns_words_that_tell_the_class(network_of):
    network, validation = network_of(), rows_of(90, seed=5)
    assert validated(network, validation)[1] < 0.6
    training = section(epochs=6.0, learning_rate=2e-2, schedule="cosine", warmup=0.1)
    events = run(network, training, rows_of(240, seed=1), validation)
    assert max(event.accuracy for event in of_kind(events, Validation)) > 0.95
    assert validated(network, validation)[1] > 0.95


def test_the_seed_decides_every_trained_number(network_of):
    def trained(seed: int) -> dict[str, Any]:
        network = network_of(dropout=0.2)
        torch.manual_seed(5)  # the run sets it; here only the order of the rows may differ
        run(network, section(seed=seed))
        return trainable_state(network.model)

    first, again, other = trained(1), trained(1), trained(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_every_epoch_has_an_order_of_its_own(network_of):
    steps = of_kind(run(network_of(), section(epochs=2.0, group_by_length=False)), Step)
    first, second = ([step.tokens for step in steps[start : start + 5]] for start in (0, 5))
    assert sum(first) == sum(second)
    assert first != second


def test_two_batches_of_four_accumulated_have_the_gradient_of_one_of_eight(network_of, monkeypatch):
    clip = torch.nn.utils.clip_grad_norm_
    gradients: list[list[Any]] = []

    def spy(parameters: list[Any], limit: float) -> Any:
        gradients.append([parameter.grad.clone() for parameter in parameters])
        return clip(parameters, limit)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    steps = []
    for settings in ({"batch_size": 8}, {"batch_size": 4, "accumulation": 2}):
        events = run(network_of(), section(group_by_length=False, **settings), rows_of(12))
        steps.append(of_kind(events, Step))
    whole, parts = gradients[0], gradients[2]
    assert [step.rows for step in steps[0]] == [step.rows for step in steps[1]] == [8, 4]
    assert max(float(gradient.abs().max()) for gradient in whole) > 1e-2
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    assert steps[0][0].loss == pytest.approx(steps[1][0].loss, rel=1e-5)


def test_accumulated_batches_of_unequal_size_count_by_their_rows(network_of):
    """Ten rows as 4 + 4 + 2: the loss is the mean over rows, not over batches."""
    rows = rows_of(10)
    (one,) = of_kind(run(network_of(), section(batch_size=10), rows), Step)
    (three,) = of_kind(run(network_of(), section(batch_size=4, accumulation=3), rows), Step)
    assert one.loss == pytest.approx(three.loss, rel=1e-5)
    assert one.gradient_norm == pytest.approx(three.gradient_norm, rel=1e-4)


def test_a_step_has_its_own_gradient_and_nothing_of_the_steps_before(network_of):
    standing = section(epochs=3.0, batch_size=40, learning_rate=1e-12)
    norms = [step.gradient_norm for step in of_kind(run(network_of(), standing), Step)]
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)


def test_the_learning_rate_follows_warmup_and_schedule(network_of):
    training = section(epochs=2.0, warmup=2, schedule="linear", head_learning_rate=5e-2)
    rates = [step.learning_rate for step in of_kind(run(network_of(), training), Step)]
    assert rates == pytest.approx(
        [1e-2 * f for f in (0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8)]
    )


def test_the_first_warmup_step_changes_nothing_and_the_head_has_its_own_rate(network_of):
    before = trainable_state(network_of().model)
    network = network_of()
    run(network, section(warmup=5, epochs=2.0), stopped=lambda: True)
    assert all(torch.equal(before[name], tensor) for name, tensor in trainable_state(network.model).items())
    network = network_of()
    run(network, section(head_learning_rate=1e-9, epochs=0.2, weight_decay=0.0))
    moved = {
        name: float((tensor - before[name]).abs().max())
        for name, tensor in trainable_state(network.model).items()
    }
    assert max(change for name, change in moved.items() if "modules_to_save" in name) < 1e-6
    assert max(change for name, change in moved.items() if "lora_B" in name) > 1e-3


def test_the_gradient_is_clipped_where_the_recipe_clips(network_of, monkeypatch):
    clip = torch.nn.utils.clip_grad_norm_
    after: list[float] = []

    def spy(parameters: list[Any], limit: float) -> Any:
        norm = clip(parameters, limit)
        after.append(float(torch.sqrt(sum((p.grad**2).sum() for p in parameters))))
        return norm

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    for limit in (0.01, 0.0):
        after.clear()
        steps = of_kind(run(network_of(), section(clip=limit)), Step)
        assert all(step.gradient_norm > 0.05 for step in steps)
        clipped = [limit or step.gradient_norm for step in steps]
        assert after == pytest.approx(clipped, rel=1e-3)


@pytest.mark.parametrize(
    ("every", "steps"),
    [(None, [5, 10]), (3, [3, 6, 9, 10]), (0.5, [2, 4, 6, 8, 10]), (0, [10]), (0.01, list(range(1, 11)))],
)
def test_validation_happens_at_its_interval_and_at_the_end(every, steps, network_of):
    events = run(network_of(), section(epochs=2.0, validate_every=every), validation=rows_of(9, seed=3))
    assert [event.step for event in of_kind(events, Validation)] == steps
    positions = [events.index(event) for event in of_kind(events, Validation)]
    assert [events[position - 1].step for position in positions] == steps


def test_without_validation_rows_the_last_state_is_kept(network_of):
    events = run(network_of(), section(validate_every=1))
    assert of_kind(events, Validation) == []
    assert events[-1].best_step == events[-1].step == 5


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "loss"])
def test_the_network_ends_with_the_best_state_by_the_metric(metric, network_of):
    network, validation = network_of(), rows_of(60, seed=3)
    training = section(epochs=4.0, learning_rate=6e-2, validate_every=1, metric=metric)
    events = run(network, training, validation=validation)
    validations = of_kind(events, Validation)
    scores = [
        (-event.loss if metric == "loss" else getattr(event, metric), -event.loss) for event in validations
    ]
    best = validations[scores.index(max(scores))]  # of equal ones that of the lower loss
    assert best.step < validations[-1].step, "the last state is the best: this training tests nothing"
    assert events[-1].best_step == best.step
    assert validated(network, chosen_by(validation, training)) == pytest.approx((best.loss, best.accuracy))
    records = [all(score > before for before in scores[:place]) for place, score in enumerate(scores)]
    assert [event.best for event in validations] == records
    assert {event.rows for event in validations} == {30}


def test_with_too_few_rows_to_choose_by_the_last_state_is_kept_and_patience_does_not_act(network_of):
    network, validation = network_of(), rows_of(98, seed=3)
    training = section(
        epochs=4.0, learning_rate=6e-2, validate_every=1, min_choosing_rows=50, patience=1, metric="loss"
    )
    events = run(network, training, validation=validation)
    validations = of_kind(events, Validation)
    losses = [event.loss for event in validations]
    assert min(losses) < losses[-1], "the last state is the best: this training tests nothing"
    assert (events[0].choosing_rows, {event.rows for event in validations}) == (0, {98})
    assert (events[-1].reason, events[-1].best_step, events[-1].step) == ("completed", 20, 20)
    assert validated(network, validation)[0] == pytest.approx(losses[-1])


def test_a_single_state_leaves_nothing_to_choose_and_is_measured_on_all_rows(network_of):
    events = run(network_of(), section(min_choosing_rows=1), validation=rows_of(60, seed=3))
    (validation,) = of_kind(events, Validation)
    assert (events[0].choosing_rows, validation.rows) == (0, 60)


def test_training_goes_on_for_min_steps_and_its_epochs_are_spread_over_them(network_of):
    training = section(epochs=3.0, min_steps=60, schedule="cosine", warmup=0.1)
    events = run(network_of(), training, rows_of(32), rows_of(9, seed=3))
    steps = of_kind(events, Step)
    assert (events[0].steps, events[0].epochs, len(steps), events[-1].epoch) == (60, 15.0, 60, 15.0)
    assert [event.step for event in of_kind(events, Validation)] == [20, 40, 60]
    rates = [step.learning_rate for step in steps]
    assert rates.index(max(rates)) == 6
    assert rates[-1] < 1e-3 * max(rates)


def test_patience_ends_training_when_nothing_gets_better(network_of):
    training = section(epochs=9.0, learning_rate=1e-12, validate_every=2, patience=3)
    events = run(network_of(), training, validation=rows_of(9, seed=3))
    assert [event.best for event in of_kind(events, Validation)] == [True, False, False, False]
    assert (events[-1].reason, events[-1].step, events[-1].best_step) == ("early-stopping", 8, 2)


def test_a_gain_starts_patience_anew(network_of):
    training = section(epochs=6.0, learning_rate=1e-3, validate_every=1, patience=1, metric="loss")
    events = run(network_of(), training, rows_of(240, seed=1), rows_of(90, seed=5))
    assert [event.best for event in of_kind(events, Validation)[:3]] == [True, True, True]


def test_a_request_to_stop_is_honoured_after_the_step(network_of):
    asked = iter([False, False, True])
    events = run(network_of(), section(validate_every=3), validation=rows_of(9), stopped=lambda: next(asked))
    assert (events[-1].reason, events[-1].step, events[-1].best_step) == ("interrupted", 3, 3)
    assert of_kind(events, Validation) == []


def test_an_interrupted_training_keeps_the_best_validated_state(network_of):
    network, validation = network_of(), rows_of(30, seed=3)
    training = section(validate_every=2, learning_rate=6e-2)
    events: list[Event] = []
    loop = train(
        network,
        rows_of(40),
        validation,
        training,
        max_length=MAX_LENGTH,
        stopped=lambda: bool(events) and getattr(events[-1], "step", 0) == 4,
    )
    for event in loop:
        events.append(event)
    assert (events[-1].reason, events[-1].step, events[-1].best_step) == ("interrupted", 4, 2)
    (first,) = of_kind(events, Validation)
    assert validated(network, chosen_by(validation, training)) == pytest.approx((first.loss, first.accuracy))


def test_where_no_row_chooses_an_interrupted_training_keeps_the_last_validated_state(network_of):
    network, validation = network_of(), rows_of(30, seed=3)
    training = section(validate_every=2, learning_rate=6e-2, min_choosing_rows=50)
    loop = TrainingLoop(network, rows_of(80), validation, training, max_length=MAX_LENGTH)
    events = []
    for event in loop.events(lambda: bool(events) and getattr(events[-1], "step", 0) == 5):
        events.append(event)
    assert (events[-1].reason, events[-1].step, events[-1].best_step) == ("interrupted", 5, 4)
    assert validated(network, validation)[0] == pytest.approx(of_kind(events, Validation)[-1].loss)
    logits = predict_logits(network, validation.token_ids)
    np.testing.assert_allclose(loop.best_logits, logits, atol=1e-5)


def test_a_loss_that_is_no_number_names_the_step_and_the_rows(network_of):
    network = network_of()
    with torch.no_grad():
        network.model.get_base_model().classifier.modules_to_save["default"].bias[0] = float("nan")
    with pytest.raises(UserError, match="the loss is nan at step 1") as raised:
        run(network, section(learning_rate=3e-2))
    assert "training rows " in (raised.value.found or "")
    assert "learning rate 0.03" in (raised.value.found or "")
    assert "training.learning_rate=0.01" in (raised.value.fix or "")


def test_a_training_that_explodes_says_at_which_step_it_was_noticed(network_of):
    with pytest.raises(UserError, match="training diverged: the loss is nan at step 2"):
        run(network_of(), section(learning_rate=1e38))
    with pytest.raises(UserError, match="training diverged: the validation loss is nan at step 1") as raised:
        run(network_of(), section(learning_rate=1e38, validate_every=1), validation=rows_of(9))
    assert "validation rows" in (raised.value.found or "")


def test_padding_is_counted_as_it_is_computed(network_of):
    grouped = run(network_of(), section(epochs=0.1), rows_of(1600))
    assert grouped[-1].padding_share < 0.15
    rows = rows_of(200)
    whole = run(network_of(), section(batch_size=16, pad_to_max_length=True), rows)
    steps = of_kind(whole, Step)
    assert [step.padded_tokens for step in steps] == [step.rows * MAX_LENGTH for step in steps]
    assert whole[-1].padding_share == pytest.approx(1 - rows.lengths.sum() / (200 * MAX_LENGTH))


def test_padding_every_row_to_the_full_length_changes_no_loss(network_of):
    losses = [
        [step.loss for step in of_kind(run(network_of(), section(pad_to_max_length=pad)), Step)]
        for pad in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_class_weights_and_smoothing_reach_the_loss(network_of):
    rows = rows_of(40)
    skewed = EncodedRows(rows.token_ids, np.where(np.arange(40) < 34, 0, rows.labels))
    losses = [
        of_kind(run(network_of(), section(batch_size=40, **settings), skewed), Step)[0].loss
        for settings in ({}, {"class_weights": "balanced"}, {"label_smoothing": 0.3})
    ]
    assert len({round(loss, 4) for loss in losses}) == 3


def test_only_adapters_and_head_change(network_of):
    network = network_of()
    frozen = {n: p.detach().clone() for n, p in network.model.named_parameters() if not p.requires_grad}
    run(network, section())
    now = dict(network.model.named_parameters())
    assert frozen
    assert all(torch.equal(tensor, now[name]) for name, tensor in frozen.items())
