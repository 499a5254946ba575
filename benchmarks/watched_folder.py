"""What a watched folder costs: while nothing comes, for each file that comes, and after months.

    python benchmarks/watched_folder.py [--exported PATH] [--files 10000] [--seconds 60]

So many small ninjs items are classified and stay in the folder; then it is watched while nothing comes, while
a few come one by one, and begun anew. Without --exported, a graph of a few kilobytes stands in for a model.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from newsdesk.prediction.open_model import open_model
from newsdesk.prediction.watched_folder import Watching, watch_folder

ROOT = Path(__file__).resolve().parents[1]
COMING = 20


def drop(folder: Path, name: str) -> Path:
    """A ninjs item of usual length, renamed into place."""
    text = "Oil prices rose on Monday after ministers agreed to cut output, traders said. " * 20
    item = {"uri": f"urn:x:{name}", "headlines": [{"value": name}], "bodies": [{"value": text}]}
    path = folder / f"{name}.json"
    path.with_suffix(".part").write_text(json.dumps(item))
    return path.with_suffix(".part").rename(path)


def memory() -> float:
    """Megabytes of this process."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")
    )
    return int(line.split()[1]) / 1000


def visits(folder: Path, output: Path, seconds: float) -> None:
    """Let nothing come, then a few files; print what that took, and end the watching."""
    time.sleep(seconds / 4)
    began, used = time.monotonic(), time.process_time()
    time.sleep(seconds)
    share = (time.process_time() - used) / (time.monotonic() - began)
    waits = []
    for number in range(COMING):
        time.sleep(0.37)
        began = time.monotonic()
        name = drop(folder, f"late-{number}").name
        while not (output / name).exists():
            time.sleep(0.005)
        waits.append(time.monotonic() - began)
    print(f"nothing comes: {share:.2%} of a core")
    print(f"from drop to output: {statistics.median(waits):.2f} s in the median, {max(waits):.2f} s at most")
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--exported", type=Path)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, output = Path(scratch, "in"), Path(scratch, "out")
        folder.mkdir()
        if asked.exported is None:
            sys.path.insert(0, str(ROOT / "tests"))
            from tiny_exports import build_exported

            asked.exported = build_exported(Path(scratch, "exported"))
        model = open_model(asked.exported)
        for number in range(asked.files):
            drop(folder, str(number))
        before, began, used = memory(), time.monotonic(), time.process_time()
        watch_folder(model, folder, output, once=True, settle=0.0, format="ninjs")
        took, used = time.monotonic() - began, time.process_time() - used
        each = f"{asked.files / took:.0f} a second, {1000 * used / asked.files:.1f} ms of a core each"
        print(f"{asked.files:,} files: {each}")
        print(f"memory: {memory() - before:.0f} MB more")
        began = time.process_time()

        def started(event: object) -> None:
            if isinstance(event, Watching):
                print(f"begun anew: {time.process_time() - began:.2f} s of a core")

        threading.Thread(target=visits, args=(folder, output, asked.seconds)).start()
        watch_folder(model, folder, output, format="ninjs", observe=started)


if __name__ == "__main__":
    main()
