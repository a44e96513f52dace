"""Results as HTML, as Jupyter shows them."""

from collections.abc import Iterable, Sequence

from markupsafe import Markup


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Return a table with named rows. Texts are escaped."""
    head = Markup("").join(Markup("<th>{}</th>").format(column) for column in ("", *columns))
    body = Markup("").join(
        Markup("<tr><th>{}</th>{}</tr>").format(
            name, Markup("").join(Markup('<td style="white-space: nowrap">{}</td>').format(cell) for cell in cells)
        )
        for name, *cells in rows
    )
    title = Markup("<caption>{}</caption>").format(caption) if caption else ""
    return Markup("<table>{}<thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(title, head, body)
