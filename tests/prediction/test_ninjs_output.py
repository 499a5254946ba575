"""ninjs items come out as they went in, with their classes among their subjects: one, an array, or lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

pytest.importorskip("onnx")

from newsdesk.data.labelled import labels_with_faults
from newsdesk.data.ninjs import with_subjects
from newsdesk.data.stream import read_table
from newsdesk.errors import UserError
from newsdesk.prediction import bulk
from newsdesk.prediction.bulk import WindowWritten, predict_file
from newsdesk.prediction.classifier import Classifier
from newsdesk.prediction.open_model import open_model
from newsdesk.prediction.output_table import check_destination
from tiny_exports import build_exported

SHARED = Path(__file__).parents[3] / "shared" / "news_formats"
IPTC = "http://cv.iptc.org/newscodes/mediatopic/"
TEXTS = ("goal coach", "bank profit", "zzzz", "orbit", "goal")


def item(number: int, text: str) -> str:
    """The JSON of an item, written as no json.dumps would."""
    return f"""{{ "uri":"urn:x:{number}", "versionCreated" : "2026", "size": 1.50,
  "headlines": [ {{"role": "main", "value": "{text}"}} ],
  "subjects": [
    {{"name": "kept \\u00e9"}}
  ],
  "last": [1e2, null]}}"""


ITEMS = [item(number, text) for number, text in enumerate(TEXTS)]
SHAPES = {
    "one.json": ITEMS[0],
    "array.json": "[" + ",\n".join(ITEMS) + "]",
    "lines.jsonl": "".join(" ".join(each.split("\n")) + "\n" for each in ITEMS),
    "spread.json": "\n".join(ITEMS),
    "lines.jsonl.gz": "".join(" ".join(each.split("\n")) + "\n" for each in ITEMS),
}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return open_model(build_exported(tmp_path_factory.mktemp("built") / "exported"))


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "ROWS_PER_WINDOW", 2)


def written(path: Path, content: str) -> Path:
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


def content_of(path: Path) -> str:
    return (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()


def items_of(path: Path) -> list[dict]:
    text = content_of(path)
    if path.name.startswith(("one", "array")):
        found = json.loads(text)
        return found if isinstance(found, list) else [found]
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        found.append(value)
        at += len(text[at:]) - len(text[at:].lstrip())
    return found


@pytest.mark.parametrize("name", SHAPES)
def test_items_keep_shape_order_and_every_byte_beside_the_added_subjects(predictor, tmp_path, name):
    source, output = written(tmp_path / name, SHAPES[name]), tmp_path / f"out-{name}"
    predict_file(predictor, source, output, format="ninjs")
    output = output.rename(tmp_path / name.replace(".", "-out.", 1))
    before, after = items_of(source), items_of(output)
    labels = ["Sports", "Business", None, "Science", "Sports"]
    for old, new, label in zip(before, after, labels, strict=False):
        *kept, added = new["subjects"] if label else [*new["subjects"], None]
        assert list(new) == list(old)
        assert kept == old["subjects"]
        assert new | {"subjects": kept} == old
        assert label is None or (added["name"], added["creator"]) == (label, "newsdesk")
        assert label is None or 50 <= added["confidence"] <= 100
    assert len(before) == len(after) == (1 if name.startswith("one") else 5)
    unanswered = " ".join(ITEMS[2].split("\n")) if "lines" in name else ITEMS[2]
    assert name.startswith("one") or unanswered in content_of(output)
    assert '"size": 1.50' in content_of(output)
    assert "kept \\u00e9" in content_of(output)


@pytest.mark.parametrize("name", ["array.json", "lines.jsonl", "lines.jsonl.gz"])
@pytest.mark.parametrize("windows", [1, 2])
def test_ninjs_is_resumed_byte_for_byte(predictor, tmp_path, name, windows):
    source, output = written(tmp_path / name, SHAPES[name]), tmp_path / f"out-{name}"
    seen: list[object] = []

    def stop(event: object) -> None:
        seen.extend([event] if isinstance(event, WindowWritten) else [])
        if len(seen) == windows:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_file(predictor, source, output, format="ninjs", observe=stop)
    events: list[object] = []
    predict_file(predictor, source, output, format="ninjs", observe=events.append)
    assert events[0].rows_before == 2 * windows  # type: ignore[attr-defined]
    predict_file(predictor, source, tmp_path / f"whole-{name}", format="ninjs")
    assert output.read_bytes() == (tmp_path / f"whole-{name}").read_bytes()
    assert check_destination(output, format="ninjs") == "ninjs"  # it may be written again


def test_an_array_whose_first_items_are_refused_is_still_an_array(predictor, tmp_path):
    refused = ITEMS[4].replace("[\n    {", "{").replace("}\n  ]", "}", 1)
    content = f"[{refused}, {refused}, {ITEMS[0]}, {ITEMS[1]}, {ITEMS[3]}]"
    source, output = written(tmp_path / "array.json", content), tmp_path / "array-out.json"
    predict_file(predictor, source, output, format="ninjs")
    assert [each["uri"] for each in items_of(output)] == ["urn:x:0", "urn:x:1", "urn:x:3"]
    rejects = (tmp_path / "array-out.json.rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in rejects] == ["subjects cannot be added"] * 2


def added(source: str, *labels: tuple[str, float]) -> str:
    return with_subjects(json.loads(source), source, labels)


@pytest.mark.parametrize(
    ("source", "key", "topic", "name", "other"),
    [
        (
            '{"uri":"u","headline":"h"}',
            "subject",
            {"scheme": IPTC, "code": "15000000", "creator": "newsdesk", "confidence": 91},
            {"name": "Sci/Tech", "creator": "newsdesk", "confidence": 91},
            {"code": "N2:US", "creator": "newsdesk", "confidence": 91},
        ),
        (
            '{"uri":"u","body_text":"h","$standard":{"name":"ninjs","version":"1.4"}}',
            "subject",
            {"scheme": IPTC, "code": "15000000"},
            {"name": "Sci/Tech"},
            {"code": "N2:US"},
        ),
        (
            '{"uri":"u","standard":{"name":"ninjs","version":"2.0"}}',
            "subjects",
            {"uri": f"{IPTC}15000000", "literal": "medtop:15000000"},
            {"name": "Sci/Tech"},
            {"literal": "N2:US"},
        ),
        (
            '{"uri":"u","subjects":[],"versioncreated":"x"}',
            "subjects",
            {"uri": f"{IPTC}15000000", "literal": "medtop:15000000", "creator": "newsdesk", "confidence": 91},
            {"name": "Sci/Tech", "creator": "newsdesk", "confidence": 91},
            {"literal": "N2:US", "creator": "newsdesk", "confidence": 91},
        ),
    ],
)
def test_a_class_is_a_subject_in_the_words_of_the_items_version(source, key, topic, name, other):
    for label, wanted in (("medtop:15000000", topic), ("Sci/Tech", name), ("N2:US", other)):
        found = added(source, (label, 0.9136))
        assert json.loads(found)[key] == [wanted]


@pytest.mark.parametrize(
    "subjects", ["absent", "[]", "[ ]", "null", '[{"name": "]}"}]', '[\n {"name": "a"}\n]']
)
@pytest.mark.parametrize("space", ["", " ", "\n\t"])
def test_a_subject_finds_its_place_however_the_item_is_written(subjects, space):
    member = "" if subjects == "absent" else f',{space}"subjects"{space}:{space}{subjects}'
    source = f'{{{space}"uri":{space}"a\\"}}"{member},{space}"bodies":[{{"subjects": [1]}}]{space}}}'
    before, after = json.loads(source), json.loads(added(source, ("A", 1.0), ("B", 0.1)))
    assert [each.get("name") for each in after["subjects"]][-2:] == ["A", "B"]
    assert after["subjects"][:-2] == (before.get("subjects") or [])
    assert after | {"subjects": before.get("subjects")} == {"subjects": None} | before


def test_what_is_no_item_or_has_no_list_is_refused():
    with pytest.raises(ValueError, match="subjects is no list, but a value of type dict"):
        added('{"uri":"u","subjects":{},"bodies":[]}', ("A", 1.0))
    with pytest.raises(ValueError, match="no ninjs item"):
        with_subjects({"a": "x"}, None, [("A", 1.0)])


def test_ninjs_needs_ninjs_and_a_number_of_classes(predictor, tmp_path):
    source = written(tmp_path / "a.csv", "text\ngoal\n")
    with pytest.raises(UserError, match="adds subjects to ninjs items, and the input has none"):
        predict_file(predictor, source, tmp_path / "a.json", format="ninjs")
    source = written(tmp_path / "a.json", SHAPES["array.json"])
    with pytest.raises(UserError, match="no place for the probabilities"):
        predict_file(predictor, source, tmp_path / "b.json", format="ninjs", all_probabilities=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json"]
    predict_file(predictor, source, tmp_path / "b.json", format="ninjs", top_k=2)
    assert len(json.loads((tmp_path / "b.json").read_text())[0]["subjects"]) == 3


def test_written_subjects_are_read_again_as_labels(predictor, tmp_path):
    lines = "".join(
        f'{{"uri":"u","pubstatus":"usable","headlines":[{{"value":"{text}"}}]}}\n' for text in TEXTS
    )
    source, output = written(tmp_path / "a.jsonl", lines), tmp_path / "out.jsonl"
    predict_file(predictor, source, output, format="ninjs")
    labels, _ = labels_with_faults(read_table(output), "subject")
    assert labels == ("Sports", "Business", "", "Science", "Sports")


@pytest.mark.skipif(not SHARED.is_dir(), reason="IPTC's examples are not at ../shared/news_formats")
def test_examples_of_iptc_come_out_equal_but_for_their_subjects(predictor, tmp_path):
    for path in sorted(SHARED.rglob("*.json")):
        if path.name == "1.4_businesswire-newsml-20130731006140.json":  # names a key twice
            continue
        output = tmp_path / path.name
        predict_file(predictor, path, output, format="ninjs", answer_empty=True)
        before, after = json.loads(path.read_text()), json.loads(output.read_text())
        key = "subject" if path.name.startswith("1") else "subjects"
        added = after[key].pop()
        assert added["name"] in ("Sports", "Business", "Science")
        assert added["creator"] == "newsdesk"
        assert after | {key: after[key] or None} == {key: None} | before
