"""Every console block of README and docs runs, in order, on one real run, and prints what the text says.

A block that cannot run in a test stands below a comment that says why: ``<!-- not run: REASON -->``.
Below ``<!-- figures vary -->`` numbers are compared by their shape alone; ``...`` stands for anything.
A command that does not exit with 0 says so behind it: ``# exit code 1: ...``. A page's Python blocks share a
session; below ``<!-- texts, labels: ... -->`` they find headlines and their classes under these names.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import newsdesk
from deletion import lost_by_deletion
from forked_commands import ForkedCommands
from newsdesk.data.stream import read_table

ROOT = Path(__file__).parents[2]
FIRST = ("README.md", "docs/quickstart.md")
"""What is run before any other page, and leaves the data and the runs that these use."""

ALONE = ("docs/experiments.md", "docs/notebook.md")
"""What needs no run of the first pages, and so runs beside them: `test_documented_alone.py`."""

OTHERS = sorted(
    {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")} - {*FIRST, *ALONE}
)

QUICKLY = {
    "data.train_rows": 800,  # an int8 export is not made on fewer than 765
    "model.max_length": 32,
    "training.batch_size": 16,
    "training.learning_rate": 3e-3,
    "training.epochs": 1,
    "training.baseline": "false",
}
"""What is added to every training by --set: 50 steps at a rate that suits so few."""

LENIENT = {"NEWSDESK_EXPORT_MAX_LOSS": "3", "NEWSDESK_EXPORT_MAX_LOSS_UPPER": "10"}
"""Points that int8 may lose: the rows of these short trainings are too few for the usual gate."""

ROWS_KEPT = 5  # every fifth: 1,097 to learn from and 437 to test on, a matter of seconds
LEAST_ACCURACY = 0.85
"""Of the test rows; the most frequent class alone makes half of them."""

pytestmark = pytest.mark.real


@dataclass
class Block:
    """Where it stands, what is written above it, and its commands with what they print, or its code."""

    place: str
    marker: str
    commands: list[tuple[str, list[str]]] = field(default_factory=list)
    code: str = ""


def blocks_of(document: str) -> list[Block]:
    """The console and Python blocks of a document."""
    found: list[Block] = []
    marker = ""
    text = (ROOT / document).read_text(encoding="utf-8")
    for part in re.split(r"^(```\w*\n.*?^```$)", text, flags=re.MULTILINE | re.DOTALL):
        place = f"{document}: {part.splitlines()[1]}" if part.startswith("```") else ""
        if part.startswith("```console\n"):
            found.append(Block(place, marker, commands_of(part.splitlines()[1:-1])))
        elif part.startswith("```python\n"):
            found.append(Block(place, marker, code=part.removeprefix("```python\n").removesuffix("```")))
        above = part.rstrip().splitlines()[-1:]
        marker = above[0] if above and above[0].startswith("<!--") else ""
    return found


def commands_of(lines: list[str]) -> list[tuple[str, list[str]]]:
    """Each command, with the lines below it that it prints."""
    commands: list[tuple[str, list[str]]] = []
    for line in lines:
        if line.startswith("$ "):
            commands.append((line[2:], []))
            continue
        assert commands, f"a console block begins with a command, '$ ...', not with {line!r}"
        command, printed = commands[-1]
        if command.endswith("\\"):
            commands[-1] = (f"{command}\n{line}", printed)
        else:
            printed.append(line)
    return commands


READS_BLOCKS = """
import json, sys, traceback
names = {"__name__": "__main__"}
for line in sys.stdin:
    failure = ""
    try:
        exec(compile(json.loads(line), "block", "exec"), names)
    except BaseException:
        failure = traceback.format_exc()
    print("\\n\\0" + json.dumps(failure), flush=True)
"""

TEXTS_AND_LABELS = """
from newsdesk.data.load import load_split

rows = load_split("reuters-r8", "train").table.rows[::5]
texts, labels = [" ".join(row[-1].split()[:12]) for row in rows], [row[0] for row in rows]
"""


class Session:
    """A Python process in which the blocks of a page run one after the other."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", READS_BLOCKS],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, code: str) -> str:
        """Run a block; the traceback if it fails, else an empty text."""
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("\0"):
                return json.loads(line[1:])
        return f"the process ended with {self.process.wait()}"

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


@dataclass(frozen=True)
class Workplace:
    """A folder in which commands run as a reader would run them."""

    folder: Path
    scripts: Path
    """Comes first in PATH; its `newsdesk` need not import anew what training needs."""

    def follow(self, document: str) -> None:
        """Run a page's blocks. Raises AssertionError where one does not do what the text says."""
        blocks = [block for block in blocks_of(document) if not is_left_out(block)]
        session = Session(self.folder) if any(block.code for block in blocks) else None
        try:
            for block in blocks:
                if block.code:
                    given = TEXTS_AND_LABELS if block.marker.startswith("<!-- texts, labels:") else ""
                    failure = session.run(given + block.code)
                    assert not failure, f"{block.place}\n{failure}"
                self.run(block)
        finally:
            if session is not None:
                session.close()

    def run(self, block: Block) -> None:
        """Run a block's commands. Raises AssertionError where one does not do what the text says."""
        for command, printed in block.commands:
            documented = re.search(r"#.*\bexit code (\d+)", command)
            code, output = self.shell(command)
            assert code == (int(documented[1]) if documented else 0), f"{block.place}: {command}\n{output}"
            missing = first_missing(printed, output, figures_vary="figures vary" in block.marker)
            assert missing is None, f"{block.place}: {command}\nnot printed: {missing}\nprinted:\n{output}"
            if "--out wire" in command:
                shorten(self.folder / "wire" / "train.csv", self.folder / "wire" / "test.csv")

    def shell(self, command: str) -> tuple[int, str]:
        if "--dry-run" not in command:
            settings = " ".join(f"--set {key}={value}" for key, value in QUICKLY.items())
            for verb in ("train", "sweep"):
                if verb == "train" or "--resume" not in command:
                    command = command.replace(f"newsdesk {verb} ", f"newsdesk {verb} {settings} ")
        environment = {
            **os.environ,
            "PATH": os.pathsep.join(
                map(str, (self.scripts, Path(sys.executable).parent, os.environ["PATH"]))
            ),
            **LENIENT,
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "120",
        }
        process = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        return process.returncode, process.stdout


def is_left_out(block: Block) -> bool:
    """Whether a block is marked as one that cannot run in a test. AssertionError where no reason is given."""
    left_out = block.marker.startswith("<!-- not run")
    assert not left_out or re.fullmatch(r"<!-- not run: \S.* -->", block.marker), (
        f"{block.place}: say why it is not run"
    )
    return left_out


def first_missing(documented: list[str], output: str, *, figures_vary: bool) -> str | None:
    """The first documented line that the output does not have behind those before it."""
    printed = iter(output.splitlines())
    for line in documented:
        wanted = pattern_of(line, figures_vary=figures_vary)
        if line.strip() not in ("", "...") and not any(wanted.fullmatch(candidate) for candidate in printed):
            return line
    return None


NUMBER = r"(?:(?<![\w.])[+-])?\d[\d,.:]*(?:e[+-]?\d+)?"


def pattern_of(line: str, *, figures_vary: bool) -> re.Pattern[str]:
    """What a documented line stands for; spaces are as many as a table needs."""
    words = []
    for word in line.split():
        kept = re.split(f"({NUMBER})", word) if figures_vary else [word]
        literal = (re.escape(part).replace(r"\.\.\.", ".*") for part in kept[::2])
        words.append("[+-]?[0-9][0-9,.:]*(?:e[+-]?[0-9]+)?".join(literal))
    return re.compile(r"\s*" + r"\s+".join(words) + r"\s*")


def shorten(train: Path, test: Path) -> None:
    """Keep every fifth row of both files, and those whose text is in both."""
    tables = [read_table(path) for path in (train, test)]
    shared = set.intersection(*({row[-1] for row in table.rows} for table in tables))
    for path, table in zip((train, test), tables, strict=True):
        kept = [row for number, row in enumerate(table.rows) if number % ROWS_KEPT == 0 or row[-1] in shared]
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([table.columns, *kept])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """Where the first pages' commands have run, and left runs/demo, runs/wire, runs/first-look and wire/."""
    with ForkedCommands(tmp_path_factory.mktemp("commands")) as scripts:
        place = Workplace(tmp_path_factory.mktemp("workplace"), scripts)
        for document in FIRST:
            place.follow(document)
        yield place


@pytest.mark.parametrize("document", OTHERS)
def test_the_commands_of_a_document_do_what_it_says(workplace, document):
    workplace.follow(document)


def test_minilm_learned_reuters_and_its_explanations_are_faithful(workplace):
    run = workplace.folder / "runs" / "wire"
    code, output = workplace.shell("newsdesk evaluate runs/wire --data wire/test.csv --json 2>/dev/null")
    assert code == 0
    assert json.loads(output)["metrics"]["accuracy"] > LEAST_ACCURACY

    classifier = newsdesk.load(run, device="cpu")
    table = read_table(workplace.folder / "wire" / "test.csv")
    texts = [" ".join(row[-1].split()[:40]) for row in table.rows[:40:4]]
    by_top, by_chance = lost_by_deletion(classifier, texts, 3)
    assert by_top > max(0.05, 2 * by_chance)


def test_plain_peft_computes_what_newsdesk_predicts(workplace):
    run = workplace.folder / "runs" / "wire"
    text = "Oil prices rose after OPEC ministers agreed to cut crude output, traders said."
    classifier = newsdesk.load(run, engine="torch", device="cpu")
    (prediction,) = classifier.predict([text])
    plain = plain_peft_probabilities(run, classifier.label_names, text, classifier.temperature)
    assert plain[prediction.label] == pytest.approx(prediction.probability, abs=1e-4)


def plain_peft_probabilities(run, names, text, temperature):
    """What transformers + peft alone make of the run's adapter and tokenizer, by class."""
    import peft
    import torch
    import transformers

    from newsdesk.model.catalog import resolve_base

    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        resolve_base("all-MiniLM-L6-v2").path, num_labels=len(names)
    )
    model = peft.PeftModel.from_pretrained(base, run / "adapter").eval()
    tokens = transformers.AutoTokenizer.from_pretrained(run / "tokenizer")(text, return_tensors="pt")
    with torch.inference_mode():
        probabilities = (model(**tokens).logits / temperature).softmax(-1)[0]
    return dict(zip(names, probabilities.tolist(), strict=True))
