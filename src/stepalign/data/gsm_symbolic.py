"""`gsm_symbolic` of reasoning-gym: word problems from templates, with a written derivation.

Known defects of the generator (a line like `James receives 48=48`, a fraction with sixteen digits) are left
in. Where the derivation's last line and the answer are written differently (`#### 36.0` and `36`), the answer
is the generator's own.
"""

from collections.abc import Iterator

from stepalign import config
from stepalign.data.gsm8k import split_answer
from stepalign.data.normalize import Candidate
from stepalign.errors import StepalignError
from stepalign.seeding import derive_seed


def candidates(source: config.GsmSymbolicConfig) -> Iterator[Candidate]:
    """Yield `count` generated problems, the same for one seed and release of reasoning-gym.

    The generator seeds its problem i with seed + i, so that sets of neighbouring seeds would share problems.
    Therefore its seed is derived from the recipe's.

    Raises:
        StepalignError: reasoning-gym is not installed.
    """
    try:
        import reasoning_gym
    except ModuleNotFoundError:
        raise StepalignError('source = "gsm_symbolic" needs reasoning-gym: install stepalign[reasoning-gym]') from None
    generated = reasoning_gym.create_dataset(
        "gsm_symbolic", size=source.count, seed=derive_seed(source.seed, "gsm_symbolic")
    )
    for index in range(source.count):
        example = generated[index]
        yield Candidate(
            where=f"gsm_symbolic, seed {source.seed}, problem {index}",
            id=f"gsm_symbolic-{source.seed}-{index}",
            statement=example["question"],
            answer=example["answer"],
            solution=split_answer(example["metadata"]["answer_cot"])[0],
            source="reasoning-gym/gsm_symbolic",
        )
