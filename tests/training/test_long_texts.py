"""Texts longer than a row of the encoder: trained as they are predicted, explained, exported and resumed."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

import newsdesk  # noqa: E402
from newsdesk.config import LoraSection, ModelSection  # noqa: E402
from newsdesk.model.classifier import build_classifier  # noqa: E402
from newsdesk.model.network import Network, predict_logits, predict_with_features  # noqa: E402
from newsdesk.model.tokenizer import lengths_of  # noqa: E402
from newsdesk.model.windows import LongTexts, Windows  # noqa: E402
from newsdesk.runs.calibration import CALIBRATION_ROWS  # noqa: E402
from newsdesk.runs.folder import RunFolder  # noqa: E402
from newsdesk.runs.log import Event, Finished, Step, Validation  # noqa: E402
from newsdesk.training.batches import parts_within  # noqa: E402
from newsdesk.training.run import run_training  # noqa: E402
from topics import FILLER_WORDS, TOPIC_WORDS  # noqa: E402

LENGTH = 16
WINDOWS = ("model.long_texts=windows", "model.window_overlap=2", "model.max_windows=8")


def long_rows(count: int, seed: int) -> list[tuple[str, str]]:
    """Rows whose topic is told at the end alone, beyond the first 16 tokens, after up to 30 other words."""
    generator = random.Random(seed)
    rows = []
    for row in range(count):
        label = list(TOPIC_WORDS)[row % len(TOPIC_WORDS)]
        words = generator.choices(FILLER_WORDS, k=generator.randint(LENGTH, 30))
        words += generator.choices(TOPIC_WORDS[label], k=12)
        rows.append((label, " ".join(words)))
    return rows


@pytest.fixture(scope="module")
def long_csv(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "long.csv"
    path.write_text("\n".join(["label,text", *map(",".join, long_rows(240, seed=3))]))
    return path


@pytest.fixture
def recipe_for(tiny_recipe, long_csv) -> Callable[..., Any]:
    def recipe(*overrides: str) -> Any:
        return tiny_recipe(f"data.train={long_csv}", f"model.max_length={LENGTH}", *overrides)

    return recipe


@pytest.fixture
def network_of(tiny_base) -> Callable[..., Network]:
    """The same network each time, with other windows."""

    def make(pooling: str = "mean", most: int = 8) -> Network:
        base = tiny_base("bert", classifier_dropout=0.0)
        torch.manual_seed(0)
        model = build_classifier(base, ("a", "b", "c"), ModelSection(dropout=0.0), LoraSection(rank=4))
        long_texts = LongTexts("windows", 2, most, pooling) if most > 1 else None
        windows = Windows(LENGTH, 1, 1, long_texts) if long_texts else Windows(LENGTH, 1, 1)
        return Network(model, torch.device("cpu"), "float32", windows=windows).eval()

    return make


def texts_of(*lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [np.array([2, *generator.integers(5, 90, tokens - 2), 3], dtype=np.int64) for tokens in lengths]


def test_short_texts_have_the_logits_that_they_have_without_windows_bit_for_bit(network_of):
    texts = texts_of(3, 16, 9, 16, 5)
    assert (predict_logits(network_of(), texts) == predict_logits(network_of(most=1), texts)).all()


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_the_logits_of_a_text_are_pooled_from_those_of_its_windows(network_of, pooling):
    network, texts = network_of(pooling), texts_of(40, 7, 16, 90)
    by_hand, states = [], []
    for text in texts:
        outputs = [predict_with_features(network, [window]) for window in network.windows.split([text]).ids]
        logits = np.concatenate([logits for logits, _ in outputs])
        by_hand.append(logits.mean(axis=0) if pooling == "mean" else logits.max(axis=0))
        states.append(np.concatenate([features for _, features in outputs]).mean(axis=0))
    logits, features = predict_with_features(network, texts)
    np.testing.assert_allclose(logits, by_hand, atol=1e-5)
    np.testing.assert_allclose(features, states, atol=1e-5)
    np.testing.assert_allclose(predict_logits(network, texts), by_hand, atol=1e-5)
    with torch.inference_mode():
        np.testing.assert_allclose(network(texts).numpy(), by_hand, atol=1e-5)


def test_a_batch_in_parts_has_the_gradients_of_the_whole(network_of):
    texts, labels = texts_of(40, 7, 16, 90, 60, 12), torch.tensor([0, 1, 2, 0, 1, 2])
    network = network_of()

    def gradients(parts: list[np.ndarray]) -> list[Any]:
        network.zero_grad()
        for part in parts:
            logits = network([texts[row] for row in part])
            torch.nn.functional.cross_entropy(
                logits, labels[torch.from_numpy(part)], reduction="sum"
            ).backward()
        return [p.grad.clone() for p in network.model.parameters() if p.grad is not None]

    windows, lengths = network.windows.shapes(lengths_of(texts))
    rows = np.arange(6)
    parts = parts_within(rows, windows, lengths, 4 * LENGTH)
    assert len(parts) > 2
    assert sorted(np.concatenate(parts)) == rows.tolist()
    for part in parts:
        assert len(part) == 1 or windows[part].sum() * lengths[part].max() <= 4 * LENGTH
    for one, other in zip(gradients([rows]), gradients(parts), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    # Rows that fit together keep their order.
    short = np.array([5, 1, 2])
    (same,) = parts_within(short, windows, lengths, 4 * LENGTH)
    assert same is short


def test_what_is_beyond_the_cut_is_learned_in_bounded_batches_with_little_padding(
    recipe_for, tmp_path, monkeypatch
):
    sizes: list[int] = []
    whole = Network.batch

    def measured(self: Network, *given: Any) -> Any:
        input_ids, mask = whole(self, *given)
        sizes.append(input_ids.numel())
        return input_ids, mask

    monkeypatch.setattr(Network, "batch", measured)
    accuracy = {}
    for name, settings in {
        "cut": (),
        "head-tail": ("model.long_texts=head-tail",),
        "mean": WINDOWS,
        "max": (*WINDOWS, "model.pooling=max"),
    }.items():
        events: list[Event] = []
        run_training(recipe_for(*settings, "training.epochs=6"), tmp_path / name, observe=events.append)
        accuracy[name] = [event.accuracy for event in events if isinstance(event, Validation)][-1]
        (finished,) = (event for event in events if isinstance(event, Finished))
        assert finished.padding_share < 0.05
    assert accuracy["cut"] < 0.6
    assert min(accuracy["head-tail"], accuracy["mean"], accuracy["max"]) > 0.8
    assert max(sizes) <= 2 * 16 * LENGTH  # validation takes twice the rows of a step


def test_a_training_with_windows_that_was_stopped_ends_as_if_it_had_not_been(recipe_for, tmp_path):
    recipe = recipe_for(*WINDOWS, "training.epochs=2", "model.dropout=0.1", "lora.dropout=0.1")

    def ask(event: Event) -> None:
        if isinstance(event, Step) and event.step == 7:
            signal.raise_signal(signal.SIGTERM)

    whole = run_training(recipe, tmp_path / "whole")
    run = run_training(recipe, tmp_path / "stopped", observe=ask)
    assert run.manifest.training.finished == "interrupted"
    run = run_training(recipe, run.path, resume=True)
    for name in ("adapter/adapter_model.safetensors", CALIBRATION_ROWS, "labels.json"):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes()
    # The order of a safetensors file's metadata is not fixed.
    own, other = (load_file(folder / "off_topic.safetensors") for folder in (run.path, whole.path))
    assert own.keys() == other.keys()
    assert all(np.array_equal(own[name], other[name]) for name in own)


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_base, long_csv) -> RunFolder:
    """A run that reads windows, with a linear model beside it and an export."""
    from newsdesk.config import load_recipe

    flags = {
        "data.train": str(long_csv),
        "data.validation_share": 0.2,
        "model.base": str(tiny_base("bert")),
        "model.max_length": LENGTH,
        "lora.layers": "top-1",
        "training.learning_rate": 2e-2,
        "training.precision": "float32",
        "training.device": "cpu",
    }
    out = tmp_path_factory.mktemp("runs") / "windows"
    cache = pytest.MonkeyPatch()
    cache.setenv("NEWSDESK_CACHE", str(out.parent / "cache"))
    run = run_training(load_recipe(None, flags, (*WINDOWS, "training.epochs=6")), out)
    cache.undo()
    pytest.importorskip("onnx")
    newsdesk.export(run.path, "onnx-fp32")
    return run


def test_a_run_and_its_export_give_long_texts_the_same_answers(made):
    texts = [text for _label, text in long_rows(20, seed=9)] + ["goal coach", ""]
    of_run = newsdesk.load(made.path, engine="torch", device="cpu")
    exported = newsdesk.load(made.path, engine="onnx")
    assert exported.tokenizer.windows == of_run.tokenizer.windows
    (logits, distances), (same, near) = (each.outputs(each.token_ids(texts)) for each in (of_run, exported))
    np.testing.assert_allclose(logits, same, atol=1e-3)
    np.testing.assert_allclose(distances, near, rtol=1e-2)
    assert of_run.max_length == LENGTH + 7 * (LENGTH - 2 - 2)
    labels = [label for label, _text in long_rows(20, seed=9)]
    predicted = [exported.label_names[number] for number in logits[:20].argmax(axis=1)]
    assert np.mean([one == other for one, other in zip(labels, predicted, strict=True)]) > 0.8


def test_the_linear_model_counts_what_all_windows_read(made):
    classifier = newsdesk.load(made.path)
    ids = classifier.token_ids([" ".join(["the"] * 40 + ["goal", "coach", "striker"])])
    (scores,) = classifier.linear_scores(ids)
    assert classifier.label_names[scores.argmax()] == "Sports"


def test_words_beyond_the_cut_are_explained(made):
    text = " ".join(["the"] * 30 + ["goal", "coach", "striker", "medal"])
    found = newsdesk.explain(newsdesk.load(made.path), text)
    assert found.label == "Sports"
    assert {word.text for word in found.top(4)} <= {"goal", "coach", "striker", "medal"}
    assert (found.tokens, found.tokens_lost) == (36, 0)


def test_the_card_says_how_other_programs_have_to_read(made):
    from newsdesk.reports.facts import RunFacts
    from newsdesk.reports.model_card import card_body

    card = card_body(RunFacts.of(made))
    assert "O = 2" in card
    assert "8 windows of 16 tokens" in card
    assert "take the mean of their logits" in card
