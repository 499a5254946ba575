"""The model card: metadata that the Hub's client reads, metrics.json's figures, an owner's words kept."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from markdown_it import MarkdownIt

import newsdesk
from newsdesk.errors import UserError
from newsdesk.evaluation.evaluate import read_metrics, write_metrics
from newsdesk.files import sha256_of
from newsdesk.hub.cache import Slot
from newsdesk.metrics import evaluate_probabilities
from newsdesk.prediction.abstention import CoverageAt
from newsdesk.reports import model_card
from newsdesk.reports.facts import RunFacts
from newsdesk.reports.model_card import BEGIN, END, card_metadata, card_text, refresh_card
from newsdesk.runs.calibration import Calibration, Change
from newsdesk.runs.folder import RunFolder, open_run
from newsdesk.runs.manifest import SPLIT_OFF, DataFacts
from newsdesk.stored import write_stored
from newsdesk.training.linear_baseline import BaselineResult

HOSTILE = (
    "Sci|Tech",
    "two\nlines\t`x`",
    "*bold* _it_ [a](http://x) <b>&amp;</b>",
    END,
    "---",
    "日本 'quoted' \"twice\": {x}",
)
CALIBRATION = Calibration(1.25, 1539, "validation", "0", Change(0.03, 0.01), Change(0.2, 0.19), "")


@pytest.fixture
def run(run) -> RunFolder:
    """The run of its own that every test here may change."""
    return RunFolder(run)


@pytest.fixture
def published(run) -> RunFolder:
    """The run as if its base and data were those that strangers can have."""
    known = run.manifest
    assert known.data is not None
    base = replace(known.base, reference="sentence-transformers/all-MiniLM-L6-v2", licence="apache-2.0")
    data = DataFacts(
        "non-commercial use only",
        replace(known.data.train, source="ag_news"),
        replace(known.data.validation, source=f"{SPLIT_OFF}ag_news"),
    )
    run.seal(replace(known, base=base, data=data))
    return run


def card_of(run: RunFolder) -> ModelCard:
    return ModelCard.load(run.path / "README.md")


def body_of(run: RunFolder) -> str:
    return (run.path / "README.md").read_text(encoding="utf-8")


def cells(text: str) -> list[str]:
    """What a reader sees in the cells of all tables."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inline = (token for before, token in pairwise(tokens) if before.type in ("td_open", "th_open"))
    return ["".join(child.content for child in token.children or ()) for token in inline]


def test_training_leaves_a_card_and_evaluating_puts_its_figures_in(run):
    assert run.manifest.files["README.md"] == sha256_of(run.path / "README.md")
    figures = json.loads(run.metrics.read_text())["seen"]["metrics"]
    accuracy, f1 = card_of(run).data.eval_results
    assert (accuracy.metric_type, accuracy.metric_value) == ("accuracy", figures["accuracy"])
    assert accuracy.metric_args["interval"] == figures["accuracy_interval"]
    assert (f1.metric_type, f1.metric_value) == ("f1", figures["macro_f1"])
    assert (f1.dataset_split, f1.dataset_name) == ("seen", "topics.csv")
    low, high = (100 * bound for bound in figures["accuracy_interval"])
    assert f"{100 * figures['accuracy']:.2f} % ({low:.2f} to {high:.2f} %)" in cells(body_of(run))
    for entry in figures["per_class"]:
        assert {entry["label"], f"{entry['f1']:.4f}"} <= set(cells(body_of(run)))


def test_the_hubs_client_reads_the_metadata_and_writes_the_same(published):
    metadata = ModelCard(card_text(RunFacts.of(published, "desk/wire"))).data
    index = eval_results_to_model_index(metadata.model_name, metadata.eval_results)
    assert model_index_to_eval_results(index) == (metadata.model_name, metadata.eval_results)
    assert index == card_metadata(RunFacts.of(published, "desk/wire")).to_dict()["model-index"]
    told = metadata.to_dict()
    assert told["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert (told["base_model_relation"], told["library_name"]) == ("adapter", "peft")
    assert (told["pipeline_tag"], told["license"], told["language"]) == (
        "text-classification",
        "apache-2.0",
        "en",
    )
    assert (told["datasets"], told["tags"]) == (["fancyzhx/ag_news"], ["newsdesk", "lora"])


def test_what_is_not_known_is_not_told(run, tiny_base, topical_csv):
    """A local base, rows of one's own: no licence, language or data set is made up, no path given away."""
    metadata = card_metadata(RunFacts.of(run)).to_dict()
    assert {"license", "language", "datasets", "base_model", "base_model_relation"} & set(metadata) == set()
    body = card_text(RunFacts.of(run, "desk/wire"))
    assert "unknown" in cells(body)
    assert tiny_base("bert").name in body
    assert str(tiny_base("bert").parent) not in body
    assert str(topical_csv.parent) not in body


def test_rows_out_of_the_cache_go_by_the_name_of_their_data_set(run, monkeypatch, tmp_path):
    monkeypatch.setenv("NEWSDESK_CACHE", str(tmp_path / "cache"))
    source = str(Slot("data", "ag_news").folder / "data" / "test.parquet")
    write_metrics(replace(read_metrics(run.metrics)["seen"], source=source), run.metrics)
    result = card_metadata(RunFacts.of(run)).to_dict()["model-index"][0]["results"][0]
    assert (result["dataset"]["type"], result["dataset"]["name"]) == ("fancyzhx/ag_news", "ag_news")


def test_an_unmeasured_run_says_so(run):
    run.metrics.unlink()
    assert "model-index" not in card_metadata(RunFacts.of(run)).to_dict()
    assert "Not measured yet" in card_text(RunFacts.of(run))


def test_an_imported_run_says_what_nobody_knows(run):
    run.log.unlink()
    run.seal(replace(run.manifest, training=None, data=None, seed=None))
    body = card_text(RunFacts.of(RunFolder(run.path)))
    assert "What it was trained on is not known" in body
    assert "no more is known" in body
    assert "newsdesk train" not in body


@pytest.mark.parametrize("damage", [b"", b"\x00", b'\x02\0\0\0\0\0\0\0{"', b"\x02\0\0\0\0\0\0\0[]"])
def test_weights_that_tell_nothing_are_not_counted(run, damage):
    (run.adapter / "adapter_model.safetensors").write_bytes(damage)
    run.log.write_text("{half a line")
    body = card_text(RunFacts.of(run))
    assert "parameters stored" not in body
    assert "| time |" not in body


def test_names_with_any_characters_stay_one_cell_that_reads_as_they_do(run):
    (run.path / "linear_model.safetensors").unlink()  # it is of the classes as they were
    run.write_labels(replace(run.labels, names=HOSTILE))
    measured = read_metrics(run.metrics)["seen"]
    labels = np.arange(len(HOSTILE))
    metrics = evaluate_probabilities(np.eye(len(HOSTILE)), labels, HOSTILE)
    source = "/data/a: b\n---\n'c' | \"d\".csv"
    write_metrics(replace(measured, metrics=metrics, source=source), run.metrics)
    text = card_text(RunFacts.of(RunFolder(run.path)))
    shown = [" ".join(name.split()) for name in HOSTILE]
    assert [cell for cell in cells(text) if cell in shown] == shown
    assert text.count(END) == 1
    (accuracy, _f1) = ModelCard(text).data.eval_results
    assert accuracy.dataset_name == "a: b\n---\n'c' | \"d\".csv"
    assert card_text(RunFacts.of(RunFolder(run.path)), text) == text


def test_the_owners_words_and_metadata_outlive_an_evaluation(run, topical_csv):
    path = run.path / "README.md"
    edited = (
        body_of(run).replace("# wire", "# Wire desk, Vienna\n\nBy Anna.").replace("tags:", "tags:\n- mine")
    )
    edited = edited.replace("---\n", "---\nlicense: cc-by-4.0\n", 1) + "\nCall 4711 when it errs.\n"
    path.write_text(edited, encoding="utf-8")
    newsdesk.evaluate(run.path, str(topical_csv), split="again")
    now = body_of(run)
    assert "# Wire desk, Vienna\n\nBy Anna.\n" in now.partition(BEGIN)[0]
    assert now.endswith("\nCall 4711 when it errs.\n")
    assert {result.dataset_split for result in card_of(run).data.eval_results} == {"seen", "again"}
    assert (card_of(run).data.license, card_of(run).data.tags) == ("cc-by-4.0", ["mine", "newsdesk", "lora"])
    refresh_card(run)
    assert body_of(run) == now


@pytest.mark.parametrize(
    "owned", ["# All mine\n", f"---\na: [\n---\n{BEGIN}\n{END}\n", f"---\n[1]\n---\n{BEGIN}{END}"]
)
def test_a_card_that_is_not_newsdesks_is_left_alone(run, owned):
    (run.path / "README.md").write_text(owned)
    refresh_card(run)
    assert body_of(run) == owned


def test_a_card_that_is_no_text_is_an_error_that_says_how_to_fix_it(run):
    (run.path / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="save it as UTF-8"):
        refresh_card(run)


def test_a_kill_before_the_card_leaves_a_complete_run(tiny_base, topical_csv, tmp_path, monkeypatch):
    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model_card, "write_text", killed)
    flags = {"model.base": str(tiny_base("bert")), "data.train": str(topical_csv), "training.epochs": 0.1}
    with pytest.raises(KeyboardInterrupt):
        newsdesk.train(out=tmp_path / "run", flags=flags, overrides=["model.max_length=32", "data.folds=0"])
    assert open_run(tmp_path / "run").is_complete()
    assert newsdesk.load(tmp_path / "run").predict(["goal"]).labels
    assert not (tmp_path / "run" / "README.md").exists()


def test_what_was_trained_otherwise_than_usual_is_told(run):
    recipe = run.recipe.read_text()
    for key, value in (("rslora = false", "rslora = true"), ('init = "default"', 'init = "pissa"')):
        recipe = recipe.replace(key, value)
    run.recipe.write_text(recipe.replace("accumulation = 1", "accumulation = 2"))
    measured = read_metrics(run.metrics)["seen"]
    changed = replace(
        measured,
        metrics=replace(measured.metrics, expected_calibration_error=0.25),
        baseline=BaselineResult(0.5, (0.4, 0.6), 1.0, "TF-IDF"),
        risk_coverage=replace(measured.risk_coverage, coverage_at=(CoverageAt(0.02, 0.793),)),
        calibration=replace(measured.calibration, expected_calibration_error=Change(0.5, 0.25)),
    )
    write_metrics(changed, run.metrics)
    write_stored(run.path / "calibration.json", CALIBRATION)
    training = replace(run.manifest.training, finished="interrupted", processes=3)
    run.seal(replace(run.manifest, training=training))
    text = card_text(RunFacts.of(run))
    told = {
        "2 %",
        "79.30 %",
        "rsLoRA, initialised as pissa",
        "16 rows x 2 batches x 3 processes",
        "seen: TF-IDF",
    }
    assert told | {"50.00 % (40.00 to 60.00 %)", "interrupted before its last step"} <= set(cells(text))
    assert "divides the logits by the temperature 1.25" in text
    assert "fitted on 1,539 rows, on which it changed the calibration error from 0.0300 to 0.0100" in text


@pytest.mark.parametrize(("seconds", "shown"), [(59, "59 s"), (3000, "50 min 00 s"), (3977, "1 h 06 min")])
def test_durations_are_told_as_people_do(run, seconds, shown):
    events = [json.loads(line) for line in run.log.read_text().splitlines()]
    events[-1]["seconds"] = seconds
    run.log.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert f"{shown} on cpu, float32" in cells(card_text(RunFacts.of(run)))


def test_a_pipe_in_place_of_the_weights_is_not_waited_for(run):
    weights = run.adapter / "adapter_model.safetensors"
    weights.unlink()
    os.mkfifo(weights)
    assert "adapter" in card_text(RunFacts.of(RunFolder(run.path)))
