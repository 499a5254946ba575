"""What is varied is checked before anything is trained; points are the ones that a method promises."""

from __future__ import annotations

import pytest

from newsdesk.config import load_recipe
from newsdesk.errors import UserError
from newsdesk.experiments.space import Space, override
from newsdesk.experiments.sweep import Asked, Budget, read_sweep

BASE = load_recipe("quick")


def recipes(space: Space, method: str) -> list[dict[str, object]]:
    return [space.values(point) for point in space.points(method)]


def test_a_grid_has_every_combination_once():
    space = Space.of(BASE, ["lora.rank=1,4", "lora.init=default,pissa,olora"], "grid")
    found = [tuple(values.values()) for values in recipes(space, "grid")]
    assert sorted(found) == [(rank, init) for rank in (1, 4) for init in ("default", "olora", "pissa")]


def test_one_by_one_changes_one_key_at_a_time_and_shares_the_recipes_own_point():
    own = {"lora.rank": 8, "training.learning_rate": 5e-4}
    space = Space.of(BASE, ["lora.rank=4,8,16", "training.learning_rate=1e-4,5e-4"], "one-by-one")
    assert recipes(space, "one-by-one") == [
        own,
        {**own, "lora.rank": 4},
        {**own, "lora.rank": 16},
        {**own, "training.learning_rate": 1e-4},
    ]


def test_one_by_one_may_vary_a_key_alone_and_with_others():
    vary = ["lora.rank=1,64", "lora.targets+lora.rank=attention:4,all-linear:2"]
    found = recipes(Space.of(BASE, vary, "one-by-one"), "one-by-one")
    ranks = [(values["lora.targets"], values["lora.rank"]) for values in found]
    own = ("query-value",)
    assert ranks == [(own, 8), (own, 1), (own, 64), (("attention",), 4), (("all-linear",), 2)]


def test_keys_varied_together_take_their_values_together():
    space = Space.of(BASE, ["lora.targets+lora.rank=query-value:16,all-linear:4"], "grid")
    found = [tuple(values.values()) for values in recipes(space, "grid")]
    assert sorted(found) == [(("all-linear",), 4), (("query-value",), 16)]


def test_a_range_is_whole_where_the_key_is_and_by_ratio_where_it_is_a_rate():
    space = Space.of(BASE, ["training.learning_rate=1e-4..1e-2", "training.warmup=0..2000"], "one-by-one")
    rates, warmup = (axis.asked for axis in space.axes)
    assert rates == ("0.0001", "0.000316", "0.001", "0.00316", "0.01")
    assert warmup == ("0", "500", "1000", "1500", "2000")


def test_values_are_those_of_toml_with_brackets_and_none():
    vary = ['lora.targets=["query", "key"],attention', "model.dropout=none,0.1", "lora.dora=false,true"]
    values = [values for axis in Space.of(BASE, vary, "grid").axes for values in axis.choices.values()]
    assert values[:2] == [(("query", "key"),), (("attention",),)]
    assert [value for (value,) in values][3:5] == [None, 0.1]
    assert override("lora.targets", ("query", "key")) == 'lora.targets=["query", "key"]'
    assert override("model.dropout", None) == "model.dropout=none"


def test_every_fault_of_every_key_is_named_at_once():
    vary = ["lora.rank=0,4,x", "lora.rnk=1", "training.seed=1,2", "lora.alpha=4..1", "lora.init=a", "y"]
    with pytest.raises(UserError, match="has 7 faults") as raised:
        Space.of(BASE, vary, "grid")
    found = raised.value.found.splitlines()
    wanted = ("not 0", "not 'x'", "did you mean lora.rank?", "--seeds", "is empty", "not 'a'", "'y'")
    assert all(part in line for part, line in zip(wanted, found, strict=True))


@pytest.mark.parametrize("key", ["data.text=title,body", "data.label=a,b", "data.validation_share=0.1,0.2"])
def test_what_decides_the_rows_is_not_varied(key):
    with pytest.raises(UserError, match="1 fault"):
        Space.of(BASE, [key], "grid")


def test_texts_may_be_made_otherwise_where_rows_are_not_split_off_by_text():
    assert Space.of(BASE, ["data.text=title,body"], "grid", rows_are_given=True).size() == 2


def test_epochs_that_are_varied_are_not_stretched_to_the_least_steps():
    assert Space.of(BASE, ["training.epochs=1,2"], "grid").base.recipe.training.min_steps == 0
    assert Space.of(BASE, ["lora.rank=1,2"], "grid").base.recipe.training.min_steps == 200


def test_a_grid_beyond_ten_thousand_points_is_refused():
    numbers = ",".join(map(str, range(1, 102)))
    with pytest.raises(UserError, match="is too large"):
        Space.of(BASE, [f"lora.rank={numbers}", f"lora.alpha={numbers}"], "grid").points("grid")


@pytest.mark.parametrize(("text", "spent"), [("45m", 2700.0), ("1.5h", 5400.0), ("90s", 90.0)])
def test_a_budget_is_a_time(text, spent):
    assert Budget.of(text) == Budget(seconds=spent)


@pytest.mark.parametrize(("text", "spent"), [("5Mtokens", 5e6), ("800 ktokens", 8e5), ("70tokens", 70.0)])
def test_a_budget_is_a_number_of_tokens(text, spent):
    assert Budget.of(text) == Budget(tokens=spent)


@pytest.mark.parametrize("text", ["45", "m", "0m", "-5m", "5 parsecs", "1e9tokens"])
def test_anything_else_is_no_budget(text):
    with pytest.raises(UserError, match="neither a time nor tokens"):
        Budget.of(text)


def test_the_lessons_vary_one_key_at_a_time_with_three_seeds():
    base, asked = read_sweep("lessons", Asked(seeds=5), {"data.train": "wire.csv"}, ("lora.rank=8",))
    assert (asked.method, asked.seeds, base.recipe.data.train, base.recipe.lora.rank) == (
        *("one-by-one", 5),
        *("wire.csv", 8),
    )
    points = recipes(Space.of(base, asked.vary, "one-by-one"), "one-by-one")
    assert {values["lora.rank"] for values in points} >= {1, 4, 64}
    assert len(points) > 40


SWEEP = """
[lora]
rank = 2

[sweep]
{}
"""


def test_a_sweep_file_is_a_recipe_with_a_section(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(
        SWEEP.format('method = "tpe"\ntrials = 3\n[[sweep.vary]]\nkeys = "lora.alpha"\nvalues = "1..9"')
    )
    base, asked = read_sweep(str(path), Asked(trials=7), {}, ())
    assert base.recipe.lora.rank == 2
    assert asked == Asked(vary=("lora.alpha=1..9",), method="tpe", trials=7)


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        ("trials = 0", "sweep.trials: 0 is not possible"),
        ("trials = true", "sweep.trials: True is not possible"),
        ('method = "all"', "sweep.method: 'all' is not possible"),
        ("folds = 1", "sweep.folds: 1 is not possible"),
        ("seed = 3", "sweep.seed: no such key"),
        ("vary = 3", "[[sweep.vary]] 1: it takes keys and values"),
        ('[[sweep.vary]]\nkeys = ["lora.rank"]\nvalues = "1"', "[[sweep.vary]] 1: it takes keys and values"),
    ],
)
def test_faults_of_a_sweep_file_are_named(tmp_path, section, fault):
    path = tmp_path / "sweep.toml"
    path.write_text(SWEEP.format(section))
    with pytest.raises(UserError) as raised:
        read_sweep(str(path), Asked(), {}, ())
    assert fault in raised.value.found


def test_a_recipe_and_a_sweep_are_not_taken_for_each_other():
    with pytest.raises(UserError, match="quick is no sweep"):
        read_sweep("quick", Asked(), {}, ())
    with pytest.raises(UserError, match="lessons is a sweep, not a recipe"):
        load_recipe("lessons")
