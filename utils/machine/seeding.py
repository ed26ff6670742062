"""Randomness as a function of (seed, stream, step), so that a resumed run draws what an uninterrupted one would."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any number of parts; equal parts give equal seeds on every machine."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def make_generator(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """A generator on `device`, seeded from `parts`."""
    return reseed(torch.Generator(device), *parts)


def reseed(generator: torch.Generator, *parts: int | str) -> torch.Generator:
    """The generator, seeded anew from `parts`."""
    return generator.manual_seed(derive_seed(*parts))


def seed_global(*parts: int | str) -> None:
    """Seed torch's global streams (initialisation, dropout) from `parts`."""
    torch.manual_seed(derive_seed(*parts))
