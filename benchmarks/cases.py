"""Files that went wrong for somebody: each through the real command line and the real MiniLM.

    python benchmarks/cases.py [--cases ../shared/cases] [--only c15] [--work DIR]

A step is a command, the exit code that it should have, and an expression that its output should match.
Trainings whose accuracy does not matter make one epoch; c09 and c10 train as a user would, by the recipe
``quick`` alone. Exits with 1 where a step does something else.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

NEWSDESK = [sys.executable, "-m", "newsdesk"]
BRIEFLY = "--recipe quick --epochs 1"
AT_LENGTH = "--recipe quick --epochs 20"


@dataclass(frozen=True)
class Step:
    """One command: ``{cases}`` stands for the folder of case files, ``{work}`` for a folder of our own."""

    command: str
    code: int
    shows: str


def trained(case: str, *flags: str, how: str = BRIEFLY) -> Step:
    data = "{cases}/" + case
    return Step(f"train {how} --data {data} --out {{work}}/{case} {' '.join(flags)}", 0, r"run saved to .*")


def evaluated(case: str, test: str, shows: str, *flags: str, code: int = 0) -> Step:
    return Step(f"evaluate {{work}}/{case} --data {{cases}}/{test} {' '.join(flags)}", code, shows)


ACCURACY = r"accuracy +[\d.]+ %"
STEPS: dict[str, tuple[Step, ...]] = {
    "c01 semicolons, single quotes, no header": (
        Step("data check {cases}/c01_semicolon_single_quote.csv", 1, r"60 rows.*"),
        trained("c01_semicolon_single_quote.csv"),
        evaluated(
            "c01_semicolon_single_quote.csv", "c01_semicolon_single_quote.csv", r"note: .* not new to the run"
        ),
    ),
    "c02 delimiters and encodings": (
        Step("data check {cases}/c02_comma_latin1.csv", 0, r"read as: .*cp1252.*"),
        Step("data check {cases}/c02_semi_latin1.csv", 0, r"read as: .*cp1252.*';'.*"),
        trained("c02_pipe.csv"),
        Step(
            "predict {work}/c02_pipe.csv --input {cases}/c02_semi_latin1.csv --output {work}/c02.csv",
            0,
            r"reading .*cp1252.*",
        ),
        Step(
            "predict {work}/c02_pipe.csv --input {cases}/c02_pipe.csv --output {work}/x.csv --delimiter ;",
            1,
            r"error: .*",
        ),
    ),
    "c03 json": (
        Step("data check {cases}/c03_array.json --text headline --label category", 1, r"\d+ rows.*"),
        Step("data check {cases}/c03_huffpost.json --text headline --label category", 1, r"\d+ rows.*"),
    ),
    "c04 a header with spaces": (
        trained("c04_turkish.csv", "--text 'Haber Metni' --label Kategori"),
        evaluated("c04_turkish.csv", "c04_turkish.csv", ACCURACY),
    ),
    "c05 Chinese": (
        Step("data check {cases}/c05_thuc_names.tsv --base all-MiniLM-L6-v2", 0, r"unknown tokens: .*"),
        trained("c05_thuc_names.tsv"),
        evaluated("c05_thuc_names.tsv", "c05_thuc_names_test.tsv", r"baseline +[\d.]+ %", "--baseline"),
    ),
    "c07 several labels in a cell": (
        Step("data check {cases}/c07_comma.csv --text Post --label 'Labels Set'", 1, r"problems found"),
        Step("data check {cases}/c07_labels_list.jsonl", 1, r"problems found"),
        Step(f"train {BRIEFLY} --data {{cases}}/c07_labels_list.jsonl --out {{work}}/c07", 1, r"error: .*"),
    ),
    "c09 99 rows to one": (
        trained("c09_imbalance.csv", how="--recipe quick"),
        evaluated("c09_imbalance.csv", "c09_test.csv", r"Sport +.*"),
    ),
    "c10 eight rows a class": (
        trained("c10_fewshot.csv", how="--recipe quick"),
        evaluated("c10_fewshot.csv", "c10_test.csv", ACCURACY),
    ),
    "c08 and c12 long texts": (
        Step(
            "predict {work}/c10_fewshot.csv --input {cases}/c08_long_tail.txt --output {work}/c08.csv",
            0,
            r".*cut.*",
        ),
        Step(
            "export {work}/c10_fewshot.csv --to merged --data {cases}/c10_test.csv", 0, r"export saved to .*"
        ),
        Step(
            "predict {work}/c10_fewshot.csv --input {cases}/c12_mid.txt --output {work}/c12.csv",
            0,
            r".*cut.*",
        ),
        Step("export {work}/c10_fewshot.csv --to onnx-int8", 1, r"(error|fix): .*--data.*|error: .*"),
    ),
    "c15 names and numbers": (
        trained("c15_train_names.csv", how=AT_LENGTH),
        evaluated("c15_train_names.csv", "c15_test_names.csv", ACCURACY),
        evaluated("c15_train_names.csv", "c15_test_only_1_2.csv", r"error: .*", code=1),
        evaluated(
            "c15_train_names.csv", "c15_test_one_unseen_id0.csv", r".*0 = .*|.*0: .*|.*positions.*|.*0 -> .*"
        ),
        trained("c15_train_ids_1to3.csv", how=AT_LENGTH),
        evaluated("c15_train_ids_1to3.csv", "c15_test_only_1_2.csv", ACCURACY),
        evaluated("c15_train_ids_1to3.csv", "c15_test_one_unseen_id0.csv", r"error: .*", code=1),
        evaluated("c15_train_ids_1to3.csv", "c15_test_one_unseen_id0.csv", ACCURACY, "--unknown-labels drop"),
        evaluated(
            "c15_train_ids_1to3.csv", "c15_test_one_unseen_id0.csv", ACCURACY, "--unknown-labels count-wrong"
        ),
        evaluated("c15_train_ids_1to3.csv", "c15_test_names.csv", r"error: .*", code=1),
    ),
    "c17 1 and 1.0, spellings": (
        trained("c17_float_train.csv", how=AT_LENGTH),
        evaluated("c17_float_train.csv", "c17_int_test.csv", ACCURACY),
        Step("data check {cases}/c17_label_variants.csv", 1, r"problems found"),
    ),
    "c21 a header repeated": (Step("data check {cases}/c21_dup_header.csv", 1, r"problems found"),),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, default=Path("../shared/cases"))
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--work", type=Path, help="keep the runs here")
    arguments = parser.parse_args()
    if not arguments.cases.is_dir():
        parser.error(f"there is no folder {arguments.cases}")
    work = arguments.work or Path(tempfile.mkdtemp(prefix="newsdesk-cases-"))
    failed = 0
    for case, steps in STEPS.items():
        if arguments.only in case:
            print(f"\n{case}")
            failed += sum(not taken(step, arguments.cases, work) for step in steps)
    print(f"\n{failed} steps did something else than expected")
    raise SystemExit(failed > 0)


def taken(step: Step, cases: Path, work: Path) -> bool:
    """Take a step and print a line of what came of it; whether it was as it should be."""
    words = [
        word.format(cases=cases, work=work).strip("'") for word in re.findall(r"'[^']*'|\S+", step.command)
    ]
    began = time.perf_counter()
    process = subprocess.run([*NEWSDESK, *words], capture_output=True, text=True, check=False)
    output = process.stdout + process.stderr
    match = re.search(step.shows, output)
    as_expected = process.returncode == step.code and match is not None and "Traceback" not in output
    shown = match[0].strip() if match else (output.strip().splitlines() or [""])[-1]
    mark = "as expected" if as_expected else f"NOT AS EXPECTED (exit code {step.code}, {step.shows!r})"
    print(f"  newsdesk {step.command}")
    print(
        f"    exit code {process.returncode}, {time.perf_counter() - began:.0f} s, {mark}: {shown[:200]}",
        flush=True,
    )
    return as_expected


if __name__ == "__main__":
    main()
