"""A training of few rows begins at what the frozen encoder knows of them, and of texts without labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from newsdesk.api import evaluate, train  # noqa: E402
from newsdesk.cli.tables import render_plan  # noqa: E402
from newsdesk.config import LoraSection, ModelSection  # noqa: E402
from newsdesk.data.duplicates import KnownTexts  # noqa: E402
from newsdesk.errors import UserError  # noqa: E402
from newsdesk.model.architectures import BERT_LIKE  # noqa: E402
from newsdesk.model.classifier import build_classifier, restore_state, trainable_state  # noqa: E402
from newsdesk.model.network import Network, predict_logits  # noqa: E402
from newsdesk.runs.calibration import read_held_out_rows  # noqa: E402
from newsdesk.runs.log import Remark, read_log  # noqa: E402
from newsdesk.training.loop import EncodedRows  # noqa: E402
from newsdesk.training.plan import make_plan  # noqa: E402
from newsdesk.training.start import start_fitted  # noqa: E402
from newsdesk.training.unlabelled import agreed, class_posteriors  # noqa: E402
from topics import rows_with_several, topical_rows, written  # noqa: E402


def token_rows(count: int, classes: int = 3, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Texts of 9 to 20 tokens, of which each class draws most from ten of its own."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    ids = []
    for label in labels:
        own = generator.integers(10 + 10 * label, 20 + 10 * label, size=generator.integers(6, 12))
        other = generator.integers(10, 90, size=generator.integers(1, 7))
        ids.append(np.concatenate([[2], generator.permutation(np.concatenate([own, other])), [3]]))
    return ids, labels


def network_of(base: Path, classes: int = 3, precision: str = "float32", **lora: object) -> Network:
    torch.manual_seed(0)
    names = [f"class {number}" for number in range(classes)]
    section = LoraSection.model_validate({"rank": 4} | lora)
    model = build_classifier(base, names, ModelSection(dropout=0.0), section)
    return Network(model, torch.device("cpu"), precision)


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
@pytest.mark.parametrize("init", ["default", "pissa"])
def test_before_the_first_step_it_already_tells_the_classes_apart(tiny_base, family, init):
    network = network_of(tiny_base(family), init=init)
    ids, labels = token_rows(96)
    new_ids, new_labels = token_rows(120, seed=1)
    assert start_fitted(network, EncodedRows(ids, labels), seed=0) == ()
    given = predict_logits(network, new_ids).argmax(axis=1)
    assert (given == new_labels).mean() > 0.6


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_the_first_token_attends_to_all_tokens_alike(tiny_base, family):
    network = network_of(tiny_base(family), rank=16)
    ids, labels = token_rows(12)
    classifier = network.model.get_base_model()
    layout = BERT_LIKE[classifier.config.model_type]
    query = getattr(classifier, layout.prefix).encoder.layer[-1].get_submodule(layout.query)
    seen = []
    query.register_forward_hook(lambda _module, _inputs, output: seen.append(output[:, 0]))
    network.eval()
    with torch.no_grad():
        network.logits_by_peft(*network.batch(ids))
        start_fitted(network, EncodedRows(ids, labels), seed=0)
        seen[1:] = []
        network.logits_by_peft(*network.batch(ids))
    assert seen[-1].abs().mean() < 0.05 * seen[0].abs().mean()


def test_of_several_labels_each_gets_a_regression_of_its_own(tiny_base):
    ids, classes = token_rows(60)
    truth = np.zeros((60, 4), dtype=bool)
    truth[np.arange(60), classes] = True
    truth[:, 2] |= classes == 1
    network = network_of(tiny_base("bert"), classes=4)
    start_fitted(network, EncodedRows(ids, truth), seed=0)
    logits = predict_logits(network, ids)
    assert ((logits[:, :3] > 0) == truth[:, :3]).mean() > 0.85
    assert (logits[:, 3] < -5).all()  # no row has it


@pytest.mark.parametrize("labels", [np.arange(40) % 2, 2 * (np.arange(40) % 2)])
def test_two_classes_and_a_class_without_rows_are_fitted(tiny_base, labels):
    ids, _ = token_rows(40, classes=2)
    network = network_of(tiny_base("bert"))
    assert start_fitted(network, EncodedRows(ids, labels), seed=0) == ()
    assert (predict_logits(network, ids).argmax(axis=1) == labels).mean() > 0.8


def test_a_text_that_is_read_in_windows_counts_once(tiny_recipe, tmp_path):
    settings = ("model.max_length=8", "model.long_texts=windows", "training.start=fitted", "data.folds=0")
    run = train(tiny_recipe(*settings), out=tmp_path / "run")
    assert not [each.event.text for each in read_log(run.log, Remark) if "random" in each.event.text]


def test_a_head_that_is_not_trained_is_left_as_it_is(tiny_base):
    torch.manual_seed(0)
    model = build_classifier(
        tiny_base("bert"), ("a", "b"), ModelSection(train_pooler=False), LoraSection(rank=2)
    )
    network = Network(model, torch.device("cpu"), "float32")
    before = trainable_state(model)
    (why,) = start_fitted(network, EncodedRows(*token_rows(10, classes=2)), seed=0)
    assert "train_pooler" in why
    assert all(torch.equal(value, before[name]) for name, value in trainable_state(model).items())
    restore_state(model, before)


def mixture(rows: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, 40))
    labels = generator.integers(classes, size=rows)
    return (1.2 * centres[labels] + 2.0 * generator.normal(size=(rows, 40))).astype(np.float32), labels


def test_texts_without_labels_take_the_class_of_their_cluster():
    from sklearn.linear_model import LogisticRegression

    gains = []
    for seed in range(10):
        points, truth = mixture(800, 3, seed)
        first = np.concatenate([np.flatnonzero(truth == label)[:4] for label in range(3)])
        rest = np.setdiff1d(np.arange(800), first)
        found = class_posteriors(points[np.concatenate([first, rest])], truth[first])
        alone = LogisticRegression(max_iter=500).fit(points[first], truth[first]).predict(points[rest])
        np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-6)
        gains.append((found.argmax(axis=1) == truth[rest]).mean() - (alone == truth[rest]).mean())
    assert np.mean(gains) > 0.05


def test_a_text_is_learned_from_where_two_models_agree_and_is_then_mostly_right():
    right, of_mixture = [], []
    for seed in range(10):
        points, truth = mixture(800, 3, seed)
        first = np.concatenate([np.flatnonzero(truth == label)[:4] for label in range(3)])
        rest = np.setdiff1d(np.arange(800), first)
        features = points[np.concatenate([first, rest])]
        sure, classes = agreed(features, 2 * truth[first])
        assert set(classes) <= {0, 2, 4}
        right.append((classes == 2 * truth[rest][sure]).mean())
        of_mixture.append((class_posteriors(features, truth[first]).argmax(axis=1) == truth[rest]).mean())
    assert np.mean(right) > np.mean(of_mixture) + 0.005


def test_rows_fewer_than_dimensions_and_copies_of_one_text_are_no_obstacle():
    points = np.ones((9, 40), dtype=np.float32)
    found = class_posteriors(points, np.array([0, 1, 5]))
    assert found.shape == (6, 3)
    assert np.isfinite(found).all()


@pytest.fixture
def unlabelled(tmp_path) -> Path:
    file = tmp_path / "unlabelled.csv"
    texts = [text for _, text in topical_rows(150, seed=5)]
    file.write_text("\n".join(["text", *texts, ""]), encoding="utf-8")
    return file


@pytest.mark.parametrize("folds", [0, 2])
def test_a_run_learns_from_texts_without_labels_and_knows_them(
    tiny_recipe, write_rows, tmp_path, unlabelled, folds
):
    rows = write_rows(tmp_path / "rows.csv", topical_rows(24, seed=2))
    settings = (f"data.train={rows}", f"data.unlabelled={unlabelled}", f"data.folds={folds}")
    held_out = ("data.validation_share=0.0", "training.start=fitted", "training.epochs=1")
    run = train(tiny_recipe(*settings, *held_out), out=tmp_path / "run")
    remarks = [logged.event.text for logged in read_log(run.log, Remark)]
    assert any("150 without labels are learned from, too" in remark for remark in remarks)
    assert KnownTexts.of_folder(run.path).in_training(unlabelled.read_text().splitlines()[1:]).all()
    test = write_rows(tmp_path / "test.csv", topical_rows(120, seed=9))
    assert evaluate(run.path, str(test)).metrics.accuracy > 0.6
    calibration = read_held_out_rows(run.path)
    assert (calibration is None) if not folds else len(calibration.logits) == 24


def test_a_dry_run_counts_texts_without_labels_as_the_most_that_may_be_learned(
    tiny_recipe, write_rows, tmp_path, unlabelled
):
    rows = write_rows(tmp_path / "rows.csv", topical_rows(24, seed=2))
    settings = (f"data.train={rows}", "data.folds=0", "data.validation_share=0.0", "training.batch_size=8")
    plan = make_plan(tiny_recipe(*settings, f"data.unlabelled={unlabelled}"), measure_speed=False)
    assert (plan.rows.train, plan.rows.unlabelled, plan.steps.per_epoch) == (24, 150, 22)
    shown = "\n".join(render_plan(plan))
    assert "150 at most" in shown
    alone = make_plan(tiny_recipe(*settings), measure_speed=False)
    assert alone.rows.unlabelled == 0
    assert "unlabelled texts" not in "\n".join(render_plan(alone))


def test_several_labels_and_no_new_text_are_refused(tiny_recipe, write_rows, tmp_path, unlabelled):
    rows = write_rows(tmp_path / "rows.csv", topical_rows(24, seed=2))
    with pytest.raises(UserError, match="holds no text to learn from"):
        train(tiny_recipe(f"data.train={rows}", f"data.unlabelled={rows}"), out=tmp_path / "run")
    several = tmp_path / "several.jsonl"
    written(several, list(rows_with_several(30, seed=3)))
    settings = (f"data.train={several}", "data.text=words", "data.label=desks")
    with pytest.raises(UserError, match="each text has one class"):
        train(tiny_recipe(*settings, f"data.unlabelled={unlabelled}"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())
