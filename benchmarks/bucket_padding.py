"""What padding batches of 16, grouped by length, to one of a few widths costs in computed tokens.

    python benchmarks/bucket_padding.py ../shared/ag_news/train.csv.gz

Takes any file that newsdesk reads; lengths are those of all-MiniLM-L6-v2's tokenizer, cut at 256 tokens.
"""

from __future__ import annotations

import sys

import numpy as np

from newsdesk.config import DataSection
from newsdesk.data.load import load_training_data
from newsdesk.model.catalog import resolve_base
from newsdesk.model.tokenizer import TextTokenizer
from newsdesk.training.batches import Batcher
from newsdesk.training.train_step import bucket_length


def main() -> None:
    rows = load_training_data(DataSection(train=sys.argv[1], validation_share=0.0), seed=42).train
    tokenizer = TextTokenizer.from_folder(resolve_base("all-MiniLM-L6-v2").path, 256)
    lengths = np.array(tokenizer.lengths(rows.texts))
    batches = Batcher(lengths, 16, seed=42).epoch(0)
    print(f"{len(lengths):,} rows, {lengths.mean():.1f} tokens on average")
    for name, width in {
        "the longest row": lambda longest: longest,
        "multiples of 8": lambda longest: -(-longest // 8) * 8,
        "the buckets": lambda longest: bucket_length(longest, 512),
        "multiples of 16": lambda longest: -(-longest // 16) * 16,
    }.items():
        widths = [width(int(lengths[batch].max())) for batch in batches]
        computed = sum(width * len(batch) for width, batch in zip(widths, batches, strict=True))
        share = 1 - int(lengths.sum()) / computed
        print(f"{name:16} {len(set(widths)):4} widths {share:7.1%} padding")


if __name__ == "__main__":
    main()
