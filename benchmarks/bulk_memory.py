"""Peak memory of classifying a small and a large file: what grows with the number of rows?

    python benchmarks/bulk_memory.py [--exported PATH] [--rows 10000 1000000] [--format csv]

Each file is classified by a process of its own; ru_maxrss is its peak. Without --exported, a graph of a few
kilobytes stands in for a model, so that the large file takes minutes and not hours.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_ROWS_PER_GROUP = 50_000
ROOT = Path(__file__).resolve().parents[1]
WORDS = ("oil", "prices", "rose", "after", "ministers", "agreed", "to", "cut", "output", "market", "orbit")


def write_rows(path: Path, rows: int) -> None:
    """Rows of news-like length in the format that the name tells."""
    generator = random.Random(rows)
    texts = (" ".join(generator.choices(WORDS, k=generator.randint(20, 45))) for _ in range(rows))
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        schema = pyarrow.schema([("number", pyarrow.int64()), ("text", pyarrow.string())])
        # In pieces: a process inherits the peak of the one that starts it.
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for start in range(0, rows, _ROWS_PER_GROUP):
                numbers = range(start, min(rows, start + _ROWS_PER_GROUP))
                piece = [pyarrow.array(numbers), pyarrow.array([next(texts) for _ in numbers])]
                writer.write_table(pyarrow.Table.from_arrays(piece, schema=schema))
        return
    with path.open("w", encoding="utf-8") as stream:
        if path.suffix == ".csv":
            stream.write("number,text\n")
            stream.writelines(f"{number},{text}\n" for number, text in enumerate(texts))
        else:
            stream.writelines(
                json.dumps({"number": number, "text": text}) + "\n" for number, text in enumerate(texts)
            )


def measure(exported: Path, source: Path, output: Path) -> tuple[float, float]:
    """Peak memory in MB and seconds of the command that classifies ``source``."""
    command = ["predict", str(exported), "--input", str(source), "--output", str(output)]
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "newsdesk", *command], stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"newsdesk {' '.join(command)} failed")
    return usage.ru_maxrss / 1000, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exported", type=Path, help="a run or export; default: a stand-in")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--format", choices=("csv", "jsonl", "parquet"), default="csv")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exported = asked.exported
        if exported is None:
            sys.path.insert(0, str(ROOT / "tests"))
            from tiny_exports import build_exported

            exported = build_exported(folder / "exported model", max_length=64)
        peaks = []
        print(f"{'rows':>10}  {'peak MB':>8}  {'rows/s':>8}")
        for rows in asked.rows:
            source = folder / f"in.{asked.format}"
            write_rows(source, rows)
            peak, seconds = measure(exported, source, folder / f"out.{asked.format}")
            peaks.append(peak)
            print(f"{rows:>10,}  {peak:>8.1f}  {rows / seconds:>8,.0f}", flush=True)
        print(f"the largest takes {max(peaks) - peaks[0]:.1f} MB more than the first")


if __name__ == "__main__":
    main()
