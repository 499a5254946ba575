"""What was embedded once is read back; what is missing, damaged or of another base is computed."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save

from newsdesk.evaluation.audit import embeddings
from newsdesk.evaluation.audit.embeddings import EMBEDDINGS, embed_stored


class Counting:
    """An embedder whose vectors tell the text's length; it fails after ``dies_after`` calls."""

    dimensions = 2

    def __init__(self, dies_after=99):
        self.embedded: list[str] = []
        self.calls, self.dies_after = 0, dies_after

    def embed(self, texts):
        if self.calls == self.dies_after:
            raise KeyboardInterrupt
        self.calls += 1
        self.embedded += texts
        return np.array([[len(text), 1] for text in texts], dtype=np.float32)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(embeddings, "PIECE_ROWS", 4)


TEXTS = ["x" * length for length in range(10)]


def stored(folder, embedder, texts=TEXTS, identity="base"):
    done: list[int] = []
    vectors = embed_stored(
        texts, folder, lambda: embedder.embed, identity=identity, progress=lambda rows, *_: done.append(rows)
    )
    assert (done[0], done[-1]) == (0, len(texts))
    assert vectors[:, 0].tolist() == [len(text) for text in texts]
    return embedder


def test_a_second_time_nothing_is_computed(tmp_path):
    assert stored(tmp_path, Counting()).calls == 3
    assert stored(tmp_path, Counting()).calls == 0


def test_a_kill_loses_one_piece(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        embed_stored(TEXTS, tmp_path, lambda: Counting(dies_after=2).embed, identity="base")
    assert len(list(tmp_path.iterdir())) == 2
    assert stored(tmp_path, Counting()).embedded == TEXTS[8:]


def test_a_changed_text_costs_its_piece_and_the_old_one_goes(tmp_path):
    stored(tmp_path, Counting())
    changed = [*TEXTS[:5], "another", *TEXTS[6:]]
    assert stored(tmp_path, Counting(), changed).embedded == changed[4:8]
    assert len(list(tmp_path.iterdir())) == 3


def test_another_base_shares_nothing(tmp_path):
    stored(tmp_path, Counting())
    assert stored(tmp_path, Counting(), identity="another").calls == 3


def test_a_damaged_piece_is_computed_anew(tmp_path):
    stored(tmp_path, Counting())
    first, second, _ = sorted(tmp_path.iterdir())
    first.write_bytes(first.read_bytes()[:-5])
    second.write_bytes(b"")
    assert stored(tmp_path, Counting()).calls == 2


@pytest.mark.parametrize("shape", [(4,), (4, 0), (4, 3), (3, 2)])
def test_a_piece_of_another_shape_is_computed_anew(tmp_path, shape):
    stored(tmp_path, Counting())
    for piece in tmp_path.iterdir():
        piece.write_bytes(save({EMBEDDINGS: np.zeros(shape, np.float32)}))
    found = embed_stored(TEXTS, tmp_path, lambda: Counting().embed, identity="base", columns=2)
    assert found.shape == (len(TEXTS), 2)
