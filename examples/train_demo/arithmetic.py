"""Arithmetic within a stated range: + and - of whole numbers up to 100, products and quotients of the table up to 10 times 10,
doubles and halves. Two-digit sums go by a step over the tens, so that a small model can follow. What lies beyond is declined.
"""

from dataclasses import dataclass
from random import Random

from msgspec import Struct

from examples.train_demo.phrases import Texts, Turn, asked, one, read, typed

LIMIT, TABLE = 100, 10
EDGES = (0, 1, 1, 2, 9, 10, 11, 50, 90, 99, 100, 100, 100)
TERSE_SHARE = 0.3
SMALL = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
SMALL += ("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "one hundred")


class SumTexts(Struct, frozen=True, forbid_unknown_fields=True):
    """arithmetic.toml. `terse` has nothing but the numbers and one of the `signs`. Each operation has texts that stand in a frame of
    `ask`, and whole questions (`ask_...`); `next` goes on from a result, by operation; `hard` is what is answered with `beyond`."""

    terse: Texts
    signs: dict[str, Texts]
    ask: Texts
    plus: Texts
    minus: Texts
    times: Texts
    over: Texts
    twice: Texts
    half: Texts
    ask_plus: Texts
    ask_minus: Texts
    ask_times: Texts
    ask_over: Texts
    ask_twice: Texts
    ask_half: Texts
    things: Texts
    hard: Texts
    beyond: Texts
    next: dict[str, Texts]


TEXT = read("arithmetic.toml", SumTexts)


@dataclass(frozen=True)
class Sum:
    """One calculation: what may be asked, the answer, and the result to go on with."""

    question: str
    answer: str
    result: int | None


def words(number: int) -> str:
    """47 -> "forty-seven"."""
    if number < 20:
        return SMALL[number]
    tens, rest = divmod(number, 10)
    return TENS[tens] + (f"-{SMALL[rest]}" if rest else "")


def written(number: int, rng: Random) -> str:
    """Mostly in digits."""
    if rng.random() >= 0.15:
        return str(number)
    text = words(number).replace("one hundred", rng.choice(["one hundred", "a hundred"]))
    return text.replace("-", " ") if rng.random() < 0.3 else text


def answer_plus(a: int, b: int) -> str:
    if a > 9 and b > 9 and b % 10 and a < LIMIT:
        return f"{a} + {b - b % 10} = {a + b - b % 10} and {a + b - b % 10} + {b % 10} = {a + b}, so {a} + {b} = {a + b}."
    return f"{a} + {b} = {a + b}."


def answer_minus(a: int, b: int) -> str:
    if a < b:
        return f"{b} - {a} = {b - a}, so {a} - {b} = -{b - a}."
    if a > 9 and b > 9 and b % 10:
        return f"{a} - {b - b % 10} = {a - b + b % 10} and {a - b + b % 10} - {b % 10} = {a - b}, so {a} - {b} = {a - b}."
    return f"{a} - {b} = {a - b}."


def answer_half(a: int) -> str:
    return f"{a} / 2 = {a // 2}." if a % 2 == 0 else f"{a} / 2 = {a // 2}.5."


def operand(rng: Random) -> int:
    """Small numbers and those at the ends of the range more often, all up to 100."""
    if rng.random() < 0.15:
        return rng.choice(EDGES)
    return rng.randint(0, 20) if rng.random() < 0.3 else rng.randint(0, LIMIT)


def first_sum(rng: Random) -> Sum:
    """A calculation that stands on its own."""
    kind = rng.choices(("+", "-", "x", "/", "x2", "/2", "beyond"), (30, 26, 22, 7, 7, 8, 8))[0]
    things = rng.choice(TEXT.things)
    if kind == "beyond":
        return beyond(rng)
    is_terse = kind in TEXT.signs and rng.random() < TERSE_SHARE
    a, b = operand(rng), operand(rng)
    if kind == "+":
        inline, own, answer, result = TEXT.plus, TEXT.ask_plus, answer_plus(a, b), a + b
    elif kind == "-":
        a, b = (b, a) if a < b and rng.random() < 0.9 else (a, b)
        inline, own, answer, result = TEXT.minus, TEXT.ask_minus, answer_minus(a, b), a - b
    elif kind == "x":
        a, b = rng.randint(0, TABLE), rng.randint(0 if is_terse else 1, TABLE)
        inline, own, answer, result = TEXT.times, TEXT.ask_times, f"{a} x {b} = {a * b}.", a * b
    elif kind == "/":
        b, result = rng.randint(1, TABLE), rng.randint(1, TABLE)
        a = b * result
        inline, own, answer = TEXT.over, TEXT.ask_over, f"{a} / {b} = {result}."
    elif kind == "x2":
        inline, own, answer, result = TEXT.twice, TEXT.ask_twice, f"2 x {a} = {2 * a}.", 2 * a
    else:
        inline, own, answer, result = TEXT.half, TEXT.ask_half, answer_half(a), a // 2 if a % 2 == 0 else None
    if is_terse:
        text = one(TEXT.terse, rng, a=a, b=b, sign=rng.choice(TEXT.signs[kind]))
        return Sum(typed(text, rng) if rng.random() < 0.75 else asked(text, rng), answer, result)
    fields = {"a": written(a, rng), "b": written(b, rng), "things": things}
    question = one(own, rng, **fields) if rng.random() < 0.3 else one(TEXT.ask, rng, sum=one(inline, rng, **fields))
    return Sum(asked(question, rng), answer, result)


def beyond(rng: Random) -> Sum:
    """What is out of range."""
    fields = {
        "a": rng.randint(2, 99),
        "b": rng.randint(2, 20),
        "c": rng.choice([rng.randint(101, 999), rng.randint(1000, 99999)]),
        "d": rng.choice([rng.randint(101, 999), rng.randint(1000, 9999)]),
        "e": rng.randint(12, 99),
        "f": rng.randint(12, 999),
        "op": rng.choice(["times", "plus", "minus", "divided by", "*", "+", "-", "/", "x"]),
    }
    return Sum(asked(one(TEXT.ask, rng, sum=one(TEXT.hard, rng, **fields)), rng), rng.choice(TEXT.beyond), None)


def next_sum(result: int, rng: Random) -> Sum:
    """A calculation that goes on from `result`."""
    divisors = [k for k in range(2, TABLE + 1) if result and result % k == 0 and result // k <= TABLE]
    kinds = [kind for kind in TEXT.next if kind != "x" or result * 3 <= LIMIT or rng.random() < 0.2]
    kind = rng.choice([kind for kind in kinds if kind != "/" or divisors])
    k = operand(rng)
    if result > LIMIT:
        answer, new = rng.choice(TEXT.beyond), None
    elif kind == "+":
        answer, new = answer_plus(result, k), result + k
    elif kind == "-":
        k = k if k <= result else rng.randint(0, result)
        answer, new = answer_minus(result, k), result - k
    elif kind == "x2":
        answer, new = f"2 x {result} = {2 * result}.", 2 * result
    elif kind == "x":
        fits = LIMIT // result if result else TABLE
        k = rng.randint(3, min(fits, TABLE) if fits >= 3 and rng.random() < 0.85 else TABLE)
        answer, new = (f"{result} x {k} = {result * k}.", result * k) if result * k <= LIMIT else (rng.choice(TEXT.beyond), None)
    elif kind == "/":
        k = rng.choice(divisors)
        answer, new = f"{result} / {k} = {result // k}.", result // k
    else:
        answer, new = answer_half(result), result // 2 if result % 2 == 0 else None
    question = one(TEXT.next[kind], rng, k=written(k, rng))
    if rng.random() < 0.3:
        question += "?"
    return Sum(asked(question, rng), answer, new)


def episode(rng: Random) -> list[Turn]:
    """A calculation, and perhaps some that go on from its result."""
    current = first_sum(rng)
    turns = [(current.question, current.answer)]
    while len(turns) < 6 and rng.random() < 0.62:
        follows = current.result is not None and current.result >= 0 and rng.random() < 0.85
        current = next_sum(current.result, rng) if follows and current.result is not None else first_sum(rng)
        turns.append((current.question, current.answer))
    return turns
