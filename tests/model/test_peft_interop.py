"""PEFT both ways: what newsdesk trains, stock transformers + peft load; what they train, newsdesk imports."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from safetensors import safe_open  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

from newsdesk.config import LoraSection, ModelSection  # noqa: E402
from newsdesk.model.catalog import resolve_base  # noqa: E402
from newsdesk.model.classifier import AdapterStore, build_classifier, load_classifier  # noqa: E402
from newsdesk.model.network import Network, predict_logits  # noqa: E402
from newsdesk.model.tokenizer import TokenIds, pad  # noqa: E402
from newsdesk.training.import_adapter import import_adapter  # noqa: E402

NAMES = ("Business", "Science", "Sports")
FAMILIES = ("bert", "roberta", "mpnet", "distilbert")
# What plain peft users write for each: targets by suffix, one layer's targets by path, and the head.
QUERY_VALUE = {"mpnet": ["q", "v"], "distilbert": ["q_lin", "v_lin"]}
ONE_LAYER = {
    "mpnet": ["encoder.layer.1.attention.attn.q", "encoder.layer.0.attention.attn.v"],
    "distilbert": ["transformer.layer.1.attention.q_lin", "transformer.layer.0.attention.v_lin"],
}
HEADS = {"distilbert": ["pre_classifier", "classifier"]}
AGREEMENT = 1e-5
"""Largest difference of two logits in float32 that summing in another order explains."""


@pytest.fixture
def base_of(tiny_base: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    """The folder of a tiny base of one family."""

    def base(family: str) -> Path:
        return tiny_base(family) if family != "distilbert" else _tiny_distilbert(tmp_path, tiny_base("bert"))

    return base


def _tiny_distilbert(folder: Path, bert: Path) -> Path:
    base = folder / "distilbert"
    config = transformers.DistilBertConfig(
        vocab_size=640,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=48,
        initializer_range=0.2,
    )
    torch.manual_seed(7)
    transformers.DistilBertModel(config).save_pretrained(base)
    transformers.AutoTokenizer.from_pretrained(bert).save_pretrained(base)
    return base


def token_ids(vocabulary: int = 60, longest: int = 30) -> list[TokenIds]:
    """Eight rows of unequal length."""
    generator = np.random.default_rng(3)
    return [generator.integers(5, vocabulary, size=length) for length in (9, 3, longest, 17, 4, 12, 12, 6)]


def take_steps(model: Any, logits_of: Callable[[list[TokenIds]], Any], steps: int = 3) -> None:
    """A few AdamW steps towards arbitrary labels, far enough that every trained tensor matters."""
    rows = token_ids()
    labels = torch.arange(len(rows)) % len(NAMES)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=2e-2)
    model.train()
    for _ in range(steps):
        cross_entropy(logits_of(rows), labels).backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval()


def peft_logits(model: Any, rows: list[TokenIds]) -> Any:
    """As anyone computes them with transformers + peft: one padded batch and its mask."""
    input_ids, mask = (torch.from_numpy(array) for array in pad(rows, model.config.pad_token_id))
    return model(input_ids=input_ids, attention_mask=mask).logits


def assert_adapters_matter(model: Any, before: Any) -> None:
    """Training moved the logits, and not by the head alone: else comparing them tests no adapter."""
    rows = token_ids()
    bare = copy.deepcopy(model)
    with torch.no_grad():
        trained = peft_logits(model, rows)
        for name, parameter in bare.named_parameters():
            if "lora_A" in name:
                parameter.zero_()
        assert (trained - peft_logits(bare, rows)).abs().max() > 1000 * AGREEMENT
        assert (trained - before).abs().max() > 1000 * AGREEMENT


def stock_model(base: Path) -> Any:
    """The base model with a fresh head, as plain transformers makes it."""
    return transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(NAMES))


def assert_stock_peft_agrees(network: Network, base: Path, adapter: Path, rows: list[TokenIds]) -> None:
    """Plain transformers + peft, with another random head to begin with, give the network's logits."""
    torch.manual_seed(1234)
    theirs = peft.PeftModel.from_pretrained(stock_model(base), adapter).eval()
    with torch.no_grad():
        expected = peft_logits(theirs, rows).numpy()
    np.testing.assert_allclose(predict_logits(network, rows), expected, atol=AGREEMENT, rtol=0)


def train_with_newsdesk(base: Path, adapter: Path, lora: LoraSection, model: ModelSection) -> Network:
    torch.manual_seed(0)
    classifier = build_classifier(base, NAMES, model, lora)
    store = AdapterStore(classifier, str(base))
    network = Network(classifier, torch.device("cpu"), "float32")
    before = torch.from_numpy(predict_logits(network, token_ids()))
    take_steps(network, network)
    assert_adapters_matter(classifier, before)
    store.save(adapter)
    return network


def train_with_peft(base: Path, adapter: Path, **lora: Any) -> Any:
    torch.manual_seed(0)
    settings = {"task_type": "SEQ_CLS", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1}
    model = peft.get_peft_model(stock_model(base), peft.LoraConfig(**(settings | lora)))
    with torch.no_grad():
        before = peft_logits(model.eval(), token_ids())
    take_steps(model, lambda rows: peft_logits(model, rows))
    assert_adapters_matter(model, before)
    model.save_pretrained(adapter)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_peft_loads_what_newsdesk_trained(family, base_of, tmp_path):
    base = base_of(family)
    network = train_with_newsdesk(base, tmp_path / "adapter", LoraSection(rank=4), ModelSection())
    assert_stock_peft_agrees(network, base, tmp_path / "adapter", token_ids())


@pytest.mark.parametrize(
    "variant",
    [
        {"targets": ("all-linear",), "rslora": True},
        {"dora": True},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"init": "gaussian"},
        {"init": "pissa"},
        {"init": "pissa_niter_16"},
        {"init": "olora"},
        {"init": "orthogonal"},
    ],
    ids=str,
)
def test_stock_peft_loads_every_variant(variant, base_of, tmp_path):
    lora = LoraSection(rank=4, alpha=8, **variant)
    network = train_with_newsdesk(base_of("bert"), tmp_path / "adapter", lora, ModelSection())
    assert_stock_peft_agrees(network, base_of("bert"), tmp_path / "adapter", token_ids())


@pytest.mark.parametrize(
    ("family", "train_pooler", "head"),
    [
        ("bert", True, {"classifier", "pooler"}),
        ("bert", False, {"classifier"}),
        ("roberta", True, {"classifier"}),
        ("mpnet", True, {"classifier"}),
        ("distilbert", True, {"classifier", "pre_classifier"}),
    ],
)
def test_the_head_is_exactly_what_peft_saves_whole(family, train_pooler, head, base_of, tmp_path):
    model = build_classifier(
        base_of(family), NAMES, ModelSection(train_pooler=train_pooler), LoraSection(rank=2)
    )
    AdapterStore(model, "someone/base").save(tmp_path)

    # "score" is the other name that peft itself adds for every sequence classifier.
    assert set(peft.PeftConfig.from_pretrained(tmp_path).modules_to_save) - {"score"} == head
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    whole = {name for name in trained if ".modules_to_save.default." in name}
    assert {name.split(".modules_to_save.")[0].rpartition(".")[2] for name in whole} == head
    assert all("lora_" in name for name in trained - whole)
    with safe_open(tmp_path / "adapter_model.safetensors", framework="numpy") as tensors:
        saved = set(tensors.keys())
    assert saved == {name.replace(".modules_to_save.default", "").replace(".default", "") for name in trained}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["query and value", "per layer with rank pattern", "DoRA"])
def test_an_adapter_of_plain_peft_becomes_a_run_with_its_logits(family, kind, base_of, tmp_path):
    base = base_of(family)
    targets = QUERY_VALUE.get(family, ["query", "value"])
    by_layer = ONE_LAYER.get(
        family, ["encoder.layer.1.attention.self.query", "encoder.layer.0.attention.self.value"]
    )
    lora: dict[str, Any] = {
        "query and value": {"target_modules": targets},
        "per layer with rank pattern": {
            "target_modules": by_layer,
            "rank_pattern": {by_layer[0]: 7},
            "alpha_pattern": {by_layer[0]: 3},
        },
        "DoRA": {"target_modules": targets, "use_dora": True},
    }[kind]
    theirs = train_with_peft(base, tmp_path / "theirs", modules_to_save=HEADS.get(family), **lora)

    assert_imports_with_its_logits(theirs, base, tmp_path)


@pytest.mark.parametrize(
    "lora",
    [
        {"use_rslora": True},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"modules_to_save": ["classifier", "pooler"]},
        {"target_modules": r".*\.layer\.1\..*(query|value|dense)"},
        {"target_modules": "all-linear"},
        {"layers_to_transform": [1], "layers_pattern": "layer"},
        {"task_type": None, "modules_to_save": ["classifier"]},
        {"init_lora_weights": "pissa"},
        {"lora_bias": True},
    ],
    ids=str,
)
def test_other_adapters_of_plain_peft_are_imported_with_their_logits(lora, base_of, tmp_path):
    settings = {"target_modules": ["query", "value"]} | lora
    theirs = train_with_peft(base_of("bert"), tmp_path / "theirs", **settings)

    assert_imports_with_its_logits(theirs, base_of("bert"), tmp_path)


def assert_imports_with_its_logits(theirs: Any, base: Path, folder: Path) -> None:
    run = import_adapter(folder / "theirs", folder / "run", label_names=NAMES, max_length=32)
    network = Network(load_classifier(base, run.adapter, NAMES), torch.device("cpu"), "float32")
    with torch.no_grad():
        expected = peft_logits(theirs, token_ids()).numpy()
    np.testing.assert_allclose(predict_logits(network, token_ids()), expected, atol=AGREEMENT, rtol=0)


@pytest.mark.real
def test_stock_peft_gives_the_same_logits_on_the_real_minilm(tmp_path):
    base = resolve_base("all-MiniLM-L6-v2")
    torch.manual_seed(0)
    classifier = build_classifier(base.path, NAMES, ModelSection(), LoraSection(rank=8))
    store = AdapterStore(classifier, "sentence-transformers/all-MiniLM-L6-v2")
    with torch.no_grad():
        for name, parameter in classifier.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    network = Network(classifier, torch.device("cpu"), "float32")
    store.save(tmp_path)

    assert_stock_peft_agrees(network, base.path, tmp_path, token_ids(vocabulary=30_000, longest=120))
