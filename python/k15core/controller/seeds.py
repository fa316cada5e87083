"""Seeds for everything that draws: one number from the run's seed and what the draw is for."""

import hashlib


def derive(seed: int, *labels: str | int) -> int:
    """A 63 bit seed that is a pure function of its arguments, and unlike for unlike labels."""
    text = "\0".join(map(str, (seed, *labels)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1
