"""How soon the server's drift detector finds a shift of ten points, and how often it is wrong: by simulation.

    python benchmarks/drift.py [--rows 5000,1500,500] [--streams 200] [--texts 2000000]

Four labels of a quarter each. Calibration rows are drawn anew for every stream, which has 320 texts as before
and then texts of the shifted mix: of one label for another, or of one for all others.
"""

from __future__ import annotations

import argparse

import numpy as np

from newsdesk.serving.drift import SHIFT, DriftDetector

GROUP, BEFORE, MOST = 16, 320, 512
EVEN = np.full(4, 0.25)
SHIFTS = {
    "one for another": EVEN + np.array([SHIFT, -SHIFT, 0, 0]),
    "one for all others": EVEN + np.array([SHIFT, -SHIFT / 3, -SHIFT / 3, -SHIFT / 3]),
}


def delay(generator: np.random.Generator, rows: int, mix: np.ndarray) -> float:
    """How many texts of the new mix it takes until the alarm; infinite beyond 500."""
    detector = DriftDetector(generator.multinomial(rows, EVEN))
    detector.see(generator.choice(4, BEFORE, p=EVEN).tolist())
    cells = generator.choice(4, MOST, p=mix).tolist()
    for start in range(0, MOST, GROUP):
        detector.see(cells[start : start + GROUP])
        if detector.is_alarmed:
            return start + GROUP if start + GROUP <= 500 else np.inf
    return np.inf


def false_alarms(generator: np.random.Generator, rows: int, texts: int) -> float:
    """Alarms in 100,000 texts that did not change; each 100,000 have their own calibration rows."""
    alarms = 0
    for _ in range(texts // 100_000):
        detector = DriftDetector(generator.multinomial(rows, EVEN))
        alarms += sum(detector.see(generator.choice(4, 1000, p=EVEN).tolist()) for _ in range(100))
    return 100_000 * alarms / texts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="5000,1500,500")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--texts", type=int, default=2_000_000)
    asked = parser.parse_args()
    for rows in map(int, asked.rows.split(",")):
        generator = np.random.default_rng(rows)
        print(f"{rows} rows: {false_alarms(generator, rows, asked.texts):.2f} false alarms in 100,000 texts")
        for name, mix in SHIFTS.items():
            delays = np.array([delay(generator, rows, mix) for _ in range(asked.streams)])
            found = f"{np.isfinite(delays).mean():.1%} within 500 texts, median {np.median(delays):.0f}"
            print(f"  {name:20} {found}", flush=True)


if __name__ == "__main__":
    main()
