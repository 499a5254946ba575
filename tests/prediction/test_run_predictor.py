"""A run predicts the same whoever asks: in any company, any order, from any folder, on its own base only."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

import newsdesk
from newsdesk.errors import UserError
from newsdesk.prediction.open_model import RunClassifier, needing_train_extra, open_model
from newsdesk.runs.folder import RunFolder

TEXTS = ["goal coach league medal", "bank", "orbit genome", "market shares profit bank trade prices", ""]


@pytest.fixture(scope="module")
def trained(tiny_base, topical_csv, tmp_path_factory):
    flags = {"model.base": str(tiny_base("bert")), "data.train": str(topical_csv), "model.max_length": 32}
    overrides = ["training.epochs=0.5", "training.learning_rate=2e-2", "training.device=cpu", "data.folds=0"]
    out = tmp_path_factory.mktemp("run") / "run"
    return newsdesk.train(out=out, flags=flags, overrides=[*overrides, "data.normaliser=ag_news"]).path


@pytest.fixture(scope="module")
def predictor(trained):
    return open_model(trained, device="cpu")


def test_what_a_predictor_knows_is_what_the_run_says(predictor, trained):
    assert isinstance(predictor, RunClassifier)
    assert predictor.run.path == trained
    assert predictor.label_names == ("Business", "Science", "Sports")
    assert predictor.layout.text_columns == ("text",)


def test_probabilities_are_those_of_the_logits_and_sum_to_one(predictor):
    logits = predictor.predict_logits(TEXTS)
    probabilities = predictor.predict_probabilities(TEXTS)
    assert probabilities.shape == logits.shape == (5, 3)
    assert probabilities.dtype == np.float32
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    exponentials = np.exp((logits - logits.max(axis=1, keepdims=True)) / predictor.temperature)
    assert np.allclose(probabilities, exponentials / exponentials.sum(axis=1, keepdims=True), atol=1e-6)


def test_a_text_is_judged_alone_whatever_its_company_and_order(predictor):
    together = predictor.predict_probabilities(TEXTS * 20)
    for row, text in enumerate(TEXTS):
        alone = predictor.predict_probabilities([text])[0]
        assert np.allclose(together[row::5], alone, atol=1e-5)


@pytest.mark.parametrize("method", ["predict", "classify", "predict_probabilities", "predict_logits"])
def test_one_text_is_not_taken_for_a_sequence_of_letters(predictor, method):
    with pytest.raises(TypeError, match=rf"{method} takes a sequence of texts; .* {method}\(\[text\]\)"):
        getattr(predictor, method)("goal coach striker")


def test_no_texts_give_no_predictions(predictor):
    assert predictor.predict_probabilities([]).shape == (0, 3)
    assert len(predictor.predict([])) == 0


def test_raw_texts_pass_through_the_runs_normaliser_and_laid_out_ones_do_not(predictor):
    raw = "Coach #36;goal &lt;b&gt;league&lt;/b&gt;"
    clean = predictor.predict_probabilities(["Coach $goal league"])
    assert np.allclose(predictor.predict([raw]).probabilities, clean, atol=1e-6)
    assert not np.allclose(predictor.predict_probabilities([raw]), clean, atol=1e-6)


def test_progress_counts_every_text(predictor):
    counted: list[int] = []
    predictor.predict_probabilities(TEXTS * 20, progress=lambda done, *_: counted.append(done))
    assert counted[-1] == 100
    assert len(counted) > 2


def test_a_single_text_is_not_taken_for_a_sequence_of_letters(predictor):
    with pytest.raises(TypeError, match=r"predict\(\[text\]\)"):
        predictor.predict("goal coach")


def rebased(run, base, folder):
    """A copy of the run that was, by its manifest, trained on ``base``."""
    copy = shutil.copytree(run, folder)
    known = RunFolder(copy).manifest
    RunFolder(copy).seal(replace(known, base=replace(known.base, name="renamed", reference=str(base))))
    return copy


def test_the_base_is_found_by_its_reference_and_must_be_the_same_bytes(
    trained, predictor, tiny_base, tmp_path
):
    same = rebased(trained, shutil.copytree(tiny_base("bert"), tmp_path / "base"), tmp_path / "run")
    assert np.array_equal(open_model(same).predict_logits(TEXTS), predictor.predict_logits(TEXTS))
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(UserError, match="the base model renamed is not the one") as error:
        open_model(same)
    assert RunFolder(trained).manifest.base.sha256 in str(error.value)


def test_a_run_of_sharded_weights_has_no_hash_to_check(trained, tiny_base, tmp_path):
    other = rebased(trained, tiny_base("bert"), tmp_path / "run")
    known = RunFolder(other).manifest
    RunFolder(other).seal(replace(known, base=replace(known.base, sha256=None)))
    assert open_model(other).label_names == ("Business", "Science", "Sports")


def import_failing(name):
    with needing_train_extra("predicting"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_missing_package_becomes_the_sentence_that_installs_it():
    with pytest.raises(UserError, match=r"predicting needs the package torch\n(.*\n)*.*newsdesk\[train\]"):
        import_failing("torch.nn")


@pytest.mark.parametrize("name", ["newsdesk.model.nothing", None])
def test_a_failing_import_of_our_own_stays_a_defect(name):
    with pytest.raises(ModuleNotFoundError):
        import_failing(name)
