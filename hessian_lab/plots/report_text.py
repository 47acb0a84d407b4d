"""Text for a page: numbers as people write them, everything escaped, tables and lists."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
# Magnitudes from here on are written without a power of ten, up to where digits are made up.
PLAIN = 1e-2


@dataclass(frozen=True)
class Number:
    """A number in a table: the very value, and how people read it.

    Attributes:
        value: As the record has it.
        text: As the page shows it.
    """

    value: float
    text: str


Cell = str | Number


def escape(text: object) -> str:
    """Return a text that HTML takes for text, also inside quotes."""
    return html.escape(str(text), quote=True)


def written(value: float, digits: int = 3) -> str:
    """Return a number to some significant digits: 0.125, 3.05×10⁻⁵, ∞, or – for NaN."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    rounded = float(f"{value:.{digits - 1}e}")
    if rounded == 0:
        return "0"
    if PLAIN <= abs(rounded) < 10 ** max(digits, 3):
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
        return f"{rounded:.{decimals}f}".replace("-", "−")
    mantissa, exponent = f"{rounded:.{digits - 1}e}".split("e")
    if mantissa == "1":
        return power(int(exponent))
    return f"{mantissa}×{power(int(exponent))}".replace("-", "−")


def power(exponent: int) -> str:
    """Return a power of ten: 10⁻⁵."""
    return f"10{str(exponent).translate(SUPERSCRIPT)}"


def number(value: float, digits: int = 3) -> Number:
    """Return a cell of a number to some significant digits."""
    return Number(value, written(value, digits))


def count(value: float) -> Number:
    """Return a cell of a whole number, its thousands apart."""
    return Number(value, f"{int(value):,}".replace(",", "\u202f"))


def percent(share: float) -> Number:
    """Return a cell of a share, in percent with one decimal."""
    return Number(share, "–" if math.isnan(share) else f"{100 * share:.1f}\u202f%")


def decibels(value: float) -> Number:
    """Return a cell of a PSNR in dB."""
    text = f"{value:.1f}".replace("-", "−") if math.isfinite(value) else written(value)
    return Number(value, text)


def seconds(value: float) -> Number:
    """Return a cell of a time in s, to hundredths."""
    return Number(value, written(value) if not value < 100 else f"{value:.2f}")


def bound(value: float, *, resolved: bool) -> Number:
    """Return a cell of a number, or of a lower bound with ≥."""
    text = written(value, 2)
    return Number(value, text if resolved or math.isnan(value) else f"≥\u202f{text}")


def shown(cell: Cell) -> str:
    """Return the HTML of a cell; a number carries its exact value."""
    if isinstance(cell, str):
        return escape(cell)
    if not math.isfinite(cell.value):
        return escape(cell.text)
    return f'<data value="{cell.value!r}">{escape(cell.text)}</data>'


def table(
    head: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]], *, caption: str = ""
) -> str:
    """Return a table with one heading per row and column; wide ones scroll by themselves."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = []
    for name, cells in rows:
        row = "".join(f"<td>{shown(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{row}</tr>')
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{title}<thead><tr>{columns}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def facts(title: str, entries: Sequence[tuple[str, str]]) -> str:
    """Return a list of names and values under a title."""
    lines = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in entries
    )
    return f'<div class="facts"><h4>{escape(title)}</h4><dl>{lines}</dl></div>'


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph."""
    return f"<p{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{escape(text)}</p>"


def key(kind: str, words: str) -> str:
    """Return what a colour stands for, in one piece."""
    return f'<span class="named"><i class="key {kind}"></i> {escape(words)}</span>'


def typed(lead: str, command: str) -> str:
    """Return a sentence that ends in a command to type."""
    return f'<p class="todo">{escape(lead)} <code>{escape(command)}</code></p>'
