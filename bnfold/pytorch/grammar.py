"""What the strings of an exported program may be, so that none of them is code.

torch (2.13) hands these fields of a program to an interpreter, while loading or when the program is used:

- `expr_str` of symbolic sizes: sympy evaluates it as Python, and the strings in it once more;
- names of values, nodes and arguments: they are pasted into the source of `forward`;
- `guards_code`, and strings among the inputs: pasted into the source of a function that checks inputs;
- tree specifications: they import the module of an enum or a `defaultdict`, and call what they find there;
- targets of nodes: any attribute of torch, among the operators some that read and write files.

The same for arithmetic that would not end: `9**9**9` is evaluated, too.

Each field keeps to a small grammar instead; what does not is refused, not repaired.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Final


class Unplain(Exception):
    """What was found that could run code; where, is added by whoever knows it."""


def need_plain_fields(value: Any, field: str = "") -> None:
    """Hold every string of a program, as parsed from its JSON, against the grammar of its field.

    The fields of torch's schema have one meaning wherever they are, so the nearest name decides. Names that
    the file chooses (of values, of a node's metadata) come in between, but no field that is used has its
    string directly beneath such a name.

    Raises:
        Unplain: With the text.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            _need(_TEXT, key, "name")
            # The argument of a node is written as a literal, with all it takes; that of the program is not.
            if not (key == "as_string" and field == "arg"):
                need_plain_fields(inner, key)
    elif isinstance(value, list):
        for inner in value:
            need_plain_fields(inner, field)
    elif isinstance(value, str) and field not in _COMMENTS:
        _FIELDS.get(field, _need_identifier)(value)


_IDENTIFIER = re.compile(r"[^\W\d]\w*|")
# Nothing that ends a string literal or a line, however it is quoted.
_TEXT = re.compile(r"""[^"'\\\x00-\x1f\x7f-\x9f\u2028\u2029]*""")
_OPERATOR = re.compile(
    r"torch\.ops\.(?:aten|prim|prims|quantized|quantized_decomposed|torchvision|torchaudio)\.\w+(?:\.\w+)?"
    r"|torch\.ops\.higher_order\.(?:associative_scan|auto_functionalized|auto_functionalized_v2|cond"
    r"|flex_attention|hints_wrapper|invoke_subgraph|map_impl|out_dtype|scan|strict_mode"
    r"|tag_activation_checkpoint|while_loop|wrap_with_autocast|wrap_with_set_grad_enabled)"
    r"|_operator\.(?:abs|add|and_|eq|floordiv|ge|getitem|gt|le|lshift|lt|mod|mul|ne|neg|not_|or_|pos|pow"
    r"|rshift|sub|truediv|xor)|math\.(?:ceil|floor|trunc)|torch\._?sym_\w+|torch\._C\._set_grad_enabled"
    r"|torch\.autograd\.grad_mode\.set_grad_enabled|torch\.amp\.autocast_mode\._(?:enter|exit)_autocast"
)
_ON_FILES = re.compile(r"torch\.ops\.aten\.(?:from_file|save|load)\b.*")
_TREE = re.compile(r"(?:builtins|collections|torch(?:\.\w+)*)\.\w+")


def _need(grammar: re.Pattern[str], text: str, what: str) -> None:
    if not grammar.fullmatch(text):
        raise Unplain(f"{_quoted(text)} is no plain {what}")


def _need_identifier(text: str) -> None:
    _need(_IDENTIFIER, text, "name")


def _need_text(text: str) -> None:
    _need(_TEXT, text, "text")


def _need_operator(text: str) -> None:
    if _ON_FILES.fullmatch(text):
        raise Unplain(f"{_quoted(text)} reads or writes files")
    _need(_OPERATOR, text, "operator")


# Of sizes, as sympy writes them, and of guards, as Python does. Capital letters: sympy's and torch's classes.
_CALLED = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Max|Min|Mod|PythonMod|Abs|Piecewise|ExprCondPair|And|Or|Not"
    r"|Eq|Ne|Gt|Ge|Lt|Le|Equality|Unequality|(?:Strict)?(?:Greater|Less)Than|floor|ceiling|FloorDiv|CeilDiv"
    r"|CleanDiv|IntTrueDiv|FloatTrueDiv|ModularIndexing|Where|CeilToInt|FloorToInt|RoundToInt|RoundDecimal"
    r"|TruncToInt|TruncToFloat|ToFloat|Identity|LShift|RShift|PowByNatural|FloatPow"
    r"|IsNonOverlappingAndDenseIndicator|(?:OpaqueUnaryFn|BitwiseFn)_\w+"
    r"|abs|bool|float|int|max|min|pow|round|cast_symbool_to_symint_guardless"
)
_METHODS = {"size", "stride", "storage_offset", "dim", "numel"}
_MATH = {"ceil", "floor", "trunc", "sqrt", "exp", "log", "log2"} | {
    f"{inverse}{name}{kind}" for inverse in ("", "a") for name in ("sin", "cos", "tan") for kind in ("", "h")
}
_NODES = (
    *(ast.Expression, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.IfExp, ast.Call, ast.keyword),
    *(ast.Name, ast.Load, ast.Constant, ast.Subscript, ast.Attribute, ast.Tuple, ast.List),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
_NUMBER = re.compile(r"[+-]?[\d.]+(?:[eE][+-]?\d+)?|[+-]?(?:inf|nan)")
# Only these take a string for what it is; sympy's other classes evaluate it.
_STRINGS = {"Symbol": _IDENTIFIER} | dict.fromkeys(("Integer", "Float", "Rational"), _NUMBER)
# All arguments but the first make numbers long, and so do the operators.
_GROWING = {"Pow", "PowByNatural", "FloatPow", "pow", "LShift", "RShift", "round", "RoundDecimal"}
_GROWN = (ast.Pow, ast.LShift, ast.RShift)
_LARGEST = 64  # that they may be, multiplied where they are nested
_LONGEST = 1 << 20  # characters; sizes of windows in windows take thousands
# Python and sympy write such numbers out as integers.
_LONG_NUMBER = re.compile(r"[\d.][eE][+-]?[\d_]{4}")


def _need_expression(text: str) -> None:
    """Arithmetic on sizes: `Mul(Integer(2), Symbol('s0'))`, `L['x'].size()[2] >= 3`."""
    # A comment or a line break would end elsewhere once the text is pasted into other text.
    if len(text) > _LONGEST or re.search(r"[#\n\r\\\"{};]", text) or _LONG_NUMBER.search(text):
        raise Unplain(f"{_quoted(text)} is no plain expression")
    try:
        tree = ast.parse(text, mode="eval")
        grows = _growth(tree)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Unplain(f"{_quoted(text)} is no plain expression") from None
    nodes = list(ast.walk(tree))
    strings = {id(string) for node in nodes for string in _strings(node)}
    for node in nodes:
        text_elsewhere = (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in strings
        )
        if not isinstance(node, _NODES) or not _is_plain(node) or text_elsewhere:
            raise Unplain(f"{_quoted(text)} is no plain expression")
    if grows > _LARGEST:
        raise Unplain(f"{_quoted(text)} holds powers whose computation may not end")


def _is_plain(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return _CALLED.fullmatch(name) is not None
        case ast.Call(func=ast.Attribute(value=ast.Name(id="math"), attr=name)):
            return name in _MATH
        case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=name)):
            return name.startswith("sym_")
        case ast.Call(func=ast.Attribute(attr=name)):
            return name in _METHODS
        case ast.Call():
            return False
        case ast.keyword(arg=str(), value=ast.Constant(value=int() as value)):  # positive=True, precision=53
            return value <= _LARGEST
        case ast.keyword():
            return False
        case ast.Constant(value=value):
            return value is None or isinstance(value, str | int | float)
        case ast.Attribute(attr=name):
            return not name.startswith("_")
    return True


def _strings(node: ast.AST) -> Iterator[ast.Constant]:
    """The strings of a node that stay strings: names of symbols, numbers, keys of inputs."""
    match node:
        case ast.Call(func=ast.Name(id=name), args=[ast.Constant(value=str() as text) as found]):
            if name in _STRINGS and _STRINGS[name].fullmatch(text):
                yield found
        case ast.Subscript(slice=ast.Constant(value=str() as text) as found):
            if _TEXT.fullmatch(text):
                yield found


def _growth(node: ast.AST) -> float:
    """How often a number in it is multiplied by itself at most: what is raised twice is so by the product."""
    by: list[ast.expr] = []
    match node:
        case ast.BinOp(op=op, right=right) if isinstance(op, _GROWN):
            by = [right]
        case ast.Call(func=ast.Name(id=name), args=[_, *others], keywords=more) if name in _GROWING:
            by = [*others, *(keyword.value for keyword in more)]
    inner = max(map(_growth, ast.iter_child_nodes(node)), default=1.0)
    return inner * math.prod(max(1.0, _size(exponent)) for exponent in by)


def _size(node: ast.AST) -> float:
    """How large a number is, without its sign; infinite when it is not written out."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return abs(value)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return _size(operand)
        case ast.Call(func=ast.Name(id="Integer"), args=[argument]):
            return _size(argument)
        case ast.Call(
            func=ast.Name(id="Rational"), args=[ast.Constant(value=int() as above), ast.Constant(value=int())]
        ):
            return abs(above)
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str() as text)]):
            return abs(float(text))  # what is no number is a ValueError
    return math.inf


def _need_tree(text: str) -> None:
    """How inputs or outputs are nested: `[1, {"type": "builtins.tuple", "context": ..., ...}]`."""
    tree = json.loads(text)
    nodes = list(_tree_nodes(tree[1:] if isinstance(tree, list) else tree))
    for node in nodes:
        kind, context = node.get("type"), node.get("context")
        if kind is not None:
            _need(_TREE, str(kind), "container")
        for inner in _values(_parsed(context)):
            _need_context(inner)


def _need_call(text: str) -> None:
    """A tree of positional and keyword arguments; the names of the latter become arguments of `forward`."""
    _need_tree(text)
    match json.loads(text):
        case [_, {"children_spec": [_, {"context": str() as keys}]}]:
            for key in json.loads(keys) or ():
                _need_identifier(str(key))


def _tree_nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        yield from _tree_nodes(value.get("children_spec", []))
    elif isinstance(value, list):
        for inner in value:
            yield from _tree_nodes(inner)


def _parsed(context: Any) -> Any:
    """Most containers keep their keys as JSON; the rest (a namedtuple its name) as they are."""
    try:
        return json.loads(context)
    except (TypeError, ValueError):
        return context


def _values(value: Any) -> Iterator[Any]:
    """The value, and all that is in it."""
    yield value
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for inner in value:
            yield from _values(inner)


def _need_context(value: Any) -> None:
    if isinstance(value, str):
        _need_text(value)
    elif isinstance(value, dict) and "__enum__" in value:
        raise Unplain(f"a tree imports {_quoted(str(value.get('fqn')))}")
    elif isinstance(value, dict) and value.get("default_factory_module", "builtins") != "builtins":
        raise Unplain(f"a tree imports {_quoted(str(value['default_factory_module']))}")
    elif isinstance(value, dict) and value.get("default_factory_name", "list") not in _FACTORIES:
        raise Unplain(f"a tree calls {_quoted(str(value['default_factory_name']))}")


_FACTORIES = {"bool", "dict", "float", "int", "list", "set", "str", "tuple"}

_FIELDS: Final[dict[str, Callable[[str], None]]] = {
    "expr_str": _need_expression,
    "guards_code": _need_expression,
    "target": _need_operator,
    "as_operator": _need_operator,
    "in_spec": _need_call,
    "out_spec": _need_tree,
    # Names of weights may hold nearly anything: ModuleDict({"3x3 conv": ...})
    **dict.fromkeys(("fqn", "parameter_name", "buffer_name", "tensor_constant_name"), _need_text),
    **dict.fromkeys(
        ("class_fqn", "type", "torch_version", "verifiers", "path_name", "field_names"), _need_text
    ),
    **dict.fromkeys(("as_string", "as_strings"), _need_text),
    # "-Infinity"
    **dict.fromkeys(("as_float", "as_floats", "as_float_lists", "real", "imag"), _need_text),
}
"""The grammar of each field that holds strings; all others hold names."""

_COMMENTS = {"stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "custom", "from_node"}
"""What a node's metadata tell; they are kept, and shown, as text."""


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}…")
