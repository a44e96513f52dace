"""A key that a server sends back, in every dress and by every way, reaches nobody."""

import asyncio
import html
import json
import logging
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from urllib.parse import quote

import pytest

from serving.fault_server import Reply, serving
from serving.test_client import client, send
from stepalign.errors import StepalignError
from stepalign.serving.client import UnansweredError
from stepalign.serving.redaction import Redaction, redact_urls

KEY = "sk-very/secret+0123456789==<&>"
DRESSES: dict[str, Callable[[str], str]] = {
    "plain": str,
    "JSON": lambda key: json.dumps(json.dumps(key)).replace("/", "\\/"),
    "JSON, each character": lambda key: "".join(f"\\u{ord(letter):04x}" for letter in key),
    "JSON, some characters": lambda key: key.replace("s", "\\u0073").replace("+", "\\u002B"),
    "URL": lambda key: quote(key, safe=""),
    "URL, twice": lambda key: quote(quote(key, safe=""), safe=""),
    "URL, lower case": lambda key: quote(key, safe="").lower(),
    "HTML": html.escape,
    "HTML, each character": lambda key: "".join(f"&#{ord(letter)};" for letter in key),
    "base64": lambda key: b64encode(key.encode()).decode(),
    "base64 for URLs": lambda key: urlsafe_b64encode(key.encode()).decode(),
    "base64 of a header": lambda key: b64encode(f"Bearer {key}".encode()).decode(),
    "base64 of a user": lambda key: b64encode(f"me:{key}".encode()).decode(),
    "hexadecimal": lambda key: key.encode().hex(),
    "upper case": str.upper,
    "cut off": lambda key: f"{key[:18]}…",
}
each_dress = pytest.mark.parametrize("dress", DRESSES.values(), ids=list(DRESSES))


def shows_the_key(text: str) -> bool:
    """Whether eight characters in a row of the key can be read in a text, whatever they wear."""
    forms = (KEY, *(put_on(KEY) for put_on in DRESSES.values()), KEY.lower())
    starts = (14 if form.startswith(("QmVh", "bWU6")) else 2 for form in forms)  # base64 of what stands before the key
    return any(
        form[at : at + 8] in text
        for form, start in zip(forms, starts, strict=True)
        for at in range(start, len(form) - 10)
    )


@each_dress
def test_a_key_is_known_in_every_dress(dress: Callable[[str], str]) -> None:
    shown = Redaction(KEY).text(f"before '{dress(KEY)}' and after")
    assert not shows_the_key(shown), shown
    assert "***" in shown
    assert shown.startswith("before '")
    assert shown.endswith("' and after")


@pytest.mark.parametrize("key", ["EMPTY", "none", "ollama", "x", "12345", "", None])
def test_a_placeholder_is_a_word_of_an_answer(key: str | None) -> None:
    text = f"EMPTY none ollama x 12345 {key}"
    assert Redaction(key).text(text) == text


def test_passwords_of_urls_go_whoever_names_them() -> None:
    assert redact_urls("to http://me:pw@proxy:3128/ and //x@y") == "to http://***@proxy:3128/ and //***@y"


@pytest.mark.parametrize(
    "reply",
    [
        lambda said: Reply(status=401, reason=said, body="{}"),
        lambda said: Reply(status=400, body=said),
        lambda said: Reply(status=404, body=json.dumps({"error": said})),
        lambda said: Reply(status=500, reason=said, body=said),
        lambda said: Reply(body=f"not JSON {said}"),
        lambda said: Reply(content=said),
        lambda said: Reply(status=307, headers={"Location": quote(said)}, reason=said),
    ],
)
def test_a_key_that_comes_back_reaches_no_error_no_answer_and_no_log(
    reply: Callable[[str], Reply], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def run(url: str) -> str:
        said = ""
        async with client(url, key=KEY, max_retries=0, failures=99) as connection:
            for _ in DRESSES:
                try:
                    said += await send(connection, {})
                except (UnansweredError, StepalignError) as error:
                    said += repr(error) + repr(error.__cause__) + repr(error.__context__)
        return said

    with serving(*(reply(dress(KEY)) for dress in DRESSES.values())) as server:
        said = asyncio.run(run(server.url))
        assert server.keys == [f"Bearer {KEY}"] * len(DRESSES)
    assert not shows_the_key(said + caplog.text), said


def test_headers_that_are_echoed_are_read_without_the_key() -> None:
    echo = Reply(status=403, body=lambda headers: json.dumps(dict(headers)))

    async def run(url: str) -> None:
        async with client(url, key=KEY) as connection:
            await send(connection, {})

    with serving(echo) as server, pytest.raises(StepalignError, match=r"Bearer \*\*\*") as error:
        asyncio.run(run(server.url))
    assert not shows_the_key(str(error.value))
