"""The syntax of Go templates, as far as ``--format`` needs it (https://pkg.go.dev/text/template).

Read: text, actions with ``{{-`` and ``-}}``, comments, ``if``/``else if``/``else``, ``range``, ``with``,
``end``, pipelines, variables, parentheses, fields, literals. Not read: ``define``, ``template``, ``block``,
``break``, ``continue``, methods, complex and character constants.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_KEYWORDS = ("if", "else", "end", "range", "with")
_REFUSED = ("define", "template", "block", "break", "continue")

_TOKEN = re.compile(
    r"""
      (?P<space>\s+)
    | (?P<string>"(?:[^"\\\n]|\\.)*" | `[^`]*`)
    | (?P<number>[+-]?(?:0[xX][0-9a-fA-F]+|\d+(?:\.\d+)?))
    | (?P<declare>:=)
    | (?P<assign>=)
    | (?P<variable>\$\w*)
    | (?P<field>\.[^\W\d]\w*)
    | (?P<dot>\.)
    | (?P<name>[^\W\d]\w*)
    | (?P<pipe>\|)
    | (?P<open>\() | (?P<close>\)) | (?P<comma>,)
    """,
    re.VERBOSE,
)


class TemplateSyntaxError(Exception):
    """What is wrong, as Go says it; the line number comes before the message."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"template: :{line}: {message}")


class Token:
    __slots__ = ("after_space", "kind", "offset", "text")

    def __init__(self, kind: str, text: str, offset: int, after_space: bool) -> None:
        self.kind = kind
        self.text = text
        self.offset = offset
        self.after_space = after_space


class Operand:
    """One argument: a base and the fields taken from it.

    kind  "dot", "variable" (value: its name with ``$``), "literal" (value: the constant),
          "function" (value: its name) or "pipeline" (value: a `Pipeline` in parentheses)
    """

    __slots__ = ("fields", "kind", "offset", "source", "value")

    def __init__(self, kind: str, value: Any, offset: int) -> None:
        self.kind = kind
        self.value = value
        self.fields: list[str] = []
        self.offset = offset
        self.source = ""


class Pipeline:
    """Commands (lists of operands), each but the first with the result before it as last argument.

    ``variables`` are the names it declares, or assigns where ``declares`` is False.
    """

    __slots__ = ("commands", "declares", "variables")

    def __init__(self) -> None:
        self.variables: list[str] = []
        self.declares = True
        self.commands: list[list[Operand]] = []


class Text:
    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class Action:
    __slots__ = ("pipeline",)

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline


class Block:
    """``if``, ``with`` or ``range``."""

    __slots__ = ("body", "keyword", "otherwise", "pipeline")

    def __init__(self, keyword: str, pipeline: Pipeline) -> None:
        self.keyword = keyword
        self.pipeline = pipeline
        self.body: list[Node] = []
        self.otherwise: list[Node] = []


Node = Text | Action | Block


def parse(source: str, functions: frozenset[str], *, unescape: bool = False) -> list[Node]:
    """The template's nodes. With ``unescape``, ``\\t`` and ``\\n`` typed in the text stand for a tab and a
    newline, as shells' single quotes need. Raises `TemplateSyntaxError`."""
    return _Parser(source, functions, unescape).parse()


def _pieces(source: str) -> list[tuple[bool, str, int]]:
    """(is an action, text, offset), with the trimming of ``{{-`` and ``-}}`` done."""
    pieces: list[tuple[bool, str, int]] = []
    at = 0
    trim = False
    while True:
        start = source.find("{{", at)
        text = source[at:] if start < 0 else source[at:start]
        if trim:
            text = text.lstrip(" \t\r\n")
        if start < 0:
            pieces.append((False, text, at))
            return pieces
        inside = start + 2
        if source[inside : inside + 1] == "-" and source[inside + 1 : inside + 2].isspace():
            text = text.rstrip(" \t\r\n")
            inside += 1
        pieces.append((False, text, at))
        end = _action_end(source, inside)
        if end < 0:
            raise TemplateSyntaxError(source.count("\n", 0, start) + 1, "unclosed action")
        body = source[inside:end]
        trim = body.endswith("-") and body[-2:-1].isspace()
        if trim:
            body = body[:-1]
        if not (body.strip().startswith("/*") and body.strip().endswith("*/")):
            pieces.append((True, body, inside))
        at = end + 2


def _action_end(source: str, at: int) -> int:
    """Where the action's ``}}`` stands; one within a string doesn't count."""
    while at < len(source):
        if source.startswith("}}", at):
            return at
        if source.startswith("/*", at):
            close = source.find("*/", at + 2)
            if close < 0:
                return -1
            at = close + 2
        elif source[at] in '"`':
            quote = source[at]
            at += 1
            while at < len(source) and source[at] != quote:
                at += 2 if quote == '"' and source[at] == "\\" else 1
            at += 1
        else:
            at += 1
    return -1


class _Parser:
    def __init__(self, source: str, functions: frozenset[str], unescape: bool) -> None:
        self.source = source
        self.functions = functions
        self.unescape = unescape
        self.pieces: list[tuple[bool, str, int]] = []
        self.index = 0
        self.tokens: list[Token] = []
        self.at = 0
        self.line = 1
        self.scopes: list[set[str]] = [{"$"}]

    def error(self, message: str) -> TemplateSyntaxError:
        return TemplateSyntaxError(self.line, message)

    def parse(self) -> list[Node]:
        try:
            self.pieces = _pieces(self.source)
            nodes, ended_by = self.block()
        except RecursionError:
            raise self.error("nested too deeply") from None
        if ended_by:
            raise self.error(f"unexpected {{{{{ended_by}}}}}")
        return nodes

    def block(self) -> tuple[list[Node], str]:
        """Nodes up to ``end`` or ``else`` (the second value), or to the end of the template ("")."""
        nodes: list[Node] = []
        while self.index < len(self.pieces):
            is_action, text, offset = self.pieces[self.index]
            self.index += 1
            if not is_action:
                if self.unescape:
                    text = text.replace("\\t", "\t").replace("\\n", "\n")
                if text:
                    nodes.append(Text(text))
                continue
            self.line = self.source.count("\n", 0, offset) + 1
            self.tokens = self.tokenize(text, offset)
            self.at = 0
            if not self.tokens:
                raise self.error("missing value for command")
            word = self.tokens[0].text if self.tokens[0].kind == "name" else ""
            if word in _REFUSED:
                raise self.error(f"{{{{{word}}}}} is not supported in --format")
            if word in ("end", "else"):
                self.at = 1
                if word == "end":
                    self.finish()
                return nodes, word
            if word in _KEYWORDS:
                self.at = 1
                nodes.append(self.control(word))
            else:
                pipeline = self.pipeline()
                self.finish()
                nodes.append(Action(pipeline))
        return nodes, ""

    def control(self, keyword: str) -> Block:
        self.scopes.append(set())
        block = Block(keyword, self.pipeline(keyword))
        self.finish()
        block.body, ended_by = self.block()
        if ended_by == "else":
            if self.at < len(self.tokens) and self.tokens[self.at].text in ("if", "with"):
                # "else if" shares the one {{end}} of the chain.
                nested = self.tokens[self.at].text
                self.at += 1
                block.otherwise = [self.control(nested)]
                ended_by = "end"
            else:
                self.finish()
                block.otherwise, ended_by = self.block()
                if ended_by == "else":
                    raise self.error("unexpected {{else}}")
        if ended_by != "end":
            raise self.error("unexpected EOF")
        self.scopes.pop()
        return block

    def tokenize(self, text: str, offset: int) -> list[Token]:
        tokens: list[Token] = []
        at = 0
        after_space = True
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                if text[at] == '"':
                    raise self.error("unterminated quoted string")
                raise self.error(f"unexpected {text[at]!r} in command")
            kind = match.lastgroup or ""
            if kind != "space":
                tokens.append(Token(kind, match.group(), offset + at, after_space))
            after_space = kind == "space"
            at = match.end()
        return tokens

    def peek(self) -> Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def finish(self) -> None:
        token = self.peek()
        if token is not None:
            raise self.error(f"unexpected {token.text!r} in command")

    def pipeline(self, keyword: str = "") -> Pipeline:
        pipeline = Pipeline()
        self.declarations(pipeline, keyword)
        while True:
            command = self.command(first=not pipeline.commands)
            pipeline.commands.append(command)
            token = self.peek()
            if token is None or token.kind != "pipe":
                break
            self.at += 1
        for name in pipeline.variables:
            if pipeline.declares:
                self.scopes[-1].add(name)
            elif not self.declared(name):
                raise self.error(f"undefined variable {name!r}")
        return pipeline

    def declarations(self, pipeline: Pipeline, keyword: str) -> None:
        """``$v :=``, ``$v =`` and, in ``range``, ``$k, $v :=`` at the start of a pipeline."""
        kinds = [token.kind for token in self.tokens[self.at : self.at + 4]]
        if kinds[:2] in (["variable", "declare"], ["variable", "assign"]):
            pipeline.variables = [self.tokens[self.at].text]
            pipeline.declares = kinds[1] == "declare"
            self.at += 2
        elif keyword == "range" and kinds == ["variable", "comma", "variable", "declare"]:
            pipeline.variables = [self.tokens[self.at].text, self.tokens[self.at + 2].text]
            self.at += 4

    def declared(self, name: str) -> bool:
        return any(name in scope for scope in self.scopes)

    def command(self, *, first: bool) -> list[Operand]:
        operands: list[Operand] = []
        while True:
            token = self.peek()
            if token is None or token.kind in ("pipe", "close"):
                break
            operands.append(self.operand(token))
        if not operands:
            raise self.error("missing value for command")
        if not first and operands[0].kind in ("literal", "dot"):
            raise self.error("non executable command in pipeline")
        return operands

    def operand(self, token: Token) -> Operand:
        self.at += 1
        operand = self.base(token)
        while True:
            field = self.peek()
            if field is None or field.kind != "field" or field.after_space:
                break
            if operand.kind == "literal":
                raise self.error(f"unexpected {field.text!r} after a constant")
            operand.fields.append(field.text[1:])
            self.at += 1
        last = self.tokens[self.at - 1]
        operand.source = self.source[token.offset : last.offset + len(last.text)]
        return operand

    def base(self, token: Token) -> Operand:
        kind, text = token.kind, token.text
        if kind == "field":
            operand = Operand("dot", None, token.offset)
            operand.fields.append(text[1:])
            return operand
        if kind == "dot":
            return Operand("dot", None, token.offset)
        if kind == "variable":
            if not self.declared(text):
                raise self.error(f'undefined variable "{text}"')
            return Operand("variable", text, token.offset)
        if kind == "string":
            return Operand("literal", self.unquoted(text), token.offset)
        if kind == "number":
            number: int | float = float(text) if "." in text else int(text, 16 if "x" in text.lower() else 10)
            return Operand("literal", number, token.offset)
        if kind == "open":
            pipeline = self.pipeline()
            close = self.peek()
            if close is None or close.kind != "close":
                raise self.error("unclosed left paren")
            self.at += 1
            return Operand("pipeline", pipeline, token.offset)
        if kind == "name":
            if text in ("true", "false", "nil"):
                return Operand("literal", {"true": True, "false": False, "nil": None}[text], token.offset)
            if text not in self.functions:
                raise self.error(f'function "{text}" not defined')
            return Operand("function", text, token.offset)
        raise self.error(f"unexpected {text!r} in command")

    def unquoted(self, text: str) -> str:
        if text.startswith("`"):
            return text[1:-1]
        # Go's escapes are those of JSON and a few more; a constant with others is refused.
        simple = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}

        def replace(match: re.Match[str]) -> str:
            code = match.group(1)
            if code[0] in "xuU":
                return chr(int(code[1:], 16))
            return simple.get(code, code)

        pattern = r"""\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U00(?:0\d|10)[0-9a-fA-F]{4}|[abfnrtv\\"'])"""
        if "\\" in re.sub(pattern, "", text):
            raise self.error(f"invalid syntax in constant {text}")
        return re.sub(pattern, replace, text[1:-1])
