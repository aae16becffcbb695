"""A black box behind a port: what it answers to questions it cannot serve. What it serves: test_blackbox.py."""

import json
import urllib.error
import urllib.request

import numpy as np
import pytest

import attacks
from attacks.blackbox import Unexplained
from models.data import Interactions, Profiles, new_items

USERS, ITEMS, TARGETS = 10, 12, [12, 13, 14]


@pytest.fixture(scope="module")
def train():
    rng = np.random.default_rng(0)
    data = Interactions.from_arrays(
        rng.integers(0, USERS, 60),
        rng.integers(0, ITEMS, 60),
        users=USERS,
        items=ITEMS,
        time=np.arange(60),
        track="sequence",
    )
    return new_items(data, 3).data


def popular(data, query):
    """A victim in NumPy that counts."""
    counts = np.bincount(np.asarray(data.item)[data.real()], minlength=data.items).astype(np.float32)
    return (lambda users: np.tile(counts, (len(users), 1))), counts


def profiles(*rows):
    return Profiles.from_clicks(rows, TARGETS, items=ITEMS + 3)


def test_a_service_says_what_is_wrong(train, key):
    box = attacks.Retrained(popular, train, TARGETS, key, candidates=4, k=2)
    with attacks.serve(box, items=ITEMS + 3) as url:
        service = attacks.Service(url)
        with pytest.raises(ValueError, match=r"item 99 is outside 0\.\.14"):
            service.inject(profiles([99], [0]))
        with pytest.raises(ValueError, match=r"clicks holds 1\.5"):
            service._ask("/inject", {"clicks": [[1.5, 0]]})
        with pytest.raises(Unexplained, match="explainer="):
            service.explain(0, 1)
        with pytest.raises(ValueError, match="nothing at /reset"):
            service._ask("/reset", {})
        with pytest.raises(ValueError, match="lacks something"):
            service._ask("/recommend", {})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(f"{url}/inject", b"{"))
        assert "no JSON" in json.load(refused.value)["error"]
    with pytest.raises(OSError, match="refused"):
        attacks.Service(url, timeout=5).recnum()
    with pytest.raises(ValueError, match="http://"):
        attacks.Service("localhost:80")
