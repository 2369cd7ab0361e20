r"""Answers as text: extract one, give it a canonical key, compare, reward, cluster. Nothing a model writes is executed.

Two answers mean the same when their keys are equal, so a cluster is all answers with one key: reflexive, symmetric,
transitive and blind to order by construction. A recursive-descent reader turns LaTeX, plain text and unicode into
values: rationals stay exact, other closed forms are mpmath numbers of 256 bits compared at 100, letters are evaluated
at three fixed points. Work is bounded by counts (characters, depth, bits, steps), not by clocks: a loaded machine gives
the same verdict as an idle one. Rejected: sympy, whose parser executes code and whose search for equality has no bound;
judging pair by pair (math-verify), which is not transitive, so that clusters depend on the order of the samples.

>>> same_answer(r"\frac{1}{2}", "0.5"), same_answer(r"2\pi R", r"2\pi r"), same_answer("x(x+1)", "x^2+x")
(True, False, True)
>>> reward(r"First \boxed{17}, but no: \boxed{x = \tfrac{339}{3}}", "113")
1.0
>>> cluster_answers(["1/2", "0.5", None, "2", None])
[0, 0, 1, 2, 3]
"""

import collections
import functools
import math
import operator
import re
import threading
import unicodedata
from collections.abc import Hashable
from fractions import Fraction
from hashlib import blake2b
from typing import NamedTuple

import mpmath
from mpmath.libmp import ln2_fixed, ln10_fixed, mpf_pos, pi_fixed

MAX_CHARS, MAX_DEPTH, MAX_BITS, MAX_WORK = 5_000, 50, 4_096, 3_000  # beyond one of them the text itself is the key
PRECISION, ROUNDING, POINTS = 256, 100, 3  # bits computed, bits compared, evaluation points of a letter
INFINITE, NOTHING = mpmath.inf, Fraction(0)

for _fixed in (pi_fixed, ln2_fixed, ln10_fixed):
    _fixed(4_000)  # mpmath's caches of constants are not thread-safe while they grow: grow them past any use, once


class _Unreadable(Exception):
    """Not our notation."""


class _Capped(Exception):
    """Too long, deep, large or costly."""


class _Thread(threading.local):
    """One mpmath context per thread: while it works, mpmath raises and restores the precision of its context."""

    def __init__(self) -> None:
        self.mp, self.letters = type(mpmath.mp)(), {}
        self.mp.prec = PRECISION


_thread = _Thread()


class _Box(NamedTuple):
    """A value that is no number: "tuple" and "set" of (value, key), "region" of intervals, "matrix", "ratio", "key"."""

    kind: str
    data: object


# ------------------------------------------------------------------ tables: what the notation knows
_OPERATORS = {":": 1, "\\over": 1, "\\choose": 1, "\\cup": 2, "\\cap": 2, "\\setminus": 2, "mod": 2, "+": 3, "-": 3,
              "\\pm": 3, "\\mp": 3, "*": 4, "/": 4, "^": 6}  # how strongly they bind
_RELATIONS = ("=", "<", ">", "<=", ">=", "!=", "in", "≈")
_BRACKETS = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "\\langle": "\\rangle", "\\lfloor": "\\rfloor",
             "\\lceil": "\\rceil"}
_FUNCTIONS = {n: n for n in "sin cos tan cot sec csc sinh cosh tanh coth exp arg floor ceil asin acos atan".split()}
_FUNCTIONS |= {"arc" + n: "a" + n for n in "sin cos tan cot sec csc".split()}
_FUNCTIONS |= {"ln": "log", "log": "log", "lg": "log10", "abs": "fabs", "Re": "re", "Im": "im"}
_ACCENTS = "bar overline vec hat dot ddot tilde widehat overrightarrow".split()
_pairs = iter(r"""\cdot * \times * \ast * ** ^ \div / \le <= \leq <= \leqslant <= \ge >= \geq >= \geqslant >= \lt <
    \gt > \ne != \neq != \in in \mid | \vert | \lvert | \rvert | \| | \colon : \equiv = \iff = == = := = ≡ = is = are =
    equals = \approx ≈ \simeq ≈ \doteq ≈ \implies , \land , \wedge , \and , and , ; , \& , & , \lor or \vee or \or or
    or or \lbrace \{ \rbrace \} \lparen ( \rparen ) \backslash \setminus \dfrac \frac \tfrac \frac \cfrac \frac
    \dbinom \binom \tbinom \binom \varnothing \emptyset \bmod mod \pmod mod \mod mod \newline \\ sqrt \sqrt pi \pi
    infty \infty infinity \infty oo \infty \% "% % "% percent "% pct "% \$ "usd \euro "eur \pounds "gbp
    \degree "deg""".split())
_SYNONYMS = dict(zip(_pairs, _pairs, strict=True))
_SKIP = {"\\ ", "\\\n", "$", "~"} | {"\\" + name for name in (
    "left right big Big bigg Bigg bigl bigr Bigl Bigr displaystyle textstyle scriptstyle limits nolimits mathbf bm "
    "boldsymbol mathit mathsf mathcal mathbb bf rm it boxed fbox quad qquad , ! ; : ( ) [ ]").split()}
_UNITS = {name + ending: row.split()[0] for row in """m meter metre|cm centimeter centimetre|mm millimeter millimetre|nm
km kilometer kilometre|in inch inche|ft foot feet|yd yard|mi mile|g gram|kg kilogram|mg milligram|lb pound|oz ounce
ton tonne|s sec second|min minute|h hr hour|day|week|month|yr year|deg degree|rad radian|%|usd dollar buck|cent|eur
euro|gbp|N newton|J joule|kJ|W watt|kW|V volt|A amp ampere|Hz hertz|kHz|MHz|GHz|Pa pascal|kPa|atm|K kelvin|mol mole
mph|kph|am|pm|L liter litre|mL ml milliliter|gal gallon|qt quart|pt pint|cup|cal calorie|kcal|eV|keV|MeV|AU|pc|T|ohm|dB
erg|acre|'""".replace("\n", "|").split("|") for name in row.split() for ending in ("", "s" * (len(name) > 1))}
_POWER_WORDS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3}
_MULTIPLES = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SHORT_WORDS = set("yes no odd all any red one two six ten may sun mon tue wed thu fri sat not nor none".split())
_UNICODE = {"ℝ": "\\mathbb{R}", "\xa0": "\\,", "\u2009": "\\,", "\u202f": "\\,"}
_UNICODE |= dict(zip("−–—×·⋅∙÷⁄≤≥⩽⩾≠′’″，。（）",
                     "- - - * * * * / / <= >= <= >= != ' ' '' , . ( )".split(), strict=True))
_UNICODE |= {c: f"\\{name} " for c, name in zip("∞√°∪∩∈∅±∓≈€£⟨⟩⌊⌋⌈⌉∠△ℏ∖", (
    "infty sqrt degree cup cap in emptyset pm mp approx euro pounds langle rangle lfloor rfloor lceil rceil angle "
    "triangle hbar setminus").split(), strict=True)}

# No pattern backtracks more than a constant: alternatives differ at once, and repeats are possessive (`*+`, `{3}++`).
_TEXT = r"\\(?:text|mbox|textbf|textit|textrm|textnormal|textsf|mathrm|operatorname|hbox|emph)\s{0,3}+\{"
_INSIDE = r",\\!\s?+|\{,\}|\\,|\\ |~"  # thousands separators; outside brackets also a bare comma or space
_TOKEN = [re.compile(
    r"(?P<comma>" + comma + r"\d++\{,\}(?!\d{3}(?!\d))\d++)"  # 0,111 and 3{,}14 are decimals, 1.000.000 is a million
    r"|(?P<number>(?:\d{1,3}(?:(?:" + separators + r")\d{3})++(?!\d)|\d++)(?:\.\d*+\\(?:overline|bar)\s?+\{\d{1,40}+\}|"
    r"\.\d++|\.(?!\d))?+(?:[eE][+-]?\d++(?![\d.]))?|\.\d++)"
    r"|(?P<text>" + _TEXT + r")|\\(?P<env>(?:begin|end)\s?+\{[a-zA-Z]++)\*?+\}(?:\{[clr|@ ]*+\})?+"
    r"|(?P<degree>\^\s?+(?:\{\s?+\\circ\s?+\}|\\circ(?![a-zA-Z])))"
    r"|(?P<prime>\^\s?+(?:\{(?:\s?+\\prime)++\s?+\}|\\prime(?![a-zA-Z])))"
    r"|(?P<dropped>\\phantom\s?+\{?+-\}?+|\\[lc]?dots|\.{3}|…|\\left\s?+\.|\\right\s?+\.|"
    r"\^\s?+\{?+\\(?:text|mathrm)\{(?:st|nd|rd|th)\}\}?+)"
    r"|(?P<op>\\[A-Za-z]++|\\.|\*\*|<=|>=|!=|==|:=|[^\sA-Za-z])|(?P<word>[A-Za-z]++)|\s++", re.S)
    for separators, comma in ((_INSIDE + "|,| ", r"0,\d{3,}+|\d{1,3}(?:\.\d{3}){2,}+(?!\d)|"), (_INSIDE, ""))]
_LITERAL = re.compile(r"(\d*+)(?:\.(\d*+))?+(?:\\[a-z]++\s?\{(\d++)\})?+(?:[eE](.++))?+")
_ESCAPED = re.compile(r"(?<!\\)\\\\(?=(?:[dtc]?frac|sqrt|left|right|boxed|pi|text|mathrm|begin|end|times|cdot|infty|pm|"
                      r"in|cup|circ|leq?|geq?|theta|alpha|beta|langle|rangle|sin|cos|tan|ln|log|binom|overline)\b)")
_ARGUMENTS = (re.compile(r"(\\(?:[dtc]?frac|[dt]?binom))\s*+(\d)"),
              re.compile(r"(\\(?:[dtc]?frac|[dt]?binom)\{[^{}]{1,99}+\})\s*+(\d)"))
_REWRITES = (("\\mathbb{R}", "(-\\infty,\\infty)"), ("all real numbers", "(-\\infty,\\infty)"), ("a.m.", "am"),
             ("p.m.", "pm"), ("\x0c", "\\f"), ("\x08", "\\b"))  # the last two: \frac and \boxed, carelessly unescaped
_WHERE = re.compile(r"[,;(]\s{0,3}+(?:\\q?quad\s?+)?+(?:" + _TEXT + r"[a-z ]{0,12}+\})?+\s{0,3}+[a-z]\s?\\in\s?"
                    r"(?:\\mathbb\s?)?+\{?[ZN]\}?[^,]{0,9}+$")  # ", where k is an integer"
_CHOICE = re.compile(r"(?:" + _TEXT + r")?+\(?([A-H])"
                     r"(?:[).:]\s?+(?:\}|(?<=\s))(?:\\?\s|\\[,;!]|~)*+(\S.*+)|\)|\.)", re.S)  # (B) 12
_SYMBOL = r"(?:\\(?!pi|infty|frac|sqrt|sum|int)[A-Za-z]++|[A-Za-z])'*+(?:_(?:\{[^{}]*+\}|[^{}]))?+'*+"
_NAME = re.compile("|".join((
    rf"(?![ei]$){_SYMBOL}(?:\([^()]*+\))?+", rf"\({_SYMBOL}(?:,{_SYMBOL})*+\)", rf"\\(?:sin|cos|tan|cot){_SYMBOL}",
    rf"{_SYMBOL}(?:(?::|\\c[au]p){_SYMBOL})++", r"(?:\\angle|\\triangle)?+(?:[A-Z](?:_(?:\{\w\}|\w))?+){2,}+",
    r"\|[A-Z]{2}\|", '(?:"[^"]++)++')))  # x, f(x), (p,q), \cos A, V_1:V_2, A \cap B, \angle ABC, |AB|, words


# ------------------------------------------------------------------ numbers: Fraction, mpf, mpc, or a tuple of them
def _mp(x):
    """As an mpmath number. A list or an interval in a number's place is not our notation."""
    if isinstance(x, Fraction):
        return _thread.mp.mpf(x.numerator) / x.denominator
    if isinstance(x, (_Box, tuple)):
        raise _Unreadable
    return x


def _exact(*numbers) -> bool:
    return all(type(x) is Fraction for x in numbers)


def _bits(x: Fraction) -> int:
    return max(x.numerator.bit_length(), x.denominator.bit_length())


def _each(function, *args):
    """Apply a function to numbers; point by point where letters are, entry by entry on matrices."""
    if any(isinstance(a, _Box) for a in args):
        boxes = [a for a in args if isinstance(a, _Box)]
        if any(box.kind != "matrix" for box in boxes) or function is not (_plus if len(boxes) == 2 else _times):
            raise _Unreadable
        grids = [a.data if isinstance(a, _Box) else [[a] * len(row) for row in boxes[0].data] for a in args]
        return _Box("matrix", [[_each(function, *cells) for cells in zip(*rows, strict=True)]
                               for rows in zip(*grids, strict=True)])
    if any(type(a) is tuple for a in args):
        return tuple(function(*(a[k] if type(a) is tuple else a for a in args)) for k in range(POINTS))
    return function(*args)


def _calculator(operate):
    """An operation that is exact on rationals while they are small."""
    def calculate(a, b):
        if _exact(a, b):
            result = operate(a, b)
            return result if _bits(result) <= MAX_BITS else _mp(result)
        return operate(_mp(a), _mp(b))
    return calculate


_plain_sum, _times, _over = map(_calculator, (operator.add, operator.mul, operator.truediv))


def _plus(a, b):
    total, mag = _plain_sum(a, b), _thread.mp.mag
    # What a cancellation leaves below 2^-180 is rounding: sqrt(2) sqrt(2) - 2 is 0.
    if total and a and b and not _exact(total) and mag(total) < max(mag(_mp(a)), mag(_mp(b))) - 180:
        return NOTHING
    return total


def _add(a, b):
    total, mag = _each(_plus, a, b), _thread.mp.mag
    if isinstance(total, _thread.mp.mpf) and a and b and abs(total) < INFINITE and abs(mag(_mp(a)) - mag(_mp(b))) > 150:
        raise _Capped  # one swallows the other: 9^{9^9}+1 must not equal 9^{9^9}
    return total


def _minus(a, b):
    return _add(a, _each(_times, Fraction(-1), b))


def _power(a, b):
    mp = _thread.mp
    if _exact(a, b):
        if b.denominator == 1 and abs(b) * _bits(a) <= MAX_BITS or not a:
            return a ** int(b) if b.denominator == 1 else NOTHING
    if _exact(b) and b.denominator % 2 and b.denominator > 1 and not isinstance(a, mp.mpc) and a < 0:
        # The cube root of -2 is real, as people mean it.
        return _times(Fraction(-1) ** (b.numerator % 2), _power(-a, b))
    whole = _exact(b) and b.denominator == 1
    a, y = _mp(a), _mp(b)
    if not a and y.real < 0:
        raise ZeroDivisionError
    if mp.isinf(a) or mp.isinf(y) or a and mp.mag(y) + mp.mag(mp.mag(a) or 1) > 40:
        raise _Capped
    return a ** int(b) if whole else mp.power(a, y)


def _apply(name: str, *args):
    """A function of the tables, by mpmath, within safe sizes; small factorials are exact."""
    mp = _thread.mp
    if _exact(*args) and all(x.denominator == 1 and 0 <= x <= 500 for x in args):
        if name in ("factorial", "binomial"):
            return Fraction(math.factorial(int(args[0])) if name == "factorial" else math.comb(*map(int, args)))
    args = [_mp(x) for x in args]
    if any(mp.mag(x) > (17 if name in ("factorial", "binomial") else 40) for x in args if x):
        raise _Capped
    value = getattr(mp, name)(*args)
    if value and mp.mag(value) > 180 and name not in ("exp", "factorial"):
        raise ZeroDivisionError  # tan(pi/2), ln(0)
    return NOTHING if value and mp.mag(value) < -180 and name in _FUNCTIONS and name != "exp" else value


def _opaque(name: str, *values) -> tuple:
    """A letter or an unknown function: at each point a fixed number, drawn from its name and its rounded arguments."""
    mp, points = _thread.mp, []
    for k, (low, width) in enumerate(((0.3, 0.6), (1.2, 1.4), (3, 2))):
        text = repr((name, k, [_rounded(v[k] if type(v) is tuple else v) for v in values]))
        draw = int.from_bytes(blake2b(text.encode("utf8", "surrogatepass"), digest_size=32).digest(), "big")
        points.append(low + width * mp.ldexp(mp.mpf(draw), -PRECISION))
    return tuple(points)


def _letter(name: str) -> tuple:
    known = _thread.letters
    if name not in known:
        if len(known) > 500:
            known.clear()
        known[name] = _opaque(name)
    return known[name]


# ------------------------------------------------------------------ keys of values
def _rounded(x) -> tuple:
    """A number rounded to 100 bits, as integers: (mantissa, exponent), twice when it is complex."""
    x, mp = _mp(x), _thread.mp
    if mp.isnan(x):
        raise ZeroDivisionError
    if isinstance(x, mp.mpc):
        real, imaginary = (p if p and mp.mag(p) > mp.mag(x) - 150 else mp.zero for p in (x.real, x.imag))
        return _rounded(real) + (_rounded(imaginary) if imaginary else ())
    sign, mantissa, exponent, _ = mpf_pos(x._mpf_, ROUNDING, "n")
    return (-int(mantissa) if sign else int(mantissa), exponent)


def _number_key(x) -> tuple:
    """("n", p, q) for a rational and for a closed form that is one to 200 bits; else rounded values."""
    mp = _thread.mp
    if type(x) is tuple:
        values = tuple(map(_rounded, x))
        return ("letters", *values) if len(set(values)) > 1 else _number_key(x[0])
    if not _exact(x):
        rounded = _rounded(x)
        if len(rounded) > 2:
            return ("complex", _number_key(x.real), _number_key(x.imag))
        if abs(x) == INFINITE:
            return ("infinite", 1 if x.real > 0 else -1)
        if not x:
            return ("n", 0, 1)
        if abs(mp.mag(x)) > PRECISION:
            return ("closed", *rounded)
        sign, mantissa, exponent, _ = x.real._mpf_
        value = (-1 if sign else 1) * int(mantissa) * Fraction(2) ** exponent
        x = value.limit_denominator(10**9)
        if abs(x - value) > abs(value) / 2**200:
            return ("closed", *rounded)
    return ("n", x.numerator, x.denominator)


def _sorted(keys) -> tuple:
    return tuple(sorted(keys, key=repr))


def _key(x) -> tuple:
    if not isinstance(x, _Box):
        return _number_key(x)
    if x.kind == "key":
        return x.data
    if x.kind == "tuple":
        return ("tuple", tuple(key for _, key in x.data))
    if x.kind == "set":
        keys = _sorted({key for _, key in x.data})
        return keys[0] if len(keys) == 1 else ("set", keys)
    if x.kind == "matrix":
        return ("matrix", tuple(tuple(map(_number_key, row)) for row in x.data))
    if x.kind == "ratio":
        scale = next((part for part in x.data if part), Fraction(1))
        return ("ratio", tuple(_number_key(_each(_over, part, scale)) for part in x.data))
    return ("region", tuple((_key(lo), lo_in, _key(hi), hi_in) for lo, lo_in, hi, hi_in in x.data))


# ------------------------------------------------------------------ regions: lists of (low, included, high, included)
def _region(box) -> list:
    """A set, a pair in round brackets, or a region as intervals between real numbers."""
    pieces = box.data if isinstance(box, _Box) and box.kind == "region" else None
    if isinstance(box, _Box) and box.kind == "set":
        pieces = [(value, True, value, True) for value, _ in box.data]
    elif isinstance(box, _Box) and box.kind == "tuple" and len(box.data) == 2:
        pieces = [(box.data[0][0], False, box.data[1][0], False)]
    pieces = pieces and [(_mp(low), low_in, _mp(high), high_in) for low, low_in, high, high_in in pieces]
    if pieces is None or any(isinstance(edge, _thread.mp.mpc) for piece in pieces for edge in piece[::2]):
        raise _Unreadable
    return pieces


def _combine(rule, a, b) -> _Box:
    """Union, intersection or difference: ask the rule about each end point and each gap between end points."""
    if isinstance(a, _Box) and isinstance(b, _Box) and a.kind == b.kind == "set":
        left, right = {k for _, k in a.data}, {k for _, k in b.data}
        return _Box("set", [item for item in a.data + b.data if rule(item[1] in left, item[1] in right)])
    regions = [_region(a), _region(b)]
    edges = sorted({edge for region in regions for piece in region for edge in piece[::2]} | {-INFINITE, INFINITE})
    pieces, joined = [], False
    for low, high in (cell for pair in zip(edges, edges[1:], strict=False) for cell in (pair[:1] * 2, pair)):
        inside = rule(*(_inside(region, low, high) for region in regions))
        if inside:
            pieces.append((*pieces.pop()[:2], high, low == high) if joined else (low, low == high, high, low == high))
        joined = inside
    return _Box("region", pieces) if pieces else _Box("set", [])


def _inside(region: list, low, high) -> bool:
    """Is a point (low == high), or the open gap from low to high, in the region?"""
    if low < high:
        return any(first <= low and high <= last for first, _, last, _ in region)
    return any(first < low < last or first_in and low == first or last_in and low == last
               for first, first_in, last, last_in in region)


# ------------------------------------------------------------------ text to tokens
def _clean(text: str) -> str:
    """One alphabet for LaTeX, plain text and unicode; no full stop at the end."""
    if not text.isascii():
        text = "".join(c if c.isascii() else _spelled(c) for c in text)
    for old, new in _REWRITES:
        text = text.replace(old, new)
    text = _ESCAPED.sub(lambda _: "\\", _WHERE.sub("", text)).lstrip("= \n").strip().rstrip(".,;:\\ \n")
    for argument in _ARGUMENTS:  # an argument without braces is one digit: \frac43, \frac{1}2
        text = argument.sub(r"\1{\2}", text)
    if text[:1] == "$" and text[1:2].isdigit() and text.replace("\\$", "").count("$") == 1:
        return "\\" + text  # a dollar without partner in front of a digit is money
    return text


@functools.lru_cache(maxsize=1_000)
def _spelled(c: str) -> str:
    """A character outside ASCII in ASCII or LaTeX: a vulgar fraction, a raised digit, a Greek letter, a digit."""
    form, name = unicodedata.decomposition(c), unicodedata.name(c, "")
    if c in _UNICODE:
        return _UNICODE[c]
    if c.isdecimal():
        return str(unicodedata.decimal(c))
    if form.startswith("<fraction>"):
        return f" {Fraction(unicodedata.numeric(c)).limit_denominator(1_000)} "
    if form.startswith(("<super>", "<sub>")):
        return ("^{" if form.startswith("<super>") else "_{") + unicodedata.normalize("NFKC", c) + "}"
    if name.startswith("GREEK") and "LETTER" in name and " WITH " not in name:
        greek = name.split()[-1].lower().replace("lamda", "lambda")
        return f"\\{greek if 'SMALL' in name else greek.capitalize()} "
    return "" if unicodedata.category(c) == "Cf" else unicodedata.normalize("NFKC", c)


def _tokens(text: str) -> tuple[list[str], dict[int, int]]:
    """Tokens and the partner of each opening bracket. Digits start a number, a backslash a command, '"' a word."""
    tokens, partner, stack, at, texts = [], {}, [], 0, 0
    while at < len(text):
        found = _TOKEN[bool(stack) and stack[-1][0] in ("(", "[", "\\{")].match(text, at)
        if not found:
            raise _Unreadable
        at, kind, token = found.end(), found.lastgroup, found[0]
        if kind == "text":
            stack.append(("text", 0))
            texts += 1
        elif kind == "word":
            tokens += _words(token, texts > 0, tokens)
        elif kind == "number":
            tokens.append(re.sub(r"\\[,! ]|[,~\s]|\{,\}", "", token).rstrip("."))
        elif kind == "comma":
            tokens.append(token.replace(".", "") if "." in token else re.sub(r"\{?,\}?", ".", token))
        elif kind == "env":
            tokens.append("\\" + re.sub(r"\s?\{", ":", found["env"]))
        elif kind == "degree":
            tokens.append('"deg')
        elif kind == "prime":
            tokens += "'" * token.count("prime")
        elif kind == "op":
            token = _SYNONYMS.get(token, token)
            if token in _BRACKETS:
                stack.append((token, len(tokens)))
            elif token in _BRACKETS.values():
                opener, start = stack.pop() if stack else ("", 0)
                if opener == "text" and token == "}":
                    texts -= 1
                    continue
                if token != _BRACKETS.get(opener) and not (opener in ("(", "[") and token in (")", "]")):
                    raise _Unreadable
                partner[start] = len(tokens)
            if token not in _SKIP and token != ".":
                tokens.append(token.removeprefix("\\quad") if token.startswith("\\quad") else token)
    if stack:
        raise _Unreadable
    return tokens, partner


def _words(run: str, in_text: bool, before: list[str]) -> list[str]:
    """What a run of letters is: a connective, a function, a unit, a word, or letters that are multiplied."""
    if run in _SYNONYMS:
        return [_SYNONYMS[run]]
    if run in _FUNCTIONS and len(run) > 1:
        return ["\\" + run]
    last = before[-1] if before else ","
    measured = last[0].isdigit() or last[0] in '")]}' or last in "/*" and before[-2:-1] and before[-2][0] == '"'
    if len(run) == 1:
        return ['"' + run if in_text and measured and run in _UNITS else run]
    word = run.lower() in _SHORT_WORDS or len(run) > 3 and sorted(run) != list(run)  # but abcd is a product
    if in_text or word or measured and run in _UNITS:
        return ['"' + run]
    return list(run)


def _literal(token: str) -> Fraction:
    whole, decimals, repeat, power = _LITERAL.fullmatch(token).groups(default="")
    if len(token) > 1_000 or len(power) > 4:
        raise _Capped
    value = Fraction(int(whole + decimals), 10 ** len(decimals))
    if repeat:
        value += Fraction(int(repeat), (10 ** len(repeat) - 1) * 10 ** len(decimals))
    return _times(value, Fraction(10) ** int(power)) if power else value


# ------------------------------------------------------------------ tokens to a value
class _Reader:
    """Recursive descent; values are computed while reading, at all points at once. `end`: where a bracket closes."""

    def __init__(self, text: str) -> None:
        self.tokens, self.partner = _tokens(text)
        self.i = self.work = self.depth = self.bars = 0
        self.side, self.sided = 1, False  # which side of a plus-minus is read, and whether one was met
        self.unit: dict[str, int] = {}
        self.letters: set[str] = set()
        self.bound: dict[str, object] = {}

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.i + ahead] if self.i + ahead < len(self.tokens) else "end"

    def take(self, *tokens: str) -> bool:
        self.i += (found := self.peek() in tokens)
        return found

    def spend(self, amount: int) -> None:
        self.work += amount
        if self.work > MAX_WORK:
            raise _Capped

    # lists of statements
    def items(self, end: int, both: bool = False) -> list:
        """Statements between separators: (value, key, its name, separator before). `both`: a plus-minus gives two."""
        found, separator = [], ""
        while self.i < end:
            if self.peek() in (",", "or", "\\\\"):
                separator = "or" if "or" in (self.peek(), separator) else ","
                self.i += 1
                continue
            start = self.i
            if both:
                self.side, self.sided = 1, False
            found.append((*self.statement(end), separator))
            if both and self.sided:
                self.i, self.side = start, -1
                found.append((*self.statement(end), ","))
            if self.i == start:
                raise _Unreadable
            separator = ""
        return found

    def listing(self, items: list) -> tuple:
        """One answer; values of several names, as tuples in the order of the names; or answers without order."""
        if len(items) == 1:
            return items[0][1]
        names = list(dict.fromkeys(name for *_, name, _ in items))
        if None not in names and len({re.split("[_(]", name)[0] for name in names}) > 1:
            rows = [sorted((name, key) for _, key, name, _ in items[j:j + len(names)])
                    for j in range(0, len(items), len(names))]
            if any([name for name, _ in row] != sorted(names) for row in rows):
                raise _Unreadable
            tuples = {("tuple", tuple(key for _, key in row)) for row in rows}
            return tuples.pop() if len(tuples) == 1 else ("set", _sorted(tuples))
        if not items:
            raise ZeroDivisionError
        if any(item[3] == "or" for item in items) and all(item[1][0] == "region" for item in items):
            return _key(functools.reduce(functools.partial(self.combine, operator.or_), (item[0] for item in items)))
        keys = [item[1] for item in items]
        return ("set", _sorted(k for j, k in enumerate(keys) if k[0] != "tuple" or k not in keys[:j]))

    # one statement
    def statement(self, end: int) -> tuple:
        self.spend(5)
        self.unit, self.letters = {}, set()
        self.take("≈")
        members, names, relations = [], [], []
        while True:
            start = self.i
            members.append(self.expression())
            span = "".join(self.tokens[start:self.i][:40])
            names.append(span if _NAME.fullmatch(span) else None)
            if self.i >= end or self.peek() not in _RELATIONS:
                break
            relations.append(self.peek())
            self.i += 1
        if "≈" in relations:
            relations = relations[:relations.index("≈")]
            members = members[:len(relations) + 1]
        value, name = self.related(members, names, relations)
        key = _key(value)
        return value, ("unit", key, _sorted(self.unit.items())) if self.unit else key, name

    def related(self, members: list, names: list, relations: list) -> tuple:
        """The value that relations state, and the name they give it: x = 5, 1 < x <= 2, y = 2x + 1, a + b = c."""
        first, last = members[0], members[-1]
        if not relations:
            return first, None
        if set(relations) <= {"=", "in"}:
            if names[0] and not (names[len(relations)] and len(names[0]) > 1 and first != last and relations == ["="]):
                return last, names[0]
            if relations == ["="] and names[1] and not names[0]:
                return first, names[1]
            if isinstance(first, _Box) or isinstance(last, _Box):
                return _Box("key", ("equation", _sorted((_key(first), _key(last))))), None
            gap = _minus(first, last)
            if type(gap) is not tuple:
                return last, None
            return _Box("key", ("equation", _number_key(_each(_over, gap, gap[0])))), None
        regions, keys = [], []
        for a, b, name_a, name_b, relation in zip(members, members[1:], names, names[1:], relations, strict=False):
            if relation[0] == ">":
                a, b, name_a, name_b, relation = b, a, name_b, name_a, relation.replace(">", "<")
            self.spend(20)
            regions.append(self.solved(a, b, name_a, name_b, relation))
            gap = _minus(a, b)
            scale = gap[0] if type(gap) is tuple else gap
            keys.append((relation, _number_key(_each(_over, gap, abs(scale))) if scale else None))
        if all(regions):
            return functools.reduce(functools.partial(self.combine, operator.and_), regions), None
        return _Box("key", ("relation", _sorted(keys))), None

    def solved(self, a, b, name_a, name_b, relation: str) -> _Box | None:
        """a < b, a <= b or a != b as a region: of a name against a constant, or linear in the only letter."""
        if name_a and type(b) is not tuple:
            below, edge = True, b
        elif name_b and type(a) is not tuple:
            below, edge = False, a
        else:
            gap = _minus(a, b)
            if len(self.letters) != 1 or type(gap) is not tuple:
                return None
            (x0, y0), (x1, y1), (x2, y2) = zip(_letter(next(iter(self.letters))), gap, strict=True)
            slope = (y1 - y0) / (x1 - x0)
            if isinstance(slope, _thread.mp.mpc) or not slope or _plus(y2 - y0, slope * (x0 - x2)):
                return None
            below, edge = slope > 0, x0 - y0 / slope
        line, strict = (-INFINITE, False, INFINITE, False), relation != "<="
        if relation == "!=":
            return _combine(operator.gt, _Box("region", [line]), _Box("set", [(edge, None)]))
        return _Box("region", [(*line[:2], edge, not strict) if below else (edge, not strict, *line[2:])])

    # expressions
    def expression(self, floor: float = 0):
        """Precedence climbing over binary operators, implicit products, and the units that may follow a value."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Capped
        left = self.prefix()
        while self.i < len(self.tokens):
            token = self.peek()
            strength = _OPERATORS.get(token)
            if strength is None and self.starts_factor(left):
                strength = 4 if floor != 4.5 or token in ("(", "[", "|") or token[1:] in _FUNCTIONS else 5
                token = "implicit"
            if token[0] in "\"'!" and token != "!=" and strength is None:
                left = self.postfix(left)
            elif strength is None or strength <= floor:
                break
            elif token == "^":
                self.i += 1
                self.spend(8)
                left = _each(_power, left, self.script())
            else:
                self.i += token != "implicit"
                left = self.binary(token, left, self.expression(strength))
        self.depth -= 1
        return left

    def starts_factor(self, left) -> bool:
        token = self.peek()
        if token[0].isdigit() or token[0] == ".":
            return not self.tokens[self.i - 1][0].isdigit()
        if token in ("(", "["):
            return not isinstance(left, _Box) or left.kind == "matrix"
        if token == "|":
            return not self.bars
        return len(token) == 1 and token.isalpha() or token == "{" or token[0] == "\\" and token != "\\\\" and (
            token not in _BRACKETS.values()) and token not in ("\\{", "\\to") and not token.startswith("\\end:")

    def combine(self, rule, a, b) -> _Box | tuple:
        if type(a) is tuple and type(b) is tuple:
            return _opaque(rule.__name__, a, b)  # sets that are only names
        self.spend(sum(len(box.data) for box in (a, b) if isinstance(box, _Box)) ** 2)
        return _combine(rule, a, b)

    def binary(self, op: str, a, b):
        self.spend(5 if type(a) is tuple or type(b) is tuple else 2)
        if op in ("\\pm", "\\mp"):
            self.sided = True
            op = "+" if (op == "\\pm") == (self.side > 0) else "-"
        if op == "implicit" and isinstance(b, _Box) and b.kind == "region":
            return b  # OlympiadBench writes t(0,4] for "t in (0,4]"
        if op == ":":
            return _Box("ratio", [*(a.data if isinstance(a, _Box) and a.kind == "ratio" else [a]), b])
        if op == "mod":
            return _Box("key", ("mod", _key(a), _key(b)))
        if op in ("\\over", "\\choose"):
            return self.divided(op == "\\over", a, b)
        if op[0] == "\\":
            return self.combine({"\\cup": operator.or_, "\\cap": operator.and_, "\\setminus": operator.gt}[op], a, b)
        if op == "/":
            return self.divided(True, a, b)
        return _add(a, b) if op == "+" else _minus(a, b) if op == "-" else _each(_times, a, b)

    def divided(self, fraction: bool, a, b):
        """a over b, or a choose b."""
        self.spend(0 if fraction else 60)
        if fraction and isinstance(a, _Box):
            return _each(_times, a, _each(_over, Fraction(1), b))
        return _each(_over if fraction else functools.partial(_apply, "binomial"), a, b)

    def prefix(self):
        self.spend(2)
        for op in ("+", "-", "\\pm", "\\mp"):
            if self.take(op):
                return self.binary(op, NOTHING, self.expression(3))
        return self.atom()

    def postfix(self, value):
        if self.take("!"):
            self.spend(40)
            return _each(functools.partial(_apply, "factorial"), value)
        power, sign = 1, 1
        while True:  # a unit: words, powers of them, quotients. A word that is no unit is noise ("5 apples").
            token = self.peek()
            if token[0] in "\"'":
                word = token.lstrip('"')
                self.i += 1
                power = _POWER_WORDS.get(word.lower(), power)
                if word in _MULTIPLES:
                    value = _each(_times, value, Fraction(_MULTIPLES[word]))
                sign = -1 if word == "per" else sign
                name = _UNITS.get(word) or _UNITS.get(word.lower())
                if name == "deg" and self.peek().strip('"') in ("C", "F"):
                    name, self.i = "deg" + self.peek().strip('"'), self.i + 1
                exponent = self.script() if self.take("^") else power
                if not exponent or type(exponent) not in (int, Fraction):
                    raise _Unreadable
                if name:
                    self.unit[name], power = sign * int(exponent), 1
            elif token == "/" and self.peek(1)[0] == '"':
                sign, self.i = -1, self.i + 1
            else:
                return value

    def script(self):
        """What stands after ^ or _ or as an argument: a group, or a signed number, letter or command."""
        if self.take("-"):
            return _each(_times, Fraction(-1), self.script())
        self.take("+")
        return self.atom()

    def atom(self):
        token = self.peek()
        if token in _BRACKETS:
            return self.bracket()
        self.i += 1
        if token[0].isdigit() or token[0] == "." and len(token) > 1:
            return self.number(token)
        if token[0] == '"':
            return self.word(token[1:])
        if token == "|" and not self.bars:
            self.bars += 1
            inner = self.expression()
            self.bars -= 1
            if not self.take("|"):
                raise _Unreadable
            return self.magnitude(inner)
        if token[0] == "\\" and token[1:].split(":")[0].isalpha():
            return self.command(token[1:])
        if len(token) == 1 and token.isalpha():
            return self.symbol(token)
        raise _Unreadable

    def magnitude(self, x):
        """|x|; of letters an unknown even function, because the points are positive and |x| is not x."""
        return _opaque("abs", _each(_times, x, x)) if type(x) is tuple else _each(functools.partial(_apply, "fabs"), x)

    def word(self, word: str):
        """Money in front of its number; else words up to the next sign are a text, whatever their case."""
        if word in ("usd", "eur", "gbp"):
            self.unit[word] = 1
            return self.atom()
        words = [word]
        while self.peek()[0] == '"' or self.peek()[0].isalnum() and self.peek() not in ("end", "in", "or", "mod"):
            words.append(self.peek().lstrip('"'))
            self.i += 1
        words = words[words[0].lower() in ("a", "an", "the"):]
        return _Box("key", ("text", " ".join(words).casefold()))

    def number(self, digits: str):
        value = _literal(digits)
        if self.take("_"):
            base = self.script()
            if not _exact(base) or not 2 <= base <= 36 or not digits.isdigit() or any(int(d) >= base for d in digits):
                raise _Unreadable
            self.unit[f"base {base}"] = 1  # "204 in base 5": the digits are what was asked for
        start = self.i  # a mixed number: 1\frac{1}{2} or 1 1/2, but 3\frac{\pi}{2} is a product
        if digits.isdigit() and (self.take("\\frac") or self.peek().isdigit() and self.peek(1) == "/"):
            top = self.script()
            self.take("/")
            bottom = self.script()
            if _exact(top, bottom) and 0 < top < bottom and top.denominator == bottom.denominator == 1:
                return value + top / bottom
            self.i = start
        return value

    def symbol(self, name: str):
        """A letter with subscript and primes. e and i alone are constants; f(...), and I(0), are unknown."""
        self.spend(6)
        bare = name
        while self.peek() in ("'", "_"):
            if self.take("'"):
                name += "'"
                continue
            self.i += 1
            stop = self.partner[self.i] + 1 if self.peek() == "{" else self.i + 1
            inner = [token for token in self.tokens[self.i:stop] if token not in ("{", "}")]
            if any(token in ("+", "-", "*", "/") or token in self.bound for token in inner):
                return _opaque(name + "_", self.script())
            self.i, name = stop, name + "_" + re.sub(r'["\\]', "", "".join(inner))
        if name in self.bound:
            return self.bound[name]
        if name in ("e", "i"):
            return _thread.mp.e if name == "e" else _thread.mp.mpc(0, 1)
        self.letters.add(name)
        if self.peek() == "(" and (bare in "fghFG" or self.peek(1)[0].isdigit() and self.peek(2) == ")"):  # I(0)
            inner = self.bracket()
            several = isinstance(inner, _Box) and inner.kind == "tuple"
            return _opaque(name + "(", *([value for value, _ in inner.data] if several else [inner]))
        return _letter(name)

    def command(self, name: str):
        mp = _thread.mp
        if name in ("frac", "binom"):
            return self.divided(name == "frac", self.script(), self.script())
        if name == "sqrt":
            degree = self.bracket() if self.peek() == "[" else Fraction(2)
            self.spend(8)
            return _each(_power, self.script(), _each(_over, Fraction(1), degree))
        if name in _FUNCTIONS:
            return self.function(name)
        if name in ("pi", "infty"):
            return mp.pi + 0 if name == "pi" else mp.inf
        if name == "emptyset":
            return _Box("set", [])
        if name in ("sum", "prod", "int", "iint", "oint", "lim", "max", "min"):
            return self.series(name)
        if name.startswith("begin:"):
            return self.environment(name[6:])
        if name in _ACCENTS:
            stop = self.partner[self.i] + 1 if self.peek() == "{" else self.i + 1
            name, self.i = name + "".join(self.tokens[self.i:stop]), stop
        return self.symbol(name)

    def function(self, name: str):
        """sin x, sin^2 x, sin^{-1} x, log_2 x; without brackets the argument is a product up to the next function."""
        base = power = None
        while self.peek() in ("_", "^"):
            if self.take("_"):
                base = self.script()
            elif self.take("^"):
                power = self.script()
        self.spend(20)
        units, self.unit = self.unit, {}
        x = self.bracket() if self.peek() in _BRACKETS else self.expression(4.5)
        if self.peek() == '"deg':
            x = self.postfix(x)
        if self.unit.pop("deg", None):
            x = _each(_times, x, _thread.mp.pi / 180)
        self.unit = units
        inverse = power == -1 and name in ("sin", "cos", "tan", "cot", "sec", "csc")
        name = "a" + name if inverse else _FUNCTIONS[name]
        value = self.magnitude(x) if name == "fabs" else _each(functools.partial(_apply, name), x)
        if base is not None:
            value = _each(_over, value, _each(functools.partial(_apply, "log"), base))
        return value if power is None or inverse else _each(_power, value, power)

    def bracket(self):
        start = self.i
        stop, opener = self.partner[start], self.peek()
        closer = self.tokens[stop]
        inner, end = start, stop
        while opener in "({" and self.tokens[inner + 1] in "({" and self.partner[inner + 1] == end - 1:
            inner, end, opener = inner + 1, end - 1, self.tokens[inner + 1]  # ((((1)))) costs one level
        self.i = inner + 1
        saved, self.bars = (self.unit, self.letters, self.bars), 0
        middle = next((j for j in range(inner + 1, end) if self.tokens[j] in ("|", ":")), end)
        built = opener in ("\\{", "{") and middle < end and (
            middle == inner + 2 or "in" in self.tokens[inner + 1:middle])
        self.i = middle + 1 if built else self.i  # {x : x > 3} is what it says about x
        items = self.items(end, both=opener == "\\{")
        if self.i != end:
            raise _Unreadable
        unit, letters = self.unit, self.letters
        self.unit, self.letters, self.bars = saved
        self.letters = self.letters | letters
        self.i = stop + 1
        if opener == "\\{" and not built:
            return _Box("set", [item[:2] for item in items])
        if len(items) == 1 and opener != "\\langle":
            self.unit = self.unit | unit
            name = {"\\lfloor": "floor", "\\lceil": "ceil"}.get(opener)
            return _each(functools.partial(_apply, name), items[0][0]) if name else items[0][0]
        if opener == "{":
            return _Box("key", self.listing(items))
        ends = [item[0] for item in items]
        finite = [isinstance(v, (_Box, tuple)) or abs(v) != INFINITE for v in ends]
        if len(items) == 2 and (opener == "[" or closer == "]" or not all(finite)):
            closed = opener == "[" and finite[0], closer == "]" and finite[1]
            return _Box("region", [(ends[0], closed[0], ends[1], closed[1])])
        if not items or (opener == "[") != (closer == "]"):
            raise _Unreadable
        return _Box("tuple", [item[:2] for item in items])

    def environment(self, name: str):
        end = self.tokens.index("\\end:" + name, self.i)
        if "matrix" not in name and name != "array":
            items = self.items(end, both=True)
            self.i = end + 1
            return _Box("key", self.listing(items))
        rows = [[]]
        while self.i < end:
            if self.take("\\\\"):
                rows.append([])
            elif not self.take(","):
                rows[-1].append(self.expression())
        self.i = end + 1
        rows = [row for row in rows if row]
        if not rows:
            raise _Unreadable
        self.spend(5 * sum(map(len, rows)) * (len(rows) if name == "vmatrix" else 1))
        return _determinant(rows) if name == "vmatrix" else _Box("matrix", rows)

    def series(self, name: str):
        """A short sum or product, a sum of a polynomial of any length, or else an unknown function of its parts."""
        letter, low, high, tag = "", None, None, name
        while self.peek() in ("_", "^"):
            if self.take("^"):
                high = self.script()
            elif self.peek(1) == "{" and name in ("sum", "prod") and self.peek(3) == "=":
                letter, stop = self.peek(2), self.partner[self.i + 1]
                self.i += 4
                low, self.i = self.expression(), stop + 1
            else:
                stop = self.partner.get(self.i + 1, self.i + 1) + 1
                tag, self.i = tag + "".join(self.tokens[self.i:stop]), stop
        start, outer = self.i, self.bound

        def term(value):
            self.i, self.bound = start, {**outer, letter: value}
            result = self.expression(3)
            self.bound = outer
            return result

        count = _add(high, 1 - low) if letter and high is not None and _exact(low) else None
        if _exact(count) and 0 < count <= 40 and count.denominator == 1:
            return functools.reduce(_add if name == "sum" else functools.partial(_each, _times),
                                    [term(low + k) for k in range(int(count))])
        if name == "sum" and (_exact(count) or type(count) is tuple):
            self.spend(300)
            row, total, chosen = [term(low + k) for k in range(10)], NOTHING, Fraction(1)
            for order in range(8):  # Newton's forward differences: sum = C(n,1) d0 + C(n,2) d1 + ...
                chosen = _each(_over, _each(_times, chosen, _add(count, Fraction(-order))), Fraction(order + 1))
                total = _add(total, _each(_times, chosen, row[0]))
                row = [_minus(b, a) for a, b in zip(row, row[1:], strict=False)]
            if not any(any(d) if type(d) is tuple else d for d in row):
                return total
        return _opaque(tag, *(v for v in (low, high, term(_letter("bound " + name))) if v is not None))


def _determinant(rows: list):
    if len(rows) > 4 or any(len(row) != len(rows) for row in rows):
        raise _Unreadable
    if len(rows) == 1:
        return rows[0][0]
    total = NOTHING
    for j, x in enumerate(rows[0]):
        term = _each(_times, x, _determinant([row[:j] + row[j + 1:] for row in rows[1:]]))
        total = _minus(total, term) if j % 2 else _add(total, term)
    return total


# ------------------------------------------------------------------ keys of answers
def _read(answer: object) -> tuple[tuple | None, str]:
    """(key, status) of an answer: "ok", "unparsed" (the key is the text, or None) or "capped" (it was too much)."""
    if isinstance(answer, (int, float)) and not isinstance(answer, bool) and abs(answer) < 1e300:
        answer = repr(answer)
    if not isinstance(answer, str):
        return None, "unparsed"
    return _read_often(answer) if len(answer) <= 200 else _read_text(answer)


def _read_text(text: str) -> tuple[tuple | None, str]:
    if len(text) > MAX_CHARS:
        return None, "capped"
    text = _clean(text)
    if len(text) > MAX_CHARS:  # some characters spell as eighteen
        return None, "capped"
    if len(text) < 16 and text.isascii() and text.isdigit():
        return ("n", int(text), 1), "ok"
    status = "unparsed"
    try:
        choice = _CHOICE.fullmatch(text)
        if choice and not _CHOICE.match(choice[2] or ""):
            letter = _number_key(_letter(choice[1]))
            return (("choice", letter, _read_text(choice[2])[0]) if choice[2] else letter), "ok"
        reader = _Reader(text)
        key = reader.listing(reader.items(len(reader.tokens), both=True))
        if reader.i == len(reader.tokens):
            return key, "ok"
    except ZeroDivisionError:  # 1/0, infinity - infinity: it says nothing, not even its own text
        return None, status
    except (_Capped, OverflowError, RecursionError):  # RecursionError: the caller was near the interpreter's limit
        status = "capped"
    except (_Unreadable, ValueError):  # ValueError: mpmath at a pole, matrices of different shape
        pass
    except (TypeError, IndexError):  # a hole in the reader costs one answer, counted as unparsed, and not the run
        pass
    text = re.sub(r"\s++|\\(?:left|right|displaystyle|[,;:! ])|\$", "", text)
    return ("text", text) if any(c.isalnum() for c in text) else None, status


_read_often = functools.lru_cache(maxsize=8_192)(_read_text)  # a group's samples repeat; long texts are not kept


def answer_key(answer: str) -> Hashable | None:
    r"""The canonical key of an answer: equal keys, same meaning. None for an empty or absurd answer ("", "?", 1/0).

    Never raises, whatever the type of `answer`. Bounded work: at most about 20 ms.

    >>> answer_key(r"\frac{2}{4}") == answer_key("0.5") == answer_key("x = 1/2"), answer_key(r"\frac{1}{0}")
    (True, None)
    """
    return _read(answer)[0]


def same_answer(a: str | None, b: str | None) -> bool:
    """Equality of keys. None equals nothing, not even None."""
    key = answer_key(a)
    return key is not None and key == answer_key(b)


def cluster_answers(answers: list[str | None]) -> list[int]:
    """Cluster ids from 0 in order of first appearance; an answer without key is alone each time.

    >>> cluster_answers(["2", r"\\sqrt{4}", "", "3", ""])
    [0, 0, 1, 2, 3]
    """
    seen: dict = {}
    keys = [answer_key(answer) for answer in answers]
    return [seen.setdefault(("alone", j) if key is None else key, len(seen)) for j, key in enumerate(keys)]


# ------------------------------------------------------------------ from a response to its answer
_BOX = re.compile(r"(\\{1,2}+(?:boxed|fbox)\s{0,3}+\{)|\\.|[{}]", re.S)
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,3}+([^\s{}$]{1,100}+)")
_BETWEEN = re.compile(r"(?:[ \t,;$&~+|/]|\\q?quad|\\[,;! ]|and\b|or\b|" + _TEXT + r"[^{}]{0,40}+\})*+")
_PHRASE = re.compile(r"(?:answer\**\s{0,3}+(?:is|are|=)|^[\s*#]{0,9}+(?:the )?(?:final )?answer\**\s{0,3}+[:：]|"
                     r"答案(?:是|为|：|:))[\s:*]{0,9}+", re.I | re.M)
_STOP = re.compile(r"\.\s++[A-Z]|\.\s*+$|\n")
_FORMULA = re.compile(r"(?<!\\)\$\$?+([^$]{1,600}+)\$|\\[(\[]((?:[^\\]|\\(?![)\]])){1,600}+)\\[)\]]", re.S)
_NUMBER = re.compile(r"(?:(?<![\w)\]}])[-+]\s?)?(?<![\w.])(?:\\?\$\s?)?"
                     r"(?:\d++(?:(?:,|\{,\}|,\\!)\d{3}(?!\d))*+(?:\.\d++)?+|\.\d++)"
                     r"(?:[eE][+-]?\d{1,4}+)?+(?:/\d++)?+(?:\s?(?:\\?%|percent\b|pct\b))?", re.A)
_PROSE = re.compile(_TEXT + r"[^{}]{0,200}+\}|\\(?:begin|end)\{[a-z]++|\\[A-Za-z]++|"
                    r"([A-Za-z]{2,}+|[^\W\d_A-Za-zͰ-Ͽ])")
_BOLD = re.compile(r"(?<![\w)])\*\*(?=\S)|(?<=\S)\*\*(?![\w(])")


def extract_answer(text: str) -> str | None:
    r"""The final answer of a response, as text, or None.

    After the last `</think>`: the last balanced \boxed{}; else what follows `####`, "answer is" or a line's "Answer:";
    else all of a response that is no prose; else its last formula or number. None if a thought or box was cut off.

    >>> extract_answer(r"<think>\boxed{1}</think> So \boxed{\frac{1}{2}}."), extract_answer("3+5=8, so 8 apples")
    ('\\frac{1}{2}', '8')
    """
    if not isinstance(text, str):
        return None
    text = text.replace("\x0c", "\\f").replace("\x08", "\\b")
    thought = text.rfind("</think>")
    if thought < 0 and "<think>" in text[:200]:
        return None
    text = text[thought + 8:] if thought >= 0 else text
    box = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if box >= 0:
        bare = _BARE_BOX.match(text, box)
        text = text[max(0, box - MAX_CHARS):box + 2 * MAX_CHARS]
        return _last_box(text) or _last_box(text.replace("\\}", "}")) or (bare and bare[1].rstrip(".,")) or None
    text = _BOLD.sub("", text[-2_000:])
    marked = text.rfind("####")
    if marked >= 0:
        return text[marked + 4:].strip().split("\n")[0] or None
    phrase = _final(_PHRASE, text)
    text = text[phrase.end() if phrase else 0:].strip()
    stop = _STOP.search(text) if phrase else None
    return _candidate(text[:stop.start()] if stop else text, phrase is not None)


def _last_box(text: str) -> str | None:
    """The last balanced box; boxes with no more than "and" or a sign between them are one answer in parts."""
    stack, boxes = [], []
    for token in _BOX.finditer(text):
        if token[1] or token[0] == "{":
            stack.append((token.start(), token.end()) if token[1] else None)
        elif token[0] == "}" and stack and (opened := stack.pop()):
            while boxes and boxes[-1][0] > opened[0]:
                boxes.pop()  # a box inside this one
            boxes.append((opened[0], token.end(), text[opened[1]:token.start()].strip()))
    parts = boxes[-1:]
    for box in boxes[-2::-1]:
        if not _BETWEEN.fullmatch(text, box[1], parts[0][0]):
            break
        parts.insert(0, box)
    return ", ".join(dict.fromkeys(part[2] for part in parts)) or None


def _candidate(text: str, first: bool) -> str | None:
    """All of a text that is no prose, or is a few words; else what it begins with, or its last formula or number."""
    prose = any(w[1] not in (None, *_FUNCTIONS, *_UNITS, *_SYNONYMS) for w in _PROSE.finditer(text))
    if not prose or len(text) < 60 and not any(c.isdigit() for c in text):
        return text or None
    if first and (found := _FORMULA.match(text) or _NUMBER.match(text)):
        return found[0].strip()
    formula = _final(_FORMULA, text)
    if number := _final(_NUMBER, text, formula.end() if formula else 0):
        return number[0].strip()
    return _candidate(formula[formula.lastindex].strip(), False) if formula else None


def _final(pattern: re.Pattern, text: str, start: int = 0) -> re.Match | None:
    return next(iter(collections.deque(pattern.finditer(text, start), maxlen=1)), None)


# ------------------------------------------------------------------ reward
_TOLERANCE = re.compile(r"\(tolerance (\d[\d.]{0,20}+(?:e-?\d{1,2})?)\)\s{0,9}+$")


def grade(response: str, gold: object) -> tuple[float, str | None, str]:
    r"""(reward, extracted answer, status): "ok", "missing" (no answer), "unparsed" (compared as text) or "capped".

    The reward is 1.0 or 0.0, and depends on the response only through the key of its answer: a cluster has one reward.
    A gold with key None is never right. A gold is kinder than its key to:
    - a list or tuple of golds: rewrites of one answer, any of them counts; a float or int counts as its decimal text
    - a gold with a box or `####`: what is extracted from it; zero-padding ("073") and thousands separators never count
    - a gold without unit: an answer with one; a gold with unit: an answer without; never another unit (5 cm, 5 m)
    - percent: a gold of 0.5 takes 50%, a gold of 50% takes 0.5 and 50
    - a gold with a number base: its digits alone; a gold ratio a:b: the number a/b
    - a gold with "(tolerance 1e-1)" at its end: numbers within it
    - a gold without finite decimals: its value rounded to four decimals or more (0.3333, not 0.333, for 1/3)
    - a gold list without order: the same entries as a tuple; a gold 1 < x < 2: (1, 2), though not the reverse
    - choices: "(B) 12" counts as B and as 12
    each of these also inside the entries of lists, tuples and intervals.

    >>> grade(r"so \boxed{\text{5 cm}}", 5.0), grade("no idea", "5")
    ((1.0, '\\text{5 cm}', 'ok'), (0.0, 'no idea', 'ok'))
    """
    answer = extract_answer(response)
    if answer is None:
        return 0.0, None, "missing"
    key, status = _read(answer)
    golds = gold if isinstance(gold, (list, tuple)) else [gold]
    right = key is not None and any(_accepts(*_gold(g), key) for g in golds if isinstance(g, (str, int, float)))
    return float(right), answer, status


def reward(response: str, gold: object) -> float:
    """1.0 or 0.0: the reward of `grade`."""
    return grade(response, gold)[0]


def _gold(gold: str | float) -> tuple[Fraction | None, tuple | None]:
    """(stated tolerance, key) of a gold."""
    if not isinstance(gold, str):
        return None, _read(gold)[0]
    tolerance = _TOLERANCE.search(gold[-60:])
    gold = gold[:gold.rindex("(")] if tolerance else gold
    gold = extract_answer(gold) if "\\boxed" in gold or "####" in gold else gold
    return tolerance and Fraction(tolerance[1]), _read(gold)[0]


def _accepts(tolerance: Fraction | None, gold: tuple | None, key: tuple | None) -> bool:
    """The list in `grade`. Nothing but keys comes in, so that equal keys have equal rewards."""
    if gold is None or key is None or gold == key:
        return gold is not None and gold == key
    accepts, (kind, mine) = functools.partial(_accepts, tolerance), (gold[0], key[0])
    if kind == mine == "unit":
        return gold[2] == key[2] and accepts(gold[1], key[1])
    if kind == "unit":
        return accepts(gold[1], key) or _hundredth(gold) == key
    if mine == "unit":
        part = key[2] == (("%", 1),) and kind == "n" and abs(gold[1]) < gold[2]  # of 0.5, 50% is right and 0.5% is not
        return not part and accepts(gold, key[1]) or _hundredth(key) == gold
    if mine == "choice":
        return any(accepts(gold, part) for part in key[1:])
    if kind == "choice":
        return any(accepts(part, key) for part in gold[1:])
    if kind == "ratio" and mine == "n":
        return len(gold[1]) == 2 and key[1] != 0 and gold[1][1] == ("n", *Fraction(key[2], key[1]).as_integer_ratio())
    if kind in ("n", "closed") and mine == "n":
        return _rounds(tolerance, gold, Fraction(*key[1:]))
    if kind == "region" and mine == "tuple":
        return gold[1] == ((key[1][0], False, key[1][1], False),)
    if kind in ("set", "tuple", "region", "matrix") and mine in (kind, "tuple") and len(gold[1]) == len(key[1]) <= 20:
        if kind == "set":
            left = list(key[1])
            for entry in gold[1]:
                found = next((j for j, k in enumerate(left) if accepts(entry, k)), None)
                if found is None:
                    return False
                del left[found]
            return True
        if kind == "region":
            return all(g[1::2] == k[1::2] and accepts(g[0], k[0]) and accepts(g[2], k[2])
                       for g, k in zip(gold[1], key[1], strict=True))
        if kind == "tuple":
            return all(map(accepts, gold[1], key[1]))
    return False


def _hundredth(key: tuple) -> tuple | None:
    """The plain number that a percentage is."""
    if key[2] != (("%", 1),) or key[1][0] != "n":
        return None
    return ("n", *Fraction(key[1][1], 100 * key[1][2]).as_integer_ratio())


def _rounds(tolerance: Fraction | None, gold: tuple, value: Fraction) -> bool:
    target = Fraction(*gold[1:]) if gold[0] == "n" else gold[1] * Fraction(2) ** gold[2]
    if tolerance is not None:
        return abs(value - target) <= tolerance
    places = next((p for p in range(4, 16) if 10**p % value.denominator == 0), None)
    return places is not None and abs(value) * 10**places >= 1_000 and round(target, places) == value
