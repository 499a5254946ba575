"""An adapter folder of plain transformers + peft becomes a whole run, or a sentence and nothing at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file, save_file  # noqa: E402

from newsdesk.config import load_recipe  # noqa: E402
from newsdesk.data.columns import TextLayout  # noqa: E402
from newsdesk.errors import UserError  # noqa: E402
from newsdesk.files import sha256_of  # noqa: E402
from newsdesk.prediction.open_model import open_model  # noqa: E402
from newsdesk.runs.folder import RunFolder, open_run  # noqa: E402
from newsdesk.runs.manifest import BaseFacts, ImportFacts  # noqa: E402
from newsdesk.training import import_adapter as module  # noqa: E402
from newsdesk.training.import_adapter import import_adapter  # noqa: E402

TENSORS = "adapter_model.safetensors"


@pytest.fixture
def save_adapter(tiny_base: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """``save_adapter(labels=4, use_dora=True)``: an adapter of random weights, as peft saves it."""

    def save(*, base: Path | None = None, labels: int = 3, folder: str = "theirs", **lora: Any) -> Path:
        torch.manual_seed(5)
        classifier = transformers.AutoModelForSequenceClassification.from_pretrained(
            base or tiny_base("bert"), num_labels=labels
        )
        settings = {
            "task_type": "SEQ_CLS",
            "r": 4,
            "lora_alpha": 6,
            "target_modules": ["query", "value"],
            "init_lora_weights": False,
        }
        model = peft.get_peft_model(classifier, peft.LoraConfig(**(settings | lora)))
        model.save_pretrained(tmp_path / folder)
        return tmp_path / folder

    return save


@pytest.fixture
def adapter(save_adapter: Callable[..., Path]) -> Path:
    """LoRA on query and value of the tiny BERT, three classes."""
    return save_adapter()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "imported"


def make(adapter: Path, out: Path, **options: Any) -> RunFolder:
    """Import with a length that the tiny bases can read."""
    return import_adapter(adapter, out, **({"max_length": 32} | options))


def refused(adapter: Path, out: Path, **options: Any) -> UserError:
    """The error of an import that must fail; asserts that it leaves nothing."""
    with pytest.raises(UserError) as caught:
        make(adapter, out, **options)
    assert not out.exists()
    assert not out.parent.exists() or list(out.parent.iterdir()) == []
    return caught.value


def amend(folder: Path, name: str = "adapter_config.json", **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def drop(folder: Path, part: str) -> None:
    """Take the tensors whose name holds ``part`` out of the adapter."""
    tensors = load_file(folder / TENSORS)
    save_file({name: tensor for name, tensor in tensors.items() if part not in name}, folder / TENSORS)


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_run_holds_what_a_run_holds_and_peft_files_byte_for_byte(adapter, out, tiny_base):
    run = open_run(make(adapter, out).path)

    assert files_in(out) == {
        "adapter/adapter_config.json",
        f"adapter/{TENSORS}",
        "labels.json",
        "manifest.json",
        "recipe.toml",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    }
    for name in ("adapter_config.json", TENSORS):
        assert (run.adapter / name).read_bytes() == (adapter / name).read_bytes()
    assert run.manifest.files == {name: sha256_of(out / name) for name in files_in(out) - {"manifest.json"}}
    base = tiny_base("bert")
    assert run.manifest.base == BaseFacts(str(base), str(base), sha256_of(base / "model.safetensors"))
    assert run.manifest.imported == ImportFacts(str(adapter), peft.__version__)
    assert [path.name for path in out.parent.iterdir()] == ["imported"]


def test_the_run_classifies_texts(adapter, out):
    make(adapter, out, label_names=["a", "b", "c"])
    (prediction,) = open_model(out, device="cpu").predict(["market shares fall"])
    assert prediction.label in {"a", "b", "c"}


def test_the_recipe_tells_what_is_known_and_what_is_not(save_adapter, out, tiny_base):
    adapter = save_adapter(
        r=6, lora_alpha=9, lora_dropout=0.25, use_rslora=True, use_dora=True, init_lora_weights="gaussian"
    )
    layout = TextLayout(("title", "body"), "{title}. {body}", "ag_news")
    run = make(adapter, out, layout=layout)

    recipe = load_recipe(str(run.recipe)).recipe
    assert recipe.lora.model_dump() == {
        "rank": 6,
        "alpha": 9.0,
        "dropout": 0.25,
        "targets": ("query", "value"),
        "bias": "none",
        "rslora": True,
        "dora": True,
        "init": "gaussian",
        "layers": "all",
    }
    assert (recipe.model.base, recipe.model.max_length) == (str(tiny_base("bert")), 32)
    assert not recipe.model.train_pooler
    assert (recipe.data.text, recipe.data.template) == (("title", "body"), "{title}. {body}")
    assert (run.labels.layout, run.labels.max_length) == (layout, 32)
    lines = run.recipe.read_text().splitlines()
    assert "rank = 6  # imported" in lines
    assert "epochs = 3.0  # default" in lines
    assert 'train = "unknown"  # an adapter folder does not tell' in lines


def test_a_pattern_as_target_and_a_pooler_are_told_in_the_recipe(save_adapter, out):
    adapter = save_adapter(target_modules=".*layer.1.*query", modules_to_save=["classifier", "pooler"])
    recipe = load_recipe(str(make(adapter, out).recipe)).recipe
    assert recipe.lora.targets == (".*layer.1.*query",)
    assert recipe.model.train_pooler


def test_labels_as_given_win(adapter, out):
    (adapter / "config.json").write_text(json.dumps({"id2label": {"0": "x", "1": "y", "2": "z"}}))
    assert make(adapter, out, label_names=["c", "a", "b"]).labels.names == ("c", "a", "b")


@pytest.mark.parametrize(
    ("id2label", "names"),
    [
        ({"0": "World", "1": "Sports", "2": "Business"}, ("World", "Sports", "Business")),
        ({"2": "c", "0": "a", "1": "b"}, ("a", "b", "c")),
        ({"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, ("0", "1", "2")),
        ({"0": "a", "1": "b"}, ("0", "1", "2")),
        ({"0": "a", "1": "b", "3": "c"}, ("0", "1", "2")),
        ({"0": "a", "1": "a", "2": "c"}, ("0", "1", "2")),
        (None, ("0", "1", "2")),
    ],
)
def test_labels_not_given_are_those_beside_the_adapter_where_they_are_names(id2label, names, adapter, out):
    (adapter / "config.json").write_text(json.dumps({"id2label": id2label}))
    assert make(adapter, out).labels.names == names


def test_labels_not_given_are_else_those_of_the_base(save_adapter, tiny_base, tmp_path, out):
    base = copy_of(tiny_base("bert"), tmp_path / "base")
    amend(base, "config.json", id2label={"0": "no", "1": "yes"}, label2id={"no": 0, "yes": 1})
    assert make(save_adapter(base=base, labels=2), out).labels.names == ("no", "yes")


def test_labels_that_do_not_fit_the_head_are_refused(adapter, out):
    error = refused(adapter, out, label_names=["a", "b"])
    assert "has 3 classes, not 2" in error.wrong
    assert "--labels" in (error.fix or "")
    assert "same name" in refused(adapter, out, label_names=["a", "b", "a"]).wrong


def test_the_tokenizer_beside_the_adapter_is_the_one_it_was_trained_with(adapter, out, tiny_base):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_base("bert"))
    tokenizer.add_tokens(["newsdesk"])
    tokenizer.save_pretrained(adapter)
    run = make(adapter, out)
    added = json.loads((run.tokenizer / "tokenizer.json").read_text())["added_tokens"]
    assert "newsdesk" in {token["content"] for token in added}


def copy_of(base: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in base.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_base_that_moved_is_named_by_flag(save_adapter, tiny_base, tmp_path, out):
    base = copy_of(tiny_base("bert"), tmp_path / "before")
    adapter = save_adapter(base=base)
    base.rename(tmp_path / "after")

    error = refused(adapter, out)
    assert str(base) in error.wrong
    assert "--base" in (error.fix or "")
    run = make(adapter, out, base=str(tmp_path / "after"))
    assert run.manifest.base.name == str(tmp_path / "after")


def test_a_base_given_by_a_relative_path_is_found_from_anywhere(adapter, tiny_base, out, monkeypatch):
    base = tiny_base("bert")
    monkeypatch.chdir(base.parent)
    run = make(adapter, out, base=f"./{base.name}")
    assert Path(run.manifest.base.name).is_absolute()


@pytest.mark.parametrize("reference", ["./base", "../models/base", "runs/one/base", "base-folder", None, ""])
def test_a_base_that_the_adapter_names_badly_asks_for_the_flag(
    reference, adapter, out, tiny_base, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    copy_of(tiny_base("bert"), tmp_path / "base-folder")
    amend(adapter, base_model_name_or_path=reference)
    error = refused(adapter, out)
    assert "--base" in (error.fix or "")
    assert "relative path" in error.wrong if reference else "does not say" in error.wrong


def test_a_catalogue_name_in_the_adapter_is_looked_up(adapter, out, tiny_base, monkeypatch):
    asked = []

    def resolve(name: str, **_options: Any) -> Any:
        asked.append(name)
        return module.ResolvedBase(tiny_base("bert"), "all-MiniLM-L6-v2", "cache", "f00d", "apache-2.0")

    monkeypatch.setattr(module, "resolve_base", resolve)
    amend(adapter, base_model_name_or_path="sentence-transformers/all-MiniLM-L6-v2")
    assert make(adapter, out).manifest.base == BaseFacts(
        "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2", "f00d", "apache-2.0"
    )
    assert asked == ["sentence-transformers/all-MiniLM-L6-v2"]


def test_a_pickle_is_refused_with_the_way_to_convert_it(adapter, out):
    (adapter / TENSORS).rename(adapter / "adapter_model.bin")
    error = refused(adapter, out)
    assert "pickle" in error.wrong
    assert "safe_serialization" in (error.fix or "")


@pytest.mark.parametrize(
    ("amended", "words"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "no LoRA"),
        ({"task_type": "CAUSAL_LM"}, "not the adapter of a text classifier"),
        ({"lora_dropout": 7}, "settings that newsdesk cannot read"),
        ({"r": None}, "settings that newsdesk cannot read"),
    ],
)
def test_another_kind_of_adapter_is_refused(amended, words, adapter, out):
    amend(adapter, **amended)
    assert words in refused(adapter, out).wrong


@pytest.mark.parametrize("config", ["{", "[]"])
def test_a_damaged_configuration_is_refused(config, adapter, out):
    (adapter / "adapter_config.json").write_text(config)
    assert "damaged" in refused(adapter, out).wrong


def test_damaged_weights_are_refused(adapter, out):
    (adapter / TENSORS).write_bytes((adapter / TENSORS).read_bytes()[:-100])
    assert "no whole safetensors file" in (refused(adapter, out).found or "")


def test_an_adapter_without_its_head_is_refused(adapter, out):
    drop(adapter, "classifier")
    assert "predictions would come from a random one" in refused(adapter, out).wrong


def test_an_adapter_without_a_part_of_what_it_trained_is_refused(save_adapter, out):
    adapter = save_adapter(modules_to_save=["classifier", "pooler"])
    drop(adapter, "pooler.dense.bias")
    assert "pooler.dense.bias" in (refused(adapter, out).found or "")


def test_a_head_that_nobody_saved_in_part_is_refused(save_adapter, tmp_path, out):
    """A base without a pooler gets a random one; the adapter was trained on it, yet does not hold it."""
    config = transformers.BertConfig(
        vocab_size=640, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    base = tmp_path / "no-pooler"
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(base)
    tokenizer = transformers.BertTokenizerFast
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "news"]))
    tokenizer(vocab=str(vocabulary)).save_pretrained(base)
    error = refused(save_adapter(base=base), out)
    assert "random in part" in error.wrong
    assert "bert.pooler.dense.weight" in (error.found or "")
    adapter = save_adapter(base=base, modules_to_save=["classifier", "pooler"], folder="with-pooler")
    assert make(adapter, out).labels.names == ("0", "1", "2")


@pytest.mark.parametrize(
    "settings",
    [{"num_hidden_layers": 1}, {"num_hidden_layers": 3}, {"hidden_size": 16, "intermediate_size": 24}],
    ids=["fewer layers", "more layers", "narrower"],
)
def test_another_base_than_its_own_is_refused(settings, adapter, out, tiny_base):
    error = refused(adapter, out, base=str(tiny_base("bert", **settings)))
    assert f"{adapter} does not fit" in error.wrong
    assert "--base" in (error.fix or "")


def test_more_tokens_than_the_base_can_read_are_refused(adapter, out):
    error = refused(adapter, out, max_length=4000)
    assert "at most 48 tokens" in error.wrong
    assert "--max-length 4000" in (error.found or "")


def test_a_folder_with_something_in_it_is_left_alone(adapter, out):
    out.mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is not empty"):
            make(adapter, out, overwrite=overwrite)
    assert files_in(out) == {"notes.txt"}
    with pytest.raises(UserError, match="is a file"):
        make(adapter, out / "notes.txt")


def test_a_run_is_replaced_only_when_asked_and_only_by_a_whole_one(adapter, out):
    make(adapter, out, label_names=["a", "b", "c"])
    before = {name: (out / name).read_bytes() for name in files_in(out)}

    def unchanged(names: Collection[str]) -> bool:
        return {name: (out / name).read_bytes() for name in names} == before

    with pytest.raises(UserError, match="--overwrite"):
        make(adapter, out)
    with pytest.raises(UserError, match="at most 48 tokens"):
        make(adapter, out, overwrite=True, max_length=4000)
    assert unchanged(files_in(out))
    assert make(adapter, out, overwrite=True).labels.names == ("0", "1", "2")
    assert [path.name for path in out.parent.iterdir()] == ["imported"]


def test_an_empty_folder_is_filled(adapter, out):
    out.mkdir(parents=True)
    assert open_run(make(adapter, out).path).labels.names == ("0", "1", "2")


def test_importing_draws_nothing_from_the_random_state_of_the_caller(adapter, out):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    make(adapter, out)
    assert torch.equal(torch.rand(3), expected)
