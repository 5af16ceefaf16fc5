"""Short Python functions: a name, a doc-like request, a body of one to five lines."""

from __future__ import annotations

import random

from training.conversations.phrasing import worded
from training.conversations.sample import Sample, exchange
from training.split import Split, draw

# (what it does, name, parameter, body lines); {p} is the parameter
_FUNCTIONS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("returns the sum of a list of numbers", "total", "numbers", ("return sum({p})",)),
    ("returns the largest number of a list", "largest", "numbers", ("return max({p})",)),
    ("returns the smallest number of a list", "smallest", "numbers", ("return min({p})",)),
    (
        "returns the average of a list of numbers",
        "average",
        "numbers",
        ("return sum({p}) / len({p})",),
    ),
    ("returns the length of a text", "length", "text", ("return len({p})",)),
    ("reverses a text", "reverse", "text", ("return {p}[::-1]",)),
    ("makes a text upper case", "upper", "text", ("return {p}.upper()",)),
    ("makes a text lower case", "lower", "text", ("return {p}.lower()",)),
    ("counts the words of a text", "count_words", "text", ("return len({p}.split())",)),
    (
        "counts the vowels of a text",
        "count_vowels",
        "text",
        ('return sum(c in "aeiou" for c in {p})',),
    ),
    ("says whether a number is even", "is_even", "number", ("return {p} % 2 == 0",)),
    ("says whether a number is odd", "is_odd", "number", ("return {p} % 2 == 1",)),
    ("returns the square of a number", "square", "number", ("return {p} * {p}",)),
    ("returns the cube of a number", "cube", "number", ("return {p} ** 3",)),
    ("doubles a number", "double", "number", ("return 2 * {p}",)),
    ("returns the absolute value of a number", "absolute", "number", ("return abs({p})",)),
    ("says whether a text is a palindrome", "is_palindrome", "text", ("return {p} == {p}[::-1]",)),
    ("sorts a list", "sort", "items", ("return sorted({p})",)),
    (
        "sorts a list from large to small",
        "sort_down",
        "items",
        ("return sorted({p}, reverse=True)",),
    ),
    ("returns the first item of a list", "first", "items", ("return {p}[0]",)),
    ("returns the last item of a list", "last", "items", ("return {p}[-1]",)),
    ("removes duplicates from a list", "unique", "items", ("return list(dict.fromkeys({p}))",)),
    ("counts the items of a list", "count", "items", ("return len({p})",)),
    ("joins a list of words with spaces", "join_words", "words", ('return " ".join({p})',)),
    ("splits a text into words", "split_words", "text", ("return {p}.split()",)),
    (
        "keeps the even numbers of a list",
        "keep_even",
        "numbers",
        ("return [n for n in {p} if n % 2 == 0]",),
    ),
    (
        "keeps the positive numbers of a list",
        "keep_positive",
        "numbers",
        ("return [n for n in {p} if n > 0]",),
    ),
    ("squares every number of a list", "squares", "numbers", ("return [n * n for n in {p}]",)),
    (
        "returns the factorial of a number",
        "factorial",
        "number",
        ("result = 1", "for i in range(2, {p} + 1):", "    result *= i", "return result"),
    ),
    (
        "returns the nth Fibonacci number",
        "fibonacci",
        "n",
        ("a, b = 0, 1", "for _ in range({p}):", "    a, b = b, a + b", "return a"),
    ),
    (
        "says whether a number is prime",
        "is_prime",
        "number",
        ("if {p} < 2:", "    return False", "return all({p} % i for i in range(2, {p}))"),
    ),
    (
        "converts Celsius to Fahrenheit",
        "to_fahrenheit",
        "celsius",
        ("return {p} * 9 / 5 + 32",),
    ),
    ("converts kilometres to miles", "to_miles", "kilometres", ("return {p} / 1.609344",)),
    ("returns the area of a circle", "circle_area", "radius", ("return 3.14159 * {p} * {p}",)),
    ("repeats a text three times", "repeat", "text", ("return {p} * 3",)),
    ("greets a person by name", "greet", "name", ('return "Hello, " + {p} + "!"',)),
)
_ASK = (
    "Write a Python function that {x}.",
    "Write a function in Python which {x}.",
    "I need a Python function that {x}.",
    "Please code a Python function that {x}.",
    "Python: a function that {x}.",
    "Give me Python code that {x}.",
    "How do I write a Python function that {x}?",
    "I am learning Python. Make a function that {x}.",
    "Define a function in Python that {x}.",
    "What does a Python function look like that {x}?",
    "Code, please: a function that {x}.",
    "In Python, a function that {x}.",
    "Help me with a Python function which {x}.",
)
_ASK_HELD_OUT = ("Can you write a Python function that {x}?", "Show me a Python function that {x}.")
_ASK_NAMED = (
    "Write a Python function {n} that {x}.",
    "Write a Python function called {n} that {x}.",
    "Define {n} in Python, which {x}.",
    "I need a function {n} in Python that {x}.",
    "Give me the Python function {n}: it {x}.",
    "Code a function with the name {n} that {x}.",
    "Make {n}, a Python function which {x}.",
)
_ASK_NAMED_HELD_OUT = ("Please write a Python function named {n} that {x}.",)
_PARAMETERS = ("value", "x", "data", "item", "arg", "given", "source", "element")
_NAMES = (
    "compute",
    "solve",
    "run",
    "process",
    "f",
    "handle",
    "apply",
    "work",
    "do_it",
    "my_function",
)


def python_function(rng: random.Random, split: Split) -> Sample:
    """Under its usual name, or under a name and parameter the user asks for."""
    if rng.random() < 0.5:
        does, name, parameter, body = rng.choice(_FUNCTIONS)
        text = worded(rng, _ASK, _ASK_HELD_OUT, split).replace("{x}", does)
    else:
        does, name, parameter, body = draw(
            lambda: _renamed(rng), lambda f: f"{f[0]}:{f[1]}:{f[2]}", split
        )
        text = worded(rng, _ASK_NAMED, _ASK_NAMED_HELD_OUT, split)
        text = text.replace("{n}", name).replace("{x}", does) + f" Its parameter is {parameter}."
    lines = [f"def {name}({parameter}):", *(f"    {line}" for line in body)]
    code = "\n".join(lines).replace("{p}", parameter)
    content = f"```python\n{code}\n```"
    return exchange("python_function", text, f"The function {does}.", content, answer=code)


def _renamed(rng: random.Random) -> tuple[str, str, str, tuple[str, ...]]:
    does, _, _, body = rng.choice(_FUNCTIONS)
    return does, rng.choice(_NAMES), rng.choice(_PARAMETERS), body
