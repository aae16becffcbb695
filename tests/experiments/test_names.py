"""Values from names: what is not known is an error that names the nearest thing that is."""

import pytest

from experiments import names


def test_recommenders_with_presets_and_changes():
    model = names.recommender("wrmf:rapu-ml-victim,epochs=7,form=dense")
    assert (model.config["epochs"], model.config["factors"], model.config["form"]) == (7, 64, "dense")
    assert names.recommender("als").name == "als"
    assert names.recommender("itemae:revadv-toy,epochs=2").config["epochs"] == 2


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
        ("revadv", {"fakes": 3}, "needs surrogate"),
    ],
)
def test_bad_attacks(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        names.attack(name, **arguments)
