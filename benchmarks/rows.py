"""What a section has measured, as rows of text: the terminal and the report show the same ones."""

from __future__ import annotations

from typing import Final

from benchmarks.measurements import Bound, Figure, Section

HEADINGS: Final = ("", "unit", "median", "quartiles", "p99", "p99.9", "beside", "target")


def number(value: float) -> str:
    """About three digits."""
    if value == 0:
        return "0"  # also -0.0
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 4
    return f"{value:.{digits}f}"


def figures(section: Section) -> list[tuple[str, ...]]:
    """A row for each figure, under HEADINGS."""
    return [_row(section, figure) for figure in section.figures if figure.samples]


def _row(section: Section, figure: Figure) -> tuple[str, ...]:
    quartiles = f"{number(figure.spread[0])} to {number(figure.spread[1])}" if len(figure.samples) > 1 else ""
    beside = [f"{section.ratio(figure, other):.2f} × {other}" for other in figure.beside if there(section, other)]
    targets = [target(section, figure, bound) for bound in figure.bounds]
    return (
        figure.name,
        figure.unit,
        number(figure.median),
        quartiles,
        _tail(figure, 0.99),
        _tail(figure, 0.999),
        "; ".join(beside),
        "; ".join(targets),
    )


def _tail(figure: Figure, q: float) -> str:
    """A quantile, where enough was measured to know it."""
    return number(figure.quantile(q)) if len(figure.samples) * (1 - q) >= 1 else ""


def there(section: Section, name: str) -> bool:
    """Has the figure of this name been measured?"""
    return any(figure.name == name and figure.samples for figure in section.figures)


def aim(figure: Figure, bound: Bound) -> str:
    """A target in words, without what it is a target for."""
    quantile = "" if bound.quantile == 0.5 else f"p{100 * bound.quantile:g} "
    if not bound.beside:
        return f"{quantile}{bound.kind} {_plain(bound.ratio)} {figure.unit}"
    itself = "its own median" if bound.beside == figure.name else bound.beside
    return f"{quantile}{bound.kind} {bound.ratio:g} × {itself}"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else number(value)


def target(section: Section, figure: Figure, bound: Bound) -> str:
    """A target and whether it was met."""
    if bound.beside and not there(section, bound.beside):
        return f"{aim(figure, bound)}: not measured"
    ratio = section.ratio(figure, bound.beside, bound.quantile)
    return f"{aim(figure, bound)}: {'met' if bound.met(ratio) else 'MISSED'} ({number(ratio)})"


def facts(section: Section) -> list[tuple[str, ...]]:
    """Headings, then a row for each figure that has facts; [] if none has."""
    if not section.facts:
        return []
    columns = list(dict.fromkeys(column for row in section.facts.values() for column in row))
    rows = [tuple(_text(row.get(column, "")) for column in columns) for row in section.facts.values()]
    return [("", *columns), *((name, *row) for name, row in zip(section.facts, rows, strict=True))]


def _text(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)
