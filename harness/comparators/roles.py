"""The role of each position of an expanded prompt, by which divergences are reported."""

from __future__ import annotations

from collections.abc import Sequence

from harness.spec import MediaTokens

AFTER_MEDIA_TOKENS = 8
"""How many text tokens after a medium form a role of their own: where a wrong mask shows first."""


def token_roles(token_ids: Sequence[int], tokens: MediaTokens) -> tuple[str, ...]:
    """One of `ROLES` for each position; text before the first medium, or without any, is `text_before`."""
    media = {
        tokens.boi: "boi", tokens.boa: "boi",
        tokens.image: "soft", tokens.audio: "soft", tokens.video: "soft",
        tokens.eoi: "eoi", tokens.eoa: "eoi",
    }  # fmt: skip
    roles: list[str] = []
    since_media: int | None = None
    for token in token_ids:
        if token in media:
            since_media = 0
            roles.append(media[token])
        elif since_media is None:
            roles.append("text_before")
        else:
            since_media += 1
            roles.append("after_media" if since_media <= AFTER_MEDIA_TOKENS else "rest")
    return tuple(roles)
