"""A checkpoint is whole or it is not taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from newsdesk.errors import UserError  # noqa: E402
from newsdesk.training.checkpoints import (  # noqa: E402
    Checkpoints,
    Counters,
    Snapshot,
    decode,
)

IDENTITY = {"training rows": "abc", "base model": "def"}


def snapshot(step: int) -> Snapshot:
    tensors = {
        "trained/a": torch.arange(6.0).view(2, 3) + step,
        "optimiser/0/step": torch.tensor(float(step)),
    }
    return Snapshot(tensors, Counters(step, best_score=0.1 + 0.2, recent_losses=(1.5, 2.5)))


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "run" / "checkpoints", IDENTITY)


def test_what_was_saved_is_found_exactly(checkpoints):
    checkpoints.save(snapshot(7), 1234)
    checkpoint = decode(checkpoints.find()[0])
    assert (checkpoint.log_bytes, checkpoint.identity) == (1234, IDENTITY)
    assert checkpoint.snapshot.counters == snapshot(7).counters
    assert checkpoint.snapshot.tensors.keys() == snapshot(7).tensors.keys()
    assert all(torch.equal(checkpoint.snapshot.tensors[k], v) for k, v in snapshot(7).tensors.items())


def test_the_two_newest_are_kept(checkpoints):
    paths = [checkpoints.save(snapshot(step), 0) for step in (9, 10, 100)]
    assert [path.is_file() for path in paths] == [False, True, True]
    assert decode(checkpoints.find()[0]).snapshot.counters.step == 100


def test_after_a_damaged_one_was_passed_over_the_whole_one_is_the_one_kept(checkpoints, tmp_path):
    checkpoints.save(snapshot(1), 0)
    whole, damaged = checkpoints.save(snapshot(2), 0), checkpoints.save(snapshot(3), 0)
    damaged.write_bytes(b"")
    later = Checkpoints(whole.parent, IDENTITY)
    assert later.find()[1] == (damaged.name,)
    newest = later.save(snapshot(4), 0)
    assert set(whole.parent.iterdir()) == {whole, newest}


def test_where_there_is_none_nothing_is_found(checkpoints):
    assert checkpoints.find() == (b"", ())
    checkpoints.clear()


def test_a_half_written_file_under_a_temporary_name_is_no_checkpoint_and_goes_with_the_next(checkpoints):
    path = checkpoints.save(snapshot(1), 0)
    (path.parent / f".{path.name}.xyz.part").write_bytes(path.read_bytes()[:50])
    assert checkpoints.find()[1] == ()
    newest = checkpoints.save(snapshot(2), 0)
    assert set(path.parent.iterdir()) == {path, newest}
    checkpoints.clear()
    assert not path.parent.exists()


def test_other_ground_is_named(checkpoints, tmp_path):
    checkpoints.save(snapshot(1), 0)
    other = Checkpoints(tmp_path / "run" / "checkpoints", IDENTITY | {"base model": "xyz"})
    with pytest.raises(UserError, match="what it was trained on has changed") as raised:
        other.require_same_ground(decode(other.find()[0]))
    assert raised.value.found == "the base model had another sha256 before"
