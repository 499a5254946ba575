"""A recipe becomes a run folder that is whole, honest about itself, and usable even when interrupted."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from newsdesk import __version__  # noqa: E402
from newsdesk.config import load_recipe  # noqa: E402
from newsdesk.data.examples import Examples  # noqa: E402
from newsdesk.errors import UserError  # noqa: E402
from newsdesk.files import sha256_of  # noqa: E402
from newsdesk.model.architectures import require_length  # noqa: E402
from newsdesk.model.catalog import ResolvedBase  # noqa: E402
from newsdesk.model.classifier import load_classifier  # noqa: E402
from newsdesk.model.network import Network, predict_logits  # noqa: E402
from newsdesk.model.tokenizer import TextTokenizer  # noqa: E402
from newsdesk.reports.model_card import refresh_card  # noqa: E402
from newsdesk.runs.calibration import read_held_out_rows  # noqa: E402
from newsdesk.runs.folder import RunFolder, open_run  # noqa: E402
from newsdesk.runs.log import Event, Finished, Remark, Step, Validation, to_record  # noqa: E402
from newsdesk.runs.manifest import (  # noqa: E402
    BaseFacts,
    Manifest,
    TrainingFacts,
)
from newsdesk.runs.off_topic import OffTopicScore  # noqa: E402
from newsdesk.training.run import (  # noqa: E402
    run_training,
    seed_everything,
)

ARABIC = Path(__file__).parents[1] / "languages" / "arabic.csv"
FILES = {
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "calibration.json",
    "calibration.safetensors",
    "known_texts.safetensors",
    "labels.json",
    "log.jsonl",
    "manifest.json",
    "off_topic.safetensors",
    "recipe.toml",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
}
ADAPTER = Path("adapter") / "adapter_model.safetensors"


def files_of(folder: Path) -> set[str]:
    """All files of a run but its lock and its checkpoints, which a training has while it lasts."""
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in files if not name.startswith((".lock", "checkpoints/"))}


def test_a_run_folder_holds_exactly_its_files_and_the_manifest_knows_them(tiny_recipe, tmp_path):
    resolved = tiny_recipe("data.template='{text}!'", "training.seed=7")
    events: list[Event] = []
    run = run_training(resolved, tmp_path / "deep" / "run", observe=events.append)
    assert files_of(run.path) == FILES
    assert open_run(run.path).manifest.files == {
        name: sha256_of(run.path / name) for name in FILES - {"manifest.json"}
    }
    assert load_recipe(str(run.recipe)).recipe == resolved.recipe
    assert run.labels.names == ("Business", "Science", "Sports")
    assert (run.labels.layout.template, run.labels.max_length) == ("{text}!", 32)
    logged = [json.loads(line) for line in run.log.read_text().splitlines()]
    assert all(record.pop("seconds") >= 0 for record in logged)
    assert logged == [to_record(event) for event in events]


def test_the_manifest_says_what_the_run_came_from(tiny_recipe, tiny_base, topical_csv, tmp_path):
    manifest = run_training(tiny_recipe("training.seed=7"), tmp_path / "run").manifest
    base = tiny_base()
    assert (manifest.newsdesk, manifest.seed) == (__version__, 7)
    assert manifest.versions.keys() == {"python", "torch", "transformers", "peft", "tokenizers", "numpy"}
    assert manifest.versions["numpy"] == np.__version__
    assert manifest.base == BaseFacts(str(base), str(base), sha256_of(base / "model.safetensors"))
    train, validation = manifest.data.train, manifest.data.validation
    assert (train.source, train.rows) == (str(topical_csv), 192)
    assert (validation.source, validation.rows) == (f"split off {topical_csv}", 48)
    assert train.sha256 != validation.sha256
    share = manifest.training.padding_share
    (remark,) = manifest.training.remarks
    assert "few rows to measure by: with 48, an accuracy near 90 % is known to within 9 points" in remark
    facts = TrainingFacts("completed", 12, 1.0, 12, share, processes=1, remarks=(remark,))
    assert manifest.training == facts
    assert 0 <= manifest.training.padding_share < 0.5


def test_the_manifest_is_written_after_everything_else(tiny_recipe, tmp_path):
    out = tmp_path / "run"
    seen: list[set[str]] = []
    run_training(tiny_recipe(), out, observe=lambda _event: seen.append(files_of(out)))
    of_the_end = {"manifest.json", "known_texts.safetensors", "off_topic.safetensors", "calibration.json"}
    of_the_end.add("calibration.safetensors")
    assert seen[0] == FILES - of_the_end - {f"adapter/{name}" for name in _adapter_names()}
    assert seen[-1] == FILES - {"manifest.json"}


def test_every_best_state_is_on_disk_before_it_is_told(tiny_recipe, tmp_path):
    out = tmp_path / "run"
    seen: list[tuple[bool, bytes]] = []

    def observe(event: Event) -> None:
        if isinstance(event, Validation):
            seen.append((event.best, (out / ADAPTER).read_bytes()))

    run_training(
        tiny_recipe(
            "training.validate_every=1", "training.learning_rate=6e-2", "training.min_choosing_rows=1"
        ),
        out,
        observe=observe,
    )
    assert {best for best, _ in seen} == {True, False}
    for (_, before), (best, content) in itertools.pairwise(seen):
        assert (content != before) is best


def test_a_run_knows_its_own_texts_from_foreign_ones(tiny_recipe, topical_csv, tmp_path):
    from newsdesk.prediction.open_model import RunClassifier

    predictor = RunClassifier(run_training(tiny_recipe("training.epochs=3"), tmp_path / "run"), device="cpu")
    score = predictor.off_topic
    assert score is not None
    assert (len(score.reference), score.facts["held_out_rows"]) == (48, "48")
    kept = read_held_out_rows(predictor.path)
    np.testing.assert_array_equal(np.sort(kept.distances), score.reference)
    own = [line.partition(",")[2] for line in topical_csv.read_text().splitlines()[1:]]
    foreign = ["qwzx qwzx qwzx qwzx", "7 8 9 7 8 9 7 8"]
    distances = [predictor.outputs(predictor.token_ids(texts))[1] for texts in (own, foreign)]
    own_values, foreign_values = map(score.p_values, distances)
    assert (own_values <= 0.1).mean() < 0.25
    assert foreign_values.max() <= 0.05


def test_rows_that_chose_the_state_do_not_calibrate_it_in_the_run_or_in_its_export(tiny_recipe, tmp_path):
    from newsdesk import api
    from newsdesk.evaluation.rows import known_rows

    settings = ("training.epochs=3", "training.min_choosing_rows=20")
    run = run_training(tiny_recipe(*settings), tmp_path / "run")
    assert run.manifest.training.choosing_rows == 24
    data = known_rows(run, purpose="", otherwise="")
    assert (len(data.validation), len(data.calibrating)) == (48, 24)
    trained = read_held_out_rows(run.path)
    assert trained.sha256 == data.calibrating.fingerprint()
    assert trained.labels.tolist() == data.calibrating.labels.tolist()
    assert len(OffTopicScore.load(run.off_topic).reference) == 24
    api.calibrate(run.path)
    again = read_held_out_rows(run.path)
    assert again.sha256 == trained.sha256
    np.testing.assert_allclose(again.logits, trained.logits, atol=1e-4)
    exported = api.export(run.path, "onnx-fp32").path
    assert read_held_out_rows(exported).sha256 == trained.sha256


def test_a_run_split_as_version_0_1_did_still_knows_its_rows(tiny_recipe, tmp_path, monkeypatch):
    from newsdesk.evaluation.rows import known_rows
    from newsdesk.training import run as module

    load = module.load_training_data
    monkeypatch.setattr(
        module, "load_training_data", lambda *given, **named: load(*given, **named, proportional=True)
    )
    run = run_training(tiny_recipe("data.validation_share=0.02"), tmp_path / "run")
    monkeypatch.undo()
    assert run.manifest.data.validation.rows == 5
    data = known_rows(run, purpose="", otherwise="")
    assert (len(data.validation), len(data.calibrating)) == (5, 5)


def test_what_to_know_of_rows_and_steps_is_in_the_log_the_manifest_and_the_card(
    tiny_base, write_rows, tmp_path
):
    from newsdesk import api

    rows = [("Sports", f"goal coach {word}") for word in ("the", "a", "of", "in", "on", "and")]
    rows += [("Business", "market shares " * 30 + word) for word in ("said", "new", "after", "over", "for")]
    rows += [("Science", "orbit genome laser")] * 3 + [("Weather", "today with from")]
    data = write_rows(tmp_path / "rows.csv", rows)
    flags = {"data.train": str(data), "model.base": str(tiny_base()), "model.max_length": 32}
    flags |= {"training.min_steps": 4, "training.epochs": 1.0, "training.device": "cpu"}
    events: list[Event] = []
    run = api.train(out=tmp_path / "run", flags=flags, observe=events.append)
    told = [event.text for event in events if isinstance(event, Remark)]
    assert told == list(run.manifest.training.remarks)
    assert any("1 epoch would be 1 step; training takes 4" in text for text in told)
    assert any("no validation row for 2 of 4 classes: Science (3 rows), Weather (1 row)" in t for t in told)
    assert any("of 12 texts (" in text and "cut to 32 tokens" in text for text in told), told
    assert any("few rows to measure by" in text for text in told)
    logged = [json.loads(line) for line in run.log.read_text().splitlines()]
    assert [record["text"] for record in logged if record["event"] == "remark"] == told
    validation = next(event for event in events if isinstance(event, Validation))
    assert (validation.classes, validation.macro_f1_classes < 4) == (4, True)
    card = (run.path / "README.md").read_text()
    assert "no validation row for 2 of 4 classes" in card


def _adapter_names() -> tuple[str, str]:
    return "adapter_config.json", "adapter_model.safetensors"


def test_a_trained_run_classifies_rows_it_never_saw(tiny_recipe, tiny_base, tmp_path):
    validations: list[Validation] = []
    run = run_training(
        tiny_recipe("training.epochs=9", "data.validation_share=0.25"),
        tmp_path / "run",
        observe=lambda event: validations.append(event) if isinstance(event, Validation) else None,
    )
    assert max(validation.accuracy for validation in validations) > 0.95
    texts = ["market profit dollar the", "orbit genome laser said", "goal tennis referee of"]
    tokenizer = TextTokenizer.from_folder(run.tokenizer, run.labels.max_length)
    model = load_classifier(tiny_base(), run.adapter, run.labels.names)
    logits = predict_logits(Network(model, torch.device("cpu"), "float32"), tokenizer.encode(texts))
    assert [run.labels.names[label] for label in logits.argmax(1)] == ["Business", "Science", "Sports"]


def test_the_same_seed_gives_the_same_adapter_bytes_and_another_seed_others(tiny_recipe, tmp_path):
    digests = []
    for number, seed in enumerate((1, 1, 2)):
        torch.manual_seed(number)  # what happened before must not matter
        settings = (f"training.seed={seed}", "lora.dropout=0.1", "model.dropout=0.1", "training.epochs=0.5")
        run = run_training(tiny_recipe(*settings), tmp_path / str(number))
        digests.append(
            [hashlib.sha256((run.adapter / name).read_bytes()).hexdigest() for name in _adapter_names()]
        )
    assert digests[0] == digests[1]
    assert digests[0][1] != digests[2][1]


@pytest.mark.parametrize("override", ["lora.init=pissa", "lora.dora=true", "training.precision=bfloat16"])
def test_variants_run_from_recipe_to_folder(override, tiny_recipe, tmp_path):
    run = run_training(tiny_recipe(override, "training.epochs=0.25"), tmp_path / "run")
    assert files_of(run.path) == FILES


def test_without_validation_rows_the_last_state_is_what_the_run_keeps(tiny_recipe, tmp_path):
    run = run_training(tiny_recipe("data.validation_share=0.0", "training.epochs=0.25"), tmp_path / "run")
    assert run.manifest.data.validation.rows == 0
    assert (run.path / ADAPTER).is_file()


def test_a_run_is_replaced_only_when_asked(tiny_recipe, tmp_path):
    out = tmp_path / "run"
    quick = tiny_recipe("training.epochs=0.1")
    first = run_training(quick, out).manifest
    (out / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match="is not empty") as raised:
        run_training(quick, out)
    assert raised.value.found == "a finished run"
    assert open_run(out).manifest == first
    second = run_training(tiny_recipe("training.epochs=0.1", "training.seed=9"), out, overwrite=True)
    assert second.manifest.seed == 9
    assert files_of(out) == FILES


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.train=nowhere.csv", "nowhere.csv"),
        ("data.label=colour", "no column 'colour'"),
        ("model.max_length=49", "the base model reads at most 48 tokens"),
        ("model.max_length=2", "leaves no room for text"),
        ("model.base=./nowhere", "is not a folder"),
        ("lora.targets=qwery", "lora.targets names 'qwery'"),
        ("training.precision=float16", "float16 training needs a GPU"),
        ("data.train_rows=2", "cannot cover 3 classes"),
    ],
)
def test_a_fault_leaves_no_folder_and_an_old_run_untouched(override, words, tiny_recipe, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(UserError, match=words):
        run_training(tiny_recipe(override), out)
    assert not out.exists()
    old = RunFolder(out)
    old.write_recipe("[lora]\n")
    old.seal(Manifest(newsdesk="0.1.0", versions={}, base=BaseFacts("b", "b", None)))
    with pytest.raises(UserError, match=words):
        run_training(tiny_recipe(override), out, overwrite=True)
    assert files_of(out) == {"recipe.toml", "manifest.json"}


def test_a_training_that_diverges_leaves_an_unfinished_run(tiny_recipe, tmp_path):
    with pytest.raises(UserError, match="training diverged"):
        run_training(tiny_recipe("training.learning_rate=1e38", "training.warmup=0"), tmp_path / "run")
    with pytest.raises(UserError, match="is unfinished"):
        open_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("kind", "pad", "reads"),
    [
        ("bert", 0, 512),
        ("roberta", 1, 510),
        ("mpnet", 1, 510),
        ("xlm-roberta-xl", 1, 510),
        ("electra", 0, 512),
    ],
)
def test_the_longest_text_is_what_the_positions_allow(kind, pad, reads):
    config = SimpleNamespace(model_type=kind, pad_token_id=pad, max_position_embeddings=512)
    require_length(config, reads)
    with pytest.raises(UserError, match=f"reads at most {reads} tokens") as raised:
        require_length(config, reads + 1)
    assert raised.value.fix == f"use --set model.max_length={reads} or less"
    require_length(SimpleNamespace(model_type="t5"), 10_000)


@pytest.mark.parametrize("family", ["roberta", "mpnet"])
def test_the_full_length_of_a_base_that_offsets_its_positions_can_be_trained(family, tiny_recipe, tmp_path):
    settings = ("model.max_length=48", "training.pad_to_max_length=true", "training.epochs=0.1")
    run = run_training(tiny_recipe(*settings, family=family), tmp_path / "run")
    assert run.labels.max_length == 48


def interrupting(at_step: int, times: int = 1) -> Callable[[Event], None]:
    def observe(event: Event) -> None:
        if isinstance(event, Step) and event.step == at_step:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    return observe


def test_an_interrupt_finishes_the_run_and_gives_the_handler_back(tiny_recipe, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    run = run_training(tiny_recipe("training.epochs=99"), tmp_path / "run", observe=interrupting(3))
    assert signal.getsignal(signal.SIGINT) is before
    # Nothing was validated yet, and who interrupts will not wait for an off-topic score.
    kept = FILES - {"off_topic.safetensors", "calibration.json", "calibration.safetensors"}
    assert files_of(run.path) == kept == set(run.manifest.files) | {"manifest.json"}
    assert run.manifest.training.finished == "interrupted"
    assert run.manifest.training.steps == 3
    assert [path.name[:13] for path in run.checkpoints.iterdir()] == ["step-00000003"]


def test_a_second_interrupt_breaks_off_and_leaves_an_unfinished_run(tiny_recipe, tmp_path, request):
    before = signal.default_int_handler  # which a process that was started in the background does not have
    found = signal.signal(signal.SIGINT, before)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, found))
    with pytest.raises(KeyboardInterrupt):
        run_training(tiny_recipe("training.epochs=99"), tmp_path / "run", observe=interrupting(3, times=2))
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(UserError, match="is unfinished"):
        open_run(tmp_path / "run")


SCRIPT = """
import sys
from pathlib import Path
from newsdesk.runs.calibration import read_held_out_rows  # noqa: E402
from newsdesk.config import load_recipe
from newsdesk.runs.log import Step
from newsdesk.training.run import run_training

def observe(event):
    if isinstance(event, Step):
        print(event.step, flush=True)

run_training(load_recipe(sys.argv[1]), Path(sys.argv[2]), observe=observe)
"""


def test_ctrl_c_leaves_a_usable_finished_run(tiny_recipe, tiny_base, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(tiny_recipe("training.epochs=9999", "training.validate_every=4").to_toml())
    command = [sys.executable, "-c", SCRIPT, str(recipe), str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 6:
                process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    run = open_run(tmp_path / "run")
    assert files_of(run.path) == FILES - {"off_topic.safetensors"}
    assert run.manifest.training.finished == "interrupted"
    assert run.manifest.training.best_step >= 4
    assert load_classifier(tiny_base(), run.adapter, run.labels.names)


def test_a_thread_that_may_not_handle_signals_trains_all_the_same(tiny_recipe, tmp_path):
    runs: list[RunFolder] = []
    thread = threading.Thread(
        target=lambda: runs.append(run_training(tiny_recipe("training.epochs=0.1"), tmp_path / "run"))
    )
    thread.start()
    thread.join()
    assert files_of(runs[0].path) == FILES


def test_the_reference_of_a_base_is_what_others_can_load_it_by():
    def reference(name: str, source: Any) -> str:
        return ResolvedBase(Path("/models/mine"), name, source, None, None).reference

    assert reference("roberta-base", "cache") == "FacebookAI/roberta-base"
    assert reference("someone/encoder", "hub") == "someone/encoder"
    assert reference("./mine", "local") == "/models/mine"


def test_rows_without_labels_are_no_training_rows():
    with pytest.raises(ValueError, match="carry labels"):
        Examples(("a",), None, (), "x").truth()


def test_one_seed_decides_all_random_states():
    draws = []
    for _ in range(2):
        seed_everything(2**32 + 5)
        draws.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert draws[0] == draws[1]


def test_finished_is_the_last_event_and_is_logged(tiny_recipe, tmp_path):
    events: list[Event] = []
    run = run_training(tiny_recipe("training.epochs=0.1"), tmp_path / "run", observe=events.append)
    assert isinstance(events[-1], Finished)
    assert json.loads(run.log.read_text().splitlines()[-1])["event"] == "finished"


def test_a_base_that_does_not_know_the_language_is_named_before_the_first_step(tiny_recipe, tmp_path):
    rows = [row.split(",") for row in ARABIC.read_text(encoding="utf-8").splitlines()]
    (tmp_path / "arabic.csv").write_text("\n".join(f"{label},{text}" for text, label in rows), "utf-8")
    events = []
    resolved = tiny_recipe(f"data.train={tmp_path / 'arabic.csv'}", "training.min_steps=1")
    run = run_training(resolved, tmp_path / "run", observe=events.append)
    said = next(event.text for event in events if isinstance(event, Remark))
    assert said == (
        "100% of the tokens are unknown to the base model: use --base multilingual-e5-small or "
        "--base granite-embedding-107m-multilingual"
    )
    assert [type(event) for event in events].index(Remark) < [type(event) for event in events].index(Step)
    assert said in run.manifest.training.remarks
    assert (run.manifest.data.language, run.manifest.data.unknown_tokens) == ("ar", 1.0)
    refresh_card(run)
    card = (run.path / "README.md").read_text(encoding="utf-8")
    assert "\nlanguage: ar\n" in card
    assert "100% of the tokens are unknown" in card


def test_a_base_that_knows_the_language_is_not_questioned(tiny_recipe, tmp_path):
    run = run_training(tiny_recipe("training.min_steps=1"), tmp_path / "run")
    assert not [remark for remark in run.manifest.training.remarks if "unknown" in remark]
    assert (run.manifest.data.language, run.manifest.data.unknown_tokens) == (None, 0.0)


@pytest.mark.parametrize(("switch", "engine"), [("off", "fused encoder"), ("on", "fused encoder, compiled")])
def test_layers_are_compiled_only_where_the_recipe_asks_for_it(
    switch, engine, tiny_recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr("newsdesk.model.network.compile_layers", lambda *_arguments: None)
    events: list[Event] = []
    run_training(tiny_recipe(f"training.compile={switch}"), tmp_path / "run", observe=events.append)
    assert events[0].engine == engine
