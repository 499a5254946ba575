from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from newsdesk.cli.tables import render_plan
from newsdesk.config import ResolvedRecipe, load_recipe
from newsdesk.errors import UserError
from newsdesk.hub.cache import Slot
from newsdesk.hub.source import Fetched
from newsdesk.model.catalog import resolve_config
from newsdesk.model.classifier import outline_classifier
from newsdesk.progress import silent
from newsdesk.training.batches import Batcher, padding_share
from newsdesk.training.plan import (
    TimeEstimate,
    estimate_time,
    make_plan,
    matmul_rate,
    training_flops_per_token,
)

TINY_BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "vocab_size": 50,
}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setenv("NEWSDESK_CACHE", str(cache))
    return cache


def write_tokenizer(folder: Path) -> Path:
    """One token a word, and no others."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def tiny_base(tmp_path: Path) -> Path:
    """A base without weights: its configuration and its tokenizer."""
    base = write_tokenizer(tmp_path / "tiny")
    (base / "config.json").write_text(json.dumps(TINY_BERT))
    return base


def write_rows(path: Path, word_counts: list[int]) -> Path:
    """A row of so many words each, three classes in turn; no two texts are the same."""
    lines = [f"w{row}" + " word" * (count - 1) for row, count in enumerate(word_counts)]
    labels = ["sport", "money", "grain"]
    rows = [f"{labels[row % 3]},{text}" for row, text in enumerate(lines)]
    path.write_text("\n".join(["label,text", *rows]) + "\n")
    return path


def tiny_recipe(base: Path, data: Path, *overrides: str) -> ResolvedRecipe:
    flags = {"data.train": str(data), "model.base": str(base), "model.max_length": 32}
    return load_recipe(None, flags, ("data.validation_share=0.0", "training.batch_size=4", *overrides))


def test_the_seed_recipe_trains_741124_of_125389832_numbers() -> None:
    plan = make_plan(load_recipe("seed"), measure_speed=False)
    assert (plan.trainable, plan.total) == (741_124, 125_389_832)
    assert [(group.name, group.trainable, group.total) for group in plan.parameters] == [
        ("frozen encoder", 0, 124_055_040),
        ("LoRA adapters", 147_456, 147_456),
        ("untrained copy of the head", 0, 593_668),
        ("classification head", 593_668, 593_668),
    ]


def test_peft_counts_the_same_on_a_real_roberta_with_random_weights() -> None:
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(**resolve_config("roberta-base"), num_labels=4)
    adapters = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=4, lora_alpha=16, lora_dropout=0.1, target_modules=["query", "value"]
    )
    model = get_peft_model(RobertaForSequenceClassification(config), adapters)
    assert model.get_nb_trainable_parameters() == (741_124, 125_389_832)


def test_the_seed_recipe_takes_35625_steps_over_the_rows_left_by_validation() -> None:
    plan = make_plan(load_recipe("seed"), measure_speed=False)
    assert (plan.rows.train, plan.rows.validation, plan.rows.classes) == (114_000, 6_000, 4)
    assert (plan.rows.rows_from, plan.rows.classes_from) == ("catalogue", "catalogue")
    assert (plan.steps.per_epoch, plan.steps.total, plan.steps.warmup) == (7_125, 35_625, 500)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_learning_rate_points_are_those_of_transformers_schedules(schedule: str) -> None:
    from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

    plan = make_plan(load_recipe("seed", overrides=[f"training.schedule={schedule}"]), measure_speed=False)
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    make = {"cosine": get_cosine_schedule_with_warmup, "linear": get_linear_schedule_with_warmup}[schedule]
    factor = make(optimiser, num_warmup_steps=500, num_training_steps=35_625).lr_lambdas[0]

    assert [(point.name, point.step) for point in plan.curve] == [
        ("first step", 0),
        ("end of warm-up", 500),
        ("25 %", 8_906),
        ("50 %", 17_812),
        ("75 %", 26_719),
        ("last step", 35_624),
    ]
    for point in plan.curve:
        assert point.learning_rate == pytest.approx(2e-4 * factor(point.step), abs=1e-18)


def test_a_dry_run_needs_no_network_and_leaves_nothing_behind(empty_cache: Path) -> None:
    plan = make_plan(load_recipe("seed"), measure_speed=False)  # sockets are blocked in every test
    assert (plan.lengths.basis, plan.lengths.mean, plan.lengths.padding) == ("catalogue", 53, None)
    padded = make_plan(load_recipe("seed", None, ["training.pad_to_max_length=true"]), measure_speed=False)
    assert padded.lengths.padding == 1 - 53 / 256
    assert not empty_cache.exists()


def test_classes_nobody_knows_yet_are_said_to_be_assumed() -> None:
    plan = make_plan(load_recipe(None, {"data.train": "reuters-r8"}), measure_speed=False)
    assert (plan.rows.train, plan.rows.validation) == (5_485 - 274, 274)
    assert plan.rows.classes_from == "assumed"
    assert any("assumed until the data is here" in line for line in render_plan(plan))


def test_without_rows_or_known_tokens_no_time_is_made_up() -> None:
    plan = make_plan(load_recipe(None, {"data.train": "reuters-r8"}))
    assert (plan.lengths.basis, plan.lengths.mean) == ("unknown", None)
    assert plan.time is None
    assert "time on this machine: not estimated" in render_plan(plan)


def test_validation_rows_of_their_own_are_counted_and_train_rows_limited(tmp_path: Path) -> None:
    validation = write_rows(tmp_path / "valid.csv", [3] * 7)
    flags = {"data.validation": str(validation), "data.train_rows": 1_000}
    plan = make_plan(load_recipe("seed", flags), measure_speed=False)
    assert (plan.rows.train, plan.rows.validation) == (1_000, 7)
    assert plan.steps.per_epoch == 63


def test_tokens_are_measured_with_the_batches_of_the_real_training(tmp_path: Path, tiny_base: Path) -> None:
    word_counts = [1 + row % 40 for row in range(1200)]  # some beyond max_length, which is 32
    plan = make_plan(tiny_recipe(tiny_base, write_rows(tmp_path / "news.csv", word_counts)))
    lengths = np.minimum(word_counts, 32)
    assert (plan.lengths.basis, plan.lengths.rows, plan.rows.train, plan.rows.classes) == (
        "measured",
        1200,
        1200,
        3,
    )
    assert plan.lengths.mean == pytest.approx(lengths.mean())
    assert plan.lengths.before_cutting == {"median": 20, "90 %": 36, "99 %": 40, "longest": 40}
    lines = render_plan(plan)
    assert "before cutting              median 20, 90 % 36, 99 % 40, longest 40" in lines
    lost = 100 * (1 - lengths.sum() / sum(word_counts))
    cut = f"240 of 1,200 texts (20.0%) cut to 32 tokens; {lost:.1f}% of all tokens not read"
    assert f"training rows: {cut} (model.max_length)" in plan.remarks
    assert plan.lengths.padding is not None
    assert plan.lengths.padding < 0.15
    assert plan.time is not None
    computed = round(3.0 * lengths.sum() / (1 - plan.lengths.padding))
    assert plan.time.basis.startswith(f"{computed:,} tokens of ")


@pytest.mark.parametrize(("batching", "grouped"), [("true", True), ("false", False)])
def test_padding_is_that_of_the_recipes_batches(
    tmp_path: Path, tiny_base: Path, batching: str, grouped: bool
) -> None:
    lengths = np.array([1 + row % 40 for row in range(1200)])
    data, override = (
        write_rows(tmp_path / "news.csv", lengths.tolist()),
        f"training.group_by_length={batching}",
    )
    plan = make_plan(tiny_recipe(tiny_base, data, override), measure_speed=False)
    cut = np.minimum(lengths, 32)[np.random.default_rng(42).permutation(1200)]
    batcher = Batcher(cut, 4, seed=42, group_by_length=grouped)
    assert plan.lengths.padding == pytest.approx(padding_share(cut, batcher.epoch(0)))
    assert (plan.lengths.padding < 0.15) == grouped


def test_few_rows_are_gone_through_until_200_steps_are_done_unless_epochs_are_asked_for(
    tmp_path: Path, tiny_base: Path
) -> None:
    data = write_rows(tmp_path / "news.csv", [3] * 40)
    plan = make_plan(tiny_recipe(tiny_base, data, "training.batch_size=16"), measure_speed=False)
    assert (plan.steps.per_epoch, plan.steps.total, plan.steps.warmup) == (3, 200, 12)
    assert plan.steps.epochs == pytest.approx(200 / 3)
    assert any(line.endswith("200: 66.67 epochs of 3") for line in render_plan(plan))
    assert "3 epochs would be 9 steps; training takes 200 (training.min_steps)" in plan.remarks[1]
    assert plan.curve[-1].learning_rate < 1e-6
    asked = ("training.batch_size=16", "training.epochs=1.0")
    plan = make_plan(tiny_recipe(tiny_base, data, *asked), measure_speed=False)
    assert (plan.steps.total, plan.steps.epochs) == (3, 1)
    assert any(line.endswith(" 3: 1 epoch of 3") for line in render_plan(plan))


def test_what_validation_rows_are_worth_is_said_before_training(tmp_path: Path, tiny_base: Path) -> None:
    data = write_rows(tmp_path / "news.csv", [3] * 150)
    data.write_text(data.read_text() + "rare,only one\n")
    plan = make_plan(tiny_recipe(tiny_base, data, "data.validation_share=0.2"), measure_speed=False)
    assert (plan.rows.train, plan.rows.validation) == (121, 30)
    *_, missing, few, worth = plan.remarks
    assert missing.startswith("no validation row for 1 of 4 classes: rare (1 row)")
    assert few.startswith("30 validation rows are too few to choose the best state by")
    assert "with 30, an accuracy near 90 %" in worth
    shown = "note: no validation row for 1 of 4 classes: rare (1 row); validation figures say"
    assert shown in render_plan(plan)


def test_only_a_sample_of_many_rows_is_tokenized(tmp_path: Path, tiny_base: Path) -> None:
    data = write_rows(tmp_path / "news.csv", [5] * 4_500)
    plan = make_plan(tiny_recipe(tiny_base, data), measure_speed=False)
    assert (plan.rows.train, plan.lengths.rows, plan.lengths.mean) == (4_500, 4_096, 5)


def test_rows_padded_to_the_longest_length_cost_it_all(tmp_path: Path, tiny_base: Path) -> None:
    data = write_rows(tmp_path / "news.csv", [1 + row % 30 for row in range(60)])
    plan = make_plan(tiny_recipe(tiny_base, data, "training.pad_to_max_length=true"))
    assert plan.time is not None
    assert plan.time.basis.startswith(f"{round(60 * 32 * plan.steps.epochs):,} tokens of ")


def test_the_tokenizer_of_a_cached_base_is_used_by_name_and_by_hub_id(tmp_path: Path) -> None:
    slot = Slot("models", "roberta-base")
    with slot.filling(silent) as staging:
        write_tokenizer(staging / "fetched")
        slot.publish(staging / "fetched", Fetched({}), "hub")
    data = write_rows(tmp_path / "news.csv", [4] * 30)
    for base in ("roberta-base", "FacebookAI/roberta-base"):
        plan = make_plan(
            load_recipe("seed", {"data.train": str(data), "model.base": base}), measure_speed=False
        )
        assert (plan.lengths.basis, plan.lengths.mean) == ("measured", 4)


def test_tokens_that_the_base_does_not_know_are_shown_with_a_base_that_would(
    tmp_path: Path, tiny_base: Path
) -> None:
    data = write_rows(tmp_path / "news.csv", [4] * 30)
    plan = make_plan(tiny_recipe(tiny_base, data), measure_speed=False)
    shown = " ".join(" ".join(render_plan(plan)).split())
    assert "100" in shown
    assert "use --base multilingual-e5-small (93 languages)" in shown


def test_rows_without_a_tokenizer_are_counted_and_not_measured(tmp_path: Path, tiny_base: Path) -> None:
    (tiny_base / "tokenizer.json").unlink()
    plan = make_plan(tiny_recipe(tiny_base, write_rows(tmp_path / "news.csv", [4] * 30)))
    assert (plan.rows.train, plan.rows.rows_from, plan.lengths.basis) == (30, "data", "unknown")
    assert plan.lengths.padding is None


def test_texts_longer_than_the_base_can_read_are_refused_as_in_training(
    tmp_path: Path, tiny_base: Path
) -> None:
    recipe = tiny_recipe(tiny_base, write_rows(tmp_path / "news.csv", [4] * 30), "model.max_length=65")
    with pytest.raises(UserError, match="at most 64 tokens"):
        make_plan(recipe, measure_speed=False)


def test_every_given_value_names_its_origin() -> None:
    resolved = load_recipe("seed", {"training.epochs": 2.0}, ["lora.rank=8"])
    plan = make_plan(resolved, measure_speed=False)
    lines = [line.split() for line in render_plan(plan)]
    assert ["training.epochs", "2.0", "flag"] in lines
    assert ["lora.rank", "8", "flag", "--set"] in lines
    assert ["model.base", '"roberta-base"', "recipe", "seed"] in lines
    assert "training.clip" not in plan.to_dict()["origins"]


@pytest.mark.parametrize("overrides", [["training.warmup=100"], ["training.warmup=0", "training.epochs=0.1"]])
def test_the_curve_of_a_very_short_training_has_each_step_once(
    tmp_path: Path, tiny_base: Path, overrides: list[str]
) -> None:
    data = write_rows(tmp_path / "news.csv", [4] * 30)
    plan = make_plan(tiny_recipe(tiny_base, data, *overrides), measure_speed=False)
    steps = [point.step for point in plan.curve]
    assert steps == sorted(set(steps))
    assert steps[0] == 0
    assert steps[-1] == plan.steps.total - 1


def test_a_token_costs_four_operations_per_weight_of_the_encoders_linear_layers() -> None:
    recipe = load_recipe("seed").recipe
    roberta = outline_classifier(resolve_config("roberta-base"), 4, recipe.model, recipe.lora)
    assert training_flops_per_token(roberta) == 4 * 12 * (4 * 768**2 + 2 * 768 * 3072)


def test_layers_below_the_adapters_are_computed_in_one_epoch_and_need_no_gradient() -> None:
    recipe = load_recipe("seed", overrides=["lora.layers=top-3"]).recipe
    roberta = outline_classifier(resolve_config("roberta-base"), 4, recipe.model, recipe.lora)
    layer = 4 * 768**2 + 2 * 768 * 3072
    assert training_flops_per_token(roberta, epochs=5.0) == pytest.approx((4 * 3 + 2 * 9 / 5) * layer)


def test_albert_pays_for_its_shared_layers_at_every_pass() -> None:
    recipe = load_recipe("seed").recipe
    config = {
        "model_type": "albert",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 6,
    }
    albert = outline_classifier(config, 4, recipe.model, recipe.lora)
    assert training_flops_per_token(albert) == 4 * 6 * (4 * 16**2 + 2 * 16 * 32)


def test_the_time_estimate_is_work_over_measured_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(None, overrides=["training.device=cpu", "training.precision=float32"]).recipe
    model = outline_classifier(TINY_BERT, 4, recipe.model, recipe.lora)
    monkeypatch.setattr("newsdesk.training.plan.matmul_rate", lambda *_arguments: 2e9)
    estimate = estimate_time(model, recipe.training, tokens=1_000, tokens_per_row=1.0)
    work = 1_000 * training_flops_per_token(model)
    assert estimate.seconds == pytest.approx((work / 2e9, work / 1e9))
    assert estimate.where.startswith("cpu, float32, threads: ")
    assert "at 50 to 100 % of the 2 GFLOP/s" in estimate.basis


def test_the_rate_counts_two_operations_per_multiplication(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))  # every look at the clock is a second later: a product a second
    monkeypatch.setattr("newsdesk.training.plan.time.thread_time", lambda: float(next(ticks)))
    rate = matmul_rate((2, 3, 5), torch.device("cpu"), "float32", seconds=9.5)
    assert rate == pytest.approx(2 * 2 * 3 * 5 * 9 / 10)


def test_the_plan_fits_80_columns_whatever_stands_in_the_recipe(tmp_path: Path, tiny_base: Path) -> None:
    folder = tmp_path / ("a-long-name-" * 8)
    folder.mkdir()
    data = write_rows(folder / "news.csv", [4] * 30)
    recipe = tiny_recipe(tiny_base, data, "data.template=" + "{text} and more " * 10)
    measured = make_plan(
        ResolvedRecipe(recipe.recipe.model_copy(update={"description": "words " * 40}), recipe.origins)
    )
    known = make_plan(load_recipe("seed"))
    unknown = make_plan(load_recipe(None, {"data.train": "20newsgroups"}), measure_speed=False)
    for plan in (measured, known, unknown):
        lines = render_plan(plan)
        assert max(len(line) for line in lines) <= 80
        assert "\n" not in "".join(lines)


def test_the_rendered_seed_plan_shows_its_key_figures() -> None:
    text = "\n".join(render_plan(make_plan(load_recipe("seed"), measure_speed=False)))
    for shown in ("741,124", "125,389,832", "0.59 % trained", "35,625", "2.000e-04", "53.0", "recipe seed"):
        assert shown in text
    assert "from the catalogue, in RoBERTa's tokens" in text


@pytest.mark.parametrize(
    ("seconds", "shown"), [(20.0, "20 s"), (1_500.0, "25 min"), (30_000.0, "8.3 h"), (300_000.0, "3.5 days")]
)
def test_times_are_shown_in_the_unit_one_would_say_them_in(seconds: float, shown: str) -> None:
    estimate = TimeEstimate("cuda, bfloat16", (seconds, 2e6), "10 tokens")
    plan = replace(make_plan(load_recipe("seed"), measure_speed=False), time=estimate)
    assert f"{shown} to 23 days" in "\n".join(render_plan(plan))


def test_a_recipe_of_defaults_says_so_and_the_plan_is_json() -> None:
    plan = make_plan(load_recipe(), measure_speed=False)
    assert render_plan(plan)[0] == "values: all default"
    content = json.loads(json.dumps(plan.to_dict()))
    assert content["trainable"] == plan.trainable
    assert content["recipe"]["lora"]["rank"] == 8
    assert content["time"] is None


def test_the_output_shown_in_the_documentation_is_the_real_one() -> None:
    document = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    block = document.partition("newsdesk train --recipe seed --dry-run\n")[2].partition("```")[0]
    shown = [line for line in block.partition("estimated time")[0].splitlines() if line != "..."]
    assert len(shown) > 10
    assert set(shown) <= set(render_plan(make_plan(load_recipe("seed"), measure_speed=False)))
