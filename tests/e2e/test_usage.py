"""Help, wrong usage and failures: what a person sees who is not yet, or no longer, on the right path."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

import newsdesk as package
from newsdesk.prediction import open_model as loading

COMMON = {"--debug", "--help"}
LIMITS = ("--max-characters", "--max-columns", "--max-unpacked")
DIALECT = ("--header", "--no-header", "--delimiter", "--quote", "--encoding", *LIMITS)
LABEL = ("--label", "--label-separator", "--label-columns")
LABELLED = ("--unknown-labels", *DIALECT)
FLAGS = {
    "train": {
        *("--recipe", "--data", "--valid", "--unlabelled", "--base", "--out"),
        *("--text", *LABEL, "--task", "--template"),
        *("--normaliser", *LABELLED, "--epochs", "--set", "--overwrite", "--resume", "--dry-run"),
        *("--baseline", "--no-baseline", "--stack", "--no-stack", "--track", "--folds", "--json"),
        "--from",
    },
    "sweep": {
        *("--recipe", "--data", "--valid", "--unlabelled", "--base", "--out"),
        *("--text", *LABEL, "--task", "--template"),
        *("--normaliser", *LABELLED, "--epochs", "--set", "--baseline", "--no-baseline", "--json"),
        *("--vary", "--method", "--trials", "--seeds", "--folds", "--budget", "--prune", "--no-prune"),
        *("--stack", "--no-stack", "--resume"),
    },
    "evaluate": {
        *("--data", "--split", "--baseline", "--with-text", "--unknown-labels"),
        *("--text", *LABEL, "--template", *LABELLED, "--json"),
    },
    "calibrate": {
        *("--data", "--stack", "--no-stack"),
        "--learned-rows",
        "--unknown-labels",
        "--text",
        *LABEL,
        "--template",
        *LABELLED,
        "--json",
    },
    "compare": {
        *("--split", "--data", "--csv", "--unknown-labels", "--text", *LABEL, "--template"),
        *(*LABELLED, "--json"),
    },
    "labels": {"--rename", "--retire", "--merge", "--out", "--overwrite", "--json"},
    "explain": {"--top", "--target", "--json"},
    "predict": {
        *("--input", "--output", "--format", "--top-k", "--probabilities"),
        *("--abstain", "--confidence", "--sets", "--off-topic", "--answer-empty"),
        *(
            "--engine",
            "--loss",
            "--estimated",
            "--rejects",
            "--strict",
            "--indicators",
            "--ray-address",
            "--ray-workers",
            "--ray-cores",
            "--watch",
            "--once",
            "--interval",
            "--settle",
        ),
        *("--text", "--template", *DIALECT, "--json"),
    },
    "export": {
        *("--to", "--out", "--data", "--overwrite", "--text", *LABEL, "--template", *LABELLED, "--json"),
        *("--learned-rows", "--unknown-labels", "--max-loss", "--max-loss-upper"),
    },
    "serve": {
        *("--host", "--port", "--threads", "--batch-tokens", "--max-waiting", "--max-texts"),
        *("--max-characters", "--max-body", "--max-connections", "--deadline", "--slow-client", "--drain"),
        *("--watch", "--tokens", "--make-token", "--rate", "--manage", "--allowed-host", "--no-truncate"),
        *("--log-texts", "--abstain", "--confidence", "--sets", "--off-topic"),
    },
    "import-adapter": {
        *(
            "--out",
            "--base",
            "--labels",
            "--max-length",
            "--overwrite",
            "--text",
            "--template",
            "--normaliser",
        )
    },
    "push": {
        *("--private", "--public", "--revision", "--with-exports", "--message", "--dry-run", "--json"),
    },
    "label": {
        *("--data", "--out", "--labels", "--rows", "--random", "--batch", "--pool", "--base", "--guess"),
        *("--no-guess", "--label", "--task", "--text", "--template", "--normaliser", *DIALECT, "--json"),
    },
    "models list": {"--json"},
    "models pull": {"--out"},
    "data list": {"--json"},
    "data pull": {"--out"},
    "data check": {
        *("--against", "--text", *LABEL, "--task", "--template", "--normaliser", *DIALECT),
        *("--base", "--max-length", "--json"),
    },
}
SLOW_TO_IMPORT = (
    *("torch", "transformers", "peft", "sklearn", "pyarrow", "tokenizers", "huggingface_hub"),
    *("numpy", "pydantic", "rich", "newsdesk.api", "newsdesk.config"),
)
HELP_OF_ALL = dedent(
    """
    import contextlib, io, json, sys
    from newsdesk.cli import main
    helps = {}
    for verb in json.loads(sys.argv[1]):
        sys.argv = ["newsdesk", *verb.split(), "--help"]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            try:
                main()
            except SystemExit as end:
                assert end.code == 0, end.code
        helps[verb] = out.getvalue()
    print(json.dumps([helps, list(sys.modules)]))
    """
)


def test_help_names_every_flag_and_loads_nothing_slow():
    verbs = json.dumps(["", "models", "data", *FLAGS])
    command = [sys.executable, "-c", HELP_OF_ALL, verbs]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    helps, modules = json.loads(result.stdout)
    assert set(SLOW_TO_IMPORT) & set(modules) == set()
    for verb, flags in FLAGS.items():
        option_lines = re.findall(r"^  (?:-h, )?(--.*)", helps[verb], re.MULTILINE)
        named = {word for line in option_lines for word in line.split("  ")[0].split() if word[:2] == "--"}
        assert named == flags | COMMON, verb
        assert verb.split()[0] in helps[""]
    assert "NEWSDESK_TRAIN_EPOCHS" in helps[""]


def test_the_version_is_the_packages(newsdesk, monkeypatch):
    monkeypatch.setenv("NEWSDESK_VERSION", "9.9")  # what a container might set is not the flag
    assert newsdesk("--version").out == f"newsdesk, version {package.__version__}\n"
    assert newsdesk("models", "list").code == 0


def test_without_a_verb_the_verbs_are_shown(newsdesk):
    outcome = newsdesk()
    assert outcome.code == 2
    assert "import-adapter" in outcome.err


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        (["train", "--recipie", "quick"], "--recipe"),
        (["evaluate", "RUN", "--date", "x"], "--data"),
        (["predict", "RUN", "--top_k", "2"], "--top-k"),
        (["data", "check", "x.csv", "--againts", "y.csv"], "--against"),
        (["trian"], "'train'"),
        (["data", "chek"], "'check'"),
        (["models", "lst"], "'list'"),
        (["xyzzy"], "train, sweep"),
    ],
)
def test_a_mistyped_flag_or_verb_is_wrong_usage_and_the_meant_one_is_suggested(newsdesk, wrong, meant):
    outcome = newsdesk(*wrong)
    assert (outcome.code, outcome.out) == (2, "")
    assert meant in outcome.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["train", "--data", "x.csv"], "--out"),
        (["train", "--epochs", "many", "--out", "x"], "--epochs"),
        (["evaluate", "RUN"], "--data"),
        (["predict", "RUN", "a text", "--input", "x.csv"], "not both"),
        (["predict", "RUN", "a text", "--json", "--output", "x.csv"], "--output"),
        (["predict", "RUN", "a text", "--json", "--format", "csv"], "--format"),
        (["predict", "RUN", "a text", "--top-k", "0"], "--top-k"),
        (["--wrong"], "--wrong"),
    ],
)
def test_flags_that_do_not_go_together_are_wrong_usage(newsdesk, wrong, said):
    outcome = newsdesk(*wrong)
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err.splitlines()[-1]


def test_a_failure_says_what_was_wrong_and_found_and_how_to_fix_it(newsdesk):
    outcome = newsdesk("train", "--recipe", "qick", "--out", "x")
    assert (outcome.code, outcome.out) == (1, "")
    wrong, found, fix = outcome.err.splitlines()
    assert wrong == "error: there is no recipe called 'qick'"
    assert found.startswith("found: ")
    assert "quick" in found
    assert fix.startswith("fix:   ")
    assert "--recipe" in fix


@pytest.mark.parametrize(
    "arguments", [["--debug", "predict", "no-run", "x"], ["predict", "no-run", "x", "--debug"]]
)
def test_debug_shows_the_traceback_wherever_it_stands(newsdesk, arguments):
    with pytest.raises(package.UserError, match="there is no run at no-run"):
        newsdesk(*arguments)


def test_debug_in_the_environment_shows_the_traceback(newsdesk, monkeypatch):
    monkeypatch.setenv("NEWSDESK_DEBUG", "1")
    with pytest.raises(package.UserError):
        newsdesk("predict", "no-run", "x")


def test_a_text_that_reads_debug_is_a_text(newsdesk):
    assert newsdesk("predict", "no-run", "--", "--debug").code == 1


def test_a_defect_of_ours_is_not_dressed_up(newsdesk, monkeypatch):
    monkeypatch.setattr(loading, "open_model", lambda *_a, **_k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        newsdesk("predict", "run", "x")


def test_what_the_system_refuses_is_explained(newsdesk, tmp_path, desk):
    (tmp_path / "file").touch()
    outcome = newsdesk("train", *desk.flags, "--out", tmp_path / "file" / "run")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-2] == "found: Not a directory"
    assert "Traceback" not in outcome.err


def test_an_error_of_a_library_that_is_no_refusal_of_the_system_keeps_its_traceback(newsdesk, monkeypatch):
    def fail(*_arguments: object, **_named: object) -> None:
        raise OSError("Can't load the configuration")

    monkeypatch.setattr(loading, "open_model", fail)
    with pytest.raises(OSError, match="configuration"):
        newsdesk("predict", "run", "x")


def test_ctrl_c_outside_of_training_ends_with_130(newsdesk, monkeypatch):
    def interrupt(*_arguments: object, **_named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "open_model", interrupt)
    outcome = newsdesk("predict", "run", "x")
    assert outcome.code == 130
    assert outcome.err.split() == ["interrupted"]


def test_flags_are_environment_variables_called_as_they_are(newsdesk, monkeypatch, desk):
    for name, value in {
        "DATA": desk.train,
        "TEXT": "words",
        "LABEL": "desk",
        "BASE": desk.base,
        "EPOCHS": "7",
        "SET": "model.max_length=32 lora.rank=3",
        "DRY_RUN": "1",
        "JSON": "1",
        "OUT": "",  # set but empty is not given
    }.items():
        monkeypatch.setenv(f"NEWSDESK_TRAIN_{name}", str(value))
    recipe = newsdesk("train", "--epochs", "2").json["recipe"]
    assert recipe["data"]["train"] == str(desk.train)
    assert recipe["lora"]["rank"] == 3
    assert recipe["training"]["epochs"] == 2.0


def test_a_flag_of_a_verb_with_two_words_is_an_environment_variable(newsdesk, monkeypatch):
    monkeypatch.setenv("NEWSDESK_MODELS_LIST_JSON", "true")
    assert isinstance(newsdesk("models", "list").json["base_models"], list)
    monkeypatch.setenv("NEWSDESK_IMPORT_ADAPTER_MAX_LENGTH", "1")
    assert "--max-length" in newsdesk("import-adapter", "x", "--out", "y").err


def test_the_cache_variable_is_no_flag(newsdesk, monkeypatch, tmp_path):
    monkeypatch.setenv("NEWSDESK_CACHE", str(tmp_path))
    outcome = newsdesk("models", "list", "--json")
    assert outcome.code == 0
    assert not any(row["cached"] for row in outcome.json["base_models"])


def test_the_installed_command_imports_nothing_from_the_current_folder(tmp_path):
    for name in ("json.py", "click.py", "newsdesk.py", "torch.py", "sitecustomize.py"):
        (tmp_path / name).write_text("open('witness', 'w').close()\n")
    command = Path(sys.executable).with_name("newsdesk")
    asked = [command, "models", "list"]
    done = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "all-MiniLM-L6-v2" in done.stdout
    assert not (tmp_path / "witness").exists()
