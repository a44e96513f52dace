"""Seeds: every random choice is a function of the run's seed and of the thing that is chosen.

No global generator is used, so a resumed run needs no generator state: step 11 gets the same numbers whether or not
steps 1–10 ran in the same process.
"""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed for the thing that `parts` name, independent of all other seeds.

    >>> derive_seed(0, "rollout", 3) == derive_seed(0, "rollout", 3) != derive_seed(0, "rollout", 4)
    True
    """
    digest = hashlib.blake2b("\x1f".join(map(repr, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
