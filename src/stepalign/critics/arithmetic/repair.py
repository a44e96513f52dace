"""Repair arithmetic in a solver's own text: recompute results and carry changed values forward.

`recompute` rewrites the equations of a text under known changes of value (75 → 85), from first to last. An operand with
a changed value gets the new one and results follow. A changed result is one more change, for the prose and the later
texts. Everything else stays as written, decimals and thousands separators included.

Left out: choosing the meaning of a number. A value that is also one of the problem's own numbers may be either, so the
caller tries both and keeps the one that leads to the reference answer.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

from stepalign.critics.arithmetic.chains import Chain, holds, is_decidable
from stepalign.critics.arithmetic.equations import find_equations, find_numbers
from stepalign.critics.arithmetic.expressions import Expression, Number, replace_spans

MAX_DECIMALS = 4
"""Decimals of a new number before it is rounded."""
_MONEY = 2
"""Decimals that stay although they are zeros."""
Changes = Mapping[Fraction, Fraction]


def recompute(text: str, changes: Changes, protected: Set[Fraction] = frozenset()) -> tuple[str, Changes]:
    """Make the equations of a text true, under earlier changes (old value → new value).

    `protected` values have another meaning as well; operands and prose keep them. Returns the repaired text, and the
    changes of value that hold after it.
    """
    repairer = _Repairer(dict(changes), protected)
    chains = find_equations(text)
    for chain in chains:
        repairer.repair(chain)
    in_equations = {n.start for chain in chains for part in chain.parts if part.is_certain for n in part.literals}
    for number in find_numbers(text):
        if number.start not in in_equations:
            repairer.write(number, repairer.current(number.value))
    return _drop_repeated_lines(text, replace_spans(text, repairer.edits)), repairer.changes


def format_like(value: Fraction, number: Number) -> tuple[str, Fraction]:
    """Format a value in the style of a number; return the text and its own value, which may be rounded."""
    fewest = number.decimals if number.decimals <= _MONEY else 0
    exact = (places for places in range(fewest, MAX_DECIMALS + 1) if (value * 10**places).denominator == 1)
    places = next(exact, max(min(number.decimals, MAX_DECIMALS), _MONEY))
    scaled = round(abs(value) * 10**places)
    whole, decimals = divmod(scaled, 10**places)
    sign = "-" if value < 0 and scaled else ""
    separator = "{,}" if "{,}" in number.text else "," if "," in number.text else ""
    text = sign + f"{whole:,}".replace(",", separator) + (f".{decimals:0{places}}" if places else "")
    return text, Fraction(-scaled if sign else scaled, 10**places)


@dataclass
class _Repairer:
    changes: dict[Fraction, Fraction]
    protected: Set[Fraction]
    edits: dict[int, tuple[int, str]] = field(default_factory=dict)
    """Start → end and new text."""

    def current(self, value: Fraction) -> Fraction:
        return value if value in self.protected else self.changes.get(value, value)

    def write(self, number: Number, value: Fraction) -> Fraction:
        """Write a value in a number's place and return the value as it now reads."""
        if value == number.value:
            self.edits.pop(number.start, None)
            return value
        text, rounded = format_like(value, number)
        self.edits[number.start] = (number.end, text)
        return rounded

    def repair(self, chain: Chain) -> None:
        """Make a chain true, outwards from its first computation."""
        old, new = chain.parts, list(chain.parts)
        sure = [i for i, part in enumerate(old) if part.computes and part.is_certain]
        for i in sure:
            new[i] = self._write_all(old[i], [self.current(n.value) for n in old[i].literals])
        first = next((i for i in sure if new[i].values()), None)
        if first is None:
            return
        backward = [(i + 1, i, i) for i in range(first - 1, -1, -1)]
        forward = [(i, i + 1, i) for i in range(first, len(new) - 1)]
        for source, target, sign in backward + forward:
            changed = any(new[i].values() != old[i].values() for i in (source, target))
            new[target] = self._follow(new[source], new[target], old[target], changed, chain.approximate[sign])

    def _write_all(self, part: Expression, values: Sequence[Fraction]) -> Expression:
        return part.with_values([self.write(n, value) for n, value in zip(part.literals, values, strict=True)])

    def _follow(
        self, source: Expression, target: Expression, old: Expression, changed: bool, approximate: bool
    ) -> Expression:
        """Make a side equal to its neighbour. `old` is that side as the solver wrote it."""
        if not is_decidable(source, target):
            return target
        is_exact = set(source.values()) & {*target.values(), target.literals[0].value}
        if holds(source, target, approximate) and (is_exact or not changed):
            return target
        value = source.values()[0]
        if not target.computes:
            return self._write_result(target, value) if len(target.literals) == 1 else target
        numbers = [number.value for number in target.literals]
        known = (*source.intermediate_values(), value)
        candidates = ([*numbers[:i], new, *numbers[i + 1 :]] for i in range(len(numbers)) for new in known)
        running = [value, *numbers[1:]]  # a running chain
        values = next((new for new in candidates if value in target.with_values(new).values()), running)
        written = self._write_all(old, values)
        for before, after in zip(old.literals, written.literals, strict=True):
            if before.value != after.value:
                self.changes.setdefault(before.value, after.value)
        return written

    def _write_result(self, part: Expression, value: Fraction) -> Expression:
        (number,) = part.literals
        if "%" in part.code:
            value = min(value, value * 100, key=lambda value: abs(value - number.value))
        if "neg" in part.code and value >= 0:
            sign = part.start + min(part.text.find(sign) % len(part.text) for sign in "-−–")
            text, rounded = format_like(value, number)
            self.edits[sign] = (number.end, text)
            return part.with_values([-rounded])
        rounded = self.write(number, -value if "neg" in part.code else value)
        self.changes[number.value] = rounded
        return part.with_values([rounded])


def _drop_repeated_lines(old: str, new: str) -> str:
    """Remove repaired lines that corrected a slip and now only repeat the line before them."""
    before, after = old.split("\n"), new.split("\n")
    if old == new or len(before) != len(after):
        return new
    pairs = zip(pairwise(map(_equations, before)), pairwise(map(_equations, after)), after[1:], strict=True)
    lines = (line for was, now, line in pairs if not now[1] or now[0] != now[1] or was[0] == was[1])
    return "\n".join([after[0], *lines])


def _equations(line: str) -> list[list[str]]:
    return [[" ".join(part.text.split()) for part in chain.parts] for chain in find_equations(line)]
