"""Results as HTML, as Jupyter shows them: in a page of usual width nothing scrolls."""

import re
from collections.abc import Iterable, Sequence

from markupsafe import Markup


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Return a table with named rows. Texts are escaped. Lines break before an interval only, and within long names."""
    head = Markup("").join(Markup("<th>{}</th>").format(column) for column in ("", *columns))
    body = Markup("").join(
        Markup("<tr><th>{}</th>{}</tr>").format(
            name,
            Markup("").join(
                Markup("<td>{}</td>").format(re.sub(r" (?!\[)", "\N{NO-BREAK SPACE}", cell)) for cell in cells
            ),
        )
        for name, *cells in rows
    )
    title = Markup("<caption>{}</caption>").format(caption) if caption else ""
    table = Markup("<table>{}<thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(title, head, body)
    return Markup('<div style="overflow-wrap: anywhere">{}</div>').format(table)
