"""Chat templates: where they come from, that they render as transformers', and what they may not do."""

import json
from pathlib import Path
from typing import Any

import pytest
from swarm_peer.errors import DataError
from swarm_peer.swarm import chat_template
from swarm_peer.swarm.chat_template import ChatTemplate, load_chat_template
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

TALK = (
    {"role": "system", "content": "Be <brief>."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def folder(path: Path, config: Any = None, jinja: str | None = None) -> Path:
    if config is not None:
        (path / "tokenizer_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if jinja is not None:
        (path / "chat_template.jinja").write_text(jinja)
    return path


NAMED = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "named"}]


@pytest.mark.parametrize(
    ("config", "jinja", "given", "said"),
    [
        ({"chat_template": "plain"}, None, "", "plain"),
        ({"chat_template": NAMED}, None, "", "named"),
        ({"chat_template": "plain"}, "beside", "", "beside"),
        ({"chat_template": "plain"}, "beside", "given", "given"),
        (None, None, "given", "given"),
        (None, "beside", "", "beside"),
        (
            {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "$"},
            "{{ bos_token + eos_token }}",
            "",
            "<s>$",
        ),
        ({"bos_token": None, "eos_token": "</s>"}, "{{ bos_token }}{{ eos_token }}", "", "</s>"),
    ],
)
def test_where_a_template_comes_from(config: Any, jinja: str | None, given: str, said: str, tmp_path: Path) -> None:
    assert load_chat_template(folder(tmp_path, config, jinja), given).render(TALK) == said


@pytest.mark.parametrize(
    ("config", "jinja", "said"),
    [
        (None, None, r"has no chat template: set data\.chat_template"),
        ({"eos_token": "x"}, None, "has no chat template"),
        ({"chat_template": [{"name": "rag", "template": "x"}]}, None, "'default'"),
        ({"chat_template": 3}, None, r"set data\.chat_template"),
        ("{", None, r"tokenizer_config\.json: cannot be read as JSON"),
        ([1], None, "holds a list"),
        (None, "{{ eos_token }}", "uses eos_token"),
        ({"eos_token": "x"}, "{% if %}", "cannot be read"),
        ({"eos_token": "x"}, "{{ 1 | no_such_filter }}", "no_such_filter"),
        ({"eos_token": "x"}, "x" * (chat_template.TEMPLATE_LIMIT + 1), "characters"),
    ],
)
def test_a_template_that_cannot_serve_is_named(config: Any, jinja: str | None, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        load_chat_template(folder(tmp_path, config, jinja), "").render(TALK)


def test_tiny_has_a_template_of_its_own() -> None:
    chat = load_chat_template(None, "")
    assert chat.render(TALK) == "<|system|>\nBe <brief>.\n<|user|>\nHi\n<|assistant|>\nHello\n"
    assert chat.render(TALK[:2], prompt=True) == "<|system|>\nBe <brief>.\n<|user|>\nHi\n<|assistant|>\n"
    assert chat.end == "\n"


@pytest.mark.parametrize(
    "text",
    [
        CHATML,
        "  {% for m in messages %}\n    {% if m.role == 'system' %}{% continue %}{% endif %}\n"
        "  {{ m | tojson }}\n{% endfor %}\n",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + loop.length %}{{ ns.n }}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m['content'] | trim }}{{ loop.index0 % 2 * 3 }}{% endif %}"
        "{{ bos_token if loop.first }}{% endfor %}",
        "{% macro say(m) %}{{ m.role | upper }}{% endmacro %}{% for m in messages[1:] %}{{ say(m) }}"
        "{% if not loop.last %}, {% endif %}{% endfor %}{{ tools is none }}"
        "{{ dict(a=1) | tojson(indent=1) }}{{ eos_token }}",
    ],
)
def test_what_is_rendered_is_what_transformers_renders(text: str) -> None:
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    theirs: Any = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")), **tokens)
    for prompt in (False, True):
        wanted = theirs.apply_chat_template(
            [dict(message) for message in TALK], chat_template=text, tokenize=False, add_generation_prompt=prompt
        )
        assert ChatTemplate(text, tokens, "here").render(TALK, prompt=prompt) == wanted


def test_the_day_is_the_same_every_day() -> None:
    assert ChatTemplate("{{ strftime_now('%d %b %Y') }}", {}, "here").render(TALK) == "01 Jan 2025"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ raise_exception.__globals__['json'] }}", "unsafe"),
        ("{{ self.__init__.__globals__ }}", "unsafe|undefined"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "unsafe"),
        ("{{ '{0.__class__.__mro__}'.format(1) }}", "unsafe"),
        ("{{ (1 | attr('__class__')).mro() }}", "unsafe|undefined"),
        ("{% set ns = namespace(__class__=1) %}", "namespace"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "namespace"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages[0].update(role='user') }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% import 'os' as os %}", "no loader"),
        ("{{ lipsum() }}", "undefined"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "steps"),
        ("{% for i in range(1000000) %}{% endfor %}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "characters"),
        ("{{ 'x' * 10 ** 9 }}", "elements"),
        ("{{ 10 ** 9 * [1] }}", "elements"),
        ("{{ 9 ** 9 ** 9 }}", "power"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[7].content.strip() }}", "undefined|no element"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ],
)
def test_a_template_reaches_nothing_and_has_limits(text: str, said: str) -> None:
    talk = [dict(message) for message in TALK]
    with pytest.raises(DataError, match=f"here fails: .*({said})"):
        ChatTemplate(text, {}, "here").render(talk)
    assert talk == list(TALK)


def test_no_chance_within_a_template() -> None:
    with pytest.raises(DataError, match="random"):
        ChatTemplate("{{ [1, 2] | random }}", {}, "here")


def test_the_digest_is_of_template_and_tokens() -> None:
    made = [("a", {}), ("b", {}), ("a", {"eos_token": "x"}), ("a", {"eos_token": "y"})]
    digests = {ChatTemplate(text, tokens, "here").digest for text, tokens in made}
    assert len(digests) == 4
    assert ChatTemplate("a", {"eos_token": "x"}, "elsewhere").digest in digests
