"""A black box behind a port: the client that attacks it, and a small server that puts one there.

JSON over HTTP. The client is a `attacks.blackbox.BlackBox`, so `play(learner, Service(url), ...)` attacks whatever
answers these requests, in whatever language it is written:

    POST /inject     {"clicks": [[item, ...], ...]}   -> {"queries": n}     replaces what was injected before
    POST /recommend  {"users": [user, ...]}           -> {"lists": [[item, ...], ...]}
    GET  /recnum                                      -> {"recnum": number}
    POST /explain    {"user": u, "item": i}           -> {"items": [item, ...]}

An error is a status of 400 and above with {"error": "text"}: 404 for no explanation, 429 when no query is left.
"""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
from jaxtyping import Int

from attacks.blackbox import BlackBox, OverBudget, Unexplained
from models.data import Profiles

STATUS = {Unexplained: 404, OverBudget: 429, ValueError: 400}


class Service:
    """A recommender behind an address, as a black box.

    Args:
        url: such as "http://127.0.0.1:8000".
        timeout: seconds an answer may take, > 0; an injection waits for the training.

    Raises (every method): `ValueError`, `Unexplained` or `OverBudget` with the text of the service; `OSError` where
    nothing answers.
    """

    def __init__(self, url: str, *, timeout: float = 600.0):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url is {url!r}; expected an address such as 'http://127.0.0.1:8000'")
        self._url, self._timeout, self.queries = url.rstrip("/"), timeout, 0

    def inject(self, profiles: Profiles) -> None:
        """Send the click sequences; the service learns."""
        if profiles.clicks is None:
            raise ValueError("the service takes click sequences; give profiles in the clicks form")
        clicks, mask = np.asarray(profiles.clicks), np.asarray(profiles.mask)
        rows = [row[real].tolist() for row, real in zip(clicks, mask, strict=True)]
        self.queries = int(self._ask("/inject", {"clicks": rows})["queries"])

    def recommend(self, users: Int[np.ndarray, " B"]) -> Int[np.ndarray, "B K"]:
        """The lists of users."""
        return np.array(self._ask("/recommend", {"users": np.asarray(users).tolist()})["lists"])

    def recnum(self) -> float:
        """How often targets are shown."""
        return float(self._ask("/recnum", None)["recnum"])

    def explain(self, user: int, item: int) -> Int[np.ndarray, " E"]:
        """The items that a recommendation rests on."""
        return np.array(self._ask("/explain", {"user": int(user), "item": int(item)})["items"], int)

    def _ask(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            try:
                text = json.loads(error.read() or b"{}").get("error", error.reason)
            except ValueError:  # a proxy's page, say
                text = error.reason
            kinds = {status: kind for kind, status in STATUS.items()}
            raise kinds.get(error.code, OSError)(f"{self._url}{path}: {text}") from error


@contextlib.contextmanager
def serve(box: BlackBox, *, items: int, port: int = 0) -> Iterator[str]:
    """Put a black box behind a port of this machine (127.0.0.1 only), for as long as the `with` lasts.

    Args:
        box: what answers.
        items: I of its catalog; clicks outside are refused.
        port: 0: a free one.

    Returns:
        A context manager that gives the address. One request is answered at a time.

    Reference: none.

    **Differs from the paper:** nothing.

    >>> class Store:
    ...     queries = 0
    ...     def inject(self, profiles):
    ...         self.queries, self.shown = self.queries + 1, int((np.asarray(profiles.clicks) == 0).sum())
    ...     def recnum(self):
    ...         return self.shown
    >>> with serve(Store(), items=3) as address:  # item 0 is shown as often as it was clicked
    ...     client = Service(address)
    ...     client.inject(Profiles.from_clicks([[0, 2], [0, 1]], targets=[0], items=3))
    ...     client.recnum(), client.queries
    (2.0, 1)
    """

    def answer(path: str, body: Any) -> dict[str, Any]:
        if path == "/inject":
            box.inject(_profiles(body["clicks"], items))
            return {"queries": box.queries}
        if path == "/recommend":
            return {"lists": np.asarray(box.recommend(np.array(body["users"], int))).tolist()}
        if path == "/explain":
            return {"items": np.asarray(box.explain(body["user"], body["item"])).tolist()}
        if path == "/recnum":
            return {"recnum": box.recnum()}
        raise ValueError(f"nothing at {path}; there are /inject, /recommend, /recnum, /explain")

    server = HTTPServer(("127.0.0.1", port), _handler(answer))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _profiles(rows: list[list[int]], items: int) -> Profiles:
    """Sequences of any lengths, padded and checked."""
    width = max((len(row) for row in rows), default=0)
    if width == 0:
        raise ValueError("clicks holds no click")
    wrong = next((item for row in rows for item in row if type(item) is not int), None)
    if wrong is not None:
        raise ValueError(f"clicks holds {wrong!r}; expected whole numbers, ids of items")
    clicks, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for place, row in enumerate(rows):
        clicks[place, : len(row)], mask[place, : len(row)] = row, True
    return Profiles.from_clicks(clicks, np.zeros(0, np.int32), items=items, mask=mask).validate()


def _handler(answer: Callable[[str, Any], dict[str, Any]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Requests in, JSON out."""

        def do_GET(self) -> None:  # the name is the library's
            self._say(None)

        def do_POST(self) -> None:
            try:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            except json.JSONDecodeError as error:
                self._send(400, {"error": f"no JSON: {error}"})
                return
            self._say(body)

        def _say(self, body: Any) -> None:
            try:
                self._send(200, answer(self.path, body))
            except (Unexplained, OverBudget, ValueError) as error:
                status = next(code for kind, code in STATUS.items() if isinstance(error, kind))
                self._send(status, {"error": str(error)})
            except (KeyError, TypeError) as error:
                self._send(400, {"error": f"the request lacks something: {error!r}"})

        def _send(self, status: int, body: Mapping[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            """Silence: a game has thousands of requests."""

    return Handler
