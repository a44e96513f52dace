"""Every random choice is a pure function of the run's seed and of what is being chosen.

Nothing draws from a global generator, so a resumed run needs no generator state: step 11 draws the same numbers
whether or not steps 1–10 ran in the same process.
"""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed for the thing that `parts` name, independent of the seeds of other things.

    >>> derive_seed(0, "rollout", 3) == derive_seed(0, "rollout", 3) != derive_seed(0, "rollout", 4)
    True
    """
    digest = hashlib.blake2b("\x1f".join(map(repr, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
