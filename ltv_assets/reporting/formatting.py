"""How the documents write numbers, intervals and amounts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and how it is shown; the page keeps the whole number beside its text."""

    value: float
    text: str

    def __str__(self) -> str:
        return self.text


def number(value: float | None, digits: int = 4) -> Figure | str:
    """A figure, or a dash where there is none."""
    if value is None or value != value:
        return "-"
    text = f"{value:,.{digits}f}".replace(",", " ") if digits == 0 else f"{value:.{digits}f}"
    return Figure(float(value), text)


def percent(share: float) -> Figure:
    """A share in percent with one decimal."""
    return Figure(share, f"{100 * share:.1f}")


def interval(low: float | None, high: float | None, *, signed: bool = False) -> str:
    """``low .. high`` with four decimals; empty where a bound is missing or NaN."""
    if low is None or high is None or low != low or high != high:
        return ""
    return f"{low:+.4f} .. {high:+.4f}" if signed else f"{low:.4f} .. {high:.4f}"


def count(value: float) -> str:
    """A whole number with groups of three digits."""
    return f"{value:,.0f}".replace(",", "\u00a0")


def usd(value: float) -> str:
    """Whole US dollars."""
    return f"${value:,.0f}".replace(",", "\u00a0")
