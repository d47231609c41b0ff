"""Comparison page: tables and tests of compared runs on the terminal, as one HTML file, and as Markdown."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from rich.console import Console
from rich.table import Table
from rich.text import Text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 1.5rem }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd }
th { text-align: left } td { font-variant-numeric: tabular-nums } img { max-width: 100% }
"""
TESTS = "Compared with the first run"
NO_DIFFERENCE = "The recipes are the same."
MANY_TESTS = "Each p-value is for one test alone, without correction: among many tests, some are small by chance."


@dataclass(frozen=True, slots=True)
class RunComparison:
    """Runs side by side.

    ``settings`` (the differing ones) and ``results``: by row name, a value per run. ``tests``: sentences that compare
    each run with the first one. ``curves``: (step, value) by label and metric.
    """

    labels: tuple[str, ...]
    ids: tuple[str, ...]
    settings: dict[str, tuple[str, ...]]
    results: dict[str, tuple[str, ...]]
    tests: tuple[str, ...]
    curves: dict[str, dict[str, list[tuple[int, float]]]]


def print_comparison(comparison: RunComparison) -> None:
    """Print the tables and the tests."""
    console = Console(highlight=False)
    for title, rows in titled_tables(comparison):
        table = Table(title=title, title_justify="left")
        table.add_column("")
        for label in comparison.labels:
            table.add_column(Text(label), overflow="fold", justify="right")
        for name, values in rows.items():
            table.add_row(name, *(Text(value) for value in values))
        console.print(table if rows else NO_DIFFERENCE)
    for sentence in comparison_sentences(comparison):
        console.print(f"- {sentence}", markup=False, soft_wrap=True)


def titled_tables(comparison: RunComparison) -> list[tuple[str, Mapping[str, Sequence[str]]]]:
    """The two tables, settings and results, with their titles."""
    return [("What differs in the recipe", comparison.settings), ("Results", comparison.results)]


def comparison_sentences(comparison: RunComparison) -> list[str]:
    """The results of the tests, with a warning about p-values when more than two runs are compared."""
    return [*comparison.tests, *([MANY_TESTS] if len(comparison.labels) > 2 else [])]


def to_html(comparison: RunComparison, picture: bytes) -> str:
    """One self-contained HTML page; ``picture`` is the bytes of the PNG, embedded in it."""
    body = ["<h1>Comparison of runs</h1>"]
    for title, rows in titled_tables(comparison):
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
        *(f"<li>{escape(sentence)}</li>" for sentence in comparison_sentences(comparison)),
        "</ul>",
    ]
    body.append(
        f'<img alt="Training curves of the compared runs" src="data:image/png;base64,{b64encode(picture).decode()}">'
    )
    head = f'<meta charset="utf-8"><title>Comparison of runs</title><style>{STYLE}</style>'
    return f"<!doctype html>\n<html><head>{head}</head><body>\n{chr(10).join(body)}\n</body></html>\n"


def to_markdown(comparison: RunComparison) -> str:
    """The tables and the tests in Markdown, for a Prefect artifact."""
    lines = []
    for title, rows in titled_tables(comparison):
        lines += [f"## {title}", "", *(markdown_table(comparison.labels, rows) if rows else [NO_DIFFERENCE]), ""]
    return "\n".join(
        [*lines, f"## {TESTS}", "", *(f"- {sentence}" for sentence in comparison_sentences(comparison)), ""]
    )


def markdown_table(labels: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Lines of a Markdown table: a column per label, a row per name."""
    table = [["", *labels], ["---"] * (len(labels) + 1), *([name, *values] for name, values in rows.items())]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
