"""Results in a notebook."""

import re
import subprocess
import sys

from stepalign.evaluation.metrics import CreditMeasures
from stepalign.evaluation.stats import Interval
from stepalign.notebook import html_table
from stepalign.probing.folder import Probe

WITHOUT_WIDGETS = """
import sys, types
kernel = lambda: types.SimpleNamespace(config={})
sys.modules |= {"ipykernel.zmqshell": None, "IPython": types.SimpleNamespace(get_ipython=kernel), "ipywidgets": None}
import stepalign
import tqdm.auto
"""


def test_a_cell_breaks_before_its_interval_only_and_texts_are_escaped() -> None:
    page = html_table(["a<b"], [("avg", "43.3 % [38.0 %, 48.1 %]")])
    assert "a&lt;b" in page
    assert re.findall("<td>(.*?)</td>", page) == ["43.3\xa0% [38.0\xa0%,\xa048.1\xa0%]"]


def test_a_probe_is_a_row_a_measure_and_a_column_a_context() -> None:
    """Measures that no context has are left out."""
    credit = {"correct": Interval(value=0.1, low=0.0, high=0.2, n=3)}
    page = Probe(problems=(), rollouts=(), measures=CreditMeasures(contexts={"one": credit, "two": {}}))._repr_html_()
    assert re.findall("<th>(.*?)</th>", page) == ["", "one", "two", "correct"]
    assert re.findall("<td>(.*?)</td>", page) == ["+0.10 [+0.00,\xa0+0.20]", ""]


def test_a_notebook_without_ipywidgets_gets_no_warning() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_WIDGETS], capture_output=True, text=True, check=True)
    assert done.stderr == ""
