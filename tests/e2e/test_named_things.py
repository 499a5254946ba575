"""``newsdesk models``, ``newsdesk data`` and ``newsdesk import-adapter``."""

from __future__ import annotations

import json

import pytest

from newsdesk.data.load import DATA_SETS
from newsdesk.model.catalog import BASE_MODELS

GOOD = "text,label\n" + "".join(
    f"{what} rises again,Business\nTeam wins the {what} cup,Sports\n"
    for what in ("Oil", "Gold", "Tin", "Rice", "Wheat")
)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEWSDESK_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(("verb", "known"), [("models", BASE_MODELS), ("data", DATA_SETS)])
def test_lists_are_tables_or_json(newsdesk, verb, known):
    table = newsdesk(verb, "list")
    assert [line.split()[0] for line in table.lines[-len(known) :]] == list(known)
    content = newsdesk(verb, "list", "--json").json
    rows = content["base_models"] if verb == "models" else content
    assert [row["name"] for row in rows] == list(known)
    assert not any(row["cached"] for row in rows)
    assert all(row["licence"] and row["description"] for row in rows)


def test_an_unknown_model_is_answered_with_the_closest(newsdesk):
    outcome = newsdesk("models", "pull", "all-MiniLM-L6-v3")
    assert outcome.code == 1
    assert "all-MiniLM-L6-v2" in outcome.err


def test_an_unknown_data_set_is_answered_with_the_closest(newsdesk):
    outcome = newsdesk("data", "pull", "reuters-r9")
    assert outcome.code == 1
    assert "reuters-r8" in outcome.err


def test_pulling_says_where_the_files_are(newsdesk, desk, monkeypatch, tmp_path):
    from newsdesk.data import load

    assert newsdesk("models", "pull", desk.base).lines == [f"{desk.base} is in {desk.base} (from: local)"]
    monkeypatch.setattr(load, "pull", lambda _name, **_named: tmp_path)
    assert newsdesk("data", "pull", "reuters-r8").lines == [f"reuters-r8 is in {tmp_path}"]


def test_a_good_file_is_ok_and_a_faulty_one_fails(newsdesk, tmp_path):
    good, faulty = tmp_path / "good.csv", tmp_path / "faulty.csv"
    good.write_text(GOOD)
    faulty.write_text(GOOD + "too,many,cells\n")
    outcome = newsdesk("data", "check", good)
    assert (outcome.code, outcome.lines[-1]) == (0, "OK")
    outcome = newsdesk("data", "check", faulty)
    assert (outcome.code, outcome.lines[-1]) == (1, "problems found")
    assert "line 12" in outcome.out
    assert newsdesk("data", "check", tmp_path / "none.csv").err.startswith("error: there is no file")


def test_a_check_can_be_read_by_a_program(newsdesk, tmp_path):
    (tmp_path / "train.csv").write_text(GOOD)
    (tmp_path / "test.csv").write_text("text,label\noil RISES again,Business\n")
    outcome = newsdesk("data", "check", tmp_path / "train.csv", "--against", tmp_path / "test.csv", "--json")
    assert outcome.code == 1
    assert outcome.json["leakage"]["exact"] == 1
    assert outcome.err == ""


def test_a_check_takes_the_flags_of_training_and_counts_a_bases_tokens(newsdesk, desk):
    flags = ["--text", "words", "--label", "desk", "--base", desk.base, "--max-length", "4", "--json"]
    report = newsdesk("data", "check", desk.test, *flags).json
    assert (report["text_columns"], report["label_column"]) == (["words"], "desk")
    assert report["token_lengths"]["max_length"] == 4
    assert report["token_lengths"]["truncated"] == 1.0


@pytest.fixture(scope="session")
def plain_adapter(desk, tmp_path_factory):
    """An adapter as peft's own users train and save it."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(5)
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(desk.base, num_labels=2)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    folder = tmp_path_factory.mktemp("adapter")
    peft.get_peft_model(classifier, config).save_pretrained(folder)
    # The pooler of this base is saved with its weights, so base and adapter decide everything.
    return folder


def test_an_adapter_of_plain_peft_becomes_a_run_that_predicts(newsdesk, desk, plain_adapter, tmp_path):
    out = tmp_path / "imported"
    flags = ["--base", desk.base, "--labels", "bad news, good news", "--max-length", "32"]
    outcome = newsdesk("import-adapter", plain_adapter, "--out", out, *flags)
    assert outcome.code == 0, outcome.err
    assert outcome.lines == [f"run saved to {out}; its classes are bad news, good news"]
    (prediction,) = newsdesk("predict", out, "goal", "--json").json["predictions"]
    assert prediction["label"] in ("bad news", "good news")
    assert newsdesk("import-adapter", plain_adapter, "--out", out, *flags).code == 1
    assert newsdesk("import-adapter", plain_adapter, "--out", out, *flags, "--overwrite").code == 0


def test_an_imported_run_is_evaluated_but_has_no_baseline(newsdesk, desk, plain_adapter, tmp_path):
    out = tmp_path / "imported"
    newsdesk(
        "import-adapter",
        plain_adapter,
        "--out",
        out,
        "--base",
        desk.base,
        "--labels",
        "a,b",
        "--max-length",
        "32",
    )
    (tmp_path / "test.csv").write_text("text,label\ngoal,a\nbank,b\n")
    assert newsdesk("evaluate", out, "--data", tmp_path / "test.csv", "--json").json["metrics"]["rows"] == 2
    outcome = newsdesk("evaluate", out, "--data", tmp_path / "test.csv", "--baseline")
    assert outcome.code == 1
    assert "imported" in outcome.err


def test_what_is_no_adapter_is_not_imported(newsdesk, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04.")
    outcome = newsdesk("import-adapter", tmp_path, "--out", tmp_path / "out")
    assert outcome.code == 1
    assert "pickle" in outcome.err
    assert not (tmp_path / "out").exists()
