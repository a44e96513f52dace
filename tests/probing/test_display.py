"""A probe's measures on the terminal."""

import re

import pytest

from stepalign.evaluation.metrics import CreditMeasures
from stepalign.evaluation.stats import Interval
from stepalign.probing.display import COLUMNS, table

INTERVAL = Interval(value=-0.123, low=-1.5, high=0.25, n=40)


@pytest.mark.parametrize("count", [1, 4, 6])
def test_the_table_has_every_measure_and_fits_a_hundred_columns(count: int) -> None:
    names = [f"contexts/of/my/own/number-{number}.txt" for number in range(count)]
    contexts = {name: dict.fromkeys(COLUMNS, INTERVAL) for name in names}
    text = table(CreditMeasures(contexts=contexts, baselines={"length": {"auroc": INTERVAL}}))
    assert max(map(len, text.splitlines())) <= 100
    for name in names:
        assert f"…{name[-19:]} " in text
    for title, _ in COLUMNS.values():
        assert len(re.findall(rf"^{re.escape(title)} ", text, re.MULTILINE)) >= -(-count // 4)
    assert "−0.12 [−1.50, +0.25]" in text


def test_measures_that_no_context_has_are_left_out() -> None:
    text = table(CreditMeasures(contexts={"refsol": {"at": INTERVAL}}, baselines={}))
    assert "AUROC" not in text
    assert "at error" in text
