"""Golden numbers of the recommenders, computed by plain PyTorch from the papers' equations.

A second implementation that shares nothing with `models/`: no import of it, no JAX, dense matrices and explicit sums
instead of sparse products. It draws parameters, says which pairs, noise and orders a step sees, and stores the loss,
its gradient in every parameter and in the relaxed fake rows, the parameters after `STEPS` optimizer steps on those same
draws, and the scores. `test_models.py` gives the same parameters and draws to ours and compares in float64.

Make the files again, in the environment of the peers (PyTorch 2, CPU):

    .venv-peers/bin/python tests/golden/models/make_models.py

One file a case, `NAME-CASE.npz`:

    meta                    JSON: name of the recommender, arguments of its factory, optimizer steps, step number
    train/user, item, ...   the real interactions (track in `meta`)
    x                       (F, I) relaxed fake rows
    params/..., grad/..., after/...     parameters, gradient, parameters after the steps; names as in our trees
    grad_x, loss, scores
    draws/...               what is random in a step: pairs, noise, dropout, order of premises, sampled negatives

What the draws mean is said at each model. Nothing here reads a random key: they are given to ours by the test.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nn

HERE = Path(__file__).resolve().parent
STEPS = 2
U, I, F, D = 5, 6, 2, 3
torch.set_default_dtype(torch.float64)

# User 4 and item 5 have no click, so degrees, norms and counts of 0 are seen; fake row 1 has a cell of 0 in a pair.
CLICKS = {"user": [0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 3], "item": [0, 1, 3, 1, 2, 0, 4, 1, 2, 3, 4]}
X = np.array([[0.7, 0.0, 0.2, 0.0, 1.0, 0.0], [0.0, 0.5, 0.0, 0.9, 0.0, 0.0]])
# A rating of 0.5 to 8 over 8 is exact in float32, in which ratings are kept.
RATINGS = {**CLICKS, "weight": [8.0, 3.0, 5.0, 1.0, 0.5, 2.0, 7.0, 4.0, 6.0, 2.5, 8.0]}
NO_FAKES = np.zeros((0, I))


def dense(train: dict) -> torch.Tensor:
    """(U, I) clicks or ratings."""
    matrix = np.zeros((U, I))
    matrix[train["user"], train["item"]] = train.get("weight", 1.0)
    return torch.tensor(matrix)


def draw(seed: int, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Parameters N(0, 1/2), by name; a `/` separates the levels of our tree."""
    rng = np.random.default_rng(seed)
    return {name.replace("__", "/"): rng.normal(0, 0.7, shape) for name, shape in shapes.items()}


def tables(seed: int, factors: int = D) -> dict[str, np.ndarray]:
    """The three tables of a factor model."""
    return draw(seed, user=(U, factors), item=(I, factors), fake=(F, factors))


def gradient(loss, params: dict, x: np.ndarray):
    """Loss, gradient in the parameters and gradient in `x`."""
    p = {name: torch.tensor(value, requires_grad=True) for name, value in params.items()}
    xs = torch.tensor(x, requires_grad=True)
    value = loss(p, xs)
    grads = torch.autograd.grad(value, [*p.values(), xs], allow_unused=True)
    zero = lambda g, like: torch.zeros_like(like) if g is None else g
    by_name = {name: zero(g, leaf).numpy() for (name, leaf), g in zip(p.items(), grads)}
    return value.item(), by_name, zero(grads[-1], xs).numpy()


def stepped(loss, params: dict, x: np.ndarray, optimizer, after_step=None, before_step=None) -> dict:
    """The parameters after `STEPS` steps of a PyTorch optimizer."""
    p = {name: torch.tensor(value, requires_grad=True) for name, value in params.items()}
    chosen = optimizer(list(p.values()))
    for _ in range(STEPS):
        chosen.zero_grad()
        loss(p, torch.tensor(x)).backward()
        if before_step is not None:
            before_step(p)
        chosen.step()
        if after_step is not None:
            after_step(p)
    return {name: leaf.detach().numpy() for name, leaf in p.items()}


def save(name: str, case: str, config: dict, train: dict, arrays: dict, *, track="implicit", **meta) -> None:
    """One file; nested dictionaries of arrays are joined by `/`."""
    flat: dict[str, np.ndarray] = {}

    def put(prefix: str, value) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                put(f"{prefix}/{key}", inner)
        else:
            flat[prefix] = np.asarray(value.detach() if isinstance(value, torch.Tensor) else value)

    for key, value in {"train": train, **arrays}.items():
        put(key, value)
    told = {"name": name, "config": config, "track": track, "steps": STEPS, **meta}
    np.savez_compressed(HERE / f"{name}-{case}.npz", meta=np.array(json.dumps(told)), **flat)


def learned(
    name, case, config, train, params, x, loss, scores, optimizer, *, draws=None, track="implicit", **how
) -> None:
    """Everything of a model that is trained by an optimizer. `scores(p, x) -> (U, I)`."""
    value, grads, grad_x = gradient(loss, params, x)
    hooks = {key: how.pop(key) for key in ("after_step", "before_step") if key in how}
    p = {key: torch.tensor(leaf) for key, leaf in params.items()}
    arrays = {
        "x": x,
        "params": params,
        "loss": value,
        "grad": grads,
        "grad_x": grad_x,
        "after": stepped(loss, params, x, optimizer, **hooks),
        "scores": scores(p, torch.tensor(x)),
        "draws": draws or {},
    }
    save(name, case, config, train, arrays, track=track, **how)


def adam(rate: float, decay: float = 0.0):
    """Adam; `decay` is coupled: added to the gradient."""
    return lambda leaves: torch.optim.Adam(leaves, lr=rate, weight_decay=decay)


class Adagrad:
    """Adagrad with epsilon inside the root, `rate g / sqrt(sum g^2 + epsilon)`, as in GRU4Rec's code and in optax.

    `torch.optim.Adagrad` adds epsilon to the root, so it is another formula and not used.
    """

    def __init__(self, leaves: list[torch.Tensor], rate: float, *, start: float, epsilon: float):
        self.leaves, self.rate, self.epsilon = leaves, rate, epsilon
        self.squared = [torch.full_like(leaf, start) for leaf in leaves]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for leaf in self.leaves:
            leaf.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move every leaf along its gradient."""
        for leaf, squared in zip(self.leaves, self.squared):
            squared += leaf.grad**2
            leaf -= self.rate * leaf.grad / torch.sqrt(squared + self.epsilon)


# ------------------------------------------------------------------------------------------------ pairs
#
# A pair is a click (row of [real users; fake users], item) beside N items not clicked, and a weight: 1 for a click, 0
# for padding, the relaxed cell itself for a fake user. The loss of a step is the weighted mean over its pairs.
# Negatives are any items here (a loss does not care whether they were clicked).

PAIRS = {
    "user": np.array([0, 1, 3, 2, 4, 5, 5, 6, 6]),
    "item": np.array([1, 2, 4, 0, 5, 0, 2, 3, 4]),
    "negative": np.array([[2, 4], [0, 3], [0, 5], [1, 1], [0, 1], [1, 3], [3, 5], [0, 2], [5, 1]]),
    "real": np.array([1.0, 1, 1, 1, 0, 0, 0, 0, 0]),  # weight of the pairs of real users
    "cell": np.array([0, 0, 0, 0, 0, 1, 1, 1, 1]),  # 1: the weight is x[user - U, item]
}


def pairs(negatives: int = 2) -> dict[str, np.ndarray]:
    """The pairs of a step with so many negatives each."""
    return {**PAIRS, "negative": PAIRS["negative"][:, :negatives]}


def weights(drawn: dict, x: torch.Tensor) -> torch.Tensor:
    """(B,) weights of the pairs, differentiable in `x`."""
    return torch.stack(
        [
            x[u - U, i] if cell else torch.tensor(real)
            for u, i, cell, real in zip(drawn["user"], drawn["item"], drawn["cell"], drawn["real"])
        ]
    )


def looked_up(p: dict, drawn: dict, prefix: str = ""):
    """User, positive and negative embeddings of the pairs: (B, D), (B, D), (B, N, D)."""
    users = torch.cat([p[prefix + "user"], p[prefix + "fake"]])
    items = p[prefix + "item"]
    return users[drawn["user"]], items[drawn["item"]], items[drawn["negative"]]


def bpr_loss(user, positive, negative, w) -> torch.Tensor:
    """Weighted mean of `mean_j -log sigmoid(s_ui - s_uj)`."""
    difference = (user * positive).sum(-1, keepdim=True) - (user[:, None] * negative).sum(-1)
    return (w * (-nn.logsigmoid(difference)).mean(1)).sum() / w.sum()


def squares(user, positive, negative) -> torch.Tensor:
    """(B,) `|p|^2 + |q_i|^2 + mean_j |q_j|^2`."""
    return (user**2).sum(-1) + (positive**2).sum(-1) + (negative**2).sum(-1).mean(1)


def ncf_scores(p: dict, users: torch.Tensor, items: torch.Tensor, hidden: int | None) -> torch.Tensor:
    """He et al., eqs 8-12, for index arrays of one shape; `hidden` layers in the tower, None: GMF."""
    every = torch.cat([p["user"], p["fake"]])
    h = every[users] * p["item"][items]
    if hidden is not None:
        tower = torch.cat([torch.cat([p["tower_user"], p["tower_fake"]])[users], p["tower_item"][items]], -1)
        for k in range(hidden):
            tower = torch.relu(tower @ p[f"layers/{k}/kernel"] + p[f"layers/{k}/bias"])
        h = torch.cat([h, tower], -1)
    return (h @ p["last/kernel"] + p["last/bias"])[..., 0]


def ncf(name: str, case: str, hidden: tuple[int, ...] | None, l2: float, summed: bool) -> None:
    """Binary cross-entropy averaged over the click and its negatives, then over the clicks.

    The penalty is `l2/2` times the squares of everything looked up: the user once, every item; summed over the
    pairs (RevAdv's code) or averaged.
    """
    params = tables(1)
    width = D
    if hidden is not None:
        params |= draw(2, tower_user=(U, 2), tower_item=(I, 2), tower_fake=(F, 2))
        sizes = [4, *hidden]
        for k, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            params |= draw(
                3 + k, **{f"layers__{k}__kernel": (inputs, outputs), f"layers__{k}__bias": (outputs,)}
            )
        width += sizes[-1]
    params |= draw(9, last__kernel=(width, 1), last__bias=(1,))
    drawn = pairs()
    layers = None if hidden is None else len(hidden)

    def loss(p, x):
        w = weights(drawn, x)
        items = np.concatenate([drawn["item"][:, None], drawn["negative"]], 1)
        users = np.repeat(drawn["user"][:, None], 3, 1)
        label = torch.tensor([1.0, 0.0, 0.0]).expand(len(w), 3)
        logits = ncf_scores(p, torch.tensor(users), torch.tensor(items), layers)
        entropy = nn.binary_cross_entropy_with_logits(logits, label, reduction="none").mean(1)
        prefixes = [""] if hidden is None else ["", "tower_"]
        penalty = 0.0
        for prefix in prefixes:
            user, positive, negative = looked_up(p, drawn, prefix)
            penalty = penalty + (user**2).sum(-1) + (positive**2).sum(-1) + (negative**2).sum((-1, -2))
        share = 1.0 if summed else w.sum()
        return (w * entropy).sum() / w.sum() + l2 / 2 * (w * penalty).sum() / share

    def scores(p, x):
        users = torch.arange(U)[:, None].expand(U, I)
        return ncf_scores(p, users, torch.arange(I).expand(U, I), layers)

    config = {"factors": D, "l2": l2, "summed_penalty": summed, "negatives": 2, "learning_rate": 0.02}
    if hidden is not None:
        config |= {"tower": 2, "hidden": list(hidden)}
    learned(name, case, config, CLICKS, params, X, loss, scores, adam(0.02), draws=drawn)


def cml(case: str, rank_weight: bool, unit_ball: bool, margin: float) -> None:
    """Hsieh et al., eqs 1-3: hinge of the closest of the negatives, mean over the clicks; penalty summed.

    `rank_weight`: `log(1 + I M / N)` for M of N negatives inside the margin, a constant. `unit_ball`: rows are
    clipped to norm 1 after the step.
    """
    drawn, l2 = pairs(), 0.03

    def loss(p, x):
        w = weights(drawn, x)
        user, positive, negative = looked_up(p, drawn)
        near = ((user - positive) ** 2).sum(-1)
        far = ((user[:, None] - negative) ** 2).sum(-1)
        hinge = torch.relu(margin + near - far.min(1).values)
        if rank_weight:
            inside = ((margin + near[:, None] - far) > 0).double().mean(1)
            hinge = hinge * torch.log(1 + I * inside)
        penalty = (user**2).sum(-1) + (positive**2).sum(-1) + (negative**2).sum((-1, -2))
        return (w * hinge).sum() / w.sum() + l2 / 2 * (w * penalty).sum()

    def clip(p):
        with torch.no_grad():
            for leaf in p.values():
                leaf.copy_(leaf / leaf.norm(dim=1, keepdim=True).clamp(min=1))

    scores = lambda p, x: -((p["user"][:, None] - p["item"][None]) ** 2).sum(-1)
    config = {
        "factors": D,
        "margin": margin,
        "l2": l2,
        "negatives": 2,
        "learning_rate": 0.02,
        "unit_ball": unit_ball,
        "rank_weight": rank_weight,
    }
    hook = {"after_step": clip} if unit_ball else {}
    learned("cml", case, config, CLICKS, tables(10), X, loss, scores, adam(0.02), draws=drawn, **hook)


def bpr() -> None:
    """Rendle et al., section 4: `-log sigmoid(s_ui - s_uj) + l2/2 |theta|^2`, mean over the pairs."""
    drawn, l2 = pairs(), 0.03

    def loss(p, x):
        w, found = weights(drawn, x), looked_up(p, drawn)
        return bpr_loss(*found, w) + l2 / 2 * (w * squares(*found)).sum() / w.sum()

    config = {"factors": D, "l2": l2, "negatives": 2, "learning_rate": 0.02}
    scores = lambda p, x: p["user"] @ p["item"].T
    learned("bpr", "two", config, CLICKS, tables(20), X, loss, scores, adam(0.02), draws=drawn)


# ------------------------------------------------------------------------------------------------ graphs


def adjacency(x: torch.Tensor) -> torch.Tensor:
    """`D^-1/2 A D^-1/2` over users, fake users and items; the inverse root of degree 0 is 0."""
    block = torch.cat([dense(CLICKS), x])
    rows = U + F
    A = torch.zeros(rows + I, rows + I)
    A[:rows, rows:], A[rows:, :rows] = block, block.T
    degree = A.sum(1)
    root = torch.where(degree > 0, torch.where(degree > 0, degree, 1.0) ** -0.5, 0.0)
    return root[:, None] * A * root[None]


def nodes(p: dict) -> torch.Tensor:
    """All embeddings in the order of `adjacency`."""
    return torch.cat([p["user"], p["fake"], p["item"]])


def picked(E: torch.Tensor, drawn: dict):
    """As `looked_up`, from the rows of `nodes`."""
    return E[drawn["user"]], E[U + F + drawn["item"]], E[U + F + drawn["negative"]]


def lightgcn(case: str, penalty: str, negatives: int) -> None:
    """He et al., eqs 7-15. "squared": `l2/2` of the layer-0 squares, mean over the pairs; "norm": RecBole's.

    RecBole divides the Frobenius norm of each of the three blocks of layer-0 embeddings by the batch size; a pair of
    weight w counts w times in the norm and in the size.
    """
    drawn, l2, layers = pairs(negatives), 0.03, 3

    def smooth(p, x):
        A, E = adjacency(x), nodes(p)
        total = E
        for _ in range(layers):
            E = A @ E
            total = total + E
        return total / (layers + 1)

    def loss(p, x):
        w = weights(drawn, x)
        found = picked(nodes(p), drawn)
        if penalty == "squared":
            extra = (w * squares(*found)).sum() / w.sum() / 2
        else:
            user, positive, negative = found
            extra = sum(
                torch.sqrt((w * (rows**2).sum(-1)).sum()) for rows in (user, positive, negative[:, 0])
            )
            extra = extra / w.sum()
        return bpr_loss(*picked(smooth(p, x), drawn), w) + l2 * extra

    def scores(p, x):
        E = smooth(p, x)
        return E[:U] @ E[U + F :].T

    config = {
        "factors": D,
        "layers": layers,
        "l2": l2,
        "penalty": penalty,
        "negatives": negatives,
        "learning_rate": 0.02,
    }
    learned("lightgcn", case, config, CLICKS, tables(30), X, loss, scores, adam(0.02), draws=drawn)


def ngcf(case: str, dropout: float) -> None:
    """Wang et al., eqs 7-12: one LeakyReLU (0.2) around both messages; the next layer reads rows not normalized.

    The penalty is `l2/2` of the squares of the pairs' final embeddings, mean over the pairs. Message dropout: where
    `draws/keep_k` (users, fake users, items) is 0 an entry of layer k's output is dropped, others are divided by
    1 - dropout.
    """
    widths, l2, drawn = (4, 2), 0.03, dict(pairs())
    params = tables(40)
    for k, (inputs, outputs) in enumerate(zip((D, *widths), widths)):
        shapes = {f"sum__{k}__kernel": (inputs, outputs), f"sum__{k}__bias": (outputs,)}
        params |= draw(41 + k, **shapes, **{f"product__{k}__kernel": (inputs, outputs)})
        rng = np.random.default_rng(45 + k)
        if dropout:
            drawn[f"keep_{k}"] = rng.random((U + F + I, outputs)) < 1 - dropout

    def final(p, x, training):
        A, E = adjacency(x), nodes(p)
        layers = [E]
        for k in range(len(widths)):
            near = A @ E
            E = (near + E) @ p[f"sum/{k}/kernel"] + (near * E) @ p[f"product/{k}/kernel"]
            E = nn.leaky_relu(E + p[f"sum/{k}/bias"], 0.2)
            if training and dropout:
                E = E * torch.tensor(drawn[f"keep_{k}"]) / (1 - dropout)
            layers.append(nn.normalize(E, dim=1))
        return torch.cat(layers, 1)

    def loss(p, x):
        w, found = weights(drawn, x), picked(final(p, x, True), drawn)
        return bpr_loss(*found, w) + l2 / 2 * (w * squares(*found)).sum() / w.sum()

    def scores(p, x):
        E = final(p, x, False)
        return E[:U] @ E[U + F :].T

    config = {
        "factors": D,
        "layers": list(widths),
        "l2": l2,
        "dropout": dropout,
        "negatives": 2,
        "learning_rate": 0.02,
    }
    learned("ngcf", case, config, CLICKS, params, X, loss, scores, adam(0.02), draws=drawn)


# ------------------------------------------------------------------------------------------------ autoencoders


def multvae(case: str, config: dict, step: int) -> None:
    """Liang et al., eqs 2-6, over the users of `draws/batch` (`draws/mask` is 0 where the batch is padded).

    `draws/noise` (U + F, latent) is epsilon of each user, `draws/keep` (U + F, I) is 0 where dropout leaves an input
    cell out (kept ones are divided by 1 - dropout, after the normalization). A user without clicks has input 0 and
    counts with its divergence.
    """
    H, Z, rng = 4, 3, np.random.default_rng(50)
    params = draw(
        51,
        inward__kernel=(I, H),
        inward__bias=(H,),
        code__kernel=(H, 2 * Z),
        code__bias=(2 * Z,),
        back__kernel=(Z, H),
        back__bias=(H,),
        outward__kernel=(H, I),
        outward__bias=(I,),
    )
    drawn = {
        "batch": np.array([3, 0, 5, 4, 6, 1]),
        "mask": np.array([True, True, True, True, True, False]),
        "noise": rng.normal(size=(U + F, Z)),
    }
    rate, l2, share = config["learning_rate"], config["l2"], config["dropout"]
    if share:
        drawn["keep"] = rng.random((U + F, I)) < 1 - share
    beta = min(config["beta"], config["beta_step"] * step)

    def encoded(p, rows):
        norm = torch.sqrt((rows**2).sum(1, keepdim=True))
        return rows / torch.where(norm > 0, norm, 1.0) if config["normalize"] else rows

    def dense_layer(p, name, h):
        return h @ p[f"{name}/kernel"] + p[f"{name}/bias"]

    def decoded(p, z):
        return dense_layer(p, "outward", torch.tanh(dense_layer(p, "back", z)))

    def loss(p, x):
        keep = drawn["batch"][drawn["mask"]]
        rows = torch.cat([dense(CLICKS), x])[keep]
        fed = encoded(p, rows)
        if share:
            fed = fed * torch.tensor(drawn["keep"][keep]) / (1 - share)
        mean, log_variance = dense_layer(p, "code", torch.tanh(dense_layer(p, "inward", fed))).split(Z, 1)
        z = mean + torch.exp(log_variance / 2) * torch.tensor(drawn["noise"][keep])
        entropy = -(rows * torch.log_softmax(decoded(p, z), 1)).sum(1)
        if config["per_click"]:
            clicks = rows.sum(1)
            entropy = entropy / torch.where(clicks > 0, clicks, 1.0)
        divergence = (log_variance.exp() + mean**2 - 1 - log_variance).sum(1) / 2
        penalty = sum((leaf**2).sum() for leaf in p.values())
        return (entropy + beta * divergence).mean() + l2 / 2 * penalty

    def scores(p, x):
        mean, _ = dense_layer(
            p, "code", torch.tanh(dense_layer(p, "inward", encoded(p, dense(CLICKS))))
        ).split(Z, 1)
        return decoded(p, mean)

    config = {"hidden": H, "latent": Z, **config}
    learned("multvae", case, config, CLICKS, params, X, loss, scores, adam(rate), draws=drawn, step=step)


def autorec(case: str, by: str, train: dict, x: np.ndarray) -> None:
    """Sedhain et al., eqs 1-3: `sum (r - r_hat)^2 + l2/2 (|V|^2 + |W|^2)` over the rows of `draws/batch`.

    Clicks: every cell counts. Ratings: those observed (a fake cell above 0), minus the mean of all of them; a cell
    that is not observed is 0 in the input.
    """
    H, l2, rated = 4, 0.03, "weight" in train
    rows, width = (U + F, I) if by == "user" else (I, U + F)
    if not len(x):
        rows, width = (U, I) if by == "user" else (I, U)
    params = draw(
        60,
        layers__0__kernel=(width, H),
        layers__0__bias=(H,),
        layers__1__kernel=(H, width),
        layers__1__bias=(width,),
    )
    batch = np.array([3, 0, 5, 4]) if by == "user" and len(x) else np.array([3, 0, 4])
    drawn = {"batch": np.append(batch, 1), "mask": np.append(np.ones(len(batch), bool), False)}

    def cells(x):
        value = torch.cat([dense(train), x])
        seen = (value > 0).double().detach()
        mean = (seen * value).sum() / seen.sum()
        centered = (value - mean) * seen if rated else value
        return (centered, seen) if by == "user" else (centered.T, seen.T)

    def out(p, r):
        h = torch.sigmoid(r @ p["layers/0/kernel"] + p["layers/0/bias"])
        return h @ p["layers/1/kernel"] + p["layers/1/bias"]

    def loss(p, x):
        value, seen = (c[batch] for c in cells(x))
        errors = (value - out(p, value)) ** 2
        total = (errors * seen if rated else errors).sum()
        return total + l2 / 2 * ((p["layers/0/kernel"] ** 2).sum() + (p["layers/1/kernel"] ** 2).sum())

    def scores(p, x):
        made = out(p, cells(x)[0])
        return (made if by == "user" else made.T)[:U]

    config = {"by": by, "hidden": H, "l2": l2, "learning_rate": 0.02}
    track = "explicit" if rated else "implicit"
    learned("autorec", case, config, train, params, x, loss, scores, adam(0.02), draws=drawn, track=track)


# ------------------------------------------------------------------------------------------------ ratings

RATED_X = np.array([[0.5, 0.0, 0.25, 0.0, 1.0, 0.0], [0.0, 0.375, 0.0, 0.75, 0.0, 0.0]])
# Every slot of the record in one step, so that the step's share of the fake cells is all of them; the last three slots
# are padding.
RATED_BATCH = np.array([3, 0, 10, 5, 7, 1, 9, 4, 2, 6, 8])
RATED_MASK = np.arange(11) < 8


def rated_sum(p: dict, x: torch.Tensor, scale: float, offset: float):
    """Users, items, values, of the batch's real ratings and of all observed fake cells."""
    keep = RATED_BATCH[RATED_MASK]
    users, items = np.array(RATINGS["user"])[keep], np.array(RATINGS["item"])[keep]
    fake, at = np.nonzero(x.detach().numpy() > 0)
    value = torch.cat([torch.tensor(RATINGS["weight"])[keep] / scale, x[fake, at]]) - offset
    rows = torch.cat([p["user"], p["fake"]])
    return rows[np.concatenate([users, fake + U])], p["item"][np.concatenate([items, at])], value


def mf() -> None:
    """APT eq. 1 with means: over the ratings for the error, over ratings and factors for the penalty.

    Adagrad with accumulator 0.1, as TensorFlow's, which has no epsilon; ours has 1e-10 in the root (see `Adagrad`),
    5e-10 of a step at most. Fake rows hold ratings divided by the highest.
    """
    l2, highest = 0.3, 8.0

    def loss(p, x):
        user, item, value = rated_sum(p, x, highest, 0.0)
        error = ((value - (user * item).sum(1)) ** 2).mean()
        return error + l2 * ((user**2).mean() + (item**2).mean())

    config = {"factors": D, "l2": l2, "highest": highest, "learning_rate": 0.5}
    optimizer = lambda leaves: Adagrad(leaves, 0.5, start=0.1, epsilon=1e-10)
    drawn = {"batch": RATED_BATCH, "mask": RATED_MASK}
    scores = lambda p, x: p["user"] @ p["item"].T
    learned(
        "mf",
        "adagrad",
        config,
        RATINGS,
        tables(70),
        RATED_X,
        loss,
        scores,
        optimizer,
        draws=drawn,
        track="explicit",
    )


def pmf_ratings(case: str, x: np.ndarray) -> None:
    """Salakhutdinov and Mnih, eq. 4, as their script: mean of `(r - p.q)^2 + l2/2 (|p|^2 + |q|^2)`, momentum.

    Ratings, real and fake, lose the mean of all of them.
    """
    l2, ratings = 0.3, torch.tensor(RATINGS["weight"])

    def loss(p, x):
        rated = (x > 0).double().detach()
        mean = (ratings.sum() + (rated * x).sum()) / (len(ratings) + rated.sum())
        user, item, value = rated_sum(p, x, 1.0, mean)
        return ((value - (user * item).sum(1)) ** 2 + l2 / 2 * ((user**2).sum(1) + (item**2).sum(1))).mean()

    config = {"factors": D, "l2": l2, "learning_rate": 0.05, "momentum": 0.8}
    optimizer = lambda leaves: torch.optim.SGD(leaves, lr=0.05, momentum=0.8)
    drawn = {"batch": RATED_BATCH, "mask": RATED_MASK}
    scores = lambda p, x: p["user"] @ p["item"].T
    learned(
        "pmf",
        case,
        config,
        RATINGS,
        {**tables(71), "fake": tables(71)["fake"][: len(x)]},
        x,
        loss,
        scores,
        optimizer,
        draws=drawn,
        track="explicit",
    )


def pmf_clicks() -> None:
    """As for ratings: a click is 1, its negatives are 0; *summed* over a click and its zeros, mean over the clicks."""
    drawn, l2 = pairs(), 0.3

    def loss(p, x):
        w = weights(drawn, x)
        user, positive, negative = looked_up(p, drawn)
        items = torch.cat([positive[:, None], negative], 1)
        target = torch.tensor([1.0, 0.0, 0.0])
        errors = (target - (user[:, None] * items).sum(-1)) ** 2
        penalty = (user**2).sum(-1, keepdim=True) + (items**2).sum(-1)
        return (w * (errors + l2 / 2 * penalty).sum(1)).sum() / w.sum()

    config = {"factors": D, "l2": l2, "learning_rate": 0.1, "momentum": 0.8, "negatives": 2}
    optimizer = lambda leaves: torch.optim.SGD(leaves, lr=0.1, momentum=0.8)
    scores = lambda p, x: p["user"] @ p["item"].T
    learned("pmf", "clicks", config, CLICKS, tables(72), X, loss, scores, optimizer, draws=drawn)


def pcmf(case: str, center: bool) -> None:
    """The authors' script: fill, multiplicative updates, fill again; the matrix `A` is formed here.

    Biases: the mean, then each item's mean residual, then each user's, over the observed ratings, real and fake (0
    where there are none). MATLAB's `eps` stands in the denominator.
    """
    fills, updates, rank = 5, 4, 2
    value = torch.cat([dense(RATINGS), torch.tensor(8 * RATED_X)])
    known = value > 0
    mean, item, user = 0.0, torch.zeros(I), torch.zeros(U + F)
    if center:
        average = lambda rest, axis: (rest * known).sum(axis) / known.sum(axis).clamp(min=1)
        mean = value[known].mean()
        item = average(value - mean, 0)
        user = average(value - mean - item, 1)
    shift = mean + item + user[:, None]
    Y = torch.where(known, value - shift, 0.0)
    params = draw(80, user=(U, rank), fake=(F, rank))
    V = torch.cat([torch.tensor(params["user"]), torch.tensor(params["fake"])])
    for _ in range(fills):
        filled = torch.where(known, Y, V @ (V.T @ Y))
        A = filled @ filled.T
        for _ in range(updates):
            q = 2 * A @ V / (V @ (V.T @ A @ V) + A @ V @ (V.T @ V) + np.finfo(float).eps)
            V = V * torch.sign(q) * q.abs() ** 0.5
    made = V @ (V.T @ Y)
    arrays = {
        "x": 8 * RATED_X,
        "params": params,
        "after": {"user": V[:U], "fake": V[U:]},
        "loss": ((Y - made)[known] ** 2).sum(),
        "scores": (made + shift)[:U],
    }
    config = {"rank": rank, "fills": fills, "updates": updates, "center": center}
    save("pcmf", case, config, RATINGS, arrays, track="explicit")


# ------------------------------------------------------------------------------------------------ sequences

# Six sessions for three lanes, two each, five events a lane: lanes begin their second session at different steps.
# At step 0 lanes 0 and 2 have the same target.
SESSIONS = [[2, 0], [1, 3, 4], [5, 1, 2], [0, 6], [6, 0, 3], [4, 5]]
LANES, SAMPLED, HIDDEN, MANY, EPOCHS = 3, 4, 4, 7, 2


def events(sessions: list) -> dict[str, list]:
    """The record of sessions, a user each."""
    flat = [(user, item, time) for user, items in enumerate(sessions) for time, item in enumerate(items)]
    user, item, time = (list(column) for column in zip(*flat))
    return {"user": user, "item": item, "time": time}


def gru_cell(p: dict, h: torch.Tensor, item) -> torch.Tensor:
    """Cho et al.: the reset gate acts before the product, as in the authors' Theano code; gates (r, z)."""
    H = HIDDEN
    fed = p["input"][item] + p["bias"]
    gates = torch.sigmoid(fed[:, H:] + h @ p["gates"])
    r, z = gates[:, :H], gates[:, H:]
    return (1 - z) * h + z * torch.tanh((r * h) @ p["state"] + fed[:, :H])


def session_loss(objective: str, s: torch.Tensor, positive: int, excluded: torch.Tensor, reg: float):
    """Hidasi and Karatzoglou (CIKM 2018), eqs 1-9, of one event: `s` (K,) scores, `excluded` no negatives."""
    target, o = s[positive], s[~excluded]
    share = torch.softmax(o, 0)
    if objective == "top1":
        return (torch.sigmoid(o - target) + torch.sigmoid(o**2)).mean()
    if objective == "bpr":
        return -nn.logsigmoid(target - o).mean()
    if objective == "cross-entropy":
        return -torch.log_softmax(torch.cat([target[None], o]), 0)[0]
    if objective == "top1-max":
        return (share * (torch.sigmoid(o - target) + torch.sigmoid(o**2))).sum()
    return -torch.log((share * torch.sigmoid(target - o)).sum()) + reg * (share * o**2).sum()


def gru_run(objective: str, params: dict, sampled: np.ndarray, rate: float, reg: float, fresh: bool):
    """`EPOCHS` epochs: losses, gradients, states before each event, and the parameters afterwards.

    `fresh` False, the authors' code: an event's new state is the one its forward pass gave, before the update. True:
    the event is read once more with the updated parameters. No derivative passes from one event to the next.
    """
    lanes = [SESSIONS[2 * lane] + SESSIONS[2 * lane + 1] for lane in range(LANES)]
    first = [{0, len(SESSIONS[2 * lane])} for lane in range(LANES)]
    last = [{len(SESSIONS[2 * lane]) - 1, len(lanes[lane]) - 1} for lane in range(LANES)]
    every = len(lanes[0])
    p = {name: torch.tensor(value, requires_grad=True) for name, value in params.items()}
    adagrad = Adagrad(list(p.values()), rate, start=0.0, epsilon=1e-6)
    h = torch.zeros(LANES, HIDDEN)
    losses, grads, states = [], [], []
    for t in [*range(every)] * EPOCHS:
        h = torch.stack([torch.zeros(HIDDEN) if t in first[lane] else h[lane] for lane in range(LANES)])
        states.append(h.numpy())
        items = [lane[t] for lane in lanes]
        after = gru_cell(p, h, items)
        counting = [lane for lane in range(LANES) if t not in last[lane]]
        candidates = torch.tensor([*(lanes[lane][t + 1] for lane in counting), *sampled])
        scores = after[counting] @ p["out"][candidates].T + p["out_bias"][candidates]
        each = [
            session_loss(objective, scores[k], k, candidates == candidates[k], reg)
            for k in range(len(counting))
        ]
        nothing = 0 * sum(leaf.sum() for leaf in p.values())
        loss = nothing + (torch.stack(each).mean() if each else 0)  # at the last step no lane has a successor
        adagrad.zero_grad()
        loss.backward()
        losses.append(loss.item())
        grads.append({name: leaf.grad.numpy().copy() for name, leaf in p.items()})
        adagrad.step()
        with torch.no_grad():
            h = gru_cell(p, h, items) if fresh else after.detach()
    return losses, grads, states, p


def gru4rec(objective: str) -> None:
    """Three lanes, five steps an epoch: state carried, set to 0 where a session begins; lanes begin again.

    `draws/sampled` (SAMPLED,) are the drawn negatives of every step. The negatives of a lane are the targets of the
    lanes that have one and the drawn items, without its own target. Adagrad as in the authors' code: the accumulator
    starts at 0 and 1e-6 stands inside the root. Gradients are kept of steps 1 and 3.
    """
    params = draw(
        90,
        input=(MANY, 3 * HIDDEN),
        bias=(3 * HIDDEN,),
        gates=(HIDDEN, 2 * HIDDEN),
        state=(HIDDEN, HIDDEN),
        out=(MANY, HIDDEN),
        out_bias=(MANY,),
    )
    sampled = np.random.default_rng(91).integers(0, MANY, SAMPLED)
    rate, reg = 0.1, 0.5
    losses, grads, states, p = gru_run(objective, params, sampled, rate, reg, fresh=False)
    _, _, _, fresh = gru_run(objective, params, sampled, rate, reg, fresh=True)
    final = []
    with torch.no_grad():
        for session in SESSIONS:
            state = torch.zeros(1, HIDDEN)
            for item in session:
                state = gru_cell(p, state, [item])
            final.append(state[0] @ p["out"].T + p["out_bias"])
    arrays = {
        "x": np.zeros((0, MANY)),
        "params": params,
        "losses": np.array(losses),
        "grads": {str(t): grads[t] for t in (1, 3)},
        "states": np.stack(states),
        "after": {name: leaf.detach().numpy() for name, leaf in p.items()},
        "after_fresh": {name: leaf.detach().numpy() for name, leaf in fresh.items()},
        "scores": torch.stack(final),
        "draws": {"sampled": sampled},
    }
    config = {
        "hidden": HIDDEN,
        "objective": objective,
        "regularization": reg,
        "learning_rate": rate,
        "epochs": EPOCHS,
        "batch": LANES,
        "samples": SAMPLED,
    }
    save("gru4rec", objective, config, events(SESSIONS), arrays, track="sequence", items=MANY)


def covisitation(normalization: str) -> None:
    """Consecutive visits in either order, counted; the last three of a history vote."""
    sessions = [[0, 1, 0, 1, 2], [3, 3, 1], [2, 0], [4], [1, 2, 3, 4, 1, 0]]
    w, visits = np.zeros((I, I)), np.zeros(I)
    for session in sessions:
        for item in session:
            visits[item] += 1
        for a, b in itertools.pairwise(session):
            if a != b:
                w[a, b] += 1
                w[b, a] += 1
    many = np.maximum(visits, 1)
    over = {"cosine": np.sqrt(np.outer(many, many)), "none": np.ones((I, I)), "target": np.tile(many, (I, 1))}
    s = w / over[normalization]
    scores = np.array([sum(s[i] for i in session[-3:]) for session in sessions])
    config = {"normalization": normalization, "history": 3}
    arrays = {"x": NO_FAKES, "scores": scores}
    save("covisitation", normalization, config, events(sessions), arrays, track="sequence", items=I)


def itemcf(neighbors: int) -> None:
    """Jaccard over users and fake users, who click by a share; the largest of each row kept, summed over clicks."""
    clicked = np.concatenate([dense(CLICKS).numpy(), X])
    s = np.zeros((I, I))
    for i in range(I):
        for j in range(I):
            both = sum(row[i] * row[j] for row in clicked)
            union = clicked[:, i].sum() + clicked[:, j].sum() - both
            if i != j and union:
                s[i, j] = both / union
    for i in range(I):
        worst = np.argsort(-s[i], kind="stable")[neighbors:]
        s[i, worst] = 0
    arrays = {"x": X, "scores": dense(CLICKS).numpy() @ s}
    save("itemcf", f"top{neighbors}", {"neighbors": neighbors}, CLICKS, arrays)


# ------------------------------------------------------------------------------------------------ logic


SEQUENCES = [[2, 0, 4, 1, 5], [1, 3], [4, 0, 2], [5], [3, 2, 1, 0]]
REASONED = [(0, 4), (0, 2), (2, 1), (1, 1), (4, 3), (3, 0)]  # user and position of x; the last has no premise
OTHER = np.array([3, 5, 1, 0, 4, 2])  # z of each
TRUTH = np.random.default_rng(100).uniform(0, 0.1, D)


def module(p: dict, name: str, *inputs: torch.Tensor) -> torch.Tensor:
    """`linear -> ReLU -> linear` of the joined inputs: EVENT, NOT, OR ("either") and AND ("both")."""
    h = torch.cat(torch.broadcast_tensors(*inputs), -1)
    h = torch.relu(h @ p[f"{name}/first/kernel"] + p[f"{name}/first/bias"])
    return h @ p[f"{name}/second/kernel"] + p[f"{name}/second/bias"]


def sentence(p: dict, user: int, history: list[int], item: int):
    """`10 cos(c, 1)` of one (user, history, item), the vectors of its premises, and e_x and c."""
    every = [module(p, "event", p["user"][user], p["item"][j]) for j in history]
    negated = [module(p, "negation", e) for e in every]
    prefixes = [negated[0]]
    for e in negated[1:]:
        prefixes.append(module(p, "either", prefixes[-1], e))
    last = module(p, "event", p["user"][user], p["item"][item])
    c = module(p, "either", prefixes[-1], last)
    return 10 * nn.cosine_similarity(c, torch.tensor(TRUTH), dim=0), (every, negated, prefixes), [last, c]


def fifteen(p: dict, v: torch.Tensor) -> torch.Tensor:
    """The 15 laws, each in [0, 2], as in ALGORITHMS 8.1 and in NCR's code."""
    NOT = lambda a: module(p, "negation", a)
    AND = lambda a, b: module(p, "both", a, b)
    OR = lambda a, b: module(p, "either", a, b)
    cos = lambda a, b: nn.cosine_similarity(*torch.broadcast_tensors(a, b), dim=-1)
    near = lambda a, b: (1 - cos(a, b)).mean()
    far = lambda a, b: (1 + cos(a, b)).mean()
    T = torch.tensor(TRUTH)
    false = NOT(T)
    return torch.stack(
        [
            near(NOT(NOT(T)), T),
            near(NOT(NOT(v)), v),
            far(NOT(v), v),
            far(NOT(NOT(v)), NOT(v)),
            far(T, false),
            near(AND(v, T), v),
            near(AND(v, false), false),
            near(AND(v, v), v),
            near(AND(v, NOT(v)), false),
            near(AND(NOT(v), v), false),
            near(OR(v, T), T),
            near(OR(v, false), v),
            near(OR(v, v), v),
            near(OR(v, NOT(v)), T),
            near(OR(NOT(v), v), T),
        ]
    )


def ncr() -> None:
    """NCR's released code on clicks of different history length, and H-CARS eqs 2-6.

    A pair (u, x, z) has the last `max_history` items before x as premises; a click without premises is not learned. The
    oldest of them begins the chain, the others follow in one order of the slots, here the last, then the middle one
    (`draws/order`). Gradients are cut to +-`clip`; the penalty's is in them.

    The means of the 15 laws run over events, their negations, the prefixes of the chain behind the first (which is a
    negation), and e_x and the sentence of x and of z; what x and z share counts twice, since the released code runs the
    chain for each.
    """
    length, l2, weight, clip = 3, 0.02, 0.3, 0.4
    histories = []
    for user, position in REASONED:
        slots = [*SEQUENCES[user][max(0, position - length) : position], None, None, None]
        histories.append([slots[at] for at in (0, 2, 1) if slots[at] is not None])
    start = np.cumsum([0, *map(len, SEQUENCES)])
    shapes: dict[str, tuple[int, ...]] = {"user": (U, D), "item": (I, D)}
    for name, inputs in (("event", 2 * D), ("negation", D), ("either", 2 * D), ("both", 2 * D)):
        shapes |= {f"{name}__first__kernel": (inputs, D), f"{name}__first__bias": (D,)}
        shapes |= {f"{name}__second__kernel": (D, D), f"{name}__second__bias": (D,)}
    # ReLU must not kill all units of a layer: a vanishing vector has no cosine.
    params = {
        name: value + (0.3 if name.endswith("bias") else 0.0) for name, value in draw(101, **shapes).items()
    }

    def parts(p):
        """The ranking loss and the vectors of the laws."""
        ranking, made = torch.zeros(()), []
        for (user, position), history, other in zip(REASONED, histories, OTHER):
            if history:
                better, (every, negated, prefixes), own = sentence(
                    p, user, history, SEQUENCES[user][position]
                )
                worse, _, own_of_other = sentence(p, user, history, other)
                ranking = ranking - nn.logsigmoid(better - worse)
                made += 2 * [*every, *negated, *prefixes[1:]] + own + own_of_other
        return ranking, torch.stack(made)

    def loss(p, x):
        ranking, made = parts(p)
        penalty = sum((leaf**2).sum() for leaf in p.values())
        return ranking + weight * fifteen(p, made).sum() + l2 / 2 * penalty

    def scores(p, x):
        """The premises of a score are the last items of the user as they are stored."""
        of = lambda user: [sentence(p, user, SEQUENCES[user][-length:], item)[0] for item in range(I)]
        return torch.stack([torch.stack(of(user)) for user in range(U)])

    p = {name: torch.tensor(value) for name, value in params.items()}
    _, made = parts(p)
    drawn = {
        "batch": np.array([start[user] + position for user, position in REASONED]),
        "negative": OTHER,
        "order": np.array([0, 2, 1]),
        "true": TRUTH,
        "vectors": made[::4],
        "laws": torch.stack([fifteen(p, one[None]) for one in made[::4]]),
        "regular": fifteen(p, made).sum(),
    }
    config = {
        "factors": D,
        "learning_rate": 0.02,
        "l2": l2,
        "logic": weight,
        "max_history": length,
        "clip": clip,
    }
    learned(
        "ncr",
        "histories",
        config,
        events(SEQUENCES),
        params,
        NO_FAKES,
        loss,
        scores,
        adam(0.02),
        draws=drawn,
        track="sequence",
        before_step=lambda p: torch.nn.utils.clip_grad_value_(list(p.values()), clip),
    )


# ------------------------------------------------------------------------------------------------ RCF
#
# Attributes by item, `item: {type: values}`; item 4 has none and shares nothing, item 0 shares two values of one type
# with item 2. Values are numbered by item and within a type, types as named. The draws: pairs, and for each of them and
# each type one triple (value, tail, negative), or none.

TYPES = ("genre", "actor")
ATTRIBUTES = {
    0: {"genre": ["a", "b"], "actor": ["x"]},
    1: {"genre": ["b"], "actor": ["x", "y"]},
    2: {"genre": ["a", "b"]},
    3: {"actor": ["y"]},
    5: {"genre": ["c"]},
}
VALUES = (("a", "b", "c"), ("x", "y"))  # by type, in the order in which they are met
RELATED = {
    "type": np.array([[1, 2]] * 5),
    "value": np.array([[1, 3], [1, 0], [0, 4], [0, 3], [0, 0]]),
    "tail": np.array([[2, 0], [0, 0], [0, 1], [2, 1], [0, 0]]),
    "exists": np.array([[1, 1], [1, 0], [0, 0], [1, 1], [0, 0]]),
    "negative": np.array([[4, 2], [3, 0], [0, 5], [1, 3], [0, 0]]),
}


def shared(i: int, j: int, k: int) -> list[int]:
    """Numbers of the values of type k (from 1) that two items share."""
    before = sum(len(names) for names in VALUES[: k - 1])
    both = [set(ATTRIBUTES.get(item, {}).get(TYPES[k - 1], [])) for item in (i, j)]
    return [before + number for number, name in enumerate(VALUES[k - 1]) if name in both[0] & both[1]]


def rcf_score(p: dict, user: int, item: int, smoothing: float) -> torch.Tensor:
    """A pair's score: Xin et al., SIGIR 2019, eqs 4-10, with ACCENT's smoothed attention."""
    history = [j for u, j in zip(CLICKS["user"], CLICKS["item"]) if u == user and j != item]
    gelu = lambda v: nn.gelu(v, approximate="tanh")
    asked = p["user"][user] * p["type"]  # (K + 1, D)
    alpha = torch.softmax(gelu(asked @ p["choice"] + p["choice_bias"]) @ p["choice_out"], 0)
    read = p["user"][user]
    for k in range(len(TYPES) + 1):
        if k == 0:
            slots = [(j, None) for j in history if not any(shared(item, j, n) for n in (1, 2))]
        else:
            slots = [(j, value) for j in history for value in shared(item, j, k)]
        if not slots:
            continue
        masses = []
        for j, value in slots:
            inner = p["item"][item] @ p["target"][k] + p["item"][j] @ p["other"][k]
            if value is not None:
                inner = inner + p["value"][value] @ p["shared"][k - 1]
            masses.append(torch.exp(torch.tanh(inner) @ p["slot_out"][k]))
        mass = torch.stack(masses)
        tails = p["item"][[j for j, _ in slots]]
        read = read + alpha[k] * (mass / mass.sum() ** smoothing) @ tails
    h = gelu((read * p["item"][item]) @ p["layers/0/kernel"] + p["layers/0/bias"])
    return h @ p["last"]


def rcf(case: str, smoothing: float, divide_by: str) -> None:
    """BPR of clicks and negatives plus 0.3 BPR of triples that DistMult scores; Adagrad from 1e-8, no epsilon."""
    attention, hidden = 2, 4
    params = tables(41)
    del params["fake"]
    params |= draw(42, type=(3, D), value=(5, D), choice=(D, attention), choice_bias=(attention,))
    params |= draw(43, choice_out=(attention,), slot_out=(3, attention), target=(3, D, attention))
    params |= draw(44, other=(3, D, attention), shared=(2, D, attention), last=(hidden,))
    params |= draw(45, layers__0__kernel=(D, hidden), layers__0__bias=(hidden,))
    drawn = {name: rows[:5] for name, rows in pairs().items()}
    known = {name: rows.copy() for name, rows in RELATED.items()}
    clicks = len(CLICKS["user"])

    def loss(p, x):
        real = torch.tensor(drawn["real"])
        losses = []
        for user, item, negatives in zip(drawn["user"], drawn["item"], drawn["negative"]):
            s = rcf_score(p, user, item, smoothing)
            losses.append(
                torch.stack([nn.softplus(rcf_score(p, user, n, smoothing) - s) for n in negatives]).mean()
            )
        total = (real * torch.stack(losses)).sum() / real.sum()
        link = p["type"][known["type"]] + p["value"][known["value"]]
        head = p["item"][drawn["item"]][:, None]
        distmult = lambda tail: (head * link * p["item"][tail]).sum(-1)
        each = nn.softplus(distmult(known["negative"]) - distmult(known["tail"]))
        there = real[:, None] * torch.tensor(known["exists"])
        total = total + 0.3 * (there * each).sum() / there.sum()
        share = real.sum() / clicks if divide_by == "data" else 1.0
        return share * total

    def scores(p, x):
        return torch.stack([torch.stack([rcf_score(p, u, i, smoothing) for i in range(I)]) for u in range(U)])

    config = {"factors": D, "attention": attention, "hidden": [hidden], "relation_weight": 0.3}
    config |= {
        "smoothing": smoothing,
        "divide_by": divide_by,
        "negatives": 2,
        "learning_rate": 0.05,
        "batch": 5,
    }
    learned(
        "rcf",
        case,
        config,
        CLICKS,
        params,
        NO_FAKES,
        loss,
        scores,
        lambda leaves: Adagrad(leaves, 0.05, start=1e-8, epsilon=0.0),
        draws={**drawn, "related": known},
        relations={str(item): of for item, of in ATTRIBUTES.items()},
    )


def main() -> None:
    """Write every file."""
    ncf("neumf", "tower", (4, 3), 0.03, summed=False)
    ncf("neumf", "plain", (), 0.03, summed=True)
    ncf("gmf", "averaged", None, 0.03, summed=False)
    ncf("gmf", "summed", None, 0.03, summed=True)
    common = {"learning_rate": 0.02, "beta_step": 0.05}
    original = {"l2": 0.0, "beta": 0.2, "dropout": 0.5, "normalize": True, "per_click": False}
    revadv = {"l2": 0.03, "beta": 1.0, "dropout": 0.0, "normalize": False, "per_click": True}
    multvae("original", {**common, **original}, step=7)  # past the annealing
    multvae("revadv", {**common, **revadv}, step=7)  # inside it
    cml("revadv", rank_weight=False, unit_ball=False, margin=3.0)
    cml("original", rank_weight=True, unit_ball=True, margin=0.5)
    bpr()
    lightgcn("squared", "squared", 2)
    lightgcn("norm", "norm", 1)
    ngcf("plain", 0.0)
    ngcf("dropout", 0.25)
    autorec("user-clicks", "user", CLICKS, X)
    autorec("item-clicks", "item", CLICKS, X)
    for by in ("user", "item"):
        autorec(f"{by}-ratings", by, RATINGS, NO_FAKES)
        autorec(f"{by}-ratings-fakes", by, RATINGS, 8 * RATED_X)
    pmf_clicks()
    pmf_ratings("ratings", NO_FAKES)
    pmf_ratings("ratings-fakes", 8 * RATED_X)
    mf()
    pcmf("centered", True)
    pcmf("plain", False)
    for objective in ("top1", "bpr", "cross-entropy", "top1-max", "bpr-max"):
        gru4rec(objective)
    for normalization in ("cosine", "none", "target"):
        covisitation(normalization)
    itemcf(6)
    itemcf(1)
    ncr()
    rcf("smoothed", 0.5, "batch")
    rcf("softmax", 1.0, "data")


if __name__ == "__main__":
    main()
