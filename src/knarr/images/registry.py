"""The OCI distribution API and Docker's v2: a reference becomes an `ImageSource`, and what a push needs.

Everything a registry says is untrusted: digests, sizes and media types are checked, authority goes to the
registry alone. Layers are streamed by whoever ingests them, in as many threads as it likes; an interrupted
one goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from knarr.images import auth, manifest, transport
from knarr.images.source import ImageSource, Layer
from knarr.model.errors import Denied, Failed, Invalid, KnarrError, NotFound, Unavailable
from knarr.model.names import DEFAULT_REGISTRY, Platform, Reference, parse_reference

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from knarr.images.auth import Credentials
    from knarr.images.manifest import Descriptor

_HUB_HOST = "registry-1.docker.io"
_ACCEPT = ", ".join(sorted(manifest.INDEXES | manifest.MANIFESTS))
_TRIES = 5
_PAUSE = 0.2
_MAX_PAUSE = 3.0
_MAX_ERROR = 64 << 10
_BUSY = frozenset({429, 500, 502, 503, 504})


def resolve(
    reference: Reference | str,
    platform: Platform | None = None,
    credentials: Credentials | None = None,
    insecure: bool = False,  # noqa: FBT001, FBT002  (the contract between the packages has it positional)
) -> ImageSource:
    """Manifest and config, fetched and checked; layers ready to be streamed.

    Without `credentials`, docker's own are looked up. Raises `NotFound`, `Denied`, `Unavailable`, `Invalid`.
    """
    if isinstance(reference, str):
        reference = parse_reference(reference)
    client = Registry(reference.registry, credentials=credentials, insecure=insecure)
    return client.image(reference, platform)


@dataclass(slots=True)
class _Tokens:
    """What a registry has been shown to want; shared by the threads of a pull."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    header: str = field(default="", repr=False)
    number: int = 0


class Registry:
    """One registry, one set of credentials. Safe to use from several threads."""

    def __init__(
        self,
        name: str,
        *,
        credentials: Credentials | None = None,
        insecure: bool = False,
        actions: str = "pull",
        sources: tuple[str, ...] = (),
    ) -> None:
        """`actions` are asked for on the reference's repository, `pull` on the `sources` as well."""
        self.name = name
        self._actions = actions
        self._sources = sources
        host = _HUB_HOST if name == DEFAULT_REGISTRY else name
        self._origin, _ = transport.split_url(f"https://{host}")
        self._insecure = insecure or transport.is_loopback(self._origin.host)
        self._host = host
        self._credentials = credentials
        self._looked_up = credentials is not None
        self._tokens = _Tokens()
        self._base = "" if self._insecure else f"https://{host}"
        self._note = ""

    def image(self, reference: Reference, platform: Platform | None = None) -> ImageSource:
        what = f"image {reference.familiar!r}"
        data, media_type = self._manifest(reference, reference.target)
        if reference.digest:
            manifest.check_blob(what, data, reference.digest)

        def fetch(entry: Descriptor) -> bytes:
            if entry.size > manifest.MAX_MANIFEST:
                raise Invalid(
                    f"{what} has a manifest of {entry.size} bytes", hint="the image's source is broken"
                )
            body, said = self._manifest(reference, entry.digest)
            manifest.check_blob(f"the manifest of {what}", body, entry.digest, entry.size)
            manifest.parse(what, body, said)
            return body

        data, parsed = manifest.descend(what, data, media_type, platform, fetch)
        config = self._config(reference, parsed.config)
        manifest.check_config(what, config, len(parsed.layers), platform)
        return ImageSource(
            manifest=data,
            manifest_digest=manifest.sha256(data),
            config=config,
            layers=tuple(self._layer(reference, layer) for layer in parsed.layers),
            references=(reference.canonical,),
        )

    def _manifest(self, reference: Reference, target: str) -> tuple[bytes, str]:
        path = f"/v2/{reference.repository}/manifests/{target}"
        with self._get(reference, path, {"Accept": _ACCEPT}) as answer:
            data = _small(answer, manifest.MAX_MANIFEST)
            said = answer.header("Docker-Content-Digest")
            media_type = answer.header("Content-Type").partition(";")[0].strip().lower()
        if said.startswith("sha256:") and said != manifest.sha256(data):
            raise Invalid(
                f"the manifest of {reference.familiar!r} does not match the digest the registry gives for it",
                hint="the registry, or something on the way, is broken",
            )
        return data, media_type

    def _config(self, reference: Reference, config: Descriptor) -> bytes:
        path = f"/v2/{reference.repository}/blobs/{config.digest}"
        with self._get(reference, path, {}) as answer:
            data = _small(answer, config.size)
        manifest.check_blob(f"the config of {reference.familiar!r}", data, config.digest, config.size)
        return data

    def _layer(self, reference: Reference, layer: Descriptor) -> Layer:
        def opened() -> AbstractContextManager[Iterator[bytes]]:
            return contextlib.closing(self._stream(reference, layer))

        def resumed(start: int) -> AbstractContextManager[Iterator[bytes]]:
            return contextlib.closing(self._stream(reference, layer, start))

        return Layer(
            digest=layer.digest, media_type=layer.media_type, size=layer.size, open=opened, resume=resumed
        )

    def _stream(
        self, reference: Reference, layer: Descriptor, start: int = 0
    ) -> Generator[bytes, None, None]:
        """The layer's bytes; a dropped connection is gone on with, wrong bytes are refused at the end if they
        were read from the beginning.
        """
        what = f"layer {layer.digest[:19]} of {reference.familiar!r}"
        seen = hashlib.sha256()
        done, failures = start, 0
        while done < layer.size:
            before = done
            try:
                for piece in self._from(reference, layer, done):
                    done += len(piece)
                    if done > layer.size:
                        raise Invalid(
                            f"{what} is longer than {layer.size} bytes", hint="the registry is broken"
                        )
                    seen.update(piece)
                    yield piece
                if done < layer.size:
                    raise transport.Dropped("it ended early")
            except transport.Dropped as error:
                failures = failures + 1 if done == before else 1
                if failures >= _TRIES:
                    raise Unavailable(
                        f"{what} stopped at {done} of {layer.size} bytes: {error}", hint="try again"
                    ) from error
                time.sleep(min(_PAUSE * 2**failures, _MAX_PAUSE))
        if not start and f"sha256:{seen.hexdigest()}" != layer.digest:
            raise Invalid(
                f"{what} does not match its digest", hint="the registry, or something on the way, is broken"
            )

    def _from(self, reference: Reference, layer: Descriptor, start: int) -> Iterator[bytes]:
        path = f"/v2/{reference.repository}/blobs/{layer.digest}"
        with self._get(reference, path, {"Range": f"bytes={start}-"} if start else {}) as answer:
            skip = _to_skip(answer, start)
            for piece in answer.pieces():
                if skip >= len(piece):
                    skip -= len(piece)
                    continue
                yield piece[skip:] if skip else piece
                skip = 0

    def _get(self, reference: Reference, path: str, headers: dict[str, str]) -> transport.Answer:
        """A good answer; a dropped connection or a busy registry is tried again, a bad one is an error."""
        failures = 0
        while True:
            try:
                answer = self._asked(reference, path, headers)
                if answer.status not in _BUSY:
                    return _good(self, reference, answer)
                fact = f"status {answer.status}"
                answer.close()
            except transport.Dropped as error:
                fact = str(error)
            failures += 1
            if failures >= _TRIES - 2:
                raise Unavailable(
                    f"registry {self.name!r} does not answer properly: {fact}", hint="try again later"
                )
            time.sleep(min(_PAUSE * 2**failures, _MAX_PAUSE))

    def send(
        self,
        reference: Reference,
        method: str,
        target: str,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> transport.Answer:
        """One request of a push, whatever the answer. `target`: a path, or where a Location led. Raises
        `Dropped` where another try is worth it.
        """
        return self._asked(reference, target, headers or {}, method=method, body=body)

    def _asked(
        self,
        reference: Reference,
        path: str,
        headers: dict[str, str],
        *,
        method: str = "GET",
        body: bytes | None = None,
    ) -> transport.Answer:
        """Ask; if the registry wants to know who we are, say so once and ask again."""
        base = self._base or self._find_base()
        url = path if path.startswith(("http://", "https://")) else base + path
        foreign = transport.split_url(url)[0] != transport.split_url(base)[0]
        number, header = self._tokens.number, self._tokens.header
        for attempt in range(2):
            sent = {**headers, "Authorization": header} if header and not foreign else headers
            try:
                answer = transport.request(url, sent, verify=not self._insecure, method=method, body=body)
            except transport.NotTls as error:
                raise Unavailable(
                    str(error), hint="use --insecure-registry if you trust the network"
                ) from error
            # only the registry itself may ask for a login, never where it redirects to
            own = answer.origin == transport.split_url(base)[0]
            if answer.status != 401 or not own or attempt:
                return answer
            with answer:
                challenges = auth.parse_challenges(answer.headers("WWW-Authenticate"))
            number, header = self._authorize(reference, challenges, number)
        raise AssertionError

    def _find_base(self) -> str:
        """TLS if the other end speaks it, else plain http, for registries that may."""
        for scheme in ("https", "http"):
            try:
                transport.request(f"{scheme}://{self._host}/v2/", {}, verify=False).close()
            except transport.NotTls:
                continue
            except transport.Dropped:
                if scheme == "https":
                    continue
            except Unavailable:
                # without a port in the name the two are different ports
                if scheme == "https" and ":" not in self._host:
                    continue
                raise
            self._base = f"{scheme}://{self._host}"
            return self._base
        raise Unavailable(
            f"registry {self.name!r} answers neither https nor http", hint="check the name and the port"
        )

    def _authorize(
        self, reference: Reference, challenges: tuple[auth.Challenge, ...], number: int
    ) -> tuple[int, str]:
        with self._tokens.lock:
            if self._tokens.number != number:
                return self._tokens.number, self._tokens.header
            if not self._looked_up:
                self._credentials, self._looked_up = auth.find_credentials(self.name), True
            self._tokens.header = self._header_for(reference, challenges)
            self._tokens.number += 1
            return self._tokens.number, self._tokens.header

    def _header_for(self, reference: Reference, challenges: tuple[auth.Challenge, ...]) -> str:
        by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
        if "bearer" in by_scheme:
            return "Bearer " + self._token(reference, by_scheme["bearer"].parameters)
        if "basic" in by_scheme and self._credentials is not None and self._credentials.username:
            return self._credentials.basic()
        raise self._denied(reference)

    def _token(self, reference: Reference, parameters: dict[str, str]) -> str:
        realm = parameters.get("realm", "")
        origin, _ = transport.split_url(realm)
        if origin.scheme != "https" and not self._insecure:
            raise Denied(
                f"registry {self.name!r} sends to a token service without TLS", hint="use --insecure-registry"
            )
        scopes = [f"repository:{reference.repository}:{self._actions}"]
        scopes += [f"repository:{source}:pull" for source in self._sources]
        query = {"scope": " ".join(scopes)}
        if parameters.get("service"):
            query["service"] = parameters["service"]
        credentials = self._credentials_for(origin.host)
        with self._ask_for_token(realm, query, credentials) as answer:
            if answer.status in (400, 401, 403):
                raise self._denied(reference)
            if answer.status != 200:
                raise Unavailable(
                    f"the token service of {self.name!r} answers {answer.status}", hint="try again later"
                )
            body = manifest.parse_json(f"the token of {self.name!r}", _small(answer, 1 << 20), 1 << 20)
        return auth.clean_token(body.get("token") or body.get("access_token"))

    def _credentials_for(self, host: str) -> Credentials | None:
        if self._credentials is None or auth.may_send(self._origin.host, host):
            return self._credentials
        self._note = (
            f"its token service {host!r} is of another domain and got no password; log in to {host!r} as well"
        )
        return auth.find_credentials(host)

    def _ask_for_token(
        self, realm: str, query: dict[str, str], credentials: Credentials | None
    ) -> transport.Answer:
        verify = not self._insecure
        try:
            if credentials is not None and credentials.identity_token:
                form = {**query, "grant_type": "refresh_token", "client_id": "knarr"}
                body = urlencode({**form, "refresh_token": credentials.identity_token}).encode()
                headers = {"Content-Type": "application/x-www-form-urlencoded"}
                return transport.request(realm, headers, verify=verify, method="POST", body=body)
            headers = {"Authorization": credentials.basic()} if credentials is not None else {}
            url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}"
            return transport.request(url, headers, verify=verify)
        except (transport.Dropped, transport.NotTls) as error:
            raise Unavailable(
                f"the token service of {self.name!r} does not answer: {error}", hint="try again"
            ) from error

    def _denied(self, reference: Reference) -> KnarrError:
        name = reference.familiar_name
        login = "docker login" if self.name == DEFAULT_REGISTRY else f"docker login {self.name}"
        if self._credentials is None:
            return Denied(
                f"registry {self.name!r} lets nobody unnamed have {name!r}",
                hint=self._note or f"check the name (it may not exist), or log in: {login}",
            )
        return Denied(
            f"registry {self.name!r} refuses {name!r} to this login",
            hint=self._note or f"log in again: {login}",
        )

    def denied(self, reference: Reference) -> KnarrError:
        return self._denied(reference)


def _good(registry: Registry, reference: Reference, answer: transport.Answer) -> transport.Answer:
    if answer.status in (200, 206):
        return answer
    with answer:
        codes = _error_codes(answer)
    if answer.status in (401, 403):
        raise registry.denied(reference)
    if answer.status == 404 and "NAME_UNKNOWN" in codes:
        raise NotFound(
            f"registry {registry.name!r} has no image {reference.familiar_name!r}", hint="check the name"
        )
    if answer.status == 404:
        raise NotFound(
            f"registry {registry.name!r} has no {reference.target[:80]!r} of {reference.familiar_name!r}",
            hint="check the name and the tag",
        )
    raise Failed(f"registry {registry.name!r} answers with status {answer.status}", hint="is it a registry?")


def _error_codes(answer: transport.Answer) -> set[str]:
    # the registry's own words are not repeated: they may hold anything
    try:
        body = manifest.parse_json("the error", answer.small(_MAX_ERROR), _MAX_ERROR)
    except (KnarrError, transport.Dropped):
        return set()
    errors = body.get("errors")
    return (
        {str(one.get("code")) for one in errors if isinstance(one, dict)}
        if isinstance(errors, list)
        else set()
    )


def _small(answer: transport.Answer, limit: int) -> bytes:
    try:
        return answer.small(limit)
    except transport.Dropped as error:
        raise Unavailable(
            f"{answer.origin.text!r} stopped in the middle of its answer", hint="try again"
        ) from error


def _to_skip(answer: transport.Answer, start: int) -> int:
    """How much of the body we have already: all before `start` if the range was not heeded."""
    if answer.status == 200:
        return start
    if not answer.header("Content-Range").replace(" ", "").startswith(f"bytes{start}-"):
        raise transport.Dropped("it sent another range")
    return 0
