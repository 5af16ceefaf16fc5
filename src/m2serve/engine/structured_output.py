"""The forms an answer can be held to, as grammars of llguidance, and what is too much of one.

llguidance has limits of its own for what it computes; these are for what they do not cover: it
overflows the stack on long chains of references and builds an automaton of as many states as
`multipleOf` says. No torch: the server checks a form before it lets the request in.
"""

from __future__ import annotations

import json
from fractions import Fraction
from math import lcm
from types import ModuleType
from typing import TYPE_CHECKING, Any

from m2serve.engine.request import StructuredOutput
from m2serve.errors import RequestError

if TYPE_CHECKING:
    from llguidance import LLParserLimits

MAX_TEXT_BYTES = 64 * 1024
MAX_TOOLS_BYTES = 512 * 1024
MAX_SCHEMA_OBJECTS = 1000
MAX_MULTIPLE = 10_000
MAX_CHOICES = 1000
MAX_GRAMMAR_RULES = 1000

# Nothing, one blank, or a line break with an indent: a model cannot write blanks for ever.
_WHITESPACE = r"\n[ \t]{0,40}| "
_BLANKS = {"whitespace_flexible": True, "whitespace_pattern": _WHITESPACE}
# Put into a schema that stands inside a grammar.
JSON_OPTIONS = {"x-guidance": {**_BLANKS, "coerce_one_of": True, "lenient": True}}
# In a grammar these begin what the bounds on schemas would not see.
_DIRECTIVES = ("%json", "%lark", "%llguidance", "%regex")
_MAX_MESSAGE_CHARS = 200


def load_llguidance() -> ModuleType:
    """Raises RequestError where it is not installed."""
    try:
        import llguidance
    except ImportError as error:
        raise RequestError(
            "Structured output needs the package llguidance, which this server lacks; "
            "`pip install llguidance` adds it.",
            code="unsupported_field",
        ) from error
    return llguidance


def parser_limits() -> LLParserLimits:
    """llguidance's own limits on a step; its messages leave the grammar out."""
    limits: LLParserLimits = load_llguidance().LLParserLimits(verbose_errors=False)
    return limits


def check_structured_output(output: StructuredOutput, param: str) -> None:
    """Raise RequestError naming `param` for a form that is too large, or wrong.

    Tens of milliseconds for the largest.
    """
    llguidance = load_llguidance()
    try:
        grammar = llguidance_grammar(output)
    except ValueError as error:
        raise _refusal(output, str(error), param) from error
    if problem := _problem(llguidance, grammar):
        raise _refusal(output, problem, param)


def schema_problem(schema: dict[str, Any]) -> str:
    """Why llguidance could not hold a value to the schema; "" if it can."""
    llguidance = load_llguidance()
    try:
        _check_schema(schema)
        return _problem(llguidance, _json_grammar(llguidance, schema))
    except ValueError as error:
        return str(error)


def forced_call_refusal() -> RequestError:
    """What the APIs of other engines cannot be asked for."""
    return RequestError(
        "A tool_choice that forces a call needs the own engine; with an upstream 'auto' and "
        "'none' are supported.",
        param="tool_choice",
        code="unsupported_field",
    )


def most_bytes(output: StructuredOutput) -> int:
    """Of its text; tools bring a schema each."""
    return MAX_TOOLS_BYTES if output.kind == "tool_calls" else MAX_TEXT_BYTES


def llguidance_grammar(output: StructuredOutput) -> str:
    """Raises ValueError with a sentence."""
    llguidance = load_llguidance()
    size = len(output.text.encode())
    most = most_bytes(output)
    if size > most:
        raise ValueError(f"it has {size} bytes; at most {most} are allowed")
    match output.kind:
        case "json_object":
            return _json_grammar(llguidance, {"type": "object"})
        case "json_schema":
            return _json_grammar(llguidance, _schema(output.text))
        case "regex":
            return str(llguidance.LLMatcher.grammar_from_regex(output.text))
        case "choice":
            options = [json.dumps(choice, ensure_ascii=False) for choice in choices(output.text)]
            return str(llguidance.LLMatcher.grammar_from_lark("start: " + " | ".join(options)))
        case "grammar":
            _check_grammar(output.text)
            return str(llguidance.grammar_from("grammar", output.text))
        case "tool_calls":
            return str(llguidance.LLMatcher.grammar_from_lark(output.text))


def choices(text: str) -> list[str]:
    """The strings of a JSON list; raises ValueError."""
    values = _decode(text)
    if not isinstance(values, list) or not all(isinstance(v, str) and v for v in values):
        raise ValueError("it is no list of strings that have characters")
    if not 1 <= len(values) <= MAX_CHOICES:
        raise ValueError(f"it has {len(values)} strings; 1 to {MAX_CHOICES} are allowed")
    return values


def _json_grammar(llguidance: ModuleType, schema: dict[str, Any]) -> str:
    return str(llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=_BLANKS))


def _problem(llguidance: ModuleType, grammar: str) -> str:
    """Why llguidance could not follow the grammar; "" if it can."""
    problem = str(llguidance.LLMatcher.validate_grammar(grammar, None, limits=parser_limits()))
    return "" if problem.startswith("WARNING") else problem


def _schema(text: str) -> dict[str, Any]:
    schema = _decode(text)
    if not isinstance(schema, dict):
        raise ValueError("a JSON schema is an object")
    _check_schema(schema)
    return schema


def _check_schema(schema: dict[str, Any]) -> None:
    """Raises ValueError for what llguidance does not bound itself."""
    multiples = [Fraction(1)]
    num_objects = 0
    level: list[Any] = [schema]
    while level:
        objects = [node for node in level if isinstance(node, dict)]
        num_objects += len(objects)
        multiples += [_fraction(node["multipleOf"]) for node in objects if "multipleOf" in node]
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
    if num_objects > MAX_SCHEMA_OBJECTS:
        raise ValueError(
            f"the schema has {num_objects} objects in it; at most {MAX_SCHEMA_OBJECTS} are allowed"
        )
    # Several may hold for one number, which is then a multiple of all of them.
    numerator = lcm(*(multiple.numerator for multiple in multiples))
    denominator = lcm(*(multiple.denominator for multiple in multiples))
    if numerator * denominator > MAX_MULTIPLE:
        raise ValueError(f"the multipleOf in the schema have more than {MAX_MULTIPLE} in common")


def _fraction(value: object) -> Fraction:
    """Of a number's decimal digits; what is no number is for llguidance to refuse."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Fraction(1)
    return Fraction(str(value))


def _check_grammar(text: str) -> None:
    # Each rule of Lark or GBNF has a colon.
    if text.count(":") > MAX_GRAMMAR_RULES:
        raise ValueError(f"it has more than {MAX_GRAMMAR_RULES} rules")
    for directive in _DIRECTIVES:
        if directive in text:
            raise ValueError(f"{directive} is not allowed in it")


def _decode(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is no JSON") from error


def _refusal(output: StructuredOutput, reason: str, param: str) -> RequestError:
    names = {
        "json_schema": "JSON schema",
        "choice": "list of choices",
        "tool_calls": "choice of tools",
    }
    what = names.get(output.kind, output.kind)
    line = " ".join(reason.split())[:_MAX_MESSAGE_CHARS]
    return RequestError(f"This {what} cannot be used: {line}", param=param)
