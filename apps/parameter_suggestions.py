"""What Prefect's server answers when it refuses parameters, with the name or value that may be meant."""

import json
import re
from ast import literal_eval
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medgen.parameters import suggestion

_ASKS_FOR_RUN = re.compile(r"(?P<deployment>/api/deployments/[0-9a-f-]{36})/create_flow_run")
_REFUSED = (409, 422)
_MOST_BYTES = 1 << 20
# As the library jsonschema words it.
_UNKNOWN = re.compile(r"\((?P<names>'.*') (?:was|were) unexpected\)")
_NO_CHOICE = re.compile(r"'(?P<value>[^']*)' is not one of (?P<choices>\[[^\]]*\])")
_MISSING = re.compile(r"'(?P<name>\w+)' is a required property")
# A schema of `Parameters.conflict_schemas` says in a comment what would be right.
_CONFLICT = re.compile(r"should not be valid under \{.*'\$comment': '(?P<told>[^']*)'\}")


class ParameterSuggestions:
    """ASGI middleware before Prefect's own app, which names what is wrong and not what may be meant."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asks = _ASKS_FOR_RUN.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if asks is None:
            await self.app(scope, receive, send)
            return
        # Uncompressed: the answer is read here.
        plain = {**scope, "headers": [(name, text) for name, text in scope["headers"] if name != b"accept-encoding"]}
        answer = _Answer(send)
        await self.app(dict(plain), receive, answer)  # routers write into it where they are
        if answer.held:
            await answer.release(await self._helpful(answer.body, asks["deployment"], plain))

    async def _helpful(self, body: bytes, deployment: str, scope: Scope) -> bytes:
        """The body of a refusal, with suggestions."""
        try:
            told = json.loads(body)
            detail = told["detail"]
            if unknown := _UNKNOWN.search(detail):
                known = await self._parameters(deployment, scope)
                detail += "".join(suggestion(name, known) for name in re.findall(r"'([^']*)'", unknown["names"]))
            elif wrong := _NO_CHOICE.search(detail):
                detail += suggestion(wrong["value"], tuple(map(str, literal_eval(wrong["choices"]))))
            elif missing := _MISSING.search(detail):
                known = await self._parameters(deployment, scope)
                detail += f" with these values: {known[missing['name']]['description']}"
            else:
                detail = _CONFLICT.sub(lambda conflict: f"does not fit: {conflict['told']}", detail)
        except (ValueError, TypeError, KeyError, SyntaxError):  # words of another kind
            return body
        return json.dumps(told | {"detail": detail}).encode()

    async def _parameters(self, deployment: str, scope: Scope) -> dict[str, Any]:
        """The parameters of a deployment, asked of Prefect's app on behalf of who asks for the run."""
        answer = _Answer(None)
        asking = {**scope, "method": "GET", "path": deployment, "raw_path": deployment.encode(), "query_string": b""}
        asking.pop("state", None)
        await self.app(asking, _nothing, answer)
        properties: dict[str, Any] = json.loads(answer.body)["parameter_openapi_schema"]["properties"]
        return properties


class _Answer:
    """Takes an answer in; passes on what is no refusal."""

    def __init__(self, send: Send | None) -> None:
        self.send = send
        self.start: Message | None = None
        self.body = b""
        self.held = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.held = self.send is None or message["status"] in _REFUSED
            self.start = message
        if not self.held and self.send:
            await self.send(message)
        elif message["type"] == "http.response.body" and len(self.body) <= _MOST_BYTES:
            self.body += message.get("body", b"")

    async def release(self, body: bytes) -> None:
        """Sends the refusal that was held, with this body."""
        assert self.start and self.send
        headers = [(name, value) for name, value in self.start["headers"] if name.lower() != b"content-length"]
        await self.send({**self.start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await self.send({"type": "http.response.body", "body": body})


async def _nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}
