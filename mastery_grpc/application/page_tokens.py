"""Page tokens that name where a page begins, and are good for one list with one choice of what is in it.

They are no secret: whoever makes one up sees no more than another page of what he may list anyway.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from mastery_grpc.domain.errors import InvalidPageToken

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
_DIGEST_SIZE = 12


class PageTokens:
    """The tokens of one list."""

    def __init__(self, *terms: str) -> None:
        """`terms`: the list, and all that chooses what is in it."""
        self._terms = terms

    def token(self, place: str) -> str:
        """Returns the token of the page that begins at a place, which is text without a NUL."""
        return base64.urlsafe_b64encode(self._digest(place) + place.encode()).decode()

    def place(self, token: str) -> str:
        """Returns the place in a token. Raises InvalidPageToken."""
        try:
            place = base64.urlsafe_b64decode(token.encode("ascii"))[_DIGEST_SIZE:].decode()
        except (binascii.Error, ValueError):
            raise InvalidPageToken from None
        if self.token(place) != token:
            raise InvalidPageToken
        return place

    def _digest(self, place: str) -> bytes:
        return hashlib.sha256("\0".join((*self._terms, place)).encode()).digest()[:_DIGEST_SIZE]


def page_size_of(requested: int) -> int:
    """Returns how many a page has: 0 stands for 100, and 1000 is the most."""
    return min(requested or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
