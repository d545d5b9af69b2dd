"""Serves the page of a run and its parts. Addresses are numbers and known names: none of them becomes a path."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiohttp import web, web_response
from aiohttp.http import HttpProcessingError

from semrsm_dist.errors import ConfigError, SemrsmError, first_line
from semrsm_dist.report.view.listening import LOOPBACK, Listener
from semrsm_dist.report.view.live import ORDERS, Answer, LiveRun
from semrsm_dist.report.view.pyramid import Tile

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""With every response: other sites can neither embed it nor learn the address."""

SHARE = "Share"
"""Header: how much of the pairs, or of the work, a response is of; without it, of all."""

KEEP = "private, max-age=3600"

LOOK_AGAIN = "private, no-cache"
"""Of what a repair can change: browsers keep it, and ask each time whether it is still the same."""

Result = TypeVar("Result")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(live: LiveRun, token: str, host: str = LOOPBACK) -> web.Application:
    """Return the server of a run, whose addresses begin with a token: others are not found.

    Requests with another name than the host's in their header `Host` are refused: a page of another site could have
    made its own name point here.
    """

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if not _is_addressed(request, host):
                raise web.HTTPForbidden(
                    text="this name is not that of the server; use the address that was printed\n"
                )
            if request.method not in ("GET", "HEAD"):
                raise web.HTTPMethodNotAllowed(request.method, ("GET", "HEAD"))
            given = request.match_info.get("token", "")
            if not hmac.compare_digest(given.encode("utf-8", "backslashreplace"), token.encode()):
                raise web.HTTPNotFound
            await pages.renew()
            response = await handler(request)
        except web.HTTPException as error:
            error.headers.update(HEADERS)
            raise
        except (IndexError, ConfigError) as error:
            raise web.HTTPNotFound(headers=HEADERS) from error
        except (SemrsmError, OSError) as error:
            response = web.Response(status=500, text=first_line(error))
        response.headers.update(HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    logging.getLogger("aiohttp.server").addFilter(_is_ours)
    # What is no request is answered before any handler, so the header that names versions is replaced at its source.
    vars(web_response)["SERVER_SOFTWARE"] = "semrsm"
    pages = _Pages(live)
    app = web.Application(middlewares=[guard])
    app.add_routes(pages.routes())
    app.on_cleanup.append(pages.close)
    return app


def _is_addressed(request: web.Request, host: str) -> bool:
    """Return whether a request was made to an address of this server, or to its name."""
    try:
        name = request.url.host or ""
    except ValueError:  # no name at all
        return False
    known = {"localhost", host.lower()}
    if host != LOOPBACK:
        known |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower() in known
    return True  # a name is what an attacker could point here


class _Pages:
    """What the server answers."""

    def __init__(self, live: LiveRun) -> None:
        self._live = live
        self._at_once = asyncio.Semaphore(8)

    async def renew(self) -> None:
        """Go on with the run as it is now."""
        self._live = await self._ask(self._live.current)

    async def close(self, app: web.Application) -> None:
        """Stop what is at work."""
        await self._ask(self._live.close)

    def routes(self) -> list[web.RouteDef]:
        tile = r"/{token}/tiles/{layer:\d+}/{kernel:\w+}/{order:\w+}/{level:\d+}/{row:\d+}-{column:\d+}.bin"
        return [
            web.get("/{token}", self._with_slash),
            web.get("/{token}/", self._page),
            web.get(tile, self._tile),
            web.get(r"/{token}/orders/{layer:\d+}/{order:\w+}.bin", self._order),
            web.get(r"/{token}/queries/{layer:\d+}.json", self._queries),
            web.get(r"/{token}/pairs/{layer:\d+}/{row:\d+}-{column:\d+}.json", self._pair),
            web.get(r"/{token}/pictures/{side:\w+}/{size:small|large}/{image:\d+}.jpg", self._picture),
        ]

    async def _with_slash(self, request: web.Request) -> web.Response:
        raise web.HTTPFound(f"/{request.match_info['token']}/")

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(text=await self._ask(self._live.page), content_type="text/html")

    async def _tile(self, request: web.Request) -> web.Response:
        tile = Tile(*(_number(request, name) for name in ("level", "row", "column")))
        layer, kernel, order = self._layer(request), request.match_info["kernel"], _order(request)
        return await self._respond(request, self._live.tile, layer, kernel, order, tile)

    async def _order(self, request: web.Request) -> web.Response:
        return await self._respond(request, self._live.order, self._layer(request), _order(request))

    async def _queries(self, request: web.Request) -> web.Response:
        return await self._respond(
            request, self._live.queries, self._layer(request), content_type="application/json"
        )

    async def _pair(self, request: web.Request) -> web.Response:
        row, column = (_number(request, name) for name in ("row", "column"))
        facts = await self._ask(self._live.pair, self._layer(request), row, column)
        if facts is None:
            raise web.HTTPNotFound
        return web.Response(text=facts.model_dump_json(), content_type="application/json")

    async def _picture(self, request: web.Request) -> web.Response:
        side, image = request.match_info["side"], _number(request, "image")
        large = request.match_info["size"] == "large"
        content, problem = await self._ask(lambda: self._live.picture(side, image, large=large))
        if content is None:
            return web.Response(status=410, text=problem)
        return web.Response(body=content, content_type="image/jpeg", headers={"Cache-Control": KEEP})

    def _layer(self, request: web.Request) -> str:
        return self._live.finished[_number(request, "layer")]

    async def _respond(
        self,
        request: web.Request,
        function: Callable[..., Answer],
        *arguments: Any,
        content_type: str = "application/octet-stream",
    ) -> web.Response:
        """Return what there is; what is not complete is asked for again, and what the browser has is not sent again."""
        tag = f'"{self._live.generation}"'
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers={"Cache-Control": LOOK_AGAIN, "ETag": tag})
        content, share = await self._ask(function, *arguments)
        if content is None:
            return web.Response(status=202, headers={SHARE: f"{share:.4f}"})
        is_complete = share == 1.0
        headers = {"Cache-Control": LOOK_AGAIN, "ETag": tag} if is_complete else {SHARE: f"{share:.4f}"}
        return web.Response(body=content, content_type=content_type, headers=headers)

    async def _ask(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call what reads files, in a thread."""
        async with self._at_once:
            return await asyncio.to_thread(function, *arguments)


def _number(request: web.Request, name: str) -> int:
    text = request.match_info[name]
    if len(text) > 9 or not text.isascii():
        raise IndexError(text)
    return int(text)


def _order(request: web.Request) -> Any:
    if request.match_info["order"] not in ORDERS:
        raise IndexError(request.match_info["order"])
    return request.match_info["order"]


def _is_ours(record: logging.LogRecord) -> bool:
    """Return whether an error that aiohttp logs is one of this server, and not of who sent what is no request."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def serve(live: LiveRun, listener: Listener) -> None:
    """Serve a run until it is interrupted."""
    app = make_app(live, listener.token, listener.host)
    web.run_app(app, sock=listener.socket, print=None, access_log=None, handle_signals=False)
