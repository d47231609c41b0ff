"""A comparison as it is read: on the terminal, as one HTML file that needs no other, and as Markdown."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from flows.reports.compare_runs import RunComparison

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 1.5rem }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd }
th { text-align: left } td { font-variant-numeric: tabular-nums } img { max-width: 100% }
"""
TESTS = "Against the first"
NO_DIFFERENCE = "The recipes are the same."
SEVERAL = "p-values are of each test alone: of many tests, some come out small by chance."


def show(comparison: "RunComparison") -> None:
    """Print it."""
    console = Console(highlight=False)
    for title, rows in parts(comparison):
        made = Table(title=title, title_justify="left")
        made.add_column("")
        for label in comparison.labels:
            made.add_column(Text(label), overflow="fold", justify="right")
        for name, values in rows.items():
            made.add_row(name, *(Text(value) for value in values))
        console.print(made if rows else NO_DIFFERENCE)
    for sentence in sentences(comparison):
        console.print(f"- {sentence}", markup=False, soft_wrap=True)


def parts(comparison: "RunComparison") -> list[tuple[str, Mapping[str, Sequence[str]]]]:
    """The two tables."""
    return [("What differs in the recipe", comparison.settings), ("Results", comparison.results)]


def sentences(comparison: "RunComparison") -> list[str]:
    """The tests, with a warning when they are many."""
    return [*comparison.tests, *([SEVERAL] if len(comparison.labels) > 2 else [])]


def html(comparison: "RunComparison", picture: bytes) -> str:
    """One file, the picture inside of it."""
    body = ["<h1>Comparison</h1>"]
    for title, rows in parts(comparison):
        heads = "".join(f"<th>{escape(label)}</th>" for label in ("", *comparison.labels))
        lines = [
            f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>"
            for name, values in rows.items()
        ]
        table = f"<table><tr>{heads}</tr>{''.join(lines)}</table>" if rows else f"<p>{NO_DIFFERENCE}</p>"
        body += [f"<h2>{title}</h2>", table]
    body += [
        f"<h2>{TESTS}</h2>",
        "<ul>",
        *(f"<li>{escape(sentence)}</li>" for sentence in sentences(comparison)),
        "</ul>",
    ]
    body.append(f'<img alt="curves" src="data:image/png;base64,{b64encode(picture).decode()}">')
    head = f'<meta charset="utf-8"><title>Comparison</title><style>{STYLE}</style>'
    return f"<!doctype html>\n<html><head>{head}</head><body>\n{chr(10).join(body)}\n</body></html>\n"


def markdown(comparison: "RunComparison") -> str:
    """The same for a Prefect artifact."""
    lines = []
    for title, rows in parts(comparison):
        lines += [f"## {title}", "", *(grid(comparison.labels, rows) if rows else [NO_DIFFERENCE]), ""]
    return "\n".join([*lines, f"## {TESTS}", "", *(f"- {sentence}" for sentence in sentences(comparison)), ""])


def grid(labels: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    told = [["", *labels], ["---"] * (len(labels) + 1), *([name, *values] for name, values in rows.items())]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in told]
