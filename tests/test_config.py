"""Recipes: layers, types, and errors that say what, where and how to mend it."""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.cli.project import find_project
from accord.cli.stages import STAGES
from accord.config import (
    LabelConfig,
    Layer,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    Recipe,
    RlConfig,
    Section,
    describe,
    load_label,
    load_recipe,
    merged,
    nested,
    read_layer,
    recipe_schema,
    shipped_recipes,
)
from accord.errors import UsageError

SECTIONS = Section.__subclasses__() + [kind for base in Section.__subclasses__() for kind in base.__subclasses__()]


def recipe_file(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refused(recipe: Path | str | None, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_recipe(recipe, overrides)
    return str(caught.value)


def test_layers_win_from_left_to_right(tmp_path: Path) -> None:
    """Built-in < project < the recipe extended < the recipe < command line; each key shows one layer winning."""
    project = recipe_file(tmp_path, "rl: {clip: 0.11, kl_coef: 0.11, iterations: 11, ppo_epochs: 11}", "accord.yaml")
    recipe_file(tmp_path, "rl: {kl_coef: 0.22, iterations: 22, ppo_epochs: 22}", "base.yaml")
    mine = recipe_file(tmp_path, "extends: base.yaml\nrl: {iterations: 33, ppo_epochs: 33}")
    rl = load_recipe(mine, ["rl.ppo_epochs=44"], defaults=read_layer(project)).rl
    assert (rl.clip, rl.kl_coef, rl.iterations, rl.ppo_epochs) == (0.11, 0.22, 33, 44)
    assert rl.gae_lambda == RlConfig().gae_lambda


def test_recipe_is_named_by_its_file(tmp_path: Path) -> None:
    assert load_recipe(recipe_file(tmp_path, "seed: 3")).name == "mine"
    assert load_recipe(recipe_file(tmp_path, "name: other")).name == "other"
    assert load_recipe(recipe_file(tmp_path, "")).seed == 0


def test_partial_section_keeps_its_own_defaults(tmp_path: Path) -> None:
    """Giving only the actor's rate must not fall back to the optimiser's general defaults."""
    kept = RlConfig().actor
    assert kept.eps != OptimConfig().eps and kept.schedule != OptimConfig().schedule
    for actor in (
        load_recipe(recipe_file(tmp_path, "rl: {actor: {lr: 0.5}}")).rl.actor,
        load_recipe(None, ["rl.actor.lr=0.5"]).rl.actor,
        RlConfig(actor={"lr": 0.5}).actor,
    ):
        assert actor == kept.model_copy(update={"lr": 0.5})


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("rl.kl_coef=0.02", 0.02),
        ("rl.kl_coef=1", 1.0),
        ("rl.kl_coef=2e-2", 0.02),  # PyYAML alone reads this as a text
        ("rl.kl_coef=1.5E-3", 0.0015),
        ("rl.kl_coef=.5", 0.5),
    ],
)
def test_numbers_are_read_as_people_write_them(override: str, value: float) -> None:
    assert load_recipe(None, [override]).rl.kl_coef == value


def test_overrides_are_typed_by_yaml() -> None:
    made = load_recipe(
        None, ["rl.kl_target=6", "rl.actor.betas=[0.9, 0.999]", "name=a.b", "rl.actor.schedule=constant"]
    )
    assert made.rl.kl_target == 6.0 and load_recipe(None, ["rl.kl_target=null"]).rl.kl_target is None
    assert made.rl.actor.betas == (0.9, 0.999) and made.name == "a.b" and made.rl.actor.schedule == "constant"


def test_unknown_key_names_line_and_suggests(tmp_path: Path) -> None:
    told = refused(recipe_file(tmp_path, "seed: 1\nrl:\n  iterations: 3\n  kl_ceof: 0.1\n"))
    assert "mine.yaml:4: unknown key 'rl.kl_ceof'" in told
    assert "did you mean 'rl.kl_coef'?" in told


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("sample.max_tokens=16", "did you mean 'sample.max_new_tokens'?"),
        ("sft.max_new_tokens=16", "did you mean 'sft.max_tokens'?"),
        ("rl.kl_coeff=1", "did you mean 'rl.kl_coef'?"),
        ("kl_coef=1", "did you mean 'rl.kl_coef'?"),
        ("rl.lr=1", "did you mean 'rl.actor.lr' or 'rl.critic.lr'"),
        ("rll.kl_coef=1", "did you mean 'rl'?"),
        ("model.zzz=1", "keys here: kind, width, layers"),
    ],
)
def test_suggestions(override: str, suggestion: str) -> None:
    assert suggestion in refused(None, override)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rl:\n  kl_coef: abc", "mine.yaml:2: rl.kl_coef: input should be a valid number, got 'abc'"),
        ("rl: {kl_coef: true}", "got True"),
        ("rl: {iterations: 2.5}", "got 2.5"),
        ("rl: {iterations: '3'}", "got '3'"),
        ("rl: {kl_coef: .nan}", "finite"),
        ("rl: {clip: 1.5}", "less than 1"),
        ("rl: {algorithm: pppo}", "'ppo'"),
        ("rl: {actor: {betas: [0.9, 1.0]}}", "must lie in [0, 1)"),
        ("rl: {minibatches: 7}", "prompts_per_iteration * samples_per_prompt 64 is not a multiple of minibatches 7"),
        ("model: {width: 250}", "width 250 is not a multiple of 2 * heads 16"),
        ("model: {kv_heads: 3}", "heads 8 is not a multiple of kv_heads 3"),
        ("model: {max_positions: 100}", "pretrain.block_tokens 256 is above model.max_positions 100"),
        ("rl: 3", "mine.yaml:1: rl is a section, got 3"),
        ("rl:", "rl is a section, got nothing"),
        ("- a\n- b", "holds a list, not a mapping"),
        ("rl: {", "mine.yaml:1: not valid YAML"),
        ("seed: 1\nseed: 2", "mine.yaml:2: not valid YAML: key 'seed' is given twice"),
        ("? [a]\n: 1", "not valid YAML"),
        ("name: ../up", "name"),
        ("seed: -1", "greater than or equal to 0"),
        ("extends: nowhere", "mine.yaml:1: no recipe 'nowhere'"),
        ("extends: [a]", "extends is a list"),
        ("extends: mine.yaml", "in a circle"),
    ],
)
def test_bad_recipes_are_refused_with_their_reason(tmp_path: Path, text: str, told: str) -> None:
    assert told in refused(recipe_file(tmp_path, text))


def test_all_type_errors_are_told_at_once(tmp_path: Path) -> None:
    told = refused(recipe_file(tmp_path, "seed: x\nrl:\n  clip: y\n"))
    assert "mine.yaml:1: seed" in told and "mine.yaml:3: rl.clip" in told


def test_override_error_names_the_override_not_the_file(tmp_path: Path) -> None:
    told = refused(recipe_file(tmp_path, "rl: {kl_coef: 0.1}"), "rl.kl_coef=abc")
    assert told.startswith("override rl.kl_coef=abc: rl.kl_coef:") and "mine.yaml" not in told


def test_an_algorithm_brings_its_usual_values_over_the_layers_below(tmp_path: Path) -> None:
    """demo.yaml has 128 prompts and 4 passes for PPO: 128 prompts of 8 completions each are not what was meant."""
    rl = load_recipe("demo", ["rl.algorithm=grpo"]).rl
    assert (rl.prompts_per_iteration, rl.samples_per_prompt, rl.ppo_epochs, rl.kl_coef) == (8, 8, 1, 0.04)
    assert rl.length_coef == 0.8  # no row has an opinion on it: the recipe's own
    for overrides in (["rl.algorithm=grpo", "rl.kl_coef=0.07"], ["rl.kl_coef=0.07", "rl.algorithm=grpo"]):
        assert load_recipe("demo", overrides).rl.kl_coef == 0.07
    mine = recipe_file(tmp_path, "extends: demo\nrl: {algorithm: rloo, samples_per_prompt: 2}")
    rl = load_recipe(mine).rl
    assert (rl.prompts_per_iteration, rl.samples_per_prompt, rl.ppo_epochs) == (16, 2, 1)
    assert load_recipe("demo", ["rl.algorithm=ppo"]) == load_recipe("demo")  # naming the same row changes nothing


def test_a_method_has_the_values_of_its_own_algorithm_not_of_the_recipes() -> None:
    methods = "{P: {rl: {algorithm: ppo}}, G: {rl: {algorithm: grpo}}, D: {rl: {kl_coef: 0.1}}}"
    recipe = load_recipe(None, ["rl.algorithm=dapo", "rl.iterations=7", f"compare.methods={methods}"])
    ppo, grpo, dapo = (recipe.method(name) for name in "PGD")
    assert ppo == RlConfig(iterations=7)
    assert grpo == RlConfig(algorithm="grpo", iterations=7)
    assert dapo == RlConfig(algorithm="dapo", iterations=7, kl_coef=0.1)


@pytest.mark.parametrize(
    "overrides",
    [
        ["rl.algorithm=grpo", "rl.ppo_epochs=4", "rl.kl_coef=0.05"],  # what PPO has, and not GRPO's own
        ["rl.algorithm=dapo", "rl.trust.clip_high=null", "rl.shaping.overlong_tokens=0"],
        ["dpo.loss=simpo", "dpo.dpo_beta=0.1"],
        ["rl.rewards=[{regex: a, weight: 2}]", "rl.actor.betas=[0.9, 0.999]"],
    ],
)
@pytest.mark.parametrize("recipe", [None, "demo", "compare", "smollm2"])
def test_the_recipe_that_a_run_leaves_is_the_recipe_it_ran(
    recipe: str | None, overrides: list[str], tmp_path: Path
) -> None:
    from accord.loop.run import write_run_files

    made = load_recipe(recipe, overrides).model_copy(update={"seed": 3})
    write_run_files(made, tmp_path)
    assert load_recipe(tmp_path / "recipe.yaml") == made


@pytest.mark.parametrize("key", ["rl.top_k", "rl.top_p"])
def test_training_refuses_truncated_laws_and_says_why(key: str) -> None:
    told = refused(None, f"{key}=1")
    assert f"{key} is refused" in told and "KL comes out negative" in told
    assert load_recipe(None, ["sample.top_p=0.9"]).sample.top_p == 0.9


@pytest.mark.parametrize("override", ["rl.kl_coef", "=3", "rl..kl_coef=1", ".=1"])
def test_overrides_need_key_and_value(override: str) -> None:
    assert "is not key=value" in refused(None, override)


def test_missing_and_unreadable_recipes(tmp_path: Path) -> None:
    assert "did you mean 'demo'?" in refused("demmo")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refused(binary)


def test_own_model_may_be_longer_than_the_recipes() -> None:
    """Without a recipe a stage works on the user's own checkpoint: the model section's length says nothing."""
    assert load_recipe(None, ["rl.max_new_tokens=1000"]).rl.max_new_tokens == 1000


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_load_and_survive_json(name: str) -> None:
    made = load_recipe(name)
    assert made.name == name
    assert Recipe.model_validate_json(json.dumps(made.resolved())) == made


def test_frozen_and_closed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().seed = 1  # type: ignore[misc]
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        PretrainConfig(epoch=3)  # type: ignore[call-arg]


def test_derived_sizes() -> None:
    assert ModelConfig(width=96, heads=4, kv_heads=2).head_width == 24  # 96 / 4
    assert RlConfig(prompts_per_iteration=6, samples_per_prompt=4, minibatches=8).samples_per_iteration == 24  # 6 * 4


def leaves(kind: type[Section]) -> int:
    """How many keys a section has that are no sections themselves, those of nested ones included."""
    return len(kind.model_fields) - len(nested(kind)) + sum(map(leaves, nested(kind).values()))


def test_a_file_of_sections_is_small_enough_to_read() -> None:
    for path in (Path(__file__).parents[1] / "src/accord/config").glob("*.py"):
        assert path.read_text().count("\n") <= 310, path.name


@pytest.mark.parametrize("kind", SECTIONS, ids=lambda kind: kind.__name__)
def test_sections_are_small_and_explained(kind: type[Section]) -> None:
    own = [key for key in kind.model_fields if key not in nested(kind)]
    assert len(own) <= 26
    if kind is not Recipe:  # which holds them all
        assert leaves(kind) <= 70  # of rl, with two optimisers, an adapter and who draws; the next is reward with 39
    assert all(field.description for field in kind.model_fields.values())
    assert kind.__doc__


@pytest.mark.parametrize("kind", SECTIONS, ids=lambda kind: kind.__name__)
def test_every_field_is_used(kind: type[Section]) -> None:
    """A key that nothing reads is a lie: each field's name occurs as an attribute outside this file."""
    assert set(kind.model_fields) - attributes_used() == set()


@cache
def attributes_used() -> set[str]:
    """Every attribute's name in the package but for the config's own files, read once for all sections."""
    package = Path(__file__).parents[1] / "src/accord"
    sources = [path for path in package.rglob("*.py") if package / "config" not in path.parents]
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in sources)
    by_name = {section for stage in STAGES for section in stage.sections}  # what the table of stage commands reads
    return by_name | {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_describe_shows_each_key_once_with_its_own_default() -> None:
    rows = {key: (value, meaning) for key, value, meaning in describe(Recipe())}
    assert len(rows) == len(describe(Recipe()))
    assert rows["rl.actor.eps"][0] == RlConfig().actor.eps != OptimConfig().eps
    assert rows["seed"] == (0, Recipe.model_fields["seed"].description)
    assert "rl" not in rows and "rl.actor" not in rows


def test_schema_knows_sections_and_forbids_others() -> None:
    schema = recipe_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == {*Recipe.model_fields, "extends"}
    assert schema["$defs"]["RlConfig"]["properties"]["kl_coef"]["description"]


mappings = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8
).filter(lambda value: isinstance(value, dict))


@given(mappings, mappings, mappings)
def test_merging_layers(a: dict, b: dict, c: dict) -> None:  # type: ignore[type-arg]
    """What a layer says itself always stands; nothing said changes nothing; grouping does not matter for b over c."""
    assert merged(a, {}) == a and merged({}, a) == a and merged(a, a) == a
    assert all(merged(a, b)[key] == value for key, value in b.items() if not isinstance(value, dict))
    assert set(merged(a, b)) == set(a) | set(b)
    snapshot = json.dumps(a, sort_keys=True)
    merged(merged(a, b), c)
    assert json.dumps(a, sort_keys=True) == snapshot


# -- labelling ---------------------------------------------------------------------------------------------------------


def label_layer(folder: Path, text: str) -> Layer:
    """The key ``label`` of an accord.yaml, as a command gets it."""
    (folder / "accord.yaml").write_text(text)
    project = find_project(folder)
    assert project is not None
    return project.label


def test_a_project_says_how_its_people_label_and_the_command_line_has_the_last_word(tmp_path: Path) -> None:
    text = "label:\n  kind: pair\n  overlap: 3\n  axes: [{name: wit, low: 0, high: 4}, {name: depth}]\n  flags: []\n"
    layer = label_layer(tmp_path, text)
    made = load_label(["overlap=2", "lease_minutes=5"], defaults=layer)
    assert (made.kind, made.overlap, made.lease_minutes, made.flags) == ("pair", 2, 5, ())
    assert [(axis.name, axis.low, axis.high) for axis in made.axes] == [("wit", 0, 4), ("depth", 1, 7)]
    assert load_label() == LabelConfig() == load_label(defaults=label_layer(tmp_path, "store: a.db\n"))


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("kind: poll", 3, "kind"),
        ("overlaps: 2", 3, "did you mean 'overlap'"),
        ("overlap: 0", 3, "overlap"),
        ("axes: []", 3, "axes"),
        ("axes: [{name: a}, {name: a}]", 2, "one of the axes stands there twice"),
        ("axes: [{name: a, low: 3, high: 3}]", 3, "has not 2 to 11 values"),
        ("axes: [{low: 3}]", 3, "name"),
        ("flags: [rude, rude]", 2, "one of the flags stands there twice"),
        ("skip_reasons: []", 3, "skip_reasons"),
        ("undo_minutes: -1", 3, "undo_minutes"),
    ],
)
def test_a_wrong_key_of_labelling_names_its_line(tmp_path: Path, text: str, line: int, what: str) -> None:
    layer = label_layer(tmp_path, f"store: accord.db\nlabel:\n  {text}\n")
    with pytest.raises(UsageError, match=what) as caught:
        load_label(defaults=layer)
    if line == 3:
        assert "accord.yaml:3" in str(caught.value)


def test_labelling_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="label is 3, not a mapping") as caught:
        label_layer(tmp_path, "label: 3\n")
    assert caught.value.where.endswith("accord.yaml:1")
