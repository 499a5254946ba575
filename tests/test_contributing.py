"""Each recipe of CONTRIBUTING.md, tried once on a copy of the sources, in the files that it names."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from newsdesk.api import train

ROOT = Path(__file__).parents[1]
OLD_EXPORT = ROOT / "tests" / "old_run" / "export" / "onnx-fp32"
MOST_FILES = 3


class Workshop:
    """A copy of src/newsdesk, what a recipe changes in it, and the command line of the result."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.package = folder / "src" / "newsdesk"
        self.changed: set[str] = set()
        shutil.copytree(ROOT / "src" / "newsdesk", self.package, ignore=shutil.ignore_patterns("__pycache__"))

    def put(self, name: str, text: str, *, after: str | None = None, instead_of: str | None = None) -> None:
        """Put text into a file: after a line or a part of one, instead of it, or as a new file."""
        self.changed.add(name)
        path = self.package / name
        place = after or instead_of
        if place is None:
            path.write_text(text, encoding="utf-8")
            return
        content = path.read_text(encoding="utf-8")
        assert content.count(place) == 1, (
            f"{name} has {place!r} {content.count(place)} times: update the recipe"
        )
        path.write_text(content.replace(place, f"{after or ''}{text}"), encoding="utf-8")

    def newsdesk(self, *arguments: str | Path) -> str:
        """Run the changed command line as ``python`` does."""
        return self.python("-m", "newsdesk", *arguments)

    def python(self, *arguments: str | Path) -> str:
        """Run Python on the changed sources; what it prints. Raises AssertionError unless it exits with 0."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.package.parent),
            "NEWSDESK_CACHE": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout

    def check_against(self, heading: str, **stand_for: str) -> None:
        """The recipe under a heading names exactly the files that were changed, three at most.

        ``stand_for`` says what was taken for the words in capitals.
        """
        text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
        section = text.partition(f"### {heading}\n")[2].partition("\n#")[0]
        for word, name in stand_for.items():
            section = section.replace(word, name)
        assert set(re.findall(r"^\d\. `([\w/]+\.(?:py|toml))`", section, flags=re.MULTILINE)) == self.changed
        assert len(self.changed) <= MOST_FILES


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def test_a_base_model(workshop: Workshop):
    entry = """[bert-small]
description = "a small BERT"
hub = "organisation/bert-small"
licence = "apache-2.0"
parameters = 28_763_648

[bert-small.config]
model_type = "bert"
hidden_size = 512
intermediate_size = 2048
num_attention_heads = 8
num_hidden_layers = 4

"""
    workshop.put("model/base_models.toml", f"{entry}[roberta-base]\n", instead_of="[roberta-base]\n")

    listed = json.loads(workshop.newsdesk("models", "list", "--json"))["base_models"]
    assert "bert-small" in [base["name"] for base in listed]
    plan = workshop.newsdesk("train", "--base", "bert-small", "--dry-run")
    assert re.search(r"LoRA adapters +65,536 ", plan)  # 4 layers x query, value x rank 8 x (512 + 512)
    workshop.check_against("A base model")


def test_an_architecture(workshop: Workshop):
    config = {"model_type": "roberta-prelayernorm", "hidden_size": 32, "num_attention_heads": 4}
    config |= {"num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 640, "pad_token_id": 1}
    (workshop.folder / "base").mkdir()
    (workshop.folder / "base" / "config.json").write_text(json.dumps(config))
    line = '\n    "roberta-prelayernorm": Architecture(counts_from_padding=True),'
    workshop.put("model/architectures.py", line, after='"electra": Architecture(),')

    assert re.search(r"LoRA adapters +2,048 ", workshop.newsdesk("train", "--base", "./base", "--dry-run"))
    workshop.check_against("An architecture")


def test_a_file_format(workshop: Workshop):
    (workshop.folder / "data").mkdir()
    rows = "\n".join(["label|text", *(f"{label}|text {n} about {label}" for n in range(9) for label in "ab")])
    (workshop.folder / "data" / "train.psv").write_text(rows)

    workshop.put("data/stream.py", '"psv", ', after='FORMATS = ("csv", "tsv", ')
    workshop.put(
        "data/stream.py",
        'delimiter = {"csv": ",", "psv": "|"}.get(form, "\\t")',
        instead_of='delimiter = "," if form == "csv" else "\\t"',
    )

    checked = json.loads(workshop.newsdesk("data", "check", "data/train.psv", "--json"))
    assert checked["rows"] == 18
    find = "from newsdesk.data.load import folder_splits; print(folder_splits(Path('data'))['train'])"
    assert workshop.python("-c", f"from pathlib import Path; {find}") == "data/train.psv\n"
    workshop.check_against("A file format")


def test_a_metric(workshop: Workshop, write_rows: Callable[[Path, list[tuple[str, str]]], Path]):
    unit = '\n    "balanced_accuracy": "0 to 1, mean recall over the classes that occur",'
    workshop.put("metrics.py", unit, after='"macro_f1_classes": "classes that macro_f1 is the mean over",')
    field = "    balanced_accuracy: float | None = None\n    units: Mapping"
    workshop.put("metrics.py", field, instead_of="    units: Mapping")
    value = "\n        balanced_accuracy=float(np.mean([of.recall for of in per_class if of.support])),"
    workshop.put(
        "metrics.py", value, after="most_confident_errors=_most_confident_errors(confidence, correct),"
    )
    line = '\n        figure("balanced accuracy", f"{metrics.balanced_accuracy:.1%}"),'
    workshop.put("cli/tables.py", line, after='figure("Brier score", f"{metrics.brier_score:.4f}"),')

    export = shutil.copytree(OLD_EXPORT, workshop.folder / "export")
    rows = [("Business", "market shares profit"), ("Sports", "goal coach striker"), ("Sports", "profit bank")]
    write_rows(workshop.folder / "rows.csv", rows)
    printed = workshop.newsdesk("evaluate", "export", "--data", "rows.csv")
    stored = json.loads((export / "metrics.json").read_text())["test"]["metrics"]
    recalls = [of["recall"] for of in stored["per_class"] if of["support"]]
    assert stored["balanced_accuracy"] == pytest.approx(sum(recalls) / 2)
    assert re.search(rf"balanced accuracy +{sum(recalls) / 2:.1%}", printed)
    workshop.check_against("A metric")


def test_an_export_kind(workshop: Workshop, tiny_recipe: Callable[..., Any], tmp_path: Path):
    workshop.put("runs/exported.py", ', "onnx-plain"', after='"merged", "onnx-fp32", "onnx-int8"')
    file = '\n    "onnx-plain": "onnx/model_plain.onnx",'
    workshop.put("runs/exported.py", file, after='"onnx-fp32": "onnx/model.onnx",')
    float32 = "else:\n            write_onnx(self._converted(), self.weights)"
    branch = (
        'elif self.kind == "onnx-plain":\n            write_onnx(to_onnx(self.model), self.weights)\n        '
    )
    workshop.put("exports/export.py", branch + float32, instead_of=float32)
    workshop.put("cli/publish.py", ', "onnx-plain"', after='KINDS = ("merged", "onnx-fp32", "onnx-int8"')

    train(tiny_recipe(), out=tmp_path / "run")
    workshop.newsdesk("export", "run", "--to", "onnx-plain")
    printed = workshop.newsdesk("predict", "run/export/onnx-plain", "goal coach striker season")
    assert printed.startswith("Sports")
    workshop.check_against("An export kind")


FUNCTION = '''

def class_names(path: Path) -> tuple[str, ...]:
    """The class names of an export, in id order. Raises UserError when there is none at ``path``."""
    return ExportedModel(path).labels.names


def find_exported('''

COMMAND = '''"""The verb classes: which classes an export answers with."""

from __future__ import annotations

from pathlib import Path

import click

from newsdesk.cli.shared import say, verb


@verb()
@click.argument("export", type=click.Path(path_type=Path))
def classes(export: Path) -> None:
    """List the classes of an export."""
    from newsdesk.runs.exported import class_names

    say(list(class_names(export)))
'''


def test_a_verb(workshop: Workshop):
    workshop.put("runs/exported.py", FUNCTION, instead_of="\n\ndef find_exported(")
    workshop.put("cli/classes.py", COMMAND)
    first = "from newsdesk.cli.data import data, models"
    workshop.put("cli/__init__.py", f"from newsdesk.cli.classes import classes\n{first}", instead_of=first)
    workshop.put("cli/__init__.py", "\n    classes,", after="for verb in (")

    assert "classes" in workshop.newsdesk("--help")
    assert workshop.newsdesk("classes", OLD_EXPORT) == "Business\nScience\nSports\n"
    workshop.check_against("A verb", ROOM="runs", MODULE="exported", VERB="classes")


def test_a_ready_made_classifier(workshop: Workshop):
    folder = workshop.package / "ready_made"
    shutil.copytree(
        folder / "ag-news", folder / "news-too"
    )  # as benchmarks/ready_made.py does, which has its own test
    sha256 = hashlib.sha256((folder / "news-too" / "manifest.json").read_bytes()).hexdigest()
    entry = f"""[news-too]
description = "the same again"
data_set = "ag_news"
notice = "news-too is for this test"
card = ""
manifest_sha256 = "{sha256}"

"""
    workshop.put("ready_made/classifiers.toml", f"{entry}[ag-news]\n", instead_of="[ag-news]\n")

    listed = json.loads(workshop.newsdesk("models", "list", "--json"))["classifiers"]
    assert [row["name"] for row in listed] == ["news-too", "ag-news"]
    workshop.newsdesk("push", "news-too", "desk/news-too", "--dry-run")
    workshop.check_against("A ready-made classifier")


def test_a_data_set(workshop: Workshop):
    entry = """[webkb]
description = "web pages of universities, 4 kinds"
licence = "none stated"
train = "train.csv"
test = "test.csv"
rows = [2_785, 1_383]
hub = "organisation/webkb"

"""
    first = "[reuters-r8]"
    workshop.put("data/data_sets.toml", entry + first, instead_of=first)
    listed = json.loads(workshop.newsdesk("data", "list", "--json"))
    assert "webkb" in [data["name"] for data in listed]
    workshop.check_against("A data set")
