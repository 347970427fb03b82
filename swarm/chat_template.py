"""A model's chat template: the Jinja text that turns messages into what the model reads.

It comes from `data.chat_template`, else from the model's folder: `chat_template.jinja`, else `chat_template` in
`tokenizer_config.json`; `tiny` has one of its own. Rendering is transformers' (trimmed blocks, loop controls, `tojson`,
`raise_exception`, `strftime_now`), with two differences: `strftime_now` is always the same day and there is no random
choice, since every coordinator of a run must render the same.

A template comes from anywhere and runs on the organizer's machine. It runs in Jinja's immutable sandbox, without a
loader, so it reaches neither files nor Python's insides; loops, calls, products and output are limited. Those limits
stop mistakes: a template that is made to use up memory still can.

Errors: `DataError` for a template that is missing, malformed, or fails on a conversation.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, meta, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from ..errors import DataError

TEMPLATE_LIMIT = 1 << 18
"""Characters of a template."""

RENDERED_LIMIT = 1 << 23
"""Characters of one rendered conversation, and elements of a product within a template."""

STEP_LIMIT = 1 << 20
"""Turns of loops and calls in one rendering."""

TODAY = datetime(2025, 1, 1)
"""What `strftime_now` says, on whatever day a conversation is rendered."""

TINY_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TINY_TOKENS = {"bos_token": "", "eos_token": "\n"}

Message = Mapping[str, str]
"""`role` and `content`."""


class ChatTemplate:
    """A template, or none (`text` is ""), and the special tokens of its tokenizer by name (`eos_token`), None for one
    that it does without."""

    def __init__(self, text: str, tokens: Mapping[str, str | None], where: str) -> None:
        self._text, self._where = text, where
        self._tokens = {name: token for name, token in tokens.items() if token is not None}
        self._environment = _Environment()
        if len(text) > TEMPLATE_LIMIT:
            raise DataError(f"{where}: the chat template has {len(text)} characters; at most {TEMPLATE_LIMIT} are read")
        try:
            self._template = self._environment.from_string(text)
            unnamed = {"bos_token", "eos_token"} - set(tokens)
            unnamed &= meta.find_undeclared_variables(self._environment.parse(text))
        # Besides TemplateSyntaxError: RecursionError for deep nesting, and whatever the filters raise on constants.
        except Exception as error:
            raise DataError(f"{where}: the chat template cannot be read: {error}") from error
        if unnamed:
            raise DataError(
                f"{where}: the chat template uses {' and '.join(sorted(unnamed))}, of which the model's "
                "tokenizer_config.json says nothing: name it there, as null if it has none"
            )

    @property
    def digest(self) -> str:
        """sha256, hex, of all that rendering depends on beside the messages."""
        return hashlib.sha256(json.dumps([self._text, self._tokens], sort_keys=True).encode()).hexdigest()

    @property
    def end(self) -> str:
        """The token that ends a text. Raises `DataError` where the tokenizer names none."""
        if not self._tokens.get("eos_token"):
            raise DataError("the model's tokenizer_config.json names no eos_token, which ends a text: name it there")
        return self._tokens["eos_token"]

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """The conversation as text; with `prompt`, and what comes before an answer. Raises `DataError`."""
        if not self._text:
            raise DataError(f"{self._where} has no chat template: set data.chat_template")
        self._environment.steps = 0
        values = {
            **self._tokens,
            "messages": [dict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": prompt,
        }
        pieces, size = [], 0
        try:
            for piece in self._template.generate(values):
                size += len(piece)
                if size > RENDERED_LIMIT:
                    raise SecurityError(f"it makes more than {RENDERED_LIMIT} characters")
                pieces.append(piece)
        # A template can raise anything that its operators and filters can.
        except Exception as error:
            raise DataError(f"the chat template of {self._where} fails: {error or type(error).__name__}") from error
        return "".join(pieces)


def load_chat_template(folder: Path | None, given: str) -> ChatTemplate:
    """The template of a run. `folder`: of the model, None for `tiny`; `given`: `data.chat_template`, "" for the
    model's own. Raises `DataError`."""
    if folder is None:
        return ChatTemplate(given or TINY_TEMPLATE, TINY_TOKENS, "data.chat_template" if given else "tiny")
    config = _tokenizer_config(folder)
    tokens: dict[str, str | None] = {}
    for name in sorted(name for name in config if name.endswith("_token")):
        value = config[name].get("content") if isinstance(config[name], dict) else config[name]
        if value is None or isinstance(value, str):
            tokens[name] = value
    text, where = given, "data.chat_template"
    if not given:
        text, where = _own_template(folder, config), f"{folder}"
    return ChatTemplate(text, tokens, where)


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise DataError(f"{path}: holds a {type(config).__name__}; wanted an object")
    return config


def _own_template(folder: Path, config: Mapping[str, Any]) -> str:
    beside = folder / "chat_template.jinja"
    try:
        return beside.read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{beside}: cannot be read as UTF-8 text: {error}") from error
    found = config.get("chat_template", "")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    if not isinstance(found, str):
        raise DataError(
            f"{folder / 'tokenizer_config.json'}: chat_template is neither a text nor a list with one named 'default': "
            "set data.chat_template"
        )
    return found


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with transformers' additions and a count of steps."""

    intercepted_binops = frozenset(("*", "**"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        self.steps = 0
        self.filters["tojson"] = _to_json
        self.filters["_counted"] = self._counted
        del self.filters["random"], self.globals["lipsum"]
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = TODAY.strftime
        self.globals["dict"] = _new_dict
        self.globals["namespace"] = _Namespace

    def spend(self) -> None:
        self.steps += 1
        if self.steps > STEP_LIMIT:
            raise SecurityError(f"it takes more than {STEP_LIMIT} steps")

    @pass_context  # which also keeps Jinja from computing it while it compiles
    def _counted(self, context: Context, items: Any) -> Iterator[Any]:
        for item in items:
            self.spend()
            yield item

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
        tree.set_environment(self)
        return tree

    def call(self, *arguments: Any, **named: Any) -> Any:  # arguments: the context, what is called, its own
        self.spend()
        return super().call(*arguments, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**" and (not numbers or abs(right) > 64 or abs(left) > RENDERED_LIMIT):
            raise SecurityError(f"it raises {type(left).__name__} to a power that is too large")
        if operator == "*" and not numbers:
            sizes = [abs(side) if isinstance(side, int | float) else len(side) for side in (left, right)]
            if sizes[0] * sizes[1] > RENDERED_LIMIT:
                raise SecurityError(f"it repeats something to more than {RENDERED_LIMIT} elements")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """`{% generation %}` marks answers for transformers; here what it holds is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012, Jinja's declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """Without names that begin with an underscore: those lead to Python's insides."""

    def __init__(*arguments: Any, **named: Any) -> None:  # so that `namespace(self=1)` works too, as in Jinja
        values = dict(*arguments[1:], **named)
        for name in values:
            _check_name(name)
        Namespace.__init__(arguments[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"it gives a namespace the name {name!r}")


def _new_dict(*arguments: Any, **named: Any) -> dict[Any, Any]:
    return dict(*arguments, **named)


def _raise(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Without the escapes for HTML of Jinja's own."""
    chosen = {name: options[name] for name in ("separators", "sort_keys") if name in options}
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **chosen)
