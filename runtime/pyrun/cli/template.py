"""Rendering ``--format`` templates: the part of Go's text/template that docker's users type."""

from __future__ import annotations

from typing import Any

from ..errors import PyrunError
from .template_functions import FUNCTIONS, HEADER_FUNCTIONS, LAZY, FunctionError, go_text, go_type
from .template_parser import Action, Block, Node, Operand, Pipeline, TemplateSyntaxError, Text, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_NOTHING = object()  # no value from the command before in the pipeline


class TemplateError(PyrunError):
    """The template can't be read, or asks the data for what it has not."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"template parsing error: {message}", hint=hint)


class Template:
    """A parsed template; `unescape` as for `template_parser.parse`. Raises `TemplateError`."""

    def __init__(self, source: str, *, unescape: bool = False) -> None:
        self.source = source
        try:
            self.nodes = parse(source, frozenset(FUNCTIONS) | LAZY, unescape=unescape)
        except TemplateSyntaxError as error:
            raise TemplateError(str(error)) from None

    def render(self, data: Any) -> str:
        """The text for ``data``, made of dicts, lists, strings, numbers, booleans and None."""
        return _Execution(self.source, data, headers=False).text(self.nodes)

    def render_headers(self, headers: Mapping[str, str]) -> str:
        """The header line of a table: functions that shape text leave a header as it is."""
        return _Execution(self.source, dict(headers), headers=True).text(self.nodes)


class _Execution:
    def __init__(self, source: str, data: Any, *, headers: bool) -> None:
        self.source = source
        self.headers = headers
        self.variables: list[dict[str, Any]] = [{"$": data}]
        self.data = data

    def text(self, nodes: list[Node]) -> str:
        parts: list[str] = []
        try:
            self.run(nodes, self.data, parts)
        except RecursionError:
            raise TemplateError("template: nested too deeply") from None
        return "".join(parts)

    def error(self, operand: Operand, message: str, hint: str = "") -> TemplateError:
        line = self.source.count("\n", 0, operand.offset) + 1
        column = operand.offset - (self.source.rfind("\n", 0, operand.offset) + 1)
        where = f'template: :{line}:{column}: executing "" at <{operand.source}>: '
        return TemplateError(where + message, hint=hint)

    def run(self, nodes: list[Node], dot: Any, parts: list[str]) -> None:
        for node in nodes:
            if isinstance(node, Text):
                parts.append(node.text)
            elif isinstance(node, Action):
                value = self.pipeline(node.pipeline, dot)
                if node.pipeline.variables:
                    self.assign(node.pipeline, [value])
                else:
                    parts.append(go_text(value))
            else:
                self.variables.append({})
                self.block(node, dot, parts)
                self.variables.pop()

    def block(self, block: Block, dot: Any, parts: list[str]) -> None:
        value = self.pipeline(block.pipeline, dot)
        if block.keyword == "range":
            pairs = self.pairs(block.pipeline, value)
            for key, item in pairs:
                self.variables.append({})
                both = len(block.pipeline.variables) == 2
                self.assign(block.pipeline, [key, item] if both else [item])
                self.run(block.body, item, parts)
                self.variables.pop()
            if not pairs:
                self.run(block.otherwise, dot, parts)
            return
        self.assign(block.pipeline, [value])
        if value:
            self.run(block.body, value if block.keyword == "with" else dot, parts)
        else:
            self.run(block.otherwise, dot, parts)

    def pairs(self, pipeline: Pipeline, value: Any) -> list[tuple[Any, Any]]:
        if value is None:
            return []
        if isinstance(value, dict):
            return [(key, value[key]) for key in sorted(value)]
        if isinstance(value, list):
            return list(enumerate(value))
        raise self.error(pipeline.commands[0][0], f"range can't iterate over {go_text(value)}")

    def assign(self, pipeline: Pipeline, values: list[Any]) -> None:
        for name, value in zip(pipeline.variables, values, strict=False):
            scope = self.variables[-1]
            if not pipeline.declares:
                scope = next(s for s in reversed(self.variables) if name in s)
            scope[name] = value

    def pipeline(self, pipeline: Pipeline, dot: Any) -> Any:
        value: Any = _NOTHING
        for command in pipeline.commands:
            value = self.command(command, dot, value)
        return value

    def command(self, command: list[Operand], dot: Any, final: Any) -> Any:
        first = command[0]
        if first.kind == "function":
            return self.fields(first, self.call(first, command[1:], dot, final))
        if len(command) > 1 or final is not _NOTHING:
            raise self.error(first, f"can't give argument to non-function {first.source}")
        return self.operand(first, dot)

    def call(self, function: Operand, arguments: list[Operand], dot: Any, final: Any) -> Any:
        name = function.value
        given = len(arguments) + (final is not _NOTHING)
        if name in LAZY:
            if not given:
                raise self.error(function, f"wrong number of args for {name}: want at least 1 got 0")
            return self.logic(name, arguments, dot, final)
        implementation, fewest, most = FUNCTIONS[name]
        if given < fewest or (most is not None and given > most):
            want = f"{fewest}" if most == fewest else f"at least {fewest}"
            raise self.error(function, f"wrong number of args for {name}: want {want} got {given}")
        values = [self.operand(argument, dot) for argument in arguments]
        if final is not _NOTHING:
            values.append(final)
        if self.headers and name in HEADER_FUNCTIONS:
            return values[0]
        try:
            return implementation(*values)
        except FunctionError as error:
            raise self.error(function, str(error)) from None

    def logic(self, name: str, arguments: list[Operand], dot: Any, final: Any) -> Any:
        """``and`` and ``or`` give the argument that settles the matter, and evaluate none after it."""
        value: Any = None
        for argument in arguments:
            value = self.operand(argument, dot)
            if bool(value) == (name == "or"):
                return value
        return value if final is _NOTHING else final

    def operand(self, operand: Operand, dot: Any) -> Any:
        if operand.kind == "dot":
            value = dot
        elif operand.kind == "variable":
            value = next(s[operand.value] for s in reversed(self.variables) if operand.value in s)
        elif operand.kind == "pipeline":
            value = self.pipeline(operand.value, dot)
        elif operand.kind == "function":
            value = self.call(operand, [], dot, _NOTHING)
        else:
            value = operand.value
        return self.fields(operand, value)

    def fields(self, operand: Operand, value: Any) -> Any:
        for name in operand.fields:
            if isinstance(value, dict):
                # Docker falls back to the names in its JSON, where some begin with a small letter.
                json_name = name[:1].lower() + name[1:]
                if name not in value and json_name in value:
                    name = json_name
                if name not in value:
                    known = ", ".join(sorted(map(str, value)))
                    hint = f"Fields here: {known}." if known else ""
                    raise self.error(operand, f'map has no entry for key "{name}"', hint)
                value = value[name]
            elif value is None:
                raise self.error(operand, f"nil pointer evaluating interface {{}}.{name}")
            else:
                raise self.error(operand, f"can't evaluate field {name} in type {go_type(value)}")
        return value
