"""The recipe: checked whole, traceable to where its values came from, the same once written and read."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from newsdesk.config import (
    SECTIONS,
    LoraSection,
    ModelSection,
    Recipe,
    ResolvedRecipe,
    TrainingSection,
    load_recipe,
    recipe_names,
)
from newsdesk.errors import UserError


def refused(*overrides: str, name: str | None = None) -> UserError:
    with pytest.raises(UserError) as raised:
        load_recipe(name, overrides=overrides)
    return raised.value


def test_the_seed_recipe_is_exactly_the_reference_job():
    recipe = load_recipe("seed").recipe
    lora, training = recipe.lora, recipe.training
    assert (recipe.data.train, recipe.model.base, recipe.model.max_length) == ("ag_news", "roberta-base", 256)
    assert (lora.rank, lora.alpha, lora.dropout, lora.targets) == (4, 16.0, 0.1, ("query-value",))
    assert (lora.bias, lora.rslora, lora.dora, lora.init) == ("none", False, False, "default")
    assert (training.learning_rate, training.weight_decay) == (2e-4, 0.01)
    assert (training.schedule, training.warmup, training.epochs) == ("cosine", 500, 5.0)
    assert (training.batch_size, training.accumulation, training.head_learning_rate) == (16, 1, None)
    assert (training.label_smoothing, training.class_weights, training.precision) == (0.0, "none", "auto")


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_written_and_read_back_equal(name: str, tmp_path: Path):
    resolved = load_recipe(name)
    path = tmp_path / "recipe.toml"
    path.write_text(resolved.to_toml(), encoding="utf-8")
    assert load_recipe(str(path)).recipe == resolved.recipe


def test_a_recipe_far_from_the_defaults_is_written_and_read_back_equal(tmp_path: Path):
    given = Recipe.model_validate(
        {
            "description": 'quotes " and \\ and\ttabs\nlines and DEL \x7f and ü',
            "data": {"train": "wire.csv", "text": ["a b", "c"], "header": False, "train_rows": 7},
            "model": {"dropout": 0.0, "train_pooler": False},
            "lora": {"targets": ["all-linear"], "init": "pissa", "alpha": 1e-7},
            "training": {"warmup": 0, "validate_every": 0.25, "clip": 0.0, "patience": 2, "epochs": 1e16},
        }
    )
    path = tmp_path / "recipe.toml"
    path.write_text(ResolvedRecipe(given, {}).to_toml(), encoding="utf-8")
    again = load_recipe(str(path)).recipe
    assert again == given
    assert isinstance(again.training.warmup, int)


def test_nothing_given_is_the_defaults_and_every_value_says_so():
    resolved = load_recipe()
    assert resolved.recipe == Recipe()
    values = [line for line in resolved.to_toml().splitlines() if "#" in line]
    assert len(values) == sum(len(getattr(Recipe(), section).model_dump()) for section in SECTIONS)
    assert all(line.endswith("  # default") for line in values)


def test_every_value_says_where_it_came_from():
    resolved = load_recipe("seed", {"lora.rank": 8, "data.train": None}, ["lora.alpha=32"])
    assert resolved.recipe.data.train == "ag_news"
    lines = resolved.to_toml().splitlines()
    assert "rank = 8  # flag" in lines
    assert "alpha = 32.0  # flag --set" in lines
    assert "dropout = 0.1  # recipe seed" in lines
    assert "rslora = false  # default" in lines
    assert "# head_learning_rate is absent  # default" in lines


def test_flags_win_over_the_recipe_and_set_wins_over_flags():
    assert load_recipe("seed", {"lora.rank": 8}).recipe.lora.rank == 8
    assert load_recipe("seed", {"lora.rank": 8}, ["lora.rank=2"]).recipe.lora.rank == 2


def test_set_reads_toml_and_takes_bare_words_as_strings():
    recipe = load_recipe(
        overrides=[
            "lora.rank=16",
            "lora.dora = true",
            'lora.targets=["query", "key"]',
            "training.schedule=linear",
            'training.device="cpu"',
            "data.train=runs/my data.csv",
            "data.template={title}. {body}",
            "training.learning_rate=1e-3",
        ]
    ).recipe
    assert (recipe.lora.rank, recipe.lora.dora, recipe.lora.targets) == (16, True, ("query", "key"))
    assert (recipe.training.schedule, recipe.training.device) == ("linear", "cpu")
    assert recipe.data.train == "runs/my data.csv"
    assert recipe.data.template == "{title}. {body}"
    assert recipe.training.learning_rate == 1e-3


@pytest.mark.parametrize("nothing", ["none", "None", "null", ""])
def test_a_value_that_may_be_absent_can_be_unset(nothing: str, tmp_path: Path):
    resolved = load_recipe("best", overrides=[f"training.validate_every={nothing}", f"data.label={nothing}"])
    assert (resolved.recipe.training.validate_every, resolved.recipe.data.label) == (None, None)
    assert "# validate_every is absent  # flag --set" in resolved.to_toml().splitlines()
    path = tmp_path / "recipe.toml"
    path.write_text(resolved.to_toml(), encoding="utf-8")
    assert load_recipe(str(path)).recipe == resolved.recipe


def test_none_stays_a_name_where_a_value_is_needed_or_it_is_quoted():
    recipe = load_recipe(overrides=["lora.bias=none", "data.normaliser=none", 'data.label="none"']).recipe
    assert (recipe.lora.bias, recipe.data.normaliser, recipe.data.label) == ("none", "none", "none")
    assert "lora.rank: input should be a valid integer" in (refused("lora.rank=none").found or "")


@pytest.mark.parametrize("key", ["validate_every", "checkpoint_every"])
def test_an_interval_with_a_point_is_in_epochs_of_which_there_may_be_several(key: str):
    for given, value in (("1.0", 1.0), ("0.25", 0.25), ("2.0", 2.0), ("1", 1), ("0", 0)):
        found = getattr(load_recipe(overrides=[f"training.{key}={given}"]).recipe.training, key)
        assert (found, type(found)) == (value, type(value))
    assert "training." in (refused(f"training.{key}=-0.5").found or "")


def test_the_floor_of_steps_gives_way_to_epochs_that_the_user_asks_for(tmp_path: Path):
    mine = tmp_path / "mine.toml"
    mine.write_text("[training]\nepochs = 2.0\n")
    other = tmp_path / "other.toml"
    other.write_text("[lora]\nrank = 2\n")
    floors = {
        None: 200,
        "quick": 200,
        "best": 200,
        str(other): 200,
        str(mine): 0,
    }
    for recipe, floor in floors.items():
        assert load_recipe(recipe).recipe.training.min_steps == floor
        assert load_recipe(recipe, {"training.epochs": 1.0}).recipe.training.min_steps == 0
        assert load_recipe(recipe, overrides=["training.epochs=1.0"]).recipe.training.min_steps == 0
        both = ["training.epochs=1.0", "training.min_steps=50"]
        assert load_recipe(recipe, overrides=both).recipe.training.min_steps == 50
    lines = load_recipe("quick", {"training.epochs": 1.0}).to_toml().splitlines()
    assert "min_steps = 0  # epochs by flag" in lines


def test_a_description_is_dropped_where_it_would_tell_of_other_data_or_another_base(tmp_path: Path):
    described = load_recipe("quick").recipe.description
    assert "Reuters" in described
    same = {"data.train": "reuters-r8", "model.base": "all-MiniLM-L6-v2", "lora.rank": 2}
    assert load_recipe("quick", same).recipe.description == described
    assert load_recipe("quick", {"data.train": "arabic.csv"}).recipe.description == ""
    assert load_recipe("quick", overrides=["model.base=roberta-base"]).recipe.description == ""
    path = tmp_path / "mine.toml"
    path.write_text('description = "our desk\'s own"\n[lora]\nrank = 2\n')
    assert load_recipe(str(path), {"data.train": "a.csv"}).recipe.description == "our desk's own"


def test_one_name_needs_no_brackets():
    recipe = load_recipe(overrides=["lora.targets=all-linear", "data.text=headline"]).recipe
    assert (recipe.lora.targets, recipe.data.text) == (("all-linear",), ("headline",))


def test_warmup_is_steps_without_a_point_and_a_share_with_one():
    assert load_recipe(overrides=["training.warmup=500"]).recipe.training.warmup == 500
    share = load_recipe(overrides=["training.warmup=0.1"]).recipe.training.warmup
    assert (share, type(share)) == (0.1, float)


@pytest.mark.parametrize("override", ["rank=4", "lora.rank", "lora.rank.x=4", ""])
def test_a_set_that_is_no_key_and_value_is_refused(override: str):
    assert "section.key=value" in refused(override).wrong


def test_every_fault_is_reported_at_once_with_its_origin(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text('[lora]\nrank = 0\ninit = "magic"\n[model]\nmax_length = "long"\n')
    error = refused("training.batch_size=-1", "lora.rnk=4", name=str(path))
    assert error.wrong == "the recipe has 5 faults"
    found = dict(line.strip().split(": ", 1) for line in (error.found or "").splitlines())
    assert found.keys() == {"lora.rank", "lora.init", "model.max_length", "training.batch_size", "lora.rnk"}
    assert found["lora.rank"] == f"input should be greater than 0, not 0 (recipe {path})"
    assert found["training.batch_size"].endswith("not -1 (flag --set)")
    assert "'pissa'" in found["lora.init"]


def test_one_fault_is_one():
    assert refused("lora.rank=0").wrong == "the recipe has 1 fault"


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("lora.rnk=4", "did you mean lora.rank?"),
        ("training.lr_rate=4", "did you mean training."),
        ("training.learnin_rate=4", "did you mean training.learning_rate?"),
        ("lara.rank=4", "did you mean lora?"),
        ("qqq.zzz=4", "keys start with data, model, lora, training"),
    ],
)
def test_an_unknown_key_suggests_the_nearest(override: str, suggestion: str):
    assert suggestion in (refused(override).found or "")


def test_a_key_outside_its_section_is_suggested_inside_it(tmp_path: Path):
    path = tmp_path / "flat.toml"
    path.write_text("learning_rate = 1e-3\n")
    assert "did you mean training.learning_rate?" in (refused(name=str(path)).found or "")


def test_a_value_of_two_kinds_says_both():
    found = refused("training.warmup=1.5").found or ""
    assert "input should be a valid integer, or input should be less than 1, not 1.5 (flag --set)" in found


@pytest.mark.parametrize("value", ["inf", "nan", "-inf"])
def test_infinities_are_refused(value: str):
    assert "finite" in (refused(f"lora.alpha={value}").found or "")


def test_label_smoothing_and_balanced_weights_are_refused_together():
    error = refused("training.label_smoothing=0.1", "training.class_weights=balanced")
    assert "label_smoothing and class_weights='balanced' cannot be combined" in (error.found or "")
    assert load_recipe(overrides=["training.class_weights=balanced"]).recipe.training.label_smoothing == 0


@pytest.mark.parametrize("override", ["training.warmup=1.0", "data.validation_share=1", "lora.dropout=1.0"])
def test_a_share_is_less_than_the_whole(override: str):
    assert "less than 1" in (refused(override).found or "")


def test_a_section_written_as_a_value_is_refused(tmp_path: Path):
    path = tmp_path / "odd.toml"
    path.write_text("lora = 4\n")
    assert "lora: input should be" in (refused(name=str(path)).found or "")
    assert "lora is a section" in refused("lora.rank=4", name=str(path)).wrong


def test_a_recipe_that_is_not_there_names_those_that_are(tmp_path: Path):
    error = refused(name="sead")
    assert all(name in (error.found or "") for name in recipe_names())
    assert "no recipe file" in refused(name=str(tmp_path / "none.toml")).wrong


@pytest.mark.parametrize("content", [b"[lora\n", b"rank = four\n", b"description = '\xff'\n"])
def test_a_file_that_is_not_toml_is_refused_in_a_sentence(content: bytes, tmp_path: Path):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    assert "not valid TOML" in refused(name=str(path)).wrong


def test_a_recipe_file_needs_no_suffix(tmp_path: Path):
    path = tmp_path / "recipe"
    path.write_text("[lora]\nrank = 2\n")
    assert load_recipe(str(path)).recipe.lora.rank == 2


def test_a_recipe_never_changes():
    for section in (Recipe(), LoraSection(), ModelSection(), TrainingSection()):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, next(iter(type(section).model_fields)), 1)


def test_the_seed_recipe_is_among_the_names_and_the_names_are_sorted():
    assert "seed" in recipe_names()
    assert recipe_names() == sorted(recipe_names())


def test_nothing_is_compiled_unless_asked_and_auto_of_earlier_versions_means_off():
    assert load_recipe().recipe.training.compile == "off"
    assert load_recipe(overrides=["training.compile=auto"]).recipe.training.compile == "off"
    assert load_recipe(overrides=["training.compile=on"]).recipe.training.compile == "on"


def test_targets_cannot_be_none_at_all():
    with pytest.raises(UserError, match=r"lora\.targets"):
        load_recipe(None, None, ["lora.targets=[]"])
