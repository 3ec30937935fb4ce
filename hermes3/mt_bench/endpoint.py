"""A chat model behind an OpenAI-compatible endpoint (`vllm serve`, a hosted judge), with time limits and retries."""

from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.util import Retry

TRIES = 5
WAIT = 1.0  # seconds: 0, 2, 4 and 8 times as long between the tries, or what the server asks for
BUSY = (408, 429, 500, 502, 503, 504)


class Reply(NamedTuple):
    text: str
    cut: bool  # it reached the limit of tokens


class _Bearer(AuthBase):
    """Also without a key: requests would else send one that it finds in .netrc."""

    def __init__(self, key: str | None):
        self.key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.key:
            request.headers["Authorization"] = f"Bearer {self.key}"
        return request


class Endpoint:
    """`url`: what ends in /v1. `timeout`: seconds for a whole reply. `key` is sent, and stored nowhere."""

    def __init__(self, url: str, model: str, key: str | None, timeout: float, parallel: int = 8):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url}: give the address of an endpoint, as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError(f"{parts.hostname}: no secrets in an address, which results name; see --help for the key")
        self.url, self.model, self.timeout = url.rstrip("/"), model, timeout
        self.session = requests.Session()
        retry = Retry(
            TRIES - 1, backoff_factor=WAIT, status_forcelist=BUSY, allowed_methods=None, raise_on_status=False
        )
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(pool_maxsize=parallel, max_retries=retry))
        self.session.auth = _Bearer(key)

    def chat(self, messages: list[dict[str, str]], temperature: float, max_tokens: int, seed: int) -> Reply:
        """The model's next message. `ValueError`, naming the endpoint, when it gives none after `TRIES` tries."""
        asked: dict[str, Any] = {"model": self.model, "messages": messages, "temperature": temperature}
        asked |= {"max_tokens": max_tokens, "seed": seed}
        try:
            answer = self.session.post(f"{self.url}/chat/completions", json=asked, timeout=(10, self.timeout))
        except requests.RequestException as error:
            raise ValueError(f"{self.url}: no answer in {TRIES} tries: {error}") from None
        if not answer.ok:
            raise ValueError(f"{self.url}: {answer.status_code} {answer.reason}: {answer.text[:300]}")
        try:
            choice = answer.json()["choices"][0]
            text = choice["message"]["content"] or ""
        except (requests.JSONDecodeError, KeyError, IndexError, TypeError):
            raise ValueError(f"{self.url}: not the form of a chat completion: {answer.text[:300]}") from None
        return Reply(text, choice.get("finish_reason") == "length")
