r"""Answers as text: extract one, give it a canonical key, compare, reward, cluster. Nothing here evaluates code.

Two answers mean the same when their keys are equal, so clustering is grouping by key: reflexive, symmetric, transitive
and blind to order. A recursive-descent reader turns LaTeX or plain notation into values: rationals stay exact, closed
forms are mpmath numbers of 256 bits rounded to 100, letters are evaluated at three fixed points. Work is bounded by
counts (characters, depth, bits, operations), never by clocks, so a loaded machine gives the same verdict as an idle one.
Not sympy: its parser executes code, and its equality search has no bound.

>>> answer_key(r"\frac{1}{2}") == answer_key("0.5"), same_answer("2\\pi R", "2\\pi r")
(True, False)
>>> reward(r"First \boxed{17}, no: \boxed{x = \tfrac{339}{3}}", "113")
1.0
>>> cluster_answers(["1/2", "0.5", None, "2", None])
[0, 0, 1, 2, 3]
"""

import math
import re
import threading
import unicodedata
from collections.abc import Hashable
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import mpmath
from mpmath.libmp import ln2_fixed, ln10_fixed, mpf_pos, pi_fixed

MAX_CHARS, MAX_DEPTH, MAX_BITS, MAX_WORK = 8_000, 60, 4_096, 6_000  # beyond: the text itself is the key ("capped")
PRECISION, ROUNDING, POINTS = 256, 100, 3  # bits computed, bits compared, evaluation points of a letter

# mpmath's constant caches are not thread-safe while they grow: grow them once, past anything that is asked for below.
for _fixed in (pi_fixed, ln2_fixed, ln10_fixed):
    _fixed(4_000)


class _Unreadable(Exception):
    """Not our notation."""


class _Capped(Exception):
    """Too long, deep, large or costly."""


class _Absurd(Exception):
    """Reads well but means nothing (1/0, infinity - infinity)."""


class _Context(threading.local):
    """One mpmath context per thread: mpmath raises and restores the precision of a shared one while it works."""

    def __init__(self) -> None:
        self.mp = type(mpmath.mp)()
        self.mp.prec = PRECISION
        self.letters: dict = {}


_CONTEXT = _Context()


class _Box(NamedTuple):
    """A value that is no number: kind "tuple", "set", "intervals", "matrix", or "key" (finished)."""

    kind: str
    data: object


# ------------------------------------------------------------------ tables
_FUNCTIONS = {name: name for name in "sin cos tan cot sec csc sinh cosh tanh coth exp sqrt arg re im floor ceil".split()}
_FUNCTIONS |= {"arc" + name: "a" + name for name in "sin cos tan cot sec csc".split()}
_FUNCTIONS |= {"asin": "asin", "acos": "acos", "atan": "atan", "ln": "log", "log": "log", "lg": "log10", "abs": "fabs"}
_FUNCTIONS |= {"Re": "re", "Im": "im", "arsinh": "asinh", "arcosh": "acosh", "artanh": "atanh"}
_ANGLES = {name for name in _FUNCTIONS if name[:3] in ("sin", "cos", "tan", "cot", "sec", "csc")}
_OPS = {"cdot": "*", "times": "*", "ast": "*", "div": "/", "le": "<=", "leq": "<=", "leqslant": "<=", "ge": ">=",
        "geq": ">=", "geqslant": ">=", "lt": "<", "gt": ">", "ne": "!=", "neq": "!=", "approx": "~", "in": "in",
        "cup": "cup", "cap": "cap", "setminus": "minus", "backslash": "minus", "pm": "pm", "mp": "mp", "mid": "|",
        "vert": "|", "lvert": "|", "rvert": "|", "|": "|", "colon": ":", "equiv": "=", "implies": ",", "bmod": "mod",
        "iff": "=", "%": "%", "$": "usd", "{": "set{", "}": "set}", "lbrace": "set{", "rbrace": "set}", "&": ",",
        "\\": "row", "newline": "row", "and": ",", "or": "or", "quad": " ", "qquad": " ", "land": ",", "lor": "or",
        "wedge": ",", "vee": "or", "circ": "circ", "degree": "deg", "prime": "'", "simeq": "~", "euro": "eur",
        "pounds": "gbp", "langle": "langle", "rangle": "rangle", "lfloor": "lfloor", "rfloor": "rfloor",
        "lceil": "lceil", "rceil": "rceil", "sqrt": "sqrt", "pmod": "pmod", "mod": "mod", "cdotp": "*", "to": "->"}
_WORD_OPS = {"and": ",", "or": "or", "is": "=", "are": "=", "equals": "=", "pi": "\\pi", "infty": "\\infty",
             "infinity": "\\infty", "oo": "\\infty", "inf": "\\infty", "percent": "%", "pct": "%", "mod": "mod"}
_SKIP = set("left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr displaystyle textstyle limits "
            "nolimits mathbf boldsymbol bm mathit mathsf mathcal mathbb rm bf it boxed fbox , ! ; : > quad qquad "
            "scriptstyle hfill hspace vspace overbrace underbrace ensuremath".split()) | {" ", "\n", "(", ")", "[", "]"}
_TEXT = "text|mbox|textbf|textit|textrm|textnormal|textsf|texttt|mathrm|operatorname|hbox|emph"
_ACCENTS = set("bar overline vec hat dot ddot tilde widehat overrightarrow overleftarrow widetilde".split())
_BRACKETS = {"(": ")", "[": "]", "{": "}", "set{": "set}", "langle": "rangle", "lfloor": "rfloor", "lceil": "rceil"}
_CLOSERS = set(_BRACKETS.values())
_RELATIONS = {"=", "<", ">", "<=", ">=", "!=", "in", "~"}
_BINARY = {"cup": 1, "cap": 1, "minus": 1, "+": 2, "-": 2, "pm": 2, "mp": 2, "*": 3, "/": 3, "^": 5}
_SHORT_WORDS = set("yes no odd all any red one two six ten may sun mon tue wed thu fri sat not nor".split())
_UNITS = {}
for _row in """m meter metre|cm centimeter centimetre|mm millimeter millimetre|km kilometer kilometre|nm|in inch inche
ft foot feet|yd yard|mi mile|g gram|kg kilogram|mg milligram|lb lbs pound|oz ounce|ton tonne|s sec second|min minute
h hr hour|day|week|month|yr year|deg degree|rad radian|%|usd dollar buck|cent|eur euro|gbp|N newton|J joule|kJ|W watt|kW
V volt|A amp ampere|Hz hertz|kHz|MHz|GHz|Pa pascal|kPa|atm|K kelvin|C|F|mol mole|L liter litre|mL ml milliliter|gal gallon
qt quart|pt pint|cup|mph|kph|am|pm|cal calorie|kcal|eV|keV|MeV|AU|pc|T|Wb|ohm|dB|erg|dyne|acre|ha|prime""".replace(
        "\n", "|").split("|"):
    for _name in _row.split():
        _UNITS[_name] = _UNITS[_name + "s" if len(_name) > 1 else _name] = _row.split()[0]
_POWER_WORDS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}

_UNICODE = str.maketrans({
    "−": "-", "–": "-", "—": "-", "×": "*", "·": "*", "⋅": "*", "∙": "*", "∗": "*", "÷": "/", "⁄": "/", "∕": "/",
    "≤": "<=", "≥": ">=", "⩽": "<=", "⩾": ">=", "≠": "!=", "≈": "\\approx ", "∞": "\\infty ", "√": "\\sqrt ",
    "°": "^\\circ ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "∅": "\\emptyset ", "ℝ": "\\mathbb{R}", "′": "'",
    "’": "'", "‘": "'", "″": "''", "±": "\\pm ", "∓": "\\mp ", "½": "\\frac{1}{2}", "¼": "\\frac{1}{4}",
    "¾": "\\frac{3}{4}", "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}", "⅕": "\\frac{1}{5}", "⅙": "\\frac{1}{6}",
    "⅛": "\\frac{1}{8}", "⅜": "\\frac{3}{8}", "⅝": "\\frac{5}{8}", "⅞": "\\frac{7}{8}", "€": "\\euro ",
    "£": "\\pounds ", "⟨": "\\langle ", "⟩": "\\rangle ", "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ",
    "⌉": "\\rceil ", "∠": "\\angle ", "△": "\\triangle ", "ℏ": "\\hbar ", "，": ",", "\x0c": "\\f", "\x08": "\\b",
    "\u202f": "\\,", "\u2009": "\\,", "\xa0": "\\,", **{c: f"^{{{i}}}" for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{c: f"_{{{i}}}" for i, c in enumerate("₀₁₂₃₄₅₆₇₈₉")}, "ⁿ": "^{n}", "⁻": "^-",
    **{c: f"\\{n} " for c, n in zip(
        "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ", "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi "
        "rho sigma tau upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega".split(), strict=True)}})

# No pattern below backtracks more than a constant: alternatives differ early, and repeats are possessive (`*+`, `{3}++`).
_ESCAPED = re.compile(r"(?<!\\)\\\\(?=(?:[dtc]?frac|sqrt|left|right|boxed|pi|text|mathrm|begin|end|times|cdot|infty|pm|"
                      r"in|cup|circ|leq?|geq?|theta|alpha|beta|langle|rangle|sin|cos|tan|ln|log|binom|overline)\b)")
_INSIDE = r",\\!\s?+|\{,\}|\\,|\\ |\\;|~"  # thousands separators inside brackets; outside also "," and " "
_NUMBERS = [re.compile(r"(\d{1,3}(?:(?:" + separators + r")\d{3})++(?!\d)|" + european + r"\d++(?:\{,\}(?=\d))?+\d*+)"
                       r"(\.\d++|\.(?!\d))?+|()(\.\d++)")
            for separators, european in ((_INSIDE + "|,| ", r"0,\d{3}|"), (_INSIDE, ""))]
_TOKEN = re.compile(
    r"\\(?P<text>" + _TEXT + r")\s*+\{|\\(?P<env>begin|end)\s*+\{(?P<envname>[a-zA-Z]++)\*?+\}(?:\{[clr|@ ]*+\})?+"
    r"|\\(?P<cmd>[A-Za-z]++|.)|(?P<word>[A-Za-z]++)|(?P<op>\*\*|<=|>=|!=|==|->|:=|[^\s\\])|\\|\s++", re.S)
_EXPONENT = re.compile(r"[eE]([+-]?\d{1,9}+)(?![\d.^])")
_REPEATING = re.compile(r"\\(?:overline|bar|dot)\s*+\{\s*+(\d{1,50}+)\s*+\}")
_CHOICE = re.compile(r"\(?([A-H])(?:\)\s*+|[.:]\s++)(.*+)", re.S)


# ------------------------------------------------------------------ numbers: int, Fraction, mpf, mpc, or a tuple of three
def _exact(x) -> bool:
    return isinstance(x, (int, Fraction))


def _bits(x) -> int:
    return max(x.numerator.bit_length(), x.denominator.bit_length())


def _inexact(x):
    """An mpmath number; a list or interval in its place is no notation of ours."""
    if isinstance(x, int):
        return _CONTEXT.mp.mpf(x)
    if isinstance(x, Fraction):
        return _CONTEXT.mp.mpf(x.numerator) / x.denominator
    if isinstance(x, (_Box, tuple)):
        raise _Unreadable
    return x


def _each(function, *args):
    """Apply `function` to constants, or point by point where an operand holds letters."""
    if any(type(a) is tuple for a in args):
        return tuple(function(*(a[k] if type(a) is tuple else a for a in args)) for k in range(POINTS))
    return function(*args)


def _sum(a, b):
    if _exact(a) and _exact(b):
        return _checked(a + b)
    a, b = _inexact(a), _inexact(b)
    total = a + b
    # What is left of a cancellation below 2^-180 is rounding: sqrt(2)*sqrt(2) - 2 is 0.
    if total and a and b and _CONTEXT.mp.mag(total) < max(_CONTEXT.mp.mag(a), _CONTEXT.mp.mag(b)) - 180:
        return 0
    return total


def _add(a, b):
    if isinstance(a, _Box) or isinstance(b, _Box):
        return _boxed_sum(a, b)
    total, mag = _each(_sum, a, b), _CONTEXT.mp.mag
    # A constant that swallows the other whole would make 9^{9^9} + 1 equal 9^{9^9}: leave it to the text.
    if not _exact(total) and type(total) is not tuple and a and b and _finite(a) and _finite(b):
        if abs(mag(_inexact(a)) - mag(_inexact(b))) > PRECISION - ROUNDING:
            raise _Capped
    return total


def _checked(x):
    return x if _bits(x) <= MAX_BITS else _inexact(x)


def _finite(x) -> bool:
    return _exact(x) or not (_CONTEXT.mp.isinf(x) or _CONTEXT.mp.isnan(x))


def _product(a, b):
    return _checked(a * b) if _exact(a) and _exact(b) else _inexact(a) * _inexact(b)


def _multiply(a, b):
    if isinstance(a, _Box) or isinstance(b, _Box):
        return _boxed_product(a, b)
    return _each(_product, a, b)


def _quotient(a, b):
    if not b:
        raise _Absurd
    return _checked(Fraction(a) / b) if _exact(a) and _exact(b) else _inexact(a) / _inexact(b)


def _divide(a, b):
    return _multiply(a, _each(_quotient, 1, b)) if isinstance(a, _Box) else _each(_quotient, a, b)


def _root(x, n: int):
    """The exact real n-th root of a rational, or None."""
    if n % 2 == 0 and x < 0:
        return None
    parts = []
    for part in (abs(x.numerator), x.denominator):
        if n == 2:
            root = math.isqrt(part)
        elif part.bit_length() < 3 * ROUNDING:
            root = int(_CONTEXT.mp.nint(_CONTEXT.mp.root(part, n)))
        else:
            return None
        if root**n != part:
            return None
        parts.append(root)
    return Fraction(parts[0] if x >= 0 else -parts[0], parts[1])


def _power(a, b):
    mp = _CONTEXT.mp
    if not a and _exact(a):
        if _exact(b) and b < 0:
            raise _Absurd
        return 0 if b else 1
    if _exact(a) and _exact(b):
        if b.denominator == 1 and abs(b) * _bits(a) <= MAX_BITS:
            return Fraction(a) ** int(b) if b < 0 else a ** int(b)
        if 1 < b.denominator <= 12 and (root := _root(Fraction(a), b.denominator)) is not None:
            return _power(root, b.numerator)
    if isinstance(b, Fraction) and b.denominator % 2 and (_exact(a) or isinstance(a, mp.mpf)) and a < 0:
        return (-1) ** (b.numerator % 2) * _power(-_inexact(a), b)  # the cube root of -2 is real, as people mean it
    whole = int(b) if _exact(b) and b.denominator == 1 else None
    a, b = _inexact(a), _inexact(b)
    if not (_finite(a) and _finite(b)) or mp.mag(b) + mp.mag(mp.mag(a) or 1) > 40:
        raise _Capped
    return a**whole if whole is not None else mp.power(a, b)


def _apply(name: str, x):
    mp = _CONTEXT.mp
    if name == "fabs" and _exact(x):
        return abs(x)
    if name in ("floor", "ceil") and _exact(x):
        return math.floor(x) if name == "floor" else math.ceil(x)
    x = _inexact(x)
    if not _finite(x):
        raise _Absurd
    if mp.mag(x) > 40:
        raise _Capped
    if name == "log" and not x:
        raise _Absurd
    y = getattr(mp, name)(x)
    if y and mp.mag(y) > 180:
        raise _Absurd  # tan(pi/2)
    return 0 if y and mp.mag(y) < -180 and name != "exp" else y


def _factorial(x):
    if _exact(x) and x.denominator == 1 and 0 <= x <= 500:
        return math.factorial(int(x))
    x = _inexact(x)
    if _CONTEXT.mp.mag(x) > 20:
        raise _Capped
    return _CONTEXT.mp.factorial(x)


def _binomial(n, k):
    if _exact(n) and _exact(k) and n.denominator == k.denominator == 1 and 0 <= k <= n <= 2_000:
        return _checked(math.comb(int(n), int(k)))
    n, k = _inexact(n), _inexact(k)
    if max(_CONTEXT.mp.mag(n), _CONTEXT.mp.mag(k)) > 20:
        raise _Capped
    return _CONTEXT.mp.binomial(n, k)


def _opaque(name: str, *values) -> tuple:
    """A letter or an unknown function: at each point a fixed number drawn from its name and the rounded arguments."""
    mp, points = _CONTEXT.mp, []
    for k, (low, width) in enumerate(((0.3, 0.6), (1.2, 1.4), (-1.9, 1.5))):
        text = repr((name, k, [_rounded(v[k] if type(v) is tuple else v) for v in values]))
        draw = int.from_bytes(blake2b(text.encode("utf8", "surrogatepass"), digest_size=32).digest(), "big")
        points.append(low + width * mp.ldexp(mp.mpf(draw), -256))
    return tuple(points)


def _letter(name: str) -> tuple:
    known = _CONTEXT.letters
    if name not in known:
        if len(known) > 1_000:
            known.clear()
        known[name] = _opaque(name)
    return known[name]


# ------------------------------------------------------------------ keys of values
def _rounded(x) -> tuple:
    """A number rounded to 100 of its 256 bits, as integers: (mantissa, exponent), twice when complex."""
    x, mp = _inexact(x), _CONTEXT.mp
    if mp.isnan(x):
        raise _Absurd
    if isinstance(x, mp.mpc):
        size = mp.mag(x)
        parts = [p if p and mp.mag(p) > size - 150 else mp.zero for p in (x.real, x.imag)]
        return _rounded(parts[0]) + _rounded(parts[1]) if parts[1] else _rounded(parts[0])
    sign, mantissa, exponent, _ = mpf_pos(x._mpf_, ROUNDING, "n")
    return (-int(mantissa) if sign else int(mantissa), exponent)


def _number_key(x, points: int = POINTS) -> tuple:
    """("n", p, q) for rationals, else rounded values; a closed form that is rational to 200 bits is that rational."""
    if type(x) is tuple:
        values = tuple(_rounded(v) for v in x[:points])
        return ("v", *values) if len(set(values)) > 1 else _number_key(x[0])
    if not _exact(x):
        mp = _CONTEXT.mp
        if mp.isnan(x):
            raise _Absurd
        if mp.isinf(x):
            return ("inf", 1 if x > 0 else -1)
        if isinstance(x, mp.mpc):
            rounded = _rounded(x)
            return ("c", _number_key(x.real), _number_key(x.imag)) if len(rounded) > 2 else _number_key(x.real)
        if not x:
            return ("n", 0, 1)
        sign, mantissa, exponent, _ = x._mpf_
        if abs(mp.mag(x)) > 80:
            return ("f", *_rounded(x))
        whole = Fraction(int(mantissa)) * Fraction(2) ** exponent
        near = whole.limit_denominator(10**12)
        if not near or abs(whole - near) > abs(whole) / 2**200:
            return ("f", *_rounded(x))
        x = -near if sign else near
    return ("n", x.numerator, x.denominator)


def _key(x, points: int = POINTS) -> tuple:
    if not isinstance(x, _Box):
        return _number_key(x, points)
    if x.kind == "key":
        return x.data
    if x.kind == "matrix":
        return ("matrix", tuple(tuple(_number_key(v) for v in row) for row in x.data))
    if x.kind == "tuple":
        return ("tuple", tuple(key for _, key in x.data))
    if x.kind == "set":
        return ("set", tuple(sorted({key for _, key in x.data}, key=repr)))
    return ("intervals", tuple((_key(lo), lo_in, _key(hi), hi_in) for lo, lo_in, hi, hi_in in x.data))


# ------------------------------------------------------------------ sets, intervals, matrices
def _real(x):
    x = _inexact(x)
    if isinstance(x, _CONTEXT.mp.mpc):
        raise _Unreadable
    return x


def _pieces(box) -> list:
    """A set, a pair in round brackets, or intervals as a list of (low, low included, high, high included)."""
    if not isinstance(box, _Box) or box.kind not in ("intervals", "set", "tuple") or (
            box.kind == "tuple" and len(box.data) != 2):
        raise _Unreadable
    if box.kind == "intervals":
        return box.data
    if box.kind == "set":
        return [(value, True, value, True) for value, _ in box.data]
    return [(box.data[0][0], False, box.data[1][0], False)]


def _union(a, b) -> _Box:
    if isinstance(a, _Box) and isinstance(b, _Box) and a.kind == b.kind == "set":
        return _Box("set", a.data + b.data)
    merged = []
    for piece in sorted(_pieces(a) + _pieces(b), key=lambda p: (_real(p[0]), not p[1])):
        lo, lo_in, hi, hi_in = piece
        if merged and (_real(lo) < _real(merged[-1][2]) or _real(lo) == _real(merged[-1][2]) and (lo_in or merged[-1][3])):
            last = merged.pop()
            far, far_in = max((last[2:], (hi, hi_in)), key=lambda e: (_real(e[0]), e[1]))
            piece = (last[0], last[1], far, far_in)
        merged.append(piece)
    return _Box("intervals", merged)


def _intersection(a, b) -> _Box:
    if isinstance(a, _Box) and isinstance(b, _Box) and a.kind == b.kind == "set":
        keys = {key for _, key in b.data}
        return _Box("set", [item for item in a.data if item[1] in keys])
    found = []
    for p in _pieces(a):
        for q in _pieces(b):
            lo, lo_in = max((p[:2], q[:2]), key=lambda e: (_real(e[0]), not e[1]))
            hi, hi_in = min((p[2:], q[2:]), key=lambda e: (_real(e[0]), e[1]))
            if _real(lo) < _real(hi) or _real(lo) == _real(hi) and lo_in and hi_in:
                found.append((lo, lo_in, hi, hi_in))
    return _Box("intervals", found) if found else _Box("set", [])


def _without(a, b) -> _Box:
    infinity = _CONTEXT.mp.inf
    for lo, lo_in, hi, hi_in in _pieces(b):
        outside = _Box("intervals", [(-infinity, False, lo, not lo_in), (hi, not hi_in, infinity, False)])
        a = _intersection(a, outside)
    return a


def _boxed_sum(a, b) -> _Box:
    if not (isinstance(a, _Box) and isinstance(b, _Box) and a.kind == b.kind == "matrix"
            and [len(r) for r in a.data] == [len(r) for r in b.data]):
        raise _Unreadable
    return _Box("matrix", [[_add(x, y) for x, y in zip(r, s, strict=True)] for r, s in zip(a.data, b.data, strict=True)])


def _boxed_product(a, b):
    if not isinstance(b, _Box):
        a, b = b, a
    if not isinstance(a, _Box):
        if b.kind == "matrix":
            return _Box("matrix", [[_multiply(a, x) for x in row] for row in b.data])
    elif a.kind == b.kind == "matrix" and len(a.data[0]) == len(b.data) <= 8:
        columns = list(zip(*b.data, strict=True))
        return _Box("matrix", [[_dot(row, column) for column in columns] for row in a.data])
    raise _Unreadable


def _dot(row, column):
    total = 0
    for x, y in zip(row, column, strict=True):
        total = _add(total, _multiply(x, y))
    return total


def _determinant(rows):
    if len(rows) > 5 or any(len(row) != len(rows) for row in rows):
        raise _Unreadable
    if len(rows) == 1:
        return rows[0][0]
    total = 0
    for j, x in enumerate(rows[0]):
        minor = _multiply(x, _determinant([row[:j] + row[j + 1:] for row in rows[1:]]))
        total = _add(total, _multiply(-1, minor) if j % 2 else minor)
    return total


# ------------------------------------------------------------------ text to tokens
def _clean(text: str) -> str:
    """One alphabet for LaTeX, plain text and unicode."""
    text = text.translate(_UNICODE).rstrip("\\")
    if not text.isascii():
        text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c
                       for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) not in ("Cf", "Cc"))
    text = _ESCAPED.sub(lambda _: "\\", text.replace("\x00", "")).strip()
    while text and text[-1] in ".,;:\\ \n":
        text = text[:-1]
    if text.count("$") - text.count("\\$") == 1 and text[0] == "$" and text[1:2].isdigit():
        return "\\" + text  # an unpaired dollar in front of a digit is money
    return text


def _tokenise(text: str) -> tuple[list, dict]:
    """(kind, text) tokens and the partner of each opening bracket. Kinds: number, letter, word, cmd, op, begin, end."""
    tokens, partner, stack, at, in_text = [], {}, [], 0, False
    while at < len(text):
        inside = any(kind in ("(", "[", "set{") for kind, *_ in stack[-3:])
        if found := _NUMBERS[inside].match(text, at):
            digits, at = found.group(), found.end()
            repeat = _REPEATING.match(text, at) if "." in digits else None
            power = None if repeat else _EXPONENT.match(text, at)
            at = (repeat or power or found).end()
            tokens.append(("number", _literal(digits, repeat and repeat[1], power and power[1])))
            continue
        found = _TOKEN.match(text, at)
        at = found.end()
        kind, value = found.lastgroup, found[found.lastgroup] if found.lastgroup else ""
        if kind == "text":
            stack.append(("text", None, in_text))
            in_text = True
            continue
        if kind == "envname":
            tokens.append((found["env"], value))
            continue
        if kind == "cmd":
            if value in _SKIP:
                if value in ("left", "right") and text[at:at + 1] == ".":
                    at += 1
                continue
            kind, value = ("op", _OPS[value]) if value in _OPS else (kind, value)
            if kind == "cmd" and value.startswith("quad") or value in ("dfrac", "tfrac", "cfrac"):
                value = value.removeprefix("q").removeprefix("uad") if value.startswith("quad") else "frac"
        elif kind == "word":
            tokens.extend(_words(value, in_text, tokens))
            continue
        elif kind == "op":
            if value == "$":
                continue
            value = {"**": "^", "==": "=", ":=": "=", "≡": "=", "&": ","}.get(value, value)
        if kind is None:
            continue
        if kind == "op" and value in _BRACKETS:
            if len(stack) >= MAX_DEPTH * 8:
                raise _Capped
            stack.append((value, len(tokens), in_text))
        elif kind == "op" and value in _CLOSERS and stack:
            opener, start, in_text = stack.pop()
            if opener == "text":
                if value != "}":
                    raise _Unreadable
                continue
            if value != _BRACKETS[opener] and not (opener in "([" and value in ")]"):
                raise _Unreadable
            partner[start] = len(tokens)
        tokens.append((kind, value))
    if stack:
        raise _Unreadable
    return tokens, partner


def _literal(digits: str, repeat: str | None, power: str | None):
    """The exact value of a written number; its digits are kept where a base may follow."""
    if re.fullmatch(r"0,\d{3,}", digits) or re.fullmatch(r"\d+\{,\}(?!\d{3}(?!\d))\d+", digits):
        digits = digits.replace("{,}", ".").replace(",", ".")
    digits = re.sub(r"[^\d.]", "", digits).rstrip(".")
    if len(digits) > 1_000 or power and abs(int(power)) > 1_000:
        raise _Capped
    whole, _, decimals = digits.partition(".")
    value = Fraction(int(whole + decimals), 10 ** len(decimals)) if decimals else int(digits)
    if repeat:
        value += Fraction(int(repeat), (10 ** len(repeat) - 1) * 10 ** len(decimals))
    if power:
        value *= Fraction(10) ** int(power)
    return digits, (int(value) if value.denominator == 1 else value)


def _words(run: str, in_text: bool, before: list) -> list:
    """What a run of letters means: a function, a connective, a unit or noise after a number, a word, or letters."""
    if run in _WORD_OPS:
        op = _WORD_OPS[run]
        return [("cmd", op[1:]) if op[0] == "\\" else ("op", op)]
    if run in _FUNCTIONS and len(run) > 1:
        return [("op", "sqrt") if run == "sqrt" else ("cmd", run)]
    last = before[-1] if before else ("op", ",")
    after_value = last[0] in ("number", "word") or last[1] in (")", "]", "}", "deg", "circ") or (
        last[1] in ("/", "*") and len(before) > 1 and before[-2][0] == "word")
    if len(run) == 1:
        return [("word" if in_text and after_value and run in _UNITS else "letter", run)]
    if in_text or run.lower() in _SHORT_WORDS or after_value and run in _UNITS or len(run) > 3 and sorted(run) != list(run):
        return [("word", run)]
    return [("letter", c) for c in run]


# ------------------------------------------------------------------ tokens to a value
class _Reader:
    """Recursive descent over the tokens; values are computed while reading, at all points at once."""

    def __init__(self, tokens: list, partner: dict) -> None:
        self.tokens, self.partner, self.i = tokens, partner, 0
        self.work = self.depth = self.angle = self.bars = 0
        self.sign, self.signed = 1, False  # which side of a plus-minus is read, and whether one was met
        self.unit: dict[str, int] = {}
        self.rooted = False  # roots and logs of letters: the point with negative letters would leave the reals
        self.bound: dict = {}
        self.names: set = set()

    def peek(self, ahead: int = 0):
        return self.tokens[self.i + ahead][1] if self.i + ahead < len(self.tokens) else None

    def kind(self, ahead: int = 0):
        return self.tokens[self.i + ahead][0] if self.i + ahead < len(self.tokens) else None

    def take(self, *values) -> bool:
        if self.kind() in ("op", "cmd") and self.peek() in values:
            self.i += 1
            return True
        return False

    def answer(self):
        key = self.listing(self.items(len(self.tokens), True))
        if self.i < len(self.tokens):
            raise _Unreadable
        return key

    # -- lists
    def items(self, end: int, expand: bool) -> list:
        """Statements up to token `end`, split at commas, semicolons, and, or: (value, key, name, separator before it)."""
        found, separator = [], None
        while self.i < end:
            if self.take(",", ";", "or", "row"):
                separator = "or" if self.peek(-1) == "or" or separator == "or" else ","
                continue
            start, signed = self.i, self.signed
            self.sign, self.signed = (1, False) if expand else (self.sign, self.signed)
            found.append((*self.statement(end), separator))
            if expand and self.signed:
                self.i, self.sign = start, -1
                found.append((*self.statement(end), ","))
                self.sign, self.signed = 1, signed
            if self.i == start:
                raise _Unreadable
            separator = None
        return found

    def listing(self, items: list):
        """The key of a top-level list: one answer, assignments, alternatives, or answers without order."""
        if not items:
            raise _Absurd
        if len(items) == 1:
            return items[0][1]
        names = [name for _, _, name, _ in items]
        distinct = list(dict.fromkeys(names))
        if None not in names and len(distinct) > 1 and len({n.split("_")[0] for n in distinct}) > 1:
            order, width = sorted(range(len(distinct)), key=lambda j: distinct[j]), len(distinct)
            rows = [items[j:j + width] for j in range(0, len(items), width)]
            if any([item[2] for item in row] != distinct for row in rows):
                raise _Unreadable
            tuples = [("tuple", tuple(row[j][1] for j in order)) for row in rows]
            return tuples[0] if len(tuples) == 1 else ("set", tuple(sorted(tuples, key=repr)))
        if any(item[3] == "or" for item in items) and all(
                isinstance(item[0], _Box) and item[0].kind == "intervals" for item in items):
            whole = items[0][0]
            for item in items[1:]:
                whole = _union(whole, item[0])
            return _key(whole)
        return ("set", tuple(sorted((key for _, key, _, _ in items), key=repr)))

    # -- statements
    def statement(self, end: int):
        """One answer: (value, key, name it was assigned to)."""
        self.unit, self.rooted, self.names = {}, False, set()
        self.take("~")
        if self.kind() == "word" and self.peek() not in _POWER_WORDS:
            words = self.text(end)
            if words is not None:
                return words
        members, spans, relations = [], [], []
        while True:
            start = self.i
            members.append(self.ratio(end))
            spans.append((start, self.i))
            if self.i < end and self.kind() == "op" and self.peek() in _RELATIONS:
                relations.append(self.peek())
                self.i += 1
            else:
                break
        if "~" in relations:
            cut = relations.index("~")
            members, relations = members[:cut + 1], relations[:cut]
        return self.relate(members, spans, relations)

    def text(self, end: int):
        """Words as an answer: case-folded, up to the next separator. None when the words only name what follows."""
        start, words = self.i, []
        while self.i < end and not (self.kind() == "op" and self.peek() in (",", ";", "or", *_RELATIONS)):
            words.append(self.peek()[0] if self.kind() == "number" else str(self.peek()))
            self.i += 1
        if self.i < end and self.peek() == "=" and self.peek(1) is not None:
            left, right = self.i, self.tokens[self.i + 1][0]
            if right != "word":
                self.i = start
                while self.i < left:
                    self.i += 1
                self.i += 1
                value, key, _ = self.statement(end)
                return value, key, "_".join(words)
            self.i += 1
            _, key, _ = self.text(end)
            key = ("text", *sorted((" ".join(words).casefold(), *key[1:])))
            return _Box("key", key), key, None
        if self.i < end and self.peek() in _RELATIONS:
            raise _Unreadable
        key = ("text", " ".join(words).casefold())
        return _Box("key", key), key, None

    def ratio(self, end: int):
        parts = [self.measured(end)]
        while self.take(":"):
            parts.append(self.measured(end))
        if len(parts) == 1:
            return parts[0]
        scale = next((p for p in parts if p), 1)
        return _Box("key", ("ratio", tuple(_number_key(_divide(p, scale)) for p in parts)))

    def measured(self, end: int):
        """An expression and the unit after it; words that are no unit are noise ("5 apples")."""
        value, power, sign = self.expression(), 1, 1
        while self.i < end:
            kind, word = self.kind(), self.peek()
            if kind == "word":
                self.i += 1
                if word.lower() in _POWER_WORDS:
                    power = _POWER_WORDS[word.lower()]
                    continue
                name = _UNITS.get(word) or _UNITS.get(word.lower())
                if name is None and word == "per":
                    sign = -1
                if self.take("^"):
                    exponent = self.script()
                    if not _exact(exponent) or abs(exponent) > 9:
                        raise _Unreadable
                    power = exponent
                if name:
                    self.unit[name] = self.unit.get(name, 0) + sign * power
                    power = 1
            elif word in ("/", "*") and self.kind(1) == "word":
                sign = -1 if word == "/" else sign
                self.i += 1
            elif word == "." and kind == "op":
                self.i += 1
            else:
                break
        return value

    def relate(self, members, spans, relations):
        value = members[0]
        points = 2 if self.rooted else POINTS
        if not relations:
            return self.keyed(value, points) + (None,)
        first = self.name(spans[0])
        if set(relations) <= {"=", "in"}:
            last = members[-1]
            if first and not ((other := self.name(spans[len(members) - 1])) and len(other) > 1):
                return self.keyed(last, points) + (first,)
            if len(members) == 2 and self.name(spans[1]) and relations == ["="]:
                return self.keyed(value, points) + (self.name(spans[1]),)
            if not any(type(m) is tuple for m in members):
                return self.keyed(last, points) + (None,)
            gap = self.difference(value, last)
            key = ("equation", _number_key(_each(_quotient, gap, gap[0]), points) if type(gap) is tuple else _number_key(gap))
            return _Box("key", key), key, None
        pairs = list(zip(members, members[1:], spans, spans[1:], relations, strict=False))
        box = None
        solved = [self.solve(*pair) for pair in pairs]
        if all(solved):
            for piece in solved:
                box = piece if box is None else _intersection(box, piece)
            return box, _key(box), None
        keys = []
        for a, b, _, _, relation in pairs:
            if relation in (">", ">="):
                a, b, relation = b, a, relation.replace(">", "<")
            gap = self.difference(a, b)
            scale = gap[0] if type(gap) is tuple else gap
            gap = _divide(gap, _apply("fabs", scale)) if scale else gap
            keys.append((relation, _number_key(gap, points)))
        key = ("relation", tuple(sorted(keys, key=repr)))
        return _Box("key", key), key, None

    def difference(self, a, b):
        return _add(a, _multiply(-1, b))

    def solve(self, a, b, span_a, span_b, relation):
        """The interval that a relation between one letter (or f(x)) and a constant says, or None."""
        infinity = _CONTEXT.mp.inf
        strict = relation in ("<", ">", "!=")
        if relation in (">", ">="):
            a, b, span_a, span_b = b, a, span_b, span_a
        if relation in ("=", "in") or isinstance(a, _Box) or isinstance(b, _Box):
            return None
        if self.name(span_a) and type(b) is not tuple:
            low, high = None, b
        elif self.name(span_b) and type(a) is not tuple:
            low, high = a, None
        else:
            gap = self.difference(a, b)
            if len(self.names) != 1 or type(gap) is not tuple:
                return None
            letter = _letter(next(iter(self.names)))
            slope = (gap[1] - gap[0]) / (letter[1] - letter[0])
            if not slope or _sum(gap[2], -gap[0] - slope * (letter[2] - letter[0])) or not isinstance(
                    slope, _CONTEXT.mp.mpf):
                return None
            edge = letter[0] - gap[0] / slope
            low, high = (None, edge) if slope > 0 else (edge, None)
        if relation == "!=":
            edge = high if low is None else low
            return _without(_Box("intervals", [(-infinity, False, infinity, False)]), _Box("set", [(edge, None)]))
        if low is None:
            return _Box("intervals", [(-infinity, False, high, not strict)])
        return _Box("intervals", [(low, not strict, infinity, False)])

    def keyed(self, value, points):
        key = _key(value, points)
        return value, (("unit", key, tuple(sorted(self.unit.items()))) if self.unit else key)

    def name(self, span):
        """The name that tokens spell (x, x_1, f(x), AB, \\angle ABC, (p, q), V_1:V_2), or None."""
        letters, depth, text, script = [], 0, [], False
        for kind, value in self.tokens[span[0]:span[1]]:
            if kind == "number":
                value = value[0]
                if depth == 0 and not script:
                    return None
            elif kind == "op" and value in ("(", "{", "["):
                depth += 1
            elif kind == "op" and value in (")", "}", "]"):
                depth -= 1
            elif kind == "letter" or kind == "word" or kind == "cmd" and value not in _FUNCTIONS and value not in (
                    "frac", "sum", "int", "prod", "binom", "infty", "pi"):
                if depth == 0 and not script and value not in ("angle", "triangle", "overline", "measuredangle"):
                    letters.append(value)
            elif not (kind == "op" and value in ("_", "'", ",", ":", ";")):
                return None
            if value == ":":
                letters.clear()
            if value in (",", ";") and depth == 0:
                return None
            script = value == "_" or script and depth > 0
            text.append(str(value))
        if len(letters) > 1 and not all(c.isupper() or len(c) > 1 for c in letters) or not any(c.isalpha() for c in text):
            return None
        if letters in (["e"], ["i"]) and len(text) == 1:
            return None
        return "".join(text)

    # -- expressions
    def expression(self, floor: int = 0):
        """Precedence climbing: set operations 1, sums 2, products 3 (implicit ones too), powers 5."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Capped
        left = self.prefix()
        while self.i < len(self.tokens):
            kind, op = self.tokens[self.i]
            strength = _BINARY.get(op) if kind == "op" else None
            if strength is None and self.starts_factor(left):
                op, strength = "implicit", 3
            if strength is None or strength <= floor or op in ("/", "*") and self.kind(1) == "word":
                break
            self.i += op != "implicit"
            if op == "^":
                left = self.raised(left)
                continue
            right = self.expression(strength)
            left = self.binary(op, left, right)
        self.depth -= 1
        return left

    def binary(self, op, a, b):
        self.spend(1)
        if op in ("pm", "mp"):
            self.signed = True
            op = "+" if (op == "pm") == (self.sign > 0) else "-"
        if op == "+":
            return _add(a, b)
        if op == "-":
            return self.difference(a, b)
        if op in ("*", "implicit"):
            if isinstance(b, _Box) and b.kind == "intervals" and type(a) is tuple:
                return b  # t(0,4]: the data has it for t in (0,4]
            return _multiply(a, b)
        if op == "/":
            return _divide(a, b)
        return {"cup": _union, "cap": _intersection, "minus": _without}[op](a, b)

    def starts_factor(self, left) -> bool:
        kind, value = self.kind(), self.peek()
        if kind in ("number", "letter", "begin"):
            return kind != "number" or self.tokens[self.i - 1][0] != "number"
        if kind == "cmd":
            return True
        if value == "|":
            return not self.bars
        if value in ("(", "[") and isinstance(left, _Box) and left.kind != "matrix":
            return False
        return kind == "op" and value in ("(", "[", "{", "sqrt", "lfloor", "lceil", "usd")

    def spend(self, amount: int) -> None:
        self.work += amount
        if self.work > MAX_WORK:
            raise _Capped

    def raised(self, base):
        """What follows ^: a degree sign, a prime, an ordinal's letters, or an exponent."""
        braced = self.peek() == "{" and self.kind() == "op"
        sign = self.peek(1) if braced else self.peek()
        if sign in ("circ", "deg", "'"):
            self.i = self.partner[self.i] + 1 if braced else self.i + 1
            if sign == "'":
                self.unit["prime"] = 1
                return base
            return self.degrees(base)
        if (self.kind(1) if braced else self.kind()) == "word":
            self.i = self.partner[self.i] + 1 if braced else self.i + 1
            return base
        exponent = self.script()
        self.spend(4)
        if isinstance(base, _Box):
            raise _Unreadable
        if type(base) is tuple and not (_exact(exponent) and exponent.denominator == 1):
            self.rooted = True
        return _each(_power, base, exponent)

    def degrees(self, value):
        if self.angle:
            return _multiply(value, _CONTEXT.mp.pi / 180)
        unit = "deg"
        if self.kind() in ("letter", "word") and self.peek() in ("C", "F"):
            unit, self.i = "deg" + self.peek(), self.i + 1
        self.unit[unit] = 1
        return value

    def script(self):
        """The argument of ^ or _: a group, or a signed number, letter or command."""
        if self.peek() == "{" and self.kind() == "op":
            return self.bracket()
        if self.take("-"):
            return _multiply(-1, self.script())
        self.take("+")
        return self.atom()

    def argument(self):
        """A LaTeX argument: a group or a single token, where a number gives one digit only (\\frac43)."""
        if self.kind() == "number":
            digits, value = self.peek()
            if len(digits) > 1 and digits.isdigit():
                self.tokens[self.i] = ("number", (digits[1:], int(digits[1:])))
                return int(digits[0])
        return self.script()

    def prefix(self):
        self.spend(1)
        if self.take("-"):
            return _multiply(-1, self.expression(2))
        if self.take("+"):
            return self.expression(2)
        if self.kind() == "op" and self.peek() in ("pm", "mp"):
            self.signed = True
            negative = (self.peek() == "pm") != (self.sign > 0)
            self.i += 1
            value = self.expression(2)
            return _multiply(-1, value) if negative else value
        return self.postfix(self.atom())

    def postfix(self, value):
        while self.kind() == "op":
            op = self.peek()
            if op == "!" and self.peek(1) not in ("!", "="):
                self.spend(40)
                value = _each(_factorial, value)
            elif op in ("%", "usd", "eur", "gbp"):
                self.unit[op] = 1
            elif op in ("circ", "deg"):
                value = self.degrees(value)
            elif op == "'" and not isinstance(value, _Box):
                self.unit["prime"] = self.unit.get("prime", 0) + 1
            elif op in ("pmod", "mod"):
                self.i += 1
                modulus = self.atom()
                value = _Box("key", ("mod", _key(value), _key(modulus)))
                continue
            else:
                break
            self.i += 1
        return value

    def atom(self):
        if self.i >= len(self.tokens):
            raise _Unreadable
        kind, value = self.tokens[self.i]
        if kind == "op" and value in _BRACKETS:
            return self.bracket()
        self.i += 1
        if kind == "number":
            return self.number(*value)
        if kind == "letter":
            return self.symbol(value)
        if kind == "begin":
            return self.environment(value)
        if kind == "cmd":
            return self.command(value)
        if value in ("usd", "eur", "gbp"):
            self.unit[value] = 1
            return self.atom()
        if value == "sqrt":
            return self.root()
        if value == "|" and not self.bars:
            self.bars += 1
            inner = self.expression()
            self.bars -= 1
            if not self.take("|"):
                raise _Unreadable
            return _each(lambda x: _apply("fabs", x), inner)
        raise _Unreadable

    def number(self, digits, value):
        if self.kind() == "op" and self.peek() == "_":
            self.i += 1
            base = self.script()
            if not (isinstance(base, int) and 2 <= base <= 36 and digits.isdigit()):
                raise _Unreadable
            if any(int(d) >= base for d in digits) or len(digits) > 300:
                raise _Unreadable
            return _Box("key", ("base", base, int(digits, base), digits.lstrip("0")))
        if not digits.isdigit():
            return value
        if self.kind() == "number" and self.peek(1) == "/" and self.kind(2) == "number":  # 1 1/2
            top, bottom = self.peek()[1], self.peek(2)[1]
            if _exact(top) and 0 < top < bottom:
                self.i += 3
                return value + Fraction(top) / bottom
        if self.kind() == "cmd" and self.peek() == "frac":  # 1\frac{1}{2}, but 3\frac{\pi}{2} is a product
            start, saved = self.i, list(self.tokens)
            self.i += 1
            top, bottom = self.argument(), self.argument()
            if isinstance(top, int) and isinstance(bottom, int) and 0 < top < bottom:
                return value + Fraction(top, bottom)
            self.i, self.tokens = start, saved
        return value

    def symbol(self, name: str):
        """A letter with its subscript and primes; e and i alone are the constants; f(x) is an unknown function."""
        bare = name
        while self.kind() == "op" and self.peek() in ("_", "'", "^"):
            if self.peek() == "'":
                name, self.i = name + "'", self.i + 1
                continue
            self.i += 1
            if self.peek(-1) == "^":
                braced = self.peek() == "{"
                if self.peek(1 if braced else 0) != "'":
                    self.i -= 1
                    break
                stop = self.partner[self.i] + 1 if braced else self.i + 1
                name, self.i = name + "'" * (stop - self.i - 2 * braced), stop
                continue
            start = self.i
            stop = self.partner[start] + 1 if self.peek() == "{" and self.kind() == "op" else start + 1
            inner = self.tokens[start:stop]
            if any(k == "op" and v in "+-*/" or k == "letter" and v in self.bound for k, v in inner):
                return _opaque(name + "_", self.script())
            self.i = stop
            name += "_" + "".join(v[0] if k == "number" else v for k, v in inner if v not in ("{", "}"))
        if name in self.bound:
            return self.bound[name]
        if name == "e":
            return _CONTEXT.mp.e
        if name == "i":
            return _CONTEXT.mp.mpc(0, 1)
        self.names.add(name)
        if bare in ("f", "g", "h", "F", "G", "H") and self.peek() == "(" and self.kind() == "op":
            return _opaque(name + "(", *self.arguments())
        return _letter(name)

    def arguments(self) -> list:
        end = self.partner[self.i]
        self.i += 1
        values = []
        while self.i < end:
            values.append(self.expression())
            if self.i < end and not self.take(",", ";"):
                raise _Unreadable
        self.i = end + 1
        return values

    def root(self):
        degree = 2
        if self.peek() == "[" and self.kind() == "op":
            degree = self.bracket()
        inner = self.script()
        self.spend(4)
        if isinstance(inner, _Box) or isinstance(degree, _Box):
            raise _Unreadable
        self.rooted |= type(inner) is tuple
        return _each(_power, inner, _each(_quotient, 1, degree))

    def command(self, name: str):
        mp = _CONTEXT.mp
        if name == "frac":
            top = self.argument()
            return _divide(top, self.argument())
        if name in ("binom", "dbinom", "tbinom"):
            top = self.argument()
            self.spend(60)
            return _each(_binomial, top, self.argument())
        if name in _FUNCTIONS:
            return self.function(name)
        if name == "pi":
            return mp.pi
        if name == "infty":
            return mp.inf
        if name in ("emptyset", "varnothing"):
            return _Box("set", [])
        if name in ("sum", "prod", "int", "lim", "max", "min", "sup", "inf", "iint", "oint"):
            return self.operator(name)
        if name == "phantom":
            self.i = self.partner.get(self.i, self.i) + 1
            return self.atom()
        if name in _ACCENTS:
            start = self.i
            self.i = self.partner[start] + 1 if self.peek() == "{" and self.kind() == "op" else start + 1
            return self.symbol(name + "".join(str(v) for _, v in self.tokens[start:self.i]))
        return self.symbol(name)

    def function(self, name: str):
        base = power = None
        while self.kind() == "op" and self.peek() in ("_", "^"):
            self.i += 1
            if self.peek(-1) == "_":
                base = self.script()
            else:
                power = self.script()
        self.spend(10)
        angle, self.angle = self.angle, self.angle + (name in _ANGLES)
        if self.kind() == "op" and self.peek() in _BRACKETS:
            inner = self.bracket()
        else:
            inner = self.expression(4)
            while self.starts_factor(inner) and self.peek() not in ("(", "[", "|") and self.peek() not in _FUNCTIONS:
                inner = _multiply(inner, self.expression(4))
        self.angle = angle
        if power == -1 and name in _ANGLES:
            name, power = "a" + name, None
        else:
            name = _FUNCTIONS[name]
        if name in ("log", "log10") and type(inner) is tuple:
            self.rooted = True
        value = _each(lambda x: _apply(name, x), inner)
        if base is not None:
            value = _divide(value, _each(lambda x: _apply("log", x), base))
        return value if power is None else _each(_power, value, power)

    def bracket(self):
        start = self.i
        end = self.partner[start]
        opener, closer = self.peek(), self.tokens[end][1]
        inner, last = start, end
        while opener in ("(", "{") and self.partner.get(inner + 1) == last - 1 and self.tokens[inner + 1][1] in "({":
            inner, last = inner + 1, last - 1
        self.i = inner + 1
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Capped
        saved = self.unit, self.rooted, self.names, self.bars
        self.bars = 0
        items = self.items(last, opener == "set{")
        if self.i != last:
            raise _Unreadable
        unit, rooted, names = self.unit, self.rooted, self.names
        self.unit, self.rooted, self.names, self.bars = saved
        self.names = self.names | names
        self.depth -= 1
        self.i = end + 1
        if opener == "set{":
            return _Box("set", [(value, key) for value, key, _, _ in items])
        if len(items) == 1 and opener in ("(", "[", "{", "lfloor", "lceil"):
            self.unit, self.rooted = {**self.unit, **unit}, self.rooted or rooted
            if opener[0] == "l":
                return _each(lambda x: _apply("floor" if opener == "lfloor" else "ceil", x), items[0][0])
            return items[0][0]
        if opener == "{":
            return _Box("key", self.listing(items))
        if not items or opener[0] == "l" and opener != "langle":
            raise _Unreadable
        values = [value for value, *_ in items]
        infinite = any(not isinstance(v, _Box) and not _exact(v) and type(v) is not tuple and _CONTEXT.mp.isinf(v)
                       for v in values)
        if len(items) == 2 and (opener == "[" or closer == "]" or infinite):
            return _Box("intervals", [(values[0], opener == "[", values[1], closer == "]")])
        if (opener == "[") != (closer == "]"):
            raise _Unreadable
        return _Box("tuple", [(value, key) for value, key, _, _ in items])

    def environment(self, name: str):
        if not name.endswith("matrix") and name != "array":
            items = []
            end = next((j for j in range(self.i, len(self.tokens)) if self.tokens[j] == ("end", name)), None)
            if end is None:
                raise _Unreadable
            items = self.items(end, True)
            self.i = end + 1
            return _Box("key", self.listing(items))
        rows = [[]]
        while not (self.kind() == "end"):
            if self.take("row"):
                rows.append([])
            elif self.take(","):
                continue
            else:
                rows[-1].append(self.expression())
            if self.i >= len(self.tokens):
                raise _Unreadable
        self.i += 1
        rows = [row for row in rows if row]
        if not rows:
            raise _Unreadable
        return _determinant(rows) if name == "vmatrix" else _Box("matrix", rows)

    def operator(self, name: str):
        """A sum or product with few terms, a sum of a polynomial, or else an unknown function of its parts."""
        letter, low, high, tag = None, None, None, name
        while self.kind() == "op" and self.peek() in ("_", "^"):
            self.i += 1
            if self.peek(-1) == "^":
                high = self.script()
                continue
            stop = self.partner[self.i] if self.peek() == "{" and self.kind() == "op" else None
            if stop and name in ("sum", "prod") and self.kind(1) == "letter" and self.peek(2) == "=":
                letter = self.peek(1)
                self.i += 3
                low = self.expression()
                if self.i != stop:
                    raise _Unreadable
                self.i += 1
            elif stop and name not in ("int", "iint", "oint"):
                tag += "".join(str(v) for _, v in self.tokens[self.i:stop + 1])
                self.i = stop + 1
            else:
                low = self.script()
        start, saved = self.i, self.bound

        def term(value):
            self.i, self.bound = start, {**saved, letter: value} if letter else saved
            result = self.expression(2)
            self.bound = saved
            return result

        if letter and high is not None and _exact(low):
            total = self.series(name, term, low, high)
            if total is not None:
                return total
        body = term(_letter("bound"))
        return _opaque(tag, *(v for v in (low, high, body) if v is not None))

    def series(self, name, term, low, high):
        count = _add(high, 1 - low)
        if isinstance(count, int) and 0 <= count <= 40:
            total = 0 if name == "sum" else 1
            for k in range(count):
                total = _add(total, term(low + k)) if name == "sum" else _multiply(total, term(low + k))
            if not count:
                term(low)
            return total
        if name == "prod" or not (_exact(count) or type(count) is tuple):
            return None
        differences = [term(low + k) for k in range(10)]
        total, binomial = 0, 1
        for order in range(10):
            if order > 7:
                if any(any(d) if type(d) is tuple else d for d in differences):
                    return None
            binomial = _divide(_multiply(binomial, _add(count, -order)), order + 1)
            total = _add(total, _multiply(binomial, differences[0]))
            differences = [self.difference(b, a) for a, b in zip(differences, differences[1:], strict=False)]
        return total


# ------------------------------------------------------------------ the public five, and grade
def _read(text: object) -> tuple[tuple | None, str]:
    """(key, "ok" | "unparsed" | "capped") of an answer."""
    if not isinstance(text, str):
        if isinstance(text, bool) or not isinstance(text, (int, float)) or not math.isfinite(text):
            return None, "unparsed"
        text = repr(text)
    return _read_short(text) if len(text) <= 200 else _read_text(text)


def _read_text(text: str) -> tuple[tuple | None, str]:
    if len(text) > MAX_CHARS:
        return None, "capped"
    text = _clean(text)
    if len(text) < 16 and text.isdecimal():
        return ("n", int(text), 1), "ok"
    status = "unparsed"
    try:
        if choice := _CHOICE.fullmatch(text):
            rest = choice[2].strip()
            letter = _number_key(_letter(choice[1]))
            return (("choice", letter, _read_text(rest)[0]) if rest else letter), "ok"
        return _Reader(*_tokenise(text)).answer(), "ok"
    except (_Absurd, ZeroDivisionError):
        return None, "unparsed"
    except (_Capped, OverflowError, RecursionError):  # RecursionError: a caller near the interpreter's limit
        status = "capped"
    except (_Unreadable, ValueError):  # ValueError: mpmath at a pole
        pass
    raw = _NOISE.sub("", text)
    return (("raw", raw) if any(c.isalnum() for c in raw) else None), status


_NOISE = re.compile(r"\s++|\\(?:left|right|displaystyle|[,;:! ])|\$")
_read_short = lru_cache(maxsize=4_096)(_read_text)


def answer_key(answer: str) -> Hashable | None:
    return _read(answer)[0]


def same_answer(a, b) -> bool:
    key = answer_key(a)
    return key is not None and key == answer_key(b)


def cluster_answers(answers: list) -> list[int]:
    ids, seen = [], {}
    for position, answer in enumerate(answers):
        key = answer_key(answer)
        ids.append(seen.setdefault(("alone", position) if key is None else key, len(seen)))
    return ids


_BOX = re.compile(r"(\\(?:boxed|fbox)\s{0,3}+\{)|\\.|[{}]", re.S)
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,3}+([^\s{}$]{1,100}+)")
_BETWEEN = re.compile(r"(?:[\s,;$&]|\\q?quad|\\[,;! ]|and\b|or\b|\\text\s{0,3}+\{[^{}]{0,40}+\})*+")
_PHRASE = re.compile(r"(?:answer\**\s{0,3}+(?:is|are|=)|^[\s*#]{0,9}+(?:the )?(?:final )?answer\**\s{0,3}+[:：]|答案(?:是|为|：|:))"
                     r"[\s:*]{0,9}+", re.I | re.M)
_STOP = re.compile(r"\.\s++[A-Z]|\.\s*+$|\n")
_MATH = re.compile(r"\$\$([^$]{1,2000}+)\$\$|\$([^$\n]{1,2000}+)\$|\\\(([^\n]{1,2000}?)\\\)|\\\[([^\\]{1,2000}+|.{1,2000}?)\\\]", re.S)
_LAST = re.compile(r"(?:(?<![\w)\]}])[-+]\s?)?(?<![\w.])(?:\\?\$\s?)?(?:\d++(?:(?:,|\{,\}|,\\!)\d{3}(?!\d))*+(?:\.\d++)?+|\.\d++)"
                   r"(?:[eE][+-]?\d{1,4}+)?+(?:/\d++)?+(?:\s?(?:\\?%|percent\b|pct\b))?", re.A)
_PROSE = re.compile(r"\\(?:" + _TEXT + r")\s{0,3}+\{[^{}]{0,200}+\}|\\[A-Za-z]++|([A-Za-z]{2,}|\*\*|[^\W\d_A-Za-zͰ-Ͽ])")


def extract_answer(text: str) -> str | None:
    """The final answer of a response, as text, or None."""
    if not isinstance(text, str):
        return None
    thought = text.rfind("</think>")
    if thought >= 0:
        text = text[thought + 8:]
    elif "<think>" in text[:200]:
        return None  # still thinking when it was cut off
    box = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if box >= 0:
        found = _last_box(text[max(0, box - 4_000):box + MAX_CHARS])
        if found is None and (bare := _BARE_BOX.match(text, box)):
            found = bare[1].rstrip(".,")
        return found  # a box that never closes was cut off: half an answer is none
    text = text[-4_000:]
    marked = text.rfind("####")
    if marked >= 0:
        text = text[marked + 4:].strip().split("\n")[0]
        return text.strip() or None
    phrase = None
    for phrase in _PHRASE.finditer(text):
        pass
    if phrase:
        text = text[phrase.end():]
        stop = _STOP.search(text)
        text = text[:stop.start()] if stop else text
    return _candidate(text.strip())


def _candidate(text: str) -> str | None:
    """Of a sentence: all of it if it is no prose, else its last formula or number."""
    prose = [w[1] for w in _PROSE.finditer(text) if w[1] and w[1] not in _FUNCTIONS and w[1] not in _UNITS and
             w[1] not in _WORD_OPS]
    if text and (not prose or len(text) < 60 and not any(c.isdigit() for c in text)):
        return text
    formula = number = None
    for formula in _MATH.finditer(text):
        pass
    for number in _LAST.finditer(text, formula.end() if formula else 0):
        pass
    if formula and not number:
        inner = formula[formula.lastindex].strip()
        return _candidate(inner) if len(inner) < len(text) else inner
    return number[0].strip() if number else None


def _last_box(text: str) -> str | None:
    """The last balanced box; boxes joined by "and" or a comma are one answer in parts."""
    stack, boxes = [], []
    for token in _BOX.finditer(text):
        if token[1]:
            stack.append((token.start(), token.end()))
        elif token[0] == "{":
            stack.append(None)
        elif token[0] == "}" and stack and (opened := stack.pop()):
            while boxes and boxes[-1][0] > opened[0]:
                boxes.pop()
            boxes.append((opened[0], token.end(), text[opened[1]:token.start()]))
    if not boxes:
        return None
    parts = [boxes[-1]]
    for box in boxes[-2::-1]:
        if not _BETWEEN.fullmatch(text, box[1], parts[0][0]):
            break
        parts.insert(0, box)
    return ", ".join(dict.fromkeys(part[2].strip() for part in parts)) or None


_TOLERANCE = re.compile(r"\(tolerance ([\d.eE+-]{1,20})\)\s*+$")


@lru_cache(maxsize=20_000)
def _golds(gold: object) -> tuple:
    """The keys that a gold accepts beside its own, and its tolerance."""
    tolerance = None
    if isinstance(gold, str):
        if found := _TOLERANCE.search(gold[-40:]):
            gold, tolerance = gold[:gold.rindex("(")], found[1]
        if "\\boxed" in gold or "####" in gold:
            gold = extract_answer(gold)
    key = _read(gold)[0]
    return key, tolerance and Fraction(tolerance)


def grade(response: str, gold: object) -> tuple[float, str | None, str]:
    """(reward, answer, status)."""
    answer = extract_answer(response)
    if answer is None:
        return 0.0, None, "missing"
    key, status = _read(answer)
    right = key is not None and any(_accepts(*_golds(g), key) for g in (gold if isinstance(gold, (list, tuple)) else [gold]))
    return float(right), answer, status


def reward(response: str, gold: object) -> float:
    return grade(response, gold)[0]


def _accepts(gold, tolerance, key) -> bool:
    if gold is None:
        return False
    if gold == key:
        return True
    kind, mine = gold[0], key[0]
    if mine == "choice":
        return _accepts(gold, tolerance, key[1]) or key[2] is not None and _accepts(gold, tolerance, key[2])
    if kind == "choice":
        return _accepts(gold[1], tolerance, key)
    if kind == "unit" and mine != "unit":
        percent = gold[2] == (("%", 1),)
        return _accepts(gold[1], tolerance, key) or percent and gold[1][0] == "n" and key == _scaled(gold[1])
    if mine == "unit" and kind != "unit":
        return _accepts(gold, tolerance, key[1]) or key[2] == (("%", 1),) and key[1][0] == "n" and _scaled(key[1]) == gold
    if kind == "unit":
        return gold[2] == key[2] and _accepts(gold[1], tolerance, key[1])
    if kind == "base":
        return key[0] == "n" and key[2] == 1 and str(key[1]) == gold[3]
    if mine == "n" and kind in ("n", "f"):
        return _close(gold, tolerance, key)
    if kind == "ratio" and mine == "n":
        return len(gold[1]) == 2 and key[1] and gold[1][1] == ("n", key[2], key[1])
    if kind == mine and kind in ("tuple", "set", "matrix", "intervals"):
        if len(gold[1]) != len(key[1]):
            return False
        if kind == "intervals":
            return all(a[1] == b[1] and a[3] == b[3] and _accepts(a[0], None, b[0]) and _accepts(a[2], None, b[2])
                       for a, b in zip(gold[1], key[1], strict=True))
        if kind == "tuple":
            return all(_accepts(g, tolerance, k) for g, k in zip(gold[1], key[1], strict=True))
        if kind == "set" and len(gold[1]) <= 20:
            left = list(key[1])
            for g in gold[1]:
                match = next((k for k in left if _accepts(g, tolerance, k)), None)
                if match is None:
                    return False
                left.remove(match)
            return True
    if kind == "set" and mine == "tuple":
        return len(key[1]) == len(gold[1]) > 1 and _accepts(gold, tolerance, ("set", tuple(sorted(key[1], key=repr))))
    if kind == "intervals" and mine == "tuple":
        return len(gold[1]) == 1 and len(key[1]) == 2 and gold[1][0] == (key[1][0], False, key[1][1], False)
    return False


def _scaled(key):
    x = Fraction(key[1], key[2] * 100)
    return ("n", x.numerator, x.denominator)


def _close(gold, tolerance, key) -> bool:
    """A stated tolerance; else a decimal of four places or more that is the rounded value of a gold that has no end."""
    value = Fraction(key[1], key[2])
    target = Fraction(gold[1], gold[2]) if gold[0] == "n" else Fraction(gold[1]) * Fraction(2) ** gold[2]
    if tolerance is not None:
        return abs(value - target) <= tolerance
    for places in range(4, 16):
        if 10**places % key[2] == 0:
            return abs(value) > Fraction(1, 10) and round(target, places) == value
    return False
