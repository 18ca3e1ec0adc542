"""What one domain hands to another: a root file system, a network attachment, a mount."""

from __future__ import annotations

from dataclasses import dataclass, field

from knarr.model.health import Health


@dataclass(frozen=True, kw_only=True, slots=True)
class RootFs:
    """An image ready to run: one metadata-only EROFS tree whose chunks lie in the pool."""

    tree_id: str
    """hex; the name under which the keeper mounts it: RUN/images/<tree_id>"""
    tree: str
    """absolute path of the .erofs file"""
    pool: str
    """absolute path of the pool (the tree's extra device)"""
    disk_map: str
    """absolute path of the per-image qcow2 (data_file = pool) for a VM; made on first use"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attachment:
    """One workload's place on a network."""

    address: str
    """IPv4 without prefix length"""
    prefix: int
    gateway: str
    mac: str
    bridge: str
    link: str
    """the host's end: a veth or a tap"""
    interface: str = "eth0"
    mtu: int = 1500
    aliases: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageConfig:
    """What of an OCI image config a runtime needs (image-spec config.md)."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    workdir: str = ""
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    health: Health | None = None
    architecture: str = ""
    os: str = ""
    created: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """One image of the store."""

    id: str
    """sha256:… of the config blob"""
    digest: str
    """sha256:… of the manifest"""
    references: tuple[str, ...]
    """canonical, such as docker.io/library/debian:bookworm"""
    created: str
    size: int
    """bytes of file contents in the tree, each file counted once"""
    rootfs: RootFs
    config: ImageConfig
    layers: tuple[str, ...] = ()
    """diff ids"""
