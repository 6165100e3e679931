"""Numbers within bounds, as expressions over their decimal digits: no zeros lead, no exponent follows."""

from __future__ import annotations

from decimal import Decimal

from .expression import Expression, characters, choice, optional, repeat, sequence
from .notation import NEVER

MAX_DIGITS = 17  # of an integer, and of what stands behind the point
FRACTION = 6  # digits behind the point of a number with bounds, so that no double rounds onto a bound
_LARGEST = 10**MAX_DIGITS - 1

DIGIT = characters([(48, 57)])
_NATURAL = choice("0", sequence(characters([(49, 57)]), repeat(DIGIT, 0, MAX_DIGITS)))
ANY_INTEGER = sequence(optional("-"), _NATURAL)
_SIGN = characters([(43, 43), (45, 45)])
_EXPONENT = sequence(characters([(69, 69), (101, 101)]), optional(_SIGN), repeat(DIGIT, 1, 2))
ANY_NUMBER = sequence(ANY_INTEGER, optional(sequence(".", repeat(DIGIT, 1, MAX_DIGITS))), optional(_EXPONENT))


def integers(low: int | None, high: int | None) -> Expression:
    """From `low` to `high`, both included; without one, to the largest of 17 digits. NEVER if none."""
    if low is None and high is None:
        return ANY_INTEGER
    begin = max(low, -_LARGEST) if low is not None else -_LARGEST
    end = min(high, _LARGEST) if high is not None else _LARGEST
    options: list[Expression] = []
    if begin < 0 and begin <= end:
        options.append(sequence("-", _naturals(max(1, -end), -begin)))
    if end >= 0 and begin <= end:
        options.append(_naturals(max(begin, 0), end))
    return choice(*options)


def numbers(low: Decimal | None, high: Decimal | None, low_open: bool, high_open: bool) -> Expression:
    """Between bounds, each included unless it is open. NEVER if there are none of at most six decimals."""
    if low is None and high is None:
        return ANY_NUMBER
    begin = low if low is not None else Decimal(-(10**9))
    end = high if high is not None else max(begin, Decimal(0)) + Decimal(10**9)
    begin = min(begin, end - 10**9) if low is None else begin
    options: list[Expression] = []
    if begin < 0:
        top, top_open = (-end, high_open) if end < 0 else (Decimal(0), False)
        options.append(sequence("-", _positives(top, -begin, top_open, low_open)))
    if end >= 0:
        bottom, bottom_open = (begin, low_open) if begin >= 0 else (Decimal(0), False)
        options.append(_positives(bottom, end, bottom_open, high_open))
    return choice(*options)


def _naturals(low: int, high: int) -> Expression:
    """Length by length."""
    options = []
    while low <= high:
        top = min(high, 10 ** len(str(low)) - 1)
        options.append(_same_length(str(low), str(top)))
        low = top + 1
    return choice(*options)


def _same_length(low: str, high: str) -> Expression:
    """Runs of as many digits, from one to the other."""
    if not low:
        return sequence()
    if low == "0" * len(low) and high == "9" * len(high):
        return repeat(DIGIT, len(low), len(low))
    if low[0] == high[0]:
        return sequence(low[0], _same_length(low[1:], high[1:]))
    rest = len(low) - 1
    first, last, options = int(low[0]), int(high[0]), list[Expression]()
    if low[1:].strip("0"):
        options.append(sequence(low[0], _same_length(low[1:], "9" * rest)))
        first += 1
    if high[1:].strip("9"):
        options.append(sequence(high[0], _same_length("0" * rest, high[1:])))
        last -= 1
    if first <= last:
        options.append(sequence(_digits(first, last), repeat(DIGIT, rest, rest)))
    return choice(*options)


def _digits(low: int, high: int) -> Expression:
    return characters([(48 + low, 48 + high)])


def _positives(low: Decimal, high: Decimal, low_open: bool, high_open: bool) -> Expression:
    """From 0 on: the whole numbers strictly between with any decimals, and the two at the bounds."""
    if low > high:
        return NEVER
    (first, begin), (last, end) = _parts(low), _parts(high)
    if first == last:
        return _with_decimals(str(first), _between(begin, end, low_open, high_open, 0))
    options = [_with_decimals(str(first), _between(begin, None, low_open, False, 0))]
    if first + 1 <= last - 1:
        any_decimals = optional(sequence(".", repeat(DIGIT, 1, FRACTION)))
        options.append(sequence(_naturals(first + 1, last - 1), any_decimals))
    options.append(_with_decimals(str(last), _between("", end, False, high_open, 0)))
    return choice(*options)


def _parts(value: Decimal) -> tuple[int, str]:
    """The whole part and the decimals, without zeros behind."""
    whole, _, decimals = format(value, "f").partition(".")
    return int(whole), decimals.rstrip("0")


def _with_decimals(whole: str, decimals: tuple[bool, Expression]) -> Expression:
    bare, runs = decimals
    options: list[Expression] = [sequence(whole)] if bare else []
    return choice(*options, sequence(whole, ".", runs))


def _between(
    low: str, high: str | None, low_open: bool, high_open: bool, depth: int
) -> tuple[bool, Expression]:
    """(whether no further digit fits, runs of further digits that do), decimals from `low` to `high`.

    high None: no bound above. Digits count as if zeros followed without end.
    """
    bare = (not low.strip("0") and not low_open) and (high is None or bool(high.strip("0")) or not high_open)
    if depth == FRACTION:
        return bare, NEVER
    options: list[Expression] = []
    least, most = int(low[:1] or "0"), 9 if high is None else int(high[:1] or "0")
    tight = {least} | ({most} if high is not None else set())
    loose = [digit for digit in range(least, most + 1) if digit not in tight]
    if loose:
        options.append(sequence(_digits(loose[0], loose[-1]), repeat(DIGIT, 0, FRACTION - depth - 1)))
    for digit in sorted(tight):
        if not least <= digit <= most:
            continue
        above = high[1:] if high is not None and digit == most else None
        at_low = digit == least
        below = low[1:] if at_low else ""
        ends, more = _between(below, above, low_open and at_low, high_open and above is not None, depth + 1)
        if ends:
            options.append(sequence(str(digit)))
        options.append(sequence(str(digit), more))
    return bare, choice(*options)


__all__ = ["ANY_INTEGER", "ANY_NUMBER", "DIGIT", "FRACTION", "MAX_DIGITS", "integers", "numbers"]
