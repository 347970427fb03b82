"""Instruction data: what a line may be, which tokens are learned, how they are packed, what a swarm makes of it."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from swarm_peer.errors import DataError, ManifestError, ModelError, WireError
from swarm_peer.peer.reference import run_reference
from swarm_peer.simulations.virtual_time import run
from swarm_peer.swarm import jsonl
from swarm_peer.swarm.chat_template import ChatTemplate, load_chat_template
from swarm_peer.swarm.data import (
    IGNORED,
    CorpusSamples,
    TrainingOrder,
    heldout_batches,
    labels_from_bytes,
    tokens_from_bytes,
    tokens_to_bytes,
)
from swarm_peer.swarm.freezing import prepare, take_up
from swarm_peer.swarm.instructions import LossOn, mark, read_conversations, tokenize
from swarm_peer.swarm.jsonl import Completion, Conversation, numbered_lines, parse_line
from swarm_peer.swarm.manifest import DataSettings, Manifest, parse_settings
from swarm_peer.swarm.packing import Conversations
from swarm_peer.swarm.tokenizer import ByteTokenizer, FileTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.test_agreement import assert_agree, assert_clean
from tests.test_chat_template import CHATML
from tests.tiny import tiny_manifest, tiny_swarm

LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
CHATS = {
    "chatml": ChatTemplate(CHATML, {"eos_token": "<|im_end|>"}, "chatml"),
    "llama2": ChatTemplate(LLAMA2, {"bos_token": "<s>", "eos_token": "</s>"}, "llama2"),
    "tiny": load_chat_template(None, ""),
}
SYSTEM, ASK, ANSWER, MORE, LAST = (
    {"role": role, "content": content}
    for role, content in (
        ("system", "Be brief."),
        ("user", "What is a hat?"),
        ("assistant", "A thing — for heads."),
        ("user", "Is a café a hat?"),
        ("assistant", "No, not a hat."),
    )
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-level BPE with the special tokens of both templates, trained on the words of the conversations."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([message["content"] + "\n\n" for message in (ASK, ANSWER, MORE, LAST)] * 9, trainer)
    tokenizer.add_special_tokens([AddedToken(text) for text in ("<s>", "</s>", "<|im_start|>", "<|im_end|>")])
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


def pieces(path: Path, line: Conversation | Completion, chat: str, loss_on: LossOn = "assistant") -> list[str]:
    """The text of each run of tokens that are learned and of those between, in turn, beginning with what is not."""
    library = Tokenizer.from_file(str(path))
    marked = mark(line, CHATS[chat], loss_on)
    ids, learned = tokenize(marked, FileTokenizer(path))
    assert library.encode(marked.text, add_special_tokens=False).ids == ids.tolist()
    found: list[list[int]] = [[]]
    for token, is_learned in zip(ids.tolist(), learned.tolist(), strict=True):
        if is_learned == len(found) % 2:
            found.append([])
        found[-1].append(token)
    return [library.decode(part, skip_special_tokens=False) for part in found]


def test_chatml_masks(path: Path) -> None:
    assert pieces(path, Conversation((SYSTEM, ASK, ANSWER, MORE, LAST)), "chatml") == [
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is a hat?<|im_end|>\n<|im_start|>assistant\n",
        "A thing — for heads.<|im_end|>\n",
        "<|im_start|>user\nIs a café a hat?<|im_end|>\n<|im_start|>assistant\n",
        "No, not a hat.<|im_end|>\n",
    ]


def test_llama_2_masks(path: Path) -> None:
    assert pieces(path, Conversation((SYSTEM, ASK, ANSWER, MORE, LAST)), "llama2") == [
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhat is a hat? [/INST]",
        " A thing — for heads. </s>",
        "<s>[INST] Is a café a hat? [/INST]",
        " No, not a hat. </s>",
    ]


def test_a_conversation_may_end_without_an_answer_or_have_two(path: Path) -> None:
    two, open_ended = Conversation((ASK, ANSWER, LAST)), Conversation((ASK, ANSWER, MORE))
    assert pieces(path, two, "chatml")[1::2] == ["A thing — for heads.<|im_end|>\n", "No, not a hat.<|im_end|>\n"]
    assert pieces(path, open_ended, "chatml")[2:] == ["<|im_start|>user\nIs a café a hat?<|im_end|>\n"]


def test_completions_texts_and_everything(path: Path) -> None:
    assert pieces(path, Completion("1 + 1 =", " 2"), "llama2") == ["1 + 1 =", " 2</s>"]
    assert pieces(path, Completion("1 + 1 =", " 2"), "llama2", "all") == ["", "1 + 1 = 2</s>"]
    assert pieces(path, Completion("", "A café."), "chatml") == ["", "A café.<|im_end|>"]
    whole = pieces(path, Conversation((ASK, ANSWER)), "llama2", "all")
    assert whole == ["", "<s>[INST] What is a hat? [/INST] A thing — for heads. </s>"]


def test_a_token_that_begins_before_the_answer_is_not_learned(path: Path) -> None:
    """The generation prompt ends in a line end; a tokenizer may make one token of it and the answer's first."""
    library = Tokenizer.from_file(str(path))
    doubled = library.encode("\n\n", add_special_tokens=False)
    assert len(doubled.ids) == 1
    line = Conversation((ASK, {"role": "assistant", "content": "\n\nA hat."}))
    assert pieces(path, line, "chatml")[0].endswith("<|im_start|>assistant\n\n")
    assert pieces(path, line, "chatml")[1] == "\nA hat.<|im_end|>\n"


def test_bytes_begin_where_their_characters_do(path: Path) -> None:
    text = "aé—𝄞\n"
    for tokenizer in (ByteTokenizer(), FileTokenizer(path)):
        ids, starts = tokenizer.encode_with_starts(text)
        assert ids.tolist() == tokenizer.encode(text).tolist()
        assert starts.tolist() == sorted(starts.tolist())
    assert ByteTokenizer().encode_with_starts(text)[1].tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4]
    assert all(part.size == 0 for part in FileTokenizer(path).encode_with_starts(""))


def test_pieces_of_a_long_conversation_keep_their_places(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Conversation((ASK, ANSWER, MORE, LAST) * 50)
    whole = pieces(path, line, "chatml")
    monkeypatch.setattr("swarm_peer.swarm.tokenizer.CHUNK_CHARACTERS", 200)
    assert pieces(path, line, "chatml") == whole
    assert len(whole) == 200


@pytest.mark.parametrize(
    ("template", "messages", "said"),
    [
        ("{% for m in messages %}{{ m.content if loop.last else '' }}{% endfor %}", (ASK, ANSWER, MORE), "otherwise"),
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}", (ASK, ANSWER), "otherwise"),
        (CHATML.replace("assistant\n' }}", "model\n' }}"), (ASK, ANSWER), "otherwise"),
        (CHATML, (ASK, MORE), "no message of the assistant"),
        (LLAMA2, (ASK, MORE, ANSWER), "roles must alternate"),
        (LLAMA2, (ANSWER, ASK), "fails"),
        ("", (ASK, ANSWER), r"set data\.chat_template"),
    ],
)
def test_conversations_that_a_template_cannot_tell_apart(template: str, messages: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        mark(Conversation(messages), ChatTemplate(template, {"bos_token": "", "eos_token": ""}, "here"), "assistant")


def test_a_completion_needs_an_end() -> None:
    with pytest.raises(DataError, match="eos_token"):
        mark(Completion("a", "b"), ChatTemplate("", {}, "here"), "assistant")


# ---- lines


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ({"messages": [ASK, ANSWER], "id": 3, "prompt": "What is"}, Conversation((ASK, ANSWER))),
        ({"prompt": "a", "completion": "b", "text": "ab"}, Completion("a", "b")),
        ({"text": "a\nb", "meta": {}}, Completion("", "a\nb")),
        ({"text": "a", "prompt": "b"}, Completion("", "a")),
    ],
)
def test_a_line_is_the_first_form_whose_keys_it_has(line: Any, wanted: Any) -> None:
    assert parse_line(json.dumps(line).encode() + b"\n") == wanted


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{'text': 1}\n", "is not JSON"),
        (b'{"text": "a"', "is not JSON"),
        (b'{"text": "\xff"}', "is not JSON in UTF-8"),
        (b"[" * 100_000, "is not JSON"),
        (b"\n", "is empty"),
        (b"  \r\n", "is empty"),
        (b'["a"]', "holds a list"),
        (b'"a"', "holds a str"),
        (b"{}", r"the keys \(none\)"),
        (b'{"instruction": "a", "output": "b"}', "the keys instruction, output"),
        (b'{"prompt": "a"}', "the keys prompt"),
        (b'{"text": ""}', "text: is empty"),
        (b'{"text": ["a"]}', "text: is a list"),
        (b'{"text": null}', "text: is a NoneType"),
        (b'{"text": "\\ud800"}', "not Unicode"),
        (b'{"prompt": "", "completion": "b"}', "prompt: is empty"),
        (b'{"prompt": "a", "completion": 3}', "completion: is a int"),
        (b'{"messages": []}', "messages: is an empty list"),
        (b'{"messages": {"role": "user"}}', "messages: is a dict"),
        (b'{"messages": ["a"]}', r"messages\[0\]: is 'a'"),
        (b'{"messages": [{"role": "user"}]}', r"messages\[0\]: has the keys role"),
        (b'{"messages": [{"from": "human", "value": "a"}]}', "has the keys from, value; wanted role and content"),
        (b'{"messages": [{"role": "user", "content": "a", "weight": 0}]}', "nothing else"),
        (b'{"messages": [{"role": "tool", "content": "a"}]}', "role is 'tool'; wanted one of system, user, assistant"),
        (b'{"messages": [{"role": [], "content": "a"}]}', r"role is \[\]"),
        (b'{"messages": [{"role": "user", "content": ""}]}', r"messages\[0\]\.content: is empty"),
        (b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', "content: is a list"),
    ],
)
def test_a_bad_line_is_named(line: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "talk.jsonl"
    file.write_bytes(b'{"text": "good"}\n' + line.rstrip(b"\n") + b"\n")
    with pytest.raises(DataError, match=rf"talk\.jsonl, line 2: .*{said}"):
        read_conversations([file], ByteTokenizer(), CHATS["tiny"], "assistant")


def test_a_line_beyond_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "LINE_LIMIT", 100)
    file = tmp_path / "talk.jsonl"
    file.write_bytes(b'{"text": "good"}\n' * 2 + b'{"text": "' + b"a" * 1000 + b'"}\n')
    assert max(len(line) for _, line in numbered_lines(file)) == 101
    with pytest.raises(DataError, match="line 3: is longer than 100 bytes"):
        read_conversations([file], ByteTokenizer(), CHATS["tiny"], "assistant")
    with pytest.raises(DataError, match="absent: cannot be read"):
        list(numbered_lines(tmp_path / "absent"))


def test_what_the_tokenizer_swallows_is_said(tmp_path: Path) -> None:
    """A character model without bytes drops what it does not know; a word model without an unknown word raises."""
    file = tmp_path / "talk.jsonl"
    file.write_text(json.dumps({"prompt": "user", "completion": "42"}))
    made = {
        "leaves nothing of it": models.BPE(vocab={"u": 0, "s": 1}, merges=[]),
        "cannot tokenize": models.WordLevel({"u": 0}, "?"),
    }
    for said, model in made.items():
        Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(DataError, match=f"line 1: .*{said}"):
            read_conversations([file], FileTokenizer(tmp_path / "tokenizer.json"), CHATS["chatml"], "assistant")


# ---- packing

LENGTH = 8


def numbered(sizes: list[int], unlearned: int = 1) -> Conversations:
    """Tokens 0, 1, 2, ... through all conversations; the first `unlearned` of each, at most all but one, are masked."""
    items, first = [], 0
    for size in sizes:
        learned = np.ones(size, np.bool_)
        learned[: min(unlearned, size - 1)] = False
        items.append((np.arange(first, first + size, dtype=np.int32), learned))
        first += size
    return Conversations.of(items, 1 << 20)


def packed(manifest: Manifest, source: Conversations, steps: int) -> tuple[list[int], list[int]]:
    """The tokens and labels of the first steps, in order of sample numbers."""
    order = TrainingOrder(manifest, source)
    batches = [order.sample(step, index) for step in range(steps) for index in range(manifest.microbatches)]
    return tuple([int(n) for batch in batches for n in batch[which].ravel()] for which in (0, 1))  # type: ignore[return-value]


def packing_manifest(seed: int = 0, batch: int = 4, heldout_tokens: int = 32, **data: Any) -> Manifest:
    made = tiny_manifest(seed=seed, batch=batch)
    data = {"format": "jsonl", "sequence_length": LENGTH, "heldout_tokens": heldout_tokens, **data}
    return made.model_copy(update={"settings": made.settings.model_copy(update={"data": DataSettings(**data)})})


SIZES = [3, 11, 1, 7, 40, 2, 5, 5, 9, 13]


def test_every_token_comes_once_a_pass_as_input_and_as_label() -> None:
    source, manifest = numbered(SIZES), packing_manifest()
    total = sum(SIZES)
    tokens, labels = packed(manifest, source, 9)
    bounds = np.cumsum([0, *SIZES])
    first_of = {int(start) for start in bounds[:-1]}
    passes = [tokens[start : start + total] for start in range(0, len(tokens) - total, total)]
    assert len(passes) == 2
    for one in passes:
        assert Counter(one) == Counter(range(total))
    assert passes[0] != passes[1]
    assert Counter(label for label in labels[total : 2 * total] if label != IGNORED).most_common(1)[0][1] == 1
    for (token, following), label in zip(pairwise(tokens), labels, strict=False):
        assert following == token + 1 or following in first_of
        masked = following in first_of and following + 1 not in first_of and following != total - 1
        assert label == (IGNORED if masked else following)


def test_packing_is_a_pure_function_of_seed_step_and_index() -> None:
    manifest = packing_manifest()
    one, other = (TrainingOrder(manifest, numbered(SIZES)) for _ in range(2))
    asked = [(step, index) for step in range(12) for index in range(4)]
    forward = {key: one.sample(*key) for key in asked}
    for key in reversed(asked):
        for came, wanted in zip(other.sample(*key), forward[key], strict=True):
            assert (came == wanted).all()
    seeds = {tuple(packed(packing_manifest(seed=seed), numbered(SIZES), 2)[0]) for seed in range(4)}
    assert len(seeds) == 4


def test_ids_take_two_bytes_and_masks_a_bit() -> None:
    source = Conversations.of([(np.arange(9, dtype=np.int32), np.arange(9) > 3)] * 3, 1 << 16)
    assert (source.tokens.dtype, source.bits.size, len(source)) == (np.uint16, 4, 27)
    ids, learned = source.window(7, 12)
    assert ids.tolist() == [7, 8, *range(9), 0, 1]
    assert learned is not None
    assert learned.tolist() == [n > 3 for n in ids.tolist()]


@pytest.mark.parametrize(("sizes", "unlearned", "gap"), [([20, 20], 15, 15), ([4], 0, 0), ([3, 50, 2], 32, 32)])
def test_a_step_in_which_nothing_would_be_learned_is_refused(sizes: list[int], unlearned: int, gap: int) -> None:
    source = numbered(sizes * 3, unlearned)
    assert source.gap == gap
    if gap < 32:
        TrainingOrder(packing_manifest(), source)
        with pytest.raises(DataError, match="8 tokens can fall into 15" if gap else "at least 9"):
            TrainingOrder(packing_manifest(batch=1), source if gap else numbered([4]))
    else:
        with pytest.raises(DataError, match=r"raise train\.batch"):
            TrainingOrder(packing_manifest(), source)


def test_a_gap_may_reach_over_two_conversations() -> None:
    answered_first = np.array([True] + [False] * 9)
    items = [(np.arange(10, dtype=np.int32), answered_first), (np.arange(10, dtype=np.int32), answered_first[::-1])]
    assert Conversations.of(items, 256).gap == 18


def test_heldout_windows_stand_as_in_the_file() -> None:
    manifest = packing_manifest()
    batches = heldout_batches(manifest, numbered([30, 30]))
    assert [tokens.ravel().tolist() for tokens, _ in batches] == [list(range(n, n + 8)) for n in (0, 8, 16, 24)]
    assert [int((labels == IGNORED).sum()) for _, labels in batches] == [0, 0, 0, 1]
    with pytest.raises(DataError, match="first 32 held-out tokens"):
        heldout_batches(manifest, numbered([60], 50))


# ---- the wire


def test_labels_may_be_ignored_and_nothing_else() -> None:
    labels = np.array([[3, IGNORED], [IGNORED, 9]], dtype=np.int32)
    assert (labels_from_bytes(tokens_to_bytes(labels), 2, 2, 10) == labels).all()
    nothing = np.full((1, 4), IGNORED, dtype=np.int32)
    assert (labels_from_bytes(tokens_to_bytes(nothing), 1, 4, 10) == IGNORED).all()
    with pytest.raises(WireError, match="from -100"):
        tokens_from_bytes(tokens_to_bytes(labels), 2, 2, 10)
    for bad in (-1, -99, -101, 10, 2**31 - 1, -(2**31)):
        with pytest.raises(WireError, match="the vocabulary has 10"):
            labels_from_bytes(np.array([[bad, IGNORED]], dtype="<i4").tobytes(), 1, 2, 10)
    with pytest.raises(WireError, match="12 bytes"):
        labels_from_bytes(bytes(12), 1, 2, 10)


# ---- runs

LONG = "Please read all of this first, and then read it once more, before you say yes or no. " * 2


def write_talks(file: Path, count: int, first: int = 0) -> Path:
    lines: list[Any] = []
    for n in range(first, first + count):
        question = LONG if n % 4 == 0 else f"What is {n} times {n}?"
        lines.append({"messages": [{**ASK, "content": question}, {**ANSWER, "content": f"It is {n * n}."}]})
        lines.append({"prompt": f"{n} and one is", "completion": f" {n + 1}"} if n % 3 else {"text": f"Line {n}."})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("mode", "codecs", "tolerance"), [("lora", ("fp32", "fp32"), 1e-4), ("full", ("int8", "dynamic8"), 1e-3)]
)
def test_a_swarm_on_conversations_agrees_with_the_reference(
    mode: str, codecs: tuple[str, str], tolerance: float, tmp_path: Path
) -> None:
    sources = [
        read_conversations([write_talks(tmp_path / name, 24, first)], ByteTokenizer(), CHATS["tiny"], "assistant")
        for name, first in (("train.jsonl", 0), ("heldout.jsonl", 100))
    ]
    made = tiny_manifest(mode=mode, steps=6, batch=8, activations=codecs[0], gradients=codecs[1])
    data = made.settings.data.model_copy(update={"format": "jsonl", "heldout_tokens": 512})
    manifest = made.model_copy(update={"settings": made.settings.model_copy(update={"data": data})})
    samples = CorpusSamples(manifest, *sources)
    counts = [samples.microbatch(step, index).label_tokens for step in range(6) for index in range(8)]
    assert 0 in counts  # a microbatch of which nothing is learned
    assert 0 in [batch.label_tokens for batch in samples.heldout()]
    report = run(tiny_swarm(manifest, samples=samples).run(), limit=1e6)
    assert_agree(report, run_reference(manifest, *sources, None), tolerance)
    assert_clean(report, 6)
    assert [step["tokens"] for step in report["steps"]] == [sum(counts[n : n + 8]) for n in range(0, 48, 8)]
    assert report["heldout"]["after"] < report["heldout"]["before"]


MANIFEST = """
model.name = "tiny"
[data]
format = "jsonl"
texts = ["{0}/train.jsonl"]
heldout = ["{0}/heldout.jsonl"]
sequence_length = 32
heldout_tokens = 512
"""


def test_a_manifest_fixes_the_conversations_and_their_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, first in (("train.jsonl", 0), ("heldout.jsonl", 100)):
        write_talks(tmp_path / name, 24, first)
    settings = parse_settings(MANIFEST.format(tmp_path))
    prepared = prepare(settings, organizer="0" * 64, nonce="0" * 32)
    assert prepared.manifest.chat_sha256 == CHATS["tiny"].digest
    again = take_up(prepared.manifest).samples()
    assert all(again.microbatch(3, index) == prepared.samples().microbatch(3, index) for index in range(4))
    every = settings.model_copy(update={"data": settings.data.model_copy(update={"loss_on": "all"})})
    loss_on_all = prepare(every, organizer="0" * 64, nonce="0" * 32).samples()
    assert loss_on_all.microbatch(0, 0).label_tokens == 32 > prepared.samples().microbatch(0, 0).label_tokens
    monkeypatch.setattr("swarm_peer.swarm.chat_template.TINY_TOKENS", {"bos_token": "", "eos_token": "\n\n"})
    with pytest.raises(ModelError, match="chat template"):
        take_up(prepared.manifest)


def test_a_template_needs_jsonl() -> None:
    with pytest.raises(ManifestError, match="jsonl"):
        parse_settings('model.name = "tiny"\ndata.chat_template = "x"')
    with pytest.raises(ManifestError, match=r"data\.format"):
        parse_settings('model.name = "tiny"\ndata.format = "csv"')
