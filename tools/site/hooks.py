"""Hook of MkDocs: each cell of a table carries its column's name, which a narrow page shows beside the cell."""

import re
from typing import Any


def on_page_content(html: str, **_: Any) -> str:
    """Return a page whose tables have their columns' names at each cell."""
    return re.sub(r"<table>.*?</table>", lambda table: _labelled(table[0]), html, flags=re.S)


def _labelled(table: str) -> str:
    heads = [re.sub(r'<[^>]*>|"', "", head) for head in re.findall(r"<th(?: [^>]*)?>(.*?)</th>", table, flags=re.S)]

    def row(match: re.Match[str]) -> str:
        columns = iter(heads)
        return re.sub(r"<td", lambda _: f'<td data-label="{next(columns)}"', match[0])

    return re.sub(r"<tr>.*?</tr>", row, table, flags=re.S)
