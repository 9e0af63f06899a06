"""Conversations as ids, with a mask that is True on what the assistant wrote."""

from __future__ import annotations

from collections.abc import Sequence

from accord.errors import DataError
from accord.text.batches import Example
from accord.text.template import Message
from accord.text.tokenizer import Tokenizer


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message], counted_from: int = 0) -> Example:
    """Return a conversation as one example: the assistant's turns and their end tokens count, all other tokens do not.

    The ids are those of the rendered text; the mask is that of `transformers`' ``return_assistant_tokens_mask`` for
    templates with ``{% generation %}`` blocks, and of `ChatTemplate.assistant_spans` for others. (A character that
    takes several tokens counts with all of them; `transformers` drops all but the first at a block's very end.)
    A last turn that the template leaves open, or ends with other than a stop token, is closed by ``tokenizer.end_id``
    where the assistant's words end. Turns before message ``counted_from`` do not count.

    Raises:
        DataError: The model has no chat template, the template refuses the messages, or nothing counts.
    """
    if tokenizer.chat is None:
        raise DataError("the model has no chat template", hint="give a chat model's folder, or write texts")
    text, spans = tokenizer.chat.assistant_spans(messages, counted_from)
    ids, places = tokenizer.encode_spans(text)
    # A token counts if any of its characters does: by its last character, a block that ends within a token would lose
    # it.
    mask = [any(start < b and a < end for start, end in spans) for a, b in places]
    if True in mask and messages[-1]["role"] == "assistant" and not tokenizer.chat.has_generation_blocks:
        behind = len(mask) - mask[::-1].index(True)
        if not set(ids[behind - 1 :]) & set(tokenizer.stop_ids):
            # Closed, or the policy would learn to write on after its turn.
            ids, mask = [*ids[:behind], tokenizer.end_id], [*mask[:behind], True]
    if not any(mask[1:]):
        raise DataError("no token of an assistant's turn counts", where=tokenizer.chat.where)
    first = max(1, mask.index(True))  # nothing predicts the first token
    return Example(tuple(ids[:first]), tuple(ids[first:]), tuple(mask[first:]))
