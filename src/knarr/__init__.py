"""Knarr: one engine that runs containers and virtual machines side by side."""

__version__ = "0.1.0"
