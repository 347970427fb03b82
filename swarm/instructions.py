"""Instruction data: which characters of a line are learned, then which tokens.

What is learned of a conversation is what the model must write: each assistant turn from the end of the generation
prompt to the end of the turn, its end-of-turn token included. Both ends are found by rendering: messages[:k] with the
generation prompt, and messages[:k+1] without. Each must be how the whole conversation begins; a template of which
that is not true (one that drops the thoughts of earlier turns, say) is refused. A prompt's completion and a text end
with the tokenizer's `eos_token`, which is learned too.

The whole is tokenized at once and a token counts where it begins: one that begins before an assistant turn is not
learned, since at inference the model never has to write it.

Errors: `DataError` naming file and line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .chat_template import ChatTemplate, Message
from .jsonl import Completion, Conversation, numbered_lines, parse_line
from .packing import Conversations
from .tokenizer import Tokenizer

LossOn = Literal["assistant", "all"]


@dataclass(frozen=True, slots=True)
class Marked:
    """A text and the spans of characters, [first, last), in order and apart, that are learned."""

    text: str
    learned: tuple[tuple[int, int], ...]


def mark(line: Conversation | Completion, chat: ChatTemplate, loss_on: LossOn) -> Marked:
    """What a line says to the model, and what of it is learned. Raises `DataError`."""
    if isinstance(line, Completion):
        text = line.prompt + line.completion + chat.end
        return Marked(text, ((0 if loss_on == "all" else len(line.prompt), len(text)),))
    whole = chat.render(line.messages)
    if loss_on == "all":
        return Marked(whole, ((0, len(whole)),))
    turns = [place for place, message in enumerate(line.messages) if message["role"] == "assistant"]
    if not turns:
        raise DataError(
            'has no message of the assistant, so nothing to learn: take it out, or set data.loss_on = "all"'
        )
    return Marked(whole, tuple(_span(line.messages, place, whole, chat) for place in turns))


def _span(messages: Sequence[Message], place: int, whole: str, chat: ChatTemplate) -> tuple[int, int]:
    before = chat.render(messages[:place], prompt=True)
    after = chat.render(messages[: place + 1])
    if not whole.startswith(after) or not after.startswith(before):
        raise DataError(
            f"the chat template renders the conversation up to messages[{place}] otherwise than within the whole, so "
            'what the assistant says cannot be told apart: set another data.chat_template, or data.loss_on = "all"'
        )
    return len(before), len(after)


def tokenize(marked: Marked, tokenizer: Tokenizer) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Token ids [n] and whether each is learned [n]."""
    ids, starts = tokenizer.encode_with_starts(marked.text)
    bounds = np.array(marked.learned, dtype=np.int64).ravel()
    return ids, np.searchsorted(bounds, starts, side="right") % 2 == 1


def read_conversations(
    paths: Sequence[Path], tokenizer: Tokenizer, chat: ChatTemplate, loss_on: LossOn
) -> Conversations:
    """Every line of every file, in order. Raises `DataError`."""

    text_bytes = 0

    def read() -> Iterator[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
        nonlocal text_bytes
        for path in paths:
            for number, line in numbered_lines(path):
                try:
                    marked = mark(parse_line(line), chat, loss_on)
                    text_bytes += len(marked.text.encode())
                    ids, learned = tokenize(marked, tokenizer)
                    if not learned.any():
                        raise DataError("the tokenizer leaves nothing of it that is learned: take it out")
                except DataError as error:
                    raise DataError(f"{path}, line {number}: {error}") from error
                yield ids, learned

    conversations = Conversations.of(read(), tokenizer.vocab_size)
    return replace(conversations, text_bytes=text_bytes)
