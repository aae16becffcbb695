"""Values from names: what is not known is an error that names the nearest thing that is."""

import pytest

from experiments import names
from models.data import load


def test_recommenders_with_presets_and_changes():
    model = names.recommender("wrmf:rapu-ml-victim,epochs=7,form=dense")
    assert (model.config["epochs"], model.config["factors"], model.config["form"]) == (7, 64, "dense")
    assert names.recommender("als").name == "als"
    assert names.recommender("itemae:revadv-toy,epochs=2").config["epochs"] == 2


def test_items_are_related_by_a_file(tmp_path, monkeypatch):
    monkeypatch.delenv("BILEVEL_DATA", raising=False)
    data = load(([1, 1, 2], [7, 9, 9]), name="ml-100k")
    file = tmp_path / "items.txt"
    file.write_text("9|war,spy|Rome\n7|spy|\n")
    model = names.recommender(f"rcf:accent,epochs=2,relations={file}", data)
    known = model.config["relations"]
    assert repr(known) == "Relations(2 items; type 1: 2 values, type 2: 1 value)"
    assert known.value.tolist() == [[0, 0, 0], [0, 1, 2]]  # 7 is of spies; 9 too, and of war, in Rome
    assert (model.config["epochs"], model.config["divide_by"]) == (2, "data")
    for given, message in (
        ((), "none is given here"),
        ((data,), "none are known of ml-100k.*relations=FILE"),
    ):
        with pytest.raises(ValueError, match=message):
            names.recommender("rcf", *given)


def test_the_items_of_movielens_are_known(data_dir):
    known = names.recommender("rcf", load("ml-100k")).config["relations"]
    assert (known.items, known.names) == (1682, ("genre", "director", "actor"))


def test_attacks_leave_out_what_is_none():
    assert names.attack("top-popular", fakes=2, budget=3, tau=None).name == "top_popular"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wmrf", "did you mean 'wrmf'"),
        ("sasrec", "There are: wrmf"),
        ("wrmf:rapu-ml-victm", "did you mean 'rapu-ml-victim'"),
        ("wrmf,epoch=3", "did you mean 'epochs'"),
        ("wrmf,epochs", "is not argument=value"),
        ("wrmf,epochs=-1", "epochs"),
        ("wrmf,form=sparse", "form"),
    ],
)
def test_bad_recommenders(text, message):
    with pytest.raises(ValueError, match=message):
        names.recommender(text)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("revad", {}, "did you mean 'revadv'"),
        ("random", {"fakes": 3, "budget": 2, "tau": 5}, "'random' has no use for 'tau'"),
        ("random", {"fakes": 3}, "needs budget"),
        ("rapu-g", {"fakes": 3}, "--attack rapu-g needs --surrogate and --budget$"),
        ("revadv", {"fakes": 3, "hint": "or a preset"}, "revadv needs --surrogate; or a preset$"),
    ],
)
def test_bad_attacks(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        names.attack(name, **arguments)
