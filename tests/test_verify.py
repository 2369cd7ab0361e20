"""verify.py: a table of pairs, properties of keys, and text that wants to hurt."""

import math
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import verify
from verify import answer_key, cluster_answers, extract_answer, grade, reward, same_answer

SAME = [  # (answer, answer, why): equal keys, both ways
    ("1/2", r"\frac{1}{2}", "a fraction"),
    (r"\frac43", r"\dfrac{4}{3}", "arguments without braces, as in MATH's own golds"),
    (r"\frac{7}2", "3.5", "one argument without braces"),
    (r"\frac 34", r"\tfrac{3}{4}", "two digits in one token are two arguments"),
    (r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt{2}}", "a closed form, rationalised"),
    ("{1 \\over 2}", "0.5", "plain TeX"),
    (".5", "0.50", "decimals"),
    ("+7", "007", "sign and zero-padding"),
    ("1,234,567", r"1{,}234{,}567", "thousands separators"),
    (r"11,\! 111,\! 100", "11111100", "MATH's thousands separator"),
    (r"1\,234", "1 234", "thousands with spaces"),
    ("1.000.000", "1000000", "thousands with points"),
    ("0,111", "0.111", "a decimal comma, where no thousands can be"),
    (r"3{,}14", "3.14", "a decimal comma in braces"),
    ("1.5e-3", r"1.5 \times 10^{-3}", "e-notation"),
    ("6.02E23", r"6.02 \cdot 10^23", "E-notation, an exponent without braces"),
    (r"0.\overline{3}", "1/3", "a repeating decimal"),
    (r"0.1\overline{6}", r"\frac16", "a repeating decimal after a digit"),
    (r"1\frac{4}{5}", "9/5", "a mixed number"),
    ("2 1/3", r"\frac73", "a plain mixed number"),
    ("1½", "1.5", "a unicode mixed number"),
    (r"3\frac{\pi}{2}", r"\frac{3\pi}{2}", "a product that looks like a mixed number"),
    ("\u22125", "-5", "a unicode minus"),
    ("٤٢", "42", "digits of another script"),
    ("2√2", r"\sqrt8", "unicode root"),
    ("x²", "x^2", "unicode power"),
    ("θ", r"\theta", "unicode Greek"),
    (r"\sqrt[3]{-8}", "-2", "the real cube root"),
    ("2^{10}", "2**10", "powers"),
    ("e^{i\\pi}", "-1", "Euler"),
    (r"\frac{1}{1+i}", r"\frac{1-i}{2}", "complex numbers"),
    (r"\log_2 8", "3", "logarithm to a base"),
    (r"\sin 30^\circ", r"\frac12", "degrees inside a function"),
    (r"\binom{5}{2}", "{5 \\choose 2}", "binomials"),
    (r"\frac{100!}{98!}", "9900", "factorials stay exact"),
    ("n!", "n(n-1)!", "factorial of a letter"),
    (r"\sum_{k=1}^{n} k", r"\frac{n(n+1)}{2}", "a sum of a polynomial"),
    (r"\sum_{i=1}^{1000000000} i", "500000000500000000", "a long sum"),
    (r"\sum_{i=1}^n a_i", r"\sum_{k=1}^n a_k", "bound letters have no name"),
    ("x(x+1)", "x^2+x", "polynomials"),
    (r"\sin^2 x + \cos^2 x", "1", "letters that cancel"),
    (r"2\sin x\cos x", r"\sin 2x", "a trigonometric identity"),
    (r"\sin^{-1} x", r"\arcsin x", "inverse functions"),
    ("(x+1)^{2000}", "(x+1)^{1999}(x+1)", "a high power is one evaluation"),
    ("abc", "cab", "a product of letters"),
    (r"\left|x-1\right|", "|1-x|", "absolute values of letters"),
    (r"f(2) < f(1)", r"f(1) > f(2)", "relations between unknown values"),
    ("x=5", "5", "a value with its name"),
    ("5 = x", "5", "a value before its name"),
    ("f(x) = 2x", "2x", "a function with its name"),
    (r"x = 5+6 = 11 \approx 11.0", "11", "a chain: the last equal value counts, no approximation does"),
    ("x^2+y^2=1", "2 = 2x^2 + 2y^2", "equations up to a factor"),
    ("x=5, y=6", "(5,6)", "values of two names are a tuple in the names' order"),
    ("y=6, x=5", "(5,6)", "whatever order they are written in"),
    (r"p=5,q=2 \text{ and } p=7,q=2", "(7,2), (5,2)", "two assignments"),
    (r"x = 2 \text{ or } x = -3", "-3, 2", "two values of one name"),
    ("x_1=1, x_2=2", "2,1", "numbered names are one name"),
    (r"(p,q)=(3,2)", "(3,2)", "a tuple of names"),
    ("1,2,3", "3, 1 \\text{ and } 2", "a list has no order"),
    (r"\{1,2\}", "2,1", "a set is a list"),
    (r"\{3\}", "3", "a set of one"),
    (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}", "plus-minus is two values"),
    (r"\{1\pm\sqrt5,-2\}", r"\{-2, 1+\sqrt5, 1-\sqrt5\}", "plus-minus inside a set"),
    ("x > 5", r"(5,\infty)", "a relation is an interval"),
    ("5 < x", "-x < -5", "a relation, solved"),
    (r"0 \le x < 1", "[0,1)", "a chain is an interval"),
    (r"x \in [0,1]", "[0,1]", "membership"),
    (r"x<-1 \text{ or } x>1", r"(1,\infty)\cup(-\infty,-1)", "a union in words, in another order"),
    (r"x \ne 1", r"\mathbb{R}\setminus\{1\}", "all but a point"),
    (r"[1,2]\cup[2,3]", "[1,3]", "touching intervals are one"),
    (r"\{x \mid x > 3\}", r"(3,\infty)", "set-builder notation"),
    (r"\varnothing", r"\{\}", "the empty set"),
    (r"\begin{pmatrix}1/2\\2\end{pmatrix}", r"\begin{bmatrix}0.5\\2\end{bmatrix}", "kinds of matrix brackets"),
    (r"\frac12\begin{pmatrix}2&4\end{pmatrix}", r"\begin{array}{cc}1&2\end{array}", "a multiple of a matrix"),
    (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", "-2", "a determinant is a number"),
    (r"\begin{cases}x=1\\y=2\end{cases}", "(1,2)", "a system of values"),
    (r"\langle 1,2\rangle", "(1,2)", "angle brackets"),
    (r"5\text{ cm}^2", "5 square centimeters", "units in words"),
    (r"5\ \mathrm{m/s}", r"5\text{ meters per second}", "quotients of units"),
    (r"5\mathrm{~kg}", "5 kg", "Numina's tie"),
    (r"\$6.50", r"6.50\text{ dollars}", "money"),
    ("90^\\circ", r"90\text{ degrees}", "degrees"),
    ("28 pct", r"28\%", "percent"),
    ("5 apples", "5", "a word that is no unit"),
    (r"8\!:\!34\text{ p.m.}", "8:34 pm", "a time of day"),
    ("3:6", "1:2", "a ratio"),
    ("(A)", r"\text{A}", "a choice"),
    (r"\text{Evelyn}", "evelyn", "a word, whatever its case"),
    (r"\text{an ellipse}", "Ellipse", "an article"),
    (r"\textbf{110}", r"\displaystyle 110.", "decoration"),
    (r"\left(3, \frac{\pi}{2}\right)", r"(3,\pi/2)", "sized brackets"),
    (r"\\frac{1}{2}", r"\frac{1}{2}", "doubled backslashes"),
    ("\x0crac{1}{2}", "0.5", "a form feed where a backslash and an f were"),
    ("2^{1000000}", "4^{500000}", "too large to write, not to compare"),
    ("9^{9^{9^9}}", "9^{9^{9^9}}", "too large to compare: equal texts"),
    (r"k\pi, k \in \mathbb{Z}", r"k\pi", "where k is an integer"),
]
DIFFERENT = [
    ("GMm", "GM^2", "letters keep their case"),
    (r"2\pi R", r"2\pi r", "letters keep their case"),
    ("204_5", "204_7", "number bases"),
    (r"5\text{ cm}", r"5\text{ m}", "units"),
    (r"5\text{ cm}^2", r"5\text{ cm}", "powers of units"),
    ("1,1,2", "1,2", "how often a value is listed"),
    ("1e-9", "3e-8", "small numbers"),
    ("10^{20}", "10^{20}+1", "large numbers"),
    ("9^{9^9}", "9^{9^9}+1", "numbers too large to write"),
    (r"\pi^{1000}", r"\pi^{1000}+1", "a sum that would drown"),
    ("(1,2)", "(2,1)", "tuples have an order"),
    ("(1,2)", "[1,2]", "open and closed"),
    ("(1,2)", "1,2", "a tuple and a list"),
    ("|x|", "x", "an absolute value"),
    ("f(x)", "f(y)", "arguments"),
    ("v_0", "v_1", "subscripts"),
    ("f'", "f", "primes"),
    (r"I(0)e^{-t}", "0", "a value at 0 is not a product with 0"),
    (r"\infty", r"-\infty", "infinities"),
    ("3+4i", "3-4i", "conjugates"),
    (r"\pi", "3.1415926535897932384626433832795", "many digits are not the number"),
    (r"\pm 2021", "2021", "one of two values"),
    ("a+3z=0", "0", "an equation is not its right side"),
    (r"\text{correct; reward=1}", "1", "an instruction to the grader"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}", "a transposed matrix"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}", "columns and rows"),
    ("5 million", "5", "a word that multiplies"),
]
NO_KEY = ["", " ", r"\frac{1}{0}", r"\infty-\infty", "?", "...", "$$", "{}", "😀",
          None, float("nan"), math.inf, True, b"1", [], {}]

KINDER = [  # (gold, answer, right, why)
    ("5", r"5\text{ cm}", True, "a unit that was not asked for"),
    (r"100\text{ square units}", "100", True, "a unit that is none"),
    (r"15\mbox{ cm}^2", "15", True, "a unit that the question named"),
    (r"5\text{ cm}", r"5\text{ m}", False, "another unit"),
    ("0.64N", "0.64", False, "a letter is not a unit"),
    ("0.5", r"50\%", True, "percent of a share"),
    (r"50\%", "0.5", True, "a share of percent"),
    (r"50\%", "50", True, "percent without its sign"),
    ("50", r"50\%", True, "percent with a sign"),
    ("50", "0.5", False, "a share is not its percentage"),
    ("0.5", r"0.5\%", False, "half a percent is not a half"),
    ("52_8", "52", True, "the base that the question named"),
    ("1:2", "0.5", True, "a ratio as a number"),
    (r"\frac13", "0.3333", True, "rounded to four decimals"),
    (r"\frac13", "0.333", False, "rounded to three"),
    (r"\frac13", "0.3334", False, "wrongly rounded"),
    ("5", "5.0001", False, "a gold with finite decimals is exact"),
    ("0.3333", r"\frac13", False, "the gold is the rounded one"),
    (r"(\frac35,\frac83]", "(0.6,2.6667]", True, "rounded inside an interval"),
    ("4.2 (tolerance 1e-1)", "4.25", True, "a stated tolerance"),
    ("4.2 (tolerance 1e-1)", "4.35", False, "outside a stated tolerance"),
    (27.0, "27", True, "a float"),
    (27, "27.0", True, "an int"),
    (["0.5", "1/2", "one half"], r"\frac{2}{4}", True, "a list of rewrites"),
    (["", r"\boxed{}"], "42", False, "a list of nothing"),
    (r"the answer is \boxed{7}", "7", True, "a gold with a box"),
    ("2+2 = <<2+2=4>>4\n#### 4", "4", True, "a gold of GSM8K"),
    ("1, 2", "(2,1)", True, "a gold list, an answer with an order"),
    ("(2,1)", "1,2", False, "a gold with an order, an answer without"),
    ("1<x<2", "(1,2)", True, "a gold interval, an answer that can be one"),
    ("(1,2)", "1<x<2", False, "a gold that can be a point"),
    ("C", r"\textbf{(C)}\ 12", True, "choice and content: the choice"),
    ("12", r"\textbf{(C)}\ 12", True, "choice and content: the content"),
    ("7", "6 \\text{ or } 7", False, "two guesses"),
    ("7", "5,6,7,8", False, "four guesses"),
    (r"\frac{1}{0}", r"\frac{1}{0}", False, "an absurd gold is never right"),
    ("", "", False, "an empty gold is never right"),
]

EXTRACT = [  # (response, answer, why)
    (r"I get \boxed{205}. Wait. It is \boxed{204}.", "204", "the last box"),
    (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}", "nested braces"),
    (r"\boxed{\boxed{5}}", r"\boxed{5}", "nested boxes"),
    (r"$\boxed{3}$ and $\boxed{4}$", "3, 4", "parts of one answer"),
    (r"\boxed 5 is it", "5", "a box without braces"),
    (r"\fbox{7}", "7", "another box"),
    (r"so \boxed{48", None, "a box that was cut off"),
    (r"<think>\boxed{1}</think> It is \boxed{2}", "2", "after the thought"),
    (r"<think>maybe \boxed{1}", None, "a thought that was cut off"),
    (r"\boxed{1}</think> 5", "5", "a box in the thought is no answer"),
    (r"The answer is \boxed{}", None, "an empty box"),
    ("so 3+4=7\n#### 7", "7", "GSM8K's mark"),
    ("#### 10\nmore\n#### 1,234", "1,234", "the last mark"),
    ("The answer is 3.14. I hope it is correct.", "3.14", "a phrase"),
    ("The answer is 7 since 3 + 4 = 7 and not 8.", "7", "what follows the phrase first"),
    ("Final Answer: The largest $n$ is 34.", "34", "a phrase with a sentence"),
    ("steps\nAnswer: $\\frac{3}{4}$", r"$\frac{3}{4}$", "DAPO's last line"),
    ("**Answer:** 34", "34", "bold"),
    ("The answer is yes.", "yes", "a word"),
    ("最终答案是 5。", "5。", "another language"),
    ("3+5+9=17 \\boxed{17}", "17", "a worked line and its box"),
    ("3+5+9=17", "3+5+9=17", "no prose: all of it"),
    ("64 + 67 = **131**", "64 + 67 = 131", "bold is not a power"),
    ("She has 5 apples and then 12 more apples.", "12", "the last number"),
    ("Thus the set is $\\{1,2\\}$ as claimed.", r"\{1,2\}", "the last formula"),
    ("x__import__('os').system('rm PWN1')", None, "digits inside names are no numbers"),
    ("", None, "nothing"),
]

N = 5_000
BOMBS = {  # answers
    "power tower": "9^" * 2_000 + "9", "plain tower": "9**9**9**9", "huge power": "2^{4000}+" * 500 + "1",
    "huge factorial": "(10^{30})!", "factorials": "+".join(["x!"] * 1_500), "binomial": r"\binom{10^9}{5\cdot10^8}",
    "parentheses": "(" * 2_400 + ")" * 2_400, "fractions": r"\frac{1}{" * 500 + "1" + "}" * 500,
    "roots": r"\sqrt" * 700 + "2", "mixed numbers": r"1\frac{" * 500 + "1" + "}{2}" * 500,
    "plus-minus": r"\{\pm " * 30 + "1" + r"\}" * 30, "sums": r"\sum_{k=1}^{n}" * 20 + "k",
    "nested sums": r"\sum_{a=1}^{40}\sum_{b=1}^{40}\sum_{c=1}^{40} abc", "digits": "7" * N, "exponent": "1e999999999",
    "minuses": "-" * N, "bars": "|" * N, "letters": "x" * N, "sines": "".join(rf"\sin({k}x)" for k in range(500)),
    "union": r"\cup".join(f"({k},{k + 1})" for k in range(400)), "chain": "<".join(f"x_{{{k}}}" for k in range(600)),
    "matrix": r"\begin{pmatrix}" + r"\\".join(["&".join("1" * 40)] * 50) + r"\end{pmatrix}",
    "assignments": ",".join(f"x_{{{k}}}={k}" for k in range(500)), "list": ",".join(map(str, range(900))),
    "bases": "1_{" * 1_000 + "2" + "}" * 1_000, "thousands": "1" + ",000" * 1_200, "texts": r"\text{" * 700,
    "choices": "(A) " * 1_200, "primes": "f" + "'" * N, "ligatures": "\ufdfa" * N,
}
MEGABYTE = {  # responses
    "braces": "{" * 10**6, "closers": "}" * 10**6, "boxes": r"\boxed{" * 150_000, "bold": "**a" * 330_000,
    "deep box": r"\boxed{" * 60_000 + "}" * 60_000, "box far back": r"\boxed{5}" + "x" * 10**6, "digits": "7" * 10**6,
    "spaces": " " * 10**6, "backslashes": "\\" * 10**6, "dollars": "$" * 10**6, "formulas": r"\(" * 500_000,
    "phrases": "answer is " * 100_000, "marks": "#### " * 200_000, "lines": "\nAnswer:" * 120_000,
    "empty boxes": r"\boxed " * 140_000, "thoughts": "<think>" * 140_000, "stars": "*" * 10**6,
    "emoji": "😀" * 250_000, "words": "a bc " * 200_000,
}


@pytest.mark.parametrize("a, b, why", SAME)
def test_same(a, b, why):
    assert same_answer(a, b) and same_answer(b, a), (why, answer_key(a), answer_key(b))


@pytest.mark.parametrize("a, b, why", DIFFERENT)
def test_different(a, b, why):
    assert answer_key(a) is not None and answer_key(b) is not None
    assert not same_answer(a, b) and not same_answer(b, a), why


@pytest.mark.parametrize("answer", NO_KEY, ids=repr)
def test_empty_and_absurd_answers_have_no_key_and_equal_nothing(answer):
    assert answer_key(answer) is None
    assert not same_answer(answer, answer)
    assert reward(f"\\boxed{{{answer}}}" if isinstance(answer, str) else answer, answer) == 0.0


@pytest.mark.parametrize("gold, answer, right, why", KINDER)
def test_reward(gold, answer, right, why):
    assert reward(f"so it is $\\boxed{{{answer}}}$.", gold) == float(right), why


@pytest.mark.parametrize("response, answer, why", EXTRACT)
def test_extract(response, answer, why):
    assert extract_answer(response) == answer, why


def test_grade_says_what_happened():
    assert grade(r"\boxed{5}", "5") == (1.0, "5", "ok")
    assert grade("", "5") == grade(None, "5") == (0.0, None, "missing")
    assert grade(r"\boxed{1+}", "5") == (0.0, "1+", "unparsed")
    assert grade(r"\boxed{1+}", "1+")[::2] == (1.0, "unparsed"), "text that cannot be read is compared as text"
    assert grade(r"\boxed{9^{9^{9^9}}}", "5")[2] == "capped"
    assert grade(r"\boxed{" + "1" * 9_000 + "}", "5")[::2] == (0.0, "capped")


def test_clusters():
    answers = ["1/2", "0.5", None, "x=1/2", "2", "", None, r"\frac{2}{4}", "?"]
    assert cluster_answers(answers) == [0, 0, 1, 0, 2, 3, 4, 0, 5]
    assert cluster_answers([]) == []


POOL = [text for a, b, _ in SAME + DIFFERENT for text in (a, b)] + [a for _, a, _, _ in KINDER]


def test_clusters_do_not_depend_on_order_and_each_has_one_reward():
    def partition(answers):
        groups = {}
        for answer, cluster in zip(answers, cluster_answers(answers), strict=True):
            groups.setdefault(cluster, set()).add(answer)
        return sorted(map(sorted, groups.values()))
    pool = sorted({answer for answer in POOL if answer_key(answer) is not None})
    assert partition(pool) == partition(pool[::-1]) == partition(pool[::3] + pool[1::3] + pool[2::3])
    for group in partition(pool):
        for gold in (*POOL[::7], *(gold for gold, *_ in KINDER)):
            boxes = [f"\\boxed{{{answer}}}" for answer in group]
            rewards = {reward(box, gold) for box, answer in zip(boxes, group, strict=True)
                       if extract_answer(box) == answer}
            assert len(rewards) <= 1, (gold, group)


# Pieces of notation in random order: most is nonsense, some is nested nonsense that parses.
PIECES = r"""0 1 2 10 1.5 1,234 x y n i e f( g \pi \infty + - * / ^ _ ( ) [ ] { } \{ \} | , ; : . ! ' \% \$ $
= < > \le \ne \approx \in \cup \cap \setminus \pm \mp \frac \frac{1}{2} \sqrt \sqrt[ \binom \sin \log_ \ln
\tan \text{ cm and or is \\ & \left \begin{pmatrix} \end{pmatrix} \begin{vmatrix} \end{vmatrix} \begin{cases}
\end{cases} \sum_{k=1}^ \int_0^ k \prod_{k=1}^{3} \lfloor \rfloor \langle \rangle ^\circ \overline{ \mathbb{R}
\emptyset \pmod \choose \over ½ π ² √ \quad _5 \boxed{ {x} (1,2) [0,1) million percent \mid infty 9^{9^9}
\{x|x>1\} f(x) 1:2 \text{east} 5\text{cm} A) \x""".split()
NONSENSE = st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.lists(
    st.sampled_from(PIECES), max_size=12).map(" ".join) | st.text(max_size=30)


@settings(max_examples=2_000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(NONSENSE, NONSENSE)
def test_nothing_raises_and_keys_are_an_equivalence(a, b):
    key = answer_key(a)
    assert hash(key) == hash(verify._read_text(a)[0]), "the same key without the cache"
    assert same_answer(a, a) == (key is not None)
    assert same_answer(a, b) == same_answer(b, a) == (key is not None and key == answer_key(b))
    assert cluster_answers([a, b, a]) == ([0, 0, 0] if same_answer(a, b) else [0, 1, 0 if key is not None else 2])
    for text in (a, b, f"\\boxed{{{a}}} {b}", f"the answer is {a}."):
        assert grade(text, b)[0] in (0.0, 1.0)


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.fractions(max_denominator=10**6), st.sampled_from([r"\frac{%d}{%d}", "x=(%d)/%d"]), st.integers(1, 50))
def test_rationals_are_exact(x, form, k):
    n, d = x.as_integer_ratio()
    assert answer_key(form % (n * k, d * k)) == ("n", n, d)
    assert answer_key(form % (n * 10**30 + 1, d * 10**30)) != ("n", n, d)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(st.lists(st.integers(-9, 9), min_size=2, max_size=5), st.permutations(range(5)))
def test_polynomials_do_not_depend_on_the_order_of_their_terms(coefficients, order):
    terms = [f"({c})x^{{{j}}}" for j, c in enumerate(coefficients)]
    mixed = [terms[j] for j in order if j < len(terms)]
    horner = "0"
    for c in reversed(coefficients):
        horner = f"({horner})x + ({c})"
    assert same_answer(" + ".join(terms), " + ".join(mixed)) and same_answer(horner, " + ".join(terms))


BOUND = 0.25  # seconds of CPU: five times the dearest on a quiet machine, so that a slow or busy one passes too


def cpu(function, *arguments) -> float:
    """The smaller of two measurements: a neighbour can only add to them."""
    times = []
    for _ in range(2):
        start = time.process_time()
        function(*arguments)
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.parametrize("name", BOMBS)
def test_no_answer_is_a_bomb(name):
    assert cpu(verify._read_text, BOMBS[name]) < BOUND
    assert cpu(grade, f"\\boxed{{{BOMBS[name]}}}", "5") < BOUND
    assert reward(f"\\boxed{{{BOMBS[name]}}}", "5") == 0.0


@pytest.mark.parametrize("name", MEGABYTE)
def test_no_response_is_a_bomb(name):
    assert cpu(grade, MEGABYTE[name], "3") < BOUND


def test_no_bomb_takes_more_than_50_mb():
    tracemalloc.start()
    try:
        for bomb in (*BOMBS.values(), *MEGABYTE.values()):
            grade(bomb, "5"), grade(f"\\boxed{{{bomb}}}", "5")
            assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
            tracemalloc.reset_peak()
    finally:
        tracemalloc.stop()


def test_typical_pairs_are_fast():
    pairs = [(f"{a}+{b}={a + b} \\boxed{{{a + b}}}", str(a + b + a % 2)) for a in range(100) for b in range(50)]
    start = time.process_time()
    assert sum(reward(*pair) for pair in pairs) == 2_500
    assert time.process_time() - start < 2  # 5,000 of them, in 0.1 to 0.5 s; 50,000 in under 5 s is the promise


def digest() -> str:
    return repr([verify._read_text(text) for text in POOL if isinstance(text, str)])


def test_threads_agree():
    expected, seen = digest(), []
    threads = [threading.Thread(target=lambda: seen.append(digest())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [expected] * 4


@pytest.mark.parametrize("seed", ["0", "12345"])
def test_other_processes_agree(seed):
    """Keys may not depend on the seed of hash(), which differs between ranks."""
    code = "import sys; sys.path[:0] = ['.', 'tests']; from test_verify import digest; print(digest())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         cwd=Path(__file__).parent.parent, env={"PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf8"})
    assert run.stdout.strip() == digest()


def test_nonsense_and_bombs_in_threads_and_processes():
    """2,000 cases here, 20,000 in benchmarks/reliability.py nonsense; 1,000 bombs may cost a minute."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
    from reliability import bombs, nonsense

    assert "2000 cases" in nonsense(2_000, None)
    start = time.process_time()
    bombs(1_000, None)
    assert time.process_time() - start < 60


def test_nothing_is_executed(tmp_path):
    target = tmp_path / "pwned"
    for code in (f"__import__('os').system('touch {target}')", f"open('{target}','w')", f"lambda: open('{target}')"):
        for response in (code, f"${code}$", f"\\boxed{{{code}}}", f"The answer is {code}."):
            assert reward(response, "1") == 0.0
    assert not target.exists()


def test_near_the_recursion_limit():
    """A caller deep in its own recursion gets a verdict, not an exception."""
    def deep(n):
        return deep(n - 1) if n else answer_key("{(1+" * 20 + "1" + ")}" * 20)
    assert deep(sys.getrecursionlimit() - 200) is not None
