"""Adapters on the top layers alone: the layers below are computed once, and nothing else changes."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
from safetensors.numpy import load_file  # noqa: E402

import newsdesk  # noqa: E402
from newsdesk.errors import UserError  # noqa: E402
from newsdesk.hub.cache import cache_folder  # noqa: E402
from newsdesk.model.trunk import INDEX, LIMIT, STATES, TrunkStates  # noqa: E402
from newsdesk.runs.folder import RunFolder  # noqa: E402
from newsdesk.training.run import run_training  # noqa: E402

ADAPTER = "adapter/adapter_model.safetensors"
DROPOUTS = ("model.dropout=0.1", "lora.dropout=0.1")
TEXTS = [np.arange(2, 2 + length, dtype=np.int64) for length in (3, 9, 4, 7, 9, 12)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("NEWSDESK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tensors(run: RunFolder) -> dict[str, Any]:
    return dict(load_file(run.path / ADAPTER))


def largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


class Counted:
    """States that follow from the token ids, and how often they were computed."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, texts: Any) -> Any:
        self.rows += len(texts)
        states = torch.zeros(len(texts), max(map(len, texts)), 4)
        for row, ids in enumerate(texts):
            states[row, : len(ids)] = torch.from_numpy(ids)[:, None] / torch.tensor([1.0, 2.0, 4.0, 8.0])
        return states


def states_of(root: Path, compute: Any, **identity: str) -> TrunkStates:
    return TrunkStates(root, identity, hidden=4, dtype=torch.float32, compute=compute)


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_only_the_top_layers_carry_adapters_and_peft_computes_the_same(tiny_recipe, tmp_path, family):
    import peft
    import transformers

    resolved = tiny_recipe("lora.layers=top-1", *DROPOUTS, family=family)
    run = run_training(resolved, tmp_path / "run")
    assert {name.split("layer.")[1][0] for name in tensors(run) if "lora_" in name} == {"1"}
    assert "the lower 1 of 2 layers computed once" in run.log.read_text()

    classifier = newsdesk.load(run.path, engine="torch", device="cpu")
    text = "goal coach season"
    (prediction,) = classifier.predict([text])
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        resolved.recipe.model.base, num_labels=3
    )
    model = peft.PeftModel.from_pretrained(base, run.path / "adapter").eval()
    tokens = transformers.AutoTokenizer.from_pretrained(run.path / "tokenizer")(text, return_tensors="pt")
    with torch.inference_mode():
        plain = (model(**tokens).logits / classifier.temperature).softmax(-1)[0]
    assert float(plain.max()) == pytest.approx(prediction.probability, abs=1e-4)


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_training_from_kept_states_gives_the_adapter_that_training_without_them_gives(
    tiny_recipe, tmp_path, monkeypatch, family
):
    recipe = tiny_recipe("lora.layers=top-1", *DROPOUTS, family=family)
    kept = run_training(recipe, tmp_path / "kept")
    assert any(cache_folder().glob(f"trunk/*/{STATES}"))
    monkeypatch.setenv("NEWSDESK_CACHE", str(tmp_path / "other"))
    monkeypatch.setenv(LIMIT, "0")
    computed = run_training(recipe, tmp_path / "computed")
    assert not any(path.stat().st_size for path in cache_folder().glob(f"trunk/*/{STATES}"))
    # A rounding of the states to 16 bits is the same in both; batches of other rows differ in the last bits.
    assert largest_difference(tensors(kept), tensors(computed)) < 1e-3


def test_kept_states_are_the_ones_that_the_encoder_computes_up_to_sixteen_bits(
    tiny_recipe, tmp_path, monkeypatch
):
    recipe = tiny_recipe("lora.layers=top-1", *DROPOUTS)
    rounded = run_training(recipe, tmp_path / "rounded")
    monkeypatch.setattr(newsdesk.model.network.Network, "keep_trunk", lambda *_arguments: None)
    exact = run_training(recipe, tmp_path / "exact")
    assert "computed once" not in exact.log.read_text()
    assert largest_difference(tensors(rounded), tensors(exact)) < 5e-3


def test_a_second_training_computes_nothing_below_its_adapters(tiny_recipe, tmp_path, monkeypatch):
    recipe = tiny_recipe("lora.layers=top-1")
    first = run_training(recipe, tmp_path / "first")

    def refuse(*_arguments: object) -> None:
        raise AssertionError("the trunk was computed again")

    monkeypatch.setattr(newsdesk.model.encoder.FusedClassifier, "trunk_states", refuse)
    second = run_training(recipe, tmp_path / "second")
    assert (first.path / ADAPTER).read_bytes() == (second.path / ADAPTER).read_bytes()


def test_an_interrupted_training_from_kept_states_resumes_bit_for_bit(tiny_recipe, tmp_path, monkeypatch):
    recipe = tiny_recipe("lora.layers=top-1", *DROPOUTS, "training.epochs=2")
    whole = run_training(recipe, tmp_path / "whole")
    asked = iter([False] * 7)
    with monkeypatch.context() as patched:
        stopping = nullcontext(lambda: next(asked, True))
        patched.setattr("newsdesk.training.run.interruptible", lambda: stopping)
        assert run_training(recipe, tmp_path / "run").manifest.is_interrupted
    resumed = run_training(recipe, tmp_path / "run", resume=True)
    assert not resumed.manifest.is_interrupted
    assert (resumed.path / ADAPTER).read_bytes() == (whole.path / ADAPTER).read_bytes()


@pytest.mark.parametrize(
    ("setting", "kept"),
    [
        ("lora.rslora=true", True),
        ("lora.init=pissa", True),
        ("training.class_weights=balanced", True),
        ("training.accumulation=2", True),
        ("training.pad_to_max_length=true", True),
        ("training.precision=bfloat16", True),
        ("lora.dora=true", False),
        ("lora.bias=all", False),
    ],
)
def test_whatever_else_is_set_the_adapter_answers_and_is_explained(tiny_recipe, tmp_path, setting, kept):
    run = run_training(tiny_recipe("lora.layers=top-1", setting), tmp_path / "run")
    assert ("computed once" in run.log.read_text()) is kept
    classifier = newsdesk.load(run.path, engine="torch", device="cpu")
    (prediction,) = classifier.predict(["goal coach season"])
    assert 1 / 3 < prediction.probability < 1
    words = newsdesk.explain(classifier, "goal coach season").words
    assert [word.text for word in words] == ["goal", "coach", "season"]


def test_more_layers_than_there_are_is_a_sentence(tiny_recipe, tmp_path):
    with pytest.raises(UserError, match="has 2 layers"):
        run_training(tiny_recipe("lora.layers=top-3"), tmp_path / "run")
    with pytest.raises(UserError, match=r"lora\.layers"):
        tiny_recipe("lora.layers=top-0")


@pytest.mark.parametrize("target", ["encoder.layer.0.attention.self.query", "pooler.dense"])
def test_targets_that_the_top_layers_do_not_have_are_a_sentence(tiny_recipe, tmp_path, target):
    with pytest.raises(UserError, match=r"lora\.targets and lora\.layers do not go together"):
        run_training(tiny_recipe("lora.layers=top-1", f"lora.targets={target}"), tmp_path / "run")


def test_batches_are_padded_and_hold_each_texts_own_states(tmp_path):
    compute = Counted()
    kept = states_of(tmp_path, compute)
    kept.keep(TEXTS)
    assert (kept.texts, compute.rows) == (5, 5)  # two texts are one
    states, mask = kept.batch(TEXTS)
    assert torch.equal(states, Counted()(TEXTS))
    assert mask.sum(1).tolist() == list(map(len, TEXTS))
    assert kept.batch(TEXTS[1:2])[1] is None
    assert kept.batch(TEXTS[:1], to_length=20)[0].shape == (1, 20, 4)
    assert compute.rows == 5


def test_states_are_found_again_and_by_no_other_base(tmp_path):
    states_of(tmp_path, Counted(), base="one").keep(TEXTS)
    again, other = Counted(), Counted()
    states_of(tmp_path, again, base="one").keep(TEXTS)
    states_of(tmp_path, other, base="two").keep(TEXTS)
    assert (again.rows, other.rows) == (0, 5)


@pytest.mark.parametrize("name", [STATES, INDEX])
def test_what_a_kill_cut_off_is_computed_again(tmp_path, name):
    kept = states_of(tmp_path, Counted())
    kept.keep(TEXTS)
    (path,) = tmp_path.glob(f"*/{name}")
    whole = path.read_bytes()
    del kept
    os.truncate(path, len(whole) - 5)
    states = states_of(tmp_path, Counted())
    states.keep(TEXTS)
    assert path.read_bytes() == whole
    assert torch.equal(states.batch(TEXTS)[0], Counted()(TEXTS))


def test_what_the_limit_leaves_no_room_for_is_computed_each_time(tmp_path, monkeypatch):
    monkeypatch.setenv(LIMIT, str(20 * 2 * 4 / 1e9))  # 20 of 35 tokens
    compute = Counted()
    kept = states_of(tmp_path, compute)
    kept.keep(TEXTS)
    assert 0 < kept.texts < 5
    assert torch.equal(kept.batch(TEXTS)[0], Counted()(TEXTS))


def test_the_states_used_longest_ago_make_room_and_nothing_else_goes(tmp_path, monkeypatch):
    for number, base in enumerate(("old", "new")):
        kept = states_of(tmp_path, Counted(), base=base)
        kept.keep(TEXTS)
        os.utime(kept._folder, (number, number))
    strange = tmp_path / "mine"
    strange.mkdir()
    (strange / "letter.txt").write_text("kept")
    monkeypatch.setenv(LIMIT, str(2.5 * 35 * 2 * 4 / 1e9))
    states_of(tmp_path, Counted(), base="third").keep(TEXTS)
    again = Counted()
    states_of(tmp_path, again, base="new").keep(TEXTS)
    assert again.rows == 0
    assert len(list(tmp_path.glob(f"*/{STATES}"))) == 2
    assert (strange / "letter.txt").is_file()


def test_a_limit_that_is_no_number_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv(LIMIT, "much")
    with pytest.raises(UserError, match=LIMIT):
        states_of(tmp_path, Counted()).keep(TEXTS)
