"""The images that the store has, as one immutable value: `get` and `list` read it without waiting."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from knarr.model import names
from knarr.model.errors import Invalid, KnarrError, NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

    from knarr.model.resource import Image

_ID = re.compile(r"(?:sha256:)?[0-9a-f]{1,64}", re.ASCII)


class Catalog:
    def __init__(self, images: Mapping[str, Image], references: Mapping[str, str]) -> None:
        self.images = images
        """by id, newest first"""
        self.references = references
        """canonical reference → id"""

    def find(self, name: str) -> tuple[Image, str | None]:
        """By id, digest, reference or unique prefix of an id; and the reference if it was found by one."""
        if name in self.images:
            return self.images[name], None
        image = self._by_digest(name)
        if image is not None:
            return image, None
        reference = canonical(name, or_id=True)
        if reference in self.references:
            return self.images[self.references[reference]], reference
        image = self._by_digest(reference.partition("@")[2]) or self._by_prefix(name)
        if image is None:
            raise NotFound(f"image {name!r} is not here", hint=f"knarr image pull {name}")
        return image, None

    def _by_digest(self, digest: str) -> Image | None:
        for image in self.images.values():
            if digest == image.digest:
                return image
        return None

    def _by_prefix(self, name: str) -> Image | None:
        if not _ID.fullmatch(name):
            return None
        prefix = "sha256:" + name.removeprefix("sha256:")
        found = [image for image_id, image in self.images.items() if image_id.startswith(prefix)]
        if len(found) > 1:
            raise Invalid(f"image id {name!r} is not unique", hint="give more digits of it")
        return found[0] if found else None


@functools.lru_cache(maxsize=1024)
def canonical(text: str, *, or_id: bool = False) -> str:
    """A reference in its full form; empty for what can only be an id. Raises `Invalid`."""
    try:
        return names.parse_reference(text).canonical
    except KnarrError:
        if or_id and _ID.fullmatch(text):
            return ""
        raise
