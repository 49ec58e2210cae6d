"""The five search engines as real HTTP servers on loopback, each in the form of its documentation.

A request that the documentation does not allow (no key, a key elsewhere, too long a query, too many results) is refused
as the engine refuses it. What was sent is kept in `asked`, and `fault` makes the engine fail as such servers do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from tests.support.web_server import serving

KEYS = {"brave": "BSA-key-for-tests", "tavily": "tvly-key-for-tests", "serper": "serper-key-for-tests"}
VARIABLES = {"brave": "BRAVE_API_KEY", "tavily": "TAVILY_API_KEY", "serper": "SERPER_API_KEY"}
NAMES = ("searxng", "brave", "tavily", "serper", "wikipedia")
NOTHING = "qwertz without any result"


@dataclass(frozen=True)
class Sent:
    """A request as it arrived."""

    query: str
    headers: dict[str, str]
    url: str


@dataclass
class SearchEngine:
    """One engine; it finds three pages on every query but `NOTHING`.

    Attributes:
        name: which engine.
        fault: how it fails, or "".
        fails_on: how the queries begin that it fails on; "": all.
        told: the words of a failure that is a status.
        times: how often it fails, before it is well again.
        delay: seconds before each answer.
        most_at_once: the most requests that were under way together.
        began: when each request arrived, by the loop's clock.
        unresponsive: what SearXNG says of its own engines.
        answered: its own engines that answered, if with nothing.
    """

    name: str
    fault: str = ""
    fails_on: str = ""
    times: int = 10**9
    told: str = "said so"
    delay: float = 0.0
    asked: list[Sent] = field(default_factory=list)
    most_at_once: int = 0
    unresponsive: list[list[str]] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    began: list[float] = field(default_factory=list)
    _now: int = 0

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Its address while the block runs."""
        app = FastAPI()
        path, method = {
            "searxng": ("/search", "GET"),
            "brave": ("/res/v1/web/search", "GET"),
            "tavily": ("/search", "POST"),
            "serper": ("/search", "POST"),
            "wikipedia": ("/w/api.php", "GET"),
        }[self.name]
        app.add_api_route(path, self._serve, methods=[method], response_model=None)
        app.add_api_route("/elsewhere", self._serve, methods=["GET", "POST"], response_model=None)
        with serving(app) as port:
            yield f"http://127.0.0.1:{port}"

    async def _serve(self, request: Request) -> Response:
        asked: dict[str, Any] = dict(request.query_params) if request.method == "GET" else await request.json()
        query = asked.get({"tavily": "query", "wikipedia": "gsrsearch"}.get(self.name, "q"), "")
        self.asked.append(Sent(query, dict(request.headers), str(request.url)))
        self.began.append(asyncio.get_running_loop().time())
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await asyncio.sleep(self.delay)
            if self.fault and self.times > 0 and query.startswith(self.fails_on):
                self.times -= 1
                return self._fail(request)
            refuse_or_answer = getattr(self, f"_{self.name}")
            answer: Response = refuse_or_answer(query, asked, request.headers)
            return answer
        finally:
            self._now -= 1

    def _fail(self, request: Request) -> Response:
        if self.fault.isdigit():
            return JSONResponse({"message": self.told}, int(self.fault))
        key = KEYS.get(self.name, "")
        faults = {
            "busy": lambda: JSONResponse({"message": "too many"}, 429, {"Retry-After": "1"}),
            "busy for some seconds": lambda: JSONResponse({"message": "too many"}, 429, {"Retry-After": "4"}),
            "busy for an hour": lambda: JSONResponse({"message": "too many"}, 429, {"Retry-After": "3600"}),
            "drip": lambda: StreamingResponse(_drips(), media_type="application/json"),
            "huge": lambda: StreamingResponse(_without_end(), media_type="application/json"),
            "html": lambda: Response("<html>are you human?</html>", media_type="text/html"),
            "not json": lambda: Response('{"results": [', media_type="application/json"),
            "other json": lambda: JSONResponse({"status": "ok", "data": []}),
            "wrong types": lambda: JSONResponse({"type": "search", "web": {"results": 7}, "results": 7, "organic": 7}),
            "redirect": lambda: Response(status_code=302, headers={"Location": str(request.base_url) + "elsewhere"}),
            "maxlag": lambda: JSONResponse({"error": {"code": "maxlag", "info": "Waiting for db: 6 s lagged."}}),
            "repeats the key": lambda: JSONResponse({"message": f"the key {key} is not valid"}, 500),
        }
        return faults[self.fault]()

    def _pages(self, query: str) -> list[tuple[str, str, str]]:
        if query == NOTHING:
            return []
        return [(f"https://site-{n}.example/{n}", f"Page {n}", f"What page {n} says of {query}.") for n in (1, 2, 3)]

    def _searxng(self, query: str, asked: dict[str, Any], headers: Any) -> Response:
        if asked.get("format") != "json":
            return Response("<html></html>", media_type="text/html")
        results = [
            {
                "url": url,
                "title": title,
                "content": text,
                "engine": "duckduckgo",
                "parsed_url": ["https", url.split("/")[2], "/", "", "", ""],
                "template": "default.html",
                "engines": ["duckduckgo"],
                "positions": [place],
                "score": 1.0 / place,
                "category": "general",
                "publishedDate": None,
            }
            for place, (url, title, text) in enumerate(self._pages(query), 1)
        ]
        timings = ["total;dur=812.4", "render;dur=0"]
        timings += [f"total_{place}_{name};dur=403.1" for place, name in enumerate(self.answered)]
        return JSONResponse(
            {
                "query": query,
                "number_of_results": 0,
                "results": results,
                "answers": [],
                "corrections": [],
                "infoboxes": [],
                "suggestions": [],
                "unresponsive_engines": self.unresponsive,
            },
            headers={"Server-Timing": ", ".join(timings)},
        )

    def _brave(self, query: str, asked: dict[str, Any], headers: Any) -> Response:
        if headers.get("x-subscription-token") != KEYS["brave"]:
            return _brave_error(422, "SUBSCRIPTION_TOKEN_INVALID")
        if len(query) > 400 or len(query.split()) > 50 or not 1 <= int(asked.get("count", 20)) <= 20:
            return _brave_error(422, "VALIDATION")
        pages = self._pages(query)[: int(asked["count"])]
        results = [
            {
                "type": "search_result",
                "title": title,
                "url": url,
                "is_source_local": False,
                "description": text.replace(" says", "&#x27;s text says"),
                "language": "en",
                "family_friendly": True,
                "meta_url": {"scheme": "https", "netloc": url.split("/")[2]},
            }
            for url, title, text in pages
        ]
        web = {"web": {"type": "search", "results": results, "family_friendly": True}} if results else {}
        return JSONResponse({"type": "search", "query": {"original": query, "more_results_available": False}, **web})

    def _tavily(self, query: str, asked: dict[str, Any], headers: Any) -> Response:
        if headers.get("authorization") != f"Bearer {KEYS['tavily']}":
            return JSONResponse({"detail": {"error": "Unauthorized: missing or invalid API key."}}, 401)
        if not 0 <= asked.get("max_results", 5) <= 20 or len(query) > 400:
            return JSONResponse({"detail": {"error": "Query is too long. Max query length is 400 characters."}}, 400)
        results = [
            {"url": url, "title": title, "content": text, "score": 0.9, "raw_content": None}
            for url, title, text in self._pages(query)
        ]
        body = {"query": query, "follow_up_questions": None, "answer": None, "images": [], "results": results}
        return JSONResponse({**body, "response_time": 1.09, "request_id": "123e4567"})

    def _serper(self, query: str, asked: dict[str, Any], headers: Any) -> Response:
        if headers.get("x-api-key") != KEYS["serper"]:
            return JSONResponse({"message": "Unauthorized.", "statusCode": 403}, 403)
        if asked.get("num", 10) > 10:
            return JSONResponse({"message": "two credits", "statusCode": 400}, 400)
        organic = [
            {"title": title, "link": url, "snippet": text, "position": place}
            for place, (url, title, text) in enumerate(self._pages(query), 1)
        ]
        parameters = {"q": query, "type": "search", "num": asked.get("num"), "engine": "google"}
        return JSONResponse({"searchParameters": parameters, "organic": organic, "credits": 1})

    def _wikipedia(self, query: str, asked: dict[str, Any], headers: Any) -> Response:
        if "(" not in headers.get("user-agent", ""):
            return Response("Please set a user-agent and respect our robot policy", 403, media_type="text/plain")
        if len(query) > 300:
            return JSONResponse({"error": {"code": "cirrussearch-query-too-long", "info": "The search is too long."}})
        wanted = {"action": "query", "generator": "search", "formatversion": "2", "prop": "extracts|info"}
        if any(asked.get(name) != value for name, value in wanted.items()) or int(asked["gsrlimit"]) > 20:
            return JSONResponse({"error": {"code": "badvalue", "info": "Unrecognized value"}})
        pages = [
            {
                "pageid": 100 + place,
                "ns": 0,
                "title": title,
                "index": place,
                "extract": text,
                "contentmodel": "wikitext",
                "fullurl": url,
                "editurl": f"{url}?action=edit",
                "canonicalurl": url,
            }
            for place, (url, title, text) in enumerate(self._pages(query), 1)
        ]
        gone = {"ns": 0, "title": "Deleted", "index": 4, "missing": True, "fullurl": "https://site-4.example/4"}
        found = {"query": {"pages": [pages[1], gone, pages[0], pages[2]]}} if pages else {}
        return JSONResponse({"batchcomplete": True, **found})


def _brave_error(status: int, code: str) -> Response:
    error = {"id": "1", "status": status, "code": code, "detail": "The request is not valid."}
    return JSONResponse({"type": "ErrorResponse", "error": error, "time": 1}, status)


async def _drips() -> AsyncIterator[bytes]:
    while True:
        yield b" "
        await asyncio.sleep(0.05)


async def _without_end() -> AsyncIterator[bytes]:
    yield b'{"results": ['
    while True:
        yield b'{"url": "https://site.example/", "title": "x", "content": "y"},' * 1000
        await asyncio.sleep(0)  # whoever has left is noticed meanwhile
