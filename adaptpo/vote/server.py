"""The voting page and its three requests. Nothing that leaves here names a run: only "left" and "right"."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import ip_address
from math import isfinite
from pathlib import Path
from typing import Any

import uvicorn
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from adaptpo.errors import RunError
from adaptpo.vote.ballots import CHOICES, Ballots, Place
from adaptpo.vote.masking import masked

HERE = Path(__file__).parent
STYLE_OF_REPORTS = HERE.parent / "report"
NAME_AT_MOST = 40
BODY_AT_MOST = 4096
LONGEST = 24 * 3600.0
"""Seconds that a question can have been in view; more is a clock that was set."""
THIS_MACHINE = ("127.0.0.1", "localhost", "[::1]", "::1")
HEADERS = {
    "Cache-Control": "no-store",
    # Even a response that got past the escaping could not run a script or reach another address.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # The link may hold the token.
    "X-Content-Type-Options": "nosniff",
}
COOKIE = "vote_token"


class VotePage:
    """The web application for the votes of one folder. `token` is what a visitor must bring, None if nobody has to;
    `host` is the address that the server listens on."""

    def __init__(self, ballots: Ballots, token: str | None = None, host: str = "127.0.0.1") -> None:
        self.ballots, self.token, self.host = ballots, token, host
        self.questions = ballots.questions()
        loader = FileSystemLoader([HERE, STYLE_OF_REPORTS])
        self.templates = Environment(
            loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
        )

    def app(self) -> Starlette:
        routes = [
            Route("/", self.guarded(self.page)),
            Route("/question", self.guarded(self.question)),
            Route("/vote", self.guarded(self.vote), methods=["POST"]),
            Route("/style.css", self.style),
            Route("/vote.js", self.script),
        ]
        # A page elsewhere could otherwise reach the server by a host name of its own that points to this machine.
        hosts = ["*"] if self.token is not None else [*THIS_MACHINE, self.host]
        return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)])

    def guarded(self, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def guard(request: Request) -> Response:
            if not self.admits(request):
                refusal = "Ask the person who runs this vote for the link with the token.\n"
                return PlainTextResponse(refusal, 403, HEADERS)
            return await answer(request)

        return guard

    def admits(self, request: Request) -> bool:
        brought = request.query_params.get("token") or request.cookies.get(COOKIE, "")
        return self.token is None or secrets.compare_digest(brought.encode(), self.token.encode())

    async def page(self, request: Request) -> Response:
        if self.token is not None and "token" in request.query_params:
            return self.without_token(request)
        voter = clean_name(request.query_params.get("voter", ""))
        template = self.templates.get_template("page.html.j2")
        return HTMLResponse(template.render(voter=voter, name_at_most=NAME_AT_MOST), headers=HEADERS)

    def without_token(self, request: Request) -> Response:
        """To the page itself, with the token in a cookie: it shall not stay in the address that people copy."""
        target = request.url.remove_query_params("token")
        moved = RedirectResponse(f"/?{target.query}" if target.query else "/", 303, HEADERS)
        moved.set_cookie(COOKIE, self.token or "", httponly=True, samesite="strict")
        return moved

    async def question(self, request: Request) -> Response:
        return self.shown(named(request.query_params.get("voter")))

    async def vote(self, request: Request) -> Response:
        if request.headers.get("content-type", "").split(";")[0] != "application/json":
            # Forms of other pages can post anything but this type without asking first.
            raise HTTPException(415, "votes are JSON")
        body = await body_of(request)
        voter, turn, choice = named(body.get("voter")), body.get("turn"), body.get("choice")
        if not isinstance(turn, int) or choice not in CHOICES:
            raise HTTPException(400, f"a vote has a turn and a choice of {', '.join(CHOICES)}")
        counted = self.ballots.record(voter, turn, choice, seconds_of(body.get("seconds")), self.questions)
        return self.shown(voter, counted)

    def shown(self, voter: str, counted: bool | None = None) -> Response:
        place = self.ballots.place(voter, self.questions)
        facts = {"turn": place.turn, "done": place.done, "total": place.total, "counted": counted}
        return JSONResponse(facts | {"question": self.blind(place)}, headers=HEADERS)

    def blind(self, place: Place) -> dict[str, Any] | None:
        """The question as the voter sees it; null in a text stands for a hidden name."""
        if place.question is None:
            return None
        answers = [masked(text, self.ballots.settings["models"]) for text in (place.question.a, place.question.b)]
        left, right = answers if place.a_on_left else reversed(answers)
        turns = [{"role": role, "text": text} for role, text in place.question.prompt]
        return {"prompt": turns, "left": left, "right": right}

    async def style(self, request: Request) -> Response:
        sheets = [self.templates.get_template(name).render() for name in ("style.css.j2", "vote.css")]
        return Response("\n".join(sheets), media_type="text/css", headers=HEADERS)

    async def script(self, request: Request) -> Response:
        return Response((HERE / "vote.js").read_bytes(), media_type="text/javascript", headers=HEADERS)


def clean_name(name: str) -> str:
    """A voter's name without differences that nobody means: spaces around it, capitals."""
    return " ".join(name.split()).casefold()[:NAME_AT_MOST]


def named(name: Any) -> str:
    cleaned = clean_name(name) if isinstance(name, str) else ""
    if not cleaned:
        raise HTTPException(400, "a voter has a name")
    return cleaned


async def body_of(request: Request) -> dict[str, Any]:
    if int(request.headers.get("content-length", BODY_AT_MOST + 1)) > BODY_AT_MOST:
        raise HTTPException(413, f"a vote has at most {BODY_AT_MOST} bytes")
    try:
        body = await request.json()
    except ValueError as error:
        raise HTTPException(400, "not JSON") from error
    if not isinstance(body, dict):
        raise HTTPException(400, "not a JSON object")
    return body


def seconds_of(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and isfinite(value) and 0 <= value <= LONGEST else None


def is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 is any free one. Raises RunError when there is no such address, or it is taken."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise RunError(
            f"cannot listen on {host}, port {port}: {error}; choose another --host or --port (0: any free one)"
        ) from error


def link(bound: socket.socket, token: str | None) -> str:
    """The address to open; for a socket on all addresses of the machine, by its host name."""
    host, port = bound.getsockname()[:2]
    host = socket.gethostname() if ip_address(host).is_unspecified else f"[{host}]" if ":" in host else host
    return f"http://{host}:{port}/" + (f"?token={token}" if token is not None else "")


def serve(app: Starlette, bound: socket.socket) -> None:
    """Answer until interrupted."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    with suppress(KeyboardInterrupt):  # Which uvicorn raises again once it has shut down.
        uvicorn.Server(config).run(sockets=[bound])
