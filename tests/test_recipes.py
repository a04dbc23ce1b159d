"Recipes: complete, strict, and the same after a round trip."
import dataclasses
import json

import pytest

from semgbook.encoders import build_encoder
from semgbook.recipes import CHOICES, PRESETS, Recipe, RecipeError, checked, override, preset, recipe_from_dict


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_sound_and_survives_json(name):
    recipe = preset(name)
    assert recipe.name == name and checked(recipe) is recipe
    assert recipe_from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert PRESETS[name].__doc__ and ("Published" in PRESETS[name].__doc__ or "Nothing published" in PRESETS[name].__doc__)


def places(values, where=""):
    for name, value in values.items():
        if isinstance(value, dict) and value: yield from places(value, f"{where}{name}.")
        else: yield where + name


@pytest.mark.parametrize("place", [p for p in places(preset("bilstm_kao").to_dict()) if p not in ("name", "method")])
def test_every_value_is_part_of_the_hash(place):
    "A choice that does not change the hash would let two different runs share a folder."
    base = preset("bilstm_kao").to_dict()
    inner, *path = base, *place.split(".")
    for name in path[:-1]: inner = inner[name]
    old = inner[path[-1]]
    inner[path[-1]] = {"changed": 1} if isinstance(old, dict) else "changed" if not isinstance(old, (int, float)) else old + 1
    same = Recipe("x", "x").to_dict() | base
    from semgbook.repro import stable_hash
    strip = lambda d: {k: v for k, v in d.items() if k not in ("name", "method")}
    assert stable_hash(strip(same)) != preset("bilstm_kao").hash()


@pytest.mark.parametrize("changes, words", [
    ({"optimiser.lrr": 1.0}, "optimiser.lr"), ({"training.epochs": "5"}, "training.epochs"), ({"training.epochs": True}, "training.epochs"),
    ({"training.epochs": 2.5}, "training.epochs"), ({"optimizer.lr": 1.0}, "optimizer"), ({"data.window_s": 0.0}, "data.window_s"),
    ({"data.window_s": float("nan")}, "data.window_s"), ({"optimiser.warmup": 1.0}, "optimiser.warmup"), ({"augment.rotatoin": 1}, "augment.rotation"),
    ({"training.batch_size": 0}, "training.batch_size"), ({"optimiser.clip": -1.0}, "optimiser.clip"), ({"data": 3}, "data")])
def test_refusals_name_the_field(changes, words):
    with pytest.raises(RecipeError, match=words): override(preset("bilstm_kao"), changes)


@pytest.mark.parametrize("place", CHOICES)
def test_choices_are_closed(place):
    with pytest.raises(RecipeError, match=place): override(preset("bilstm_kao"), {place: "nonsense"})


def test_whole_numbers_are_welcome_as_floats():
    assert override(preset("bilstm_kao"), {"data.window_s": 4}).data.window_s == 4.0


def test_recipes_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError): preset("bilstm_kao").encoder = "tds"


@pytest.mark.parametrize("name", [n for n in PRESETS if n.startswith("hybrid_") and n.endswith("_embedded") and "gpt2" not in n])
def test_the_context_gives_back_what_the_convolutions_take(name):
    "Emissions begin before, or hardly after, the first label of a window."
    recipe = preset(name)
    encoder = build_encoder(recipe.encoder, 2, 16, recipe.front_end.n_fft // 2 + 1)
    first_ends = (recipe.front_end.n_fft + (encoder.shortest - 1) * recipe.front_end.hop) / 2000
    assert first_ends <= recipe.data.left_context_s + 0.13
