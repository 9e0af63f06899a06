"""Open-Assistant's exports (Koepf et al. 2023): trees, flat messages, threads.

* trees: ``{"message_tree_id", "tree_state", "prompt": {"message_id", "text", "role", "rank", "replies": [..], ..}}``
* flat messages: one row a message, with ``message_id`` and ``parent_id``; the rows of a tree stand together, a parent
  before its replies
* threads: ``{"thread_id", "thread": [message, ..]}``, one path from the root down

An item is one prompter's message (with all that was said before it) and the assistant's replies to it. Messages that
are ``deleted`` or failed their review (``review_result`` false) are left out, with what hangs below them. Where at
least two replies have a ``rank`` (0 = best) the item is a ranking: a consensus of several people. Replies without a
rank keep their place in it, unranked; a reply that stands alone is a sample, not a judgement. Thumbs (``emojis``) and
labels are sums over people and stay in ``extra``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from accord.errors import DataError
from accord.formats.format import Fields, Format, OnLeftOut, has, item_by_item, row_by_row
from accord.formats.item import CannotSay, Item, Turns, cannot, plain_turns, reply_of, turns_of
from accord.formats.rows import InputRow, OnReject, is_moment, reject_of
from accord.records import Source, content_id

# Their words and the field's.
_ROLES = {"prompter": "user", "assistant": "assistant"}
_NAMES = {role: name for name, role in _ROLES.items()}
_KEPT = ("message_id", "emojis", "labels", "lang")


@dataclass
class _Node:
    """A message while its tree is put together."""

    fields: dict[str, Any]
    replies: list[_Node] = field(default_factory=list)

    @property
    def role(self) -> str:
        return _ROLES[self.fields["role"]]

    @property
    def turn(self) -> dict[str, str]:
        return {"role": self.role, "content": self.fields["text"]}


def _node(row: InputRow, value: Any, where: str) -> _Node:
    """Return one message without its replies, checked."""
    fields = dict(row.object(where, value))
    fields.pop("replies", None)
    row.string(f"{where}.text", fields.get("text"))
    if (role := row.string(f"{where}.role", fields.get("role"))) not in _ROLES:
        row.fail(f"{where}.role", f"is {role[:40]!r}", "write prompter or assistant")
    if fields.get("rank") is not None:
        row.number(f"{where}.rank", fields["rank"])
    return _Node(fields)


def _is_kept(node: _Node) -> bool:
    # null is not false: messages that nobody reviewed yet stand in the exports too.
    return not node.fields.get("deleted") and node.fields.get("review_result") is not False


def _tree(row: InputRow, value: Any) -> _Node:
    """Return the nodes of a nested message, without recursion: a thread may be hundreds deep."""
    root = _node(row, value, "prompt")
    open_nodes = [(root, value)]
    while open_nodes:
        node, fields = open_nodes.pop()
        for reply in row.listed("replies", fields.get("replies") or []):
            child = _node(row, reply, "replies")
            node.replies.append(child)
            open_nodes.append((child, reply))
    return root


def _items(root: _Node, extra: Fields) -> Iterator[Item]:
    """Yield an item for each prompter's message, a parent's before those below it."""
    open_nodes: list[tuple[_Node, Turns]] = [(root, ())]
    while open_nodes:
        node, before = open_nodes.pop()
        if not _is_kept(node):
            continue
        said = (*before, node.turn)
        replies = [reply for reply in node.replies if _is_kept(reply)]
        if node.role == "user" and not node.fields.get("context"):
            answers = [reply for reply in replies if reply.role == "assistant" and not reply.fields.get("context")]
            yield _item(said, answers, {**extra, **_notes(node)})
        # Reversed onto a stack: items come in the order of the file.
        open_nodes += [(reply, said) for reply in reversed(replies)]


def _item(said: Turns, answers: list[_Node], extra: Fields) -> Item:
    # Theirs start at 0, ours at 1.
    ranks = tuple(None if (rank := answer.fields.get("rank")) is None else rank + 1 for answer in answers)
    # One rank orders nothing.
    ranked = sum(rank is not None for rank in ranks) >= 2
    replies = {"replies": notes} if any(notes := [_notes(answer) for answer in answers]) else {}
    return Item(
        prompt=said,
        completions=tuple(answer.fields["text"] for answer in answers),
        ranks=ranks if ranked else (),
        created_at=_last(answer.fields.get("created_date") for answer in answers) if ranked else "",
        sources=tuple(map(_source, answers)),
        extra={**extra, **replies},
    )


def _last(dates: Iterable[Any]) -> str:
    return max((date for date in dates if isinstance(date, str) and is_moment(date)), default="")


def _source(answer: _Node) -> Source | None:
    if answer.fields.get("synthetic"):
        return Source(origin="policy", name=str(answer.fields.get("model_name") or "unknown"))
    # Volunteers wrote the rest.
    return Source(origin="human", name="Open-Assistant")


def _notes(node: _Node) -> Fields:
    return {name: node.fields[name] for name in _KEPT if node.fields.get(name)}


# -- reading -----------------------------------------------------------------------------------------------------------


def _read_tree(row: InputRow) -> Iterable[Item]:
    extra = {"message_tree_id": row.fields["message_tree_id"]} if "message_tree_id" in row else {}
    return list(_items(_tree(row, row.get("prompt")), extra))


def _read_flat(rows: Iterable[InputRow], on_reject: OnReject) -> Iterator[Item]:
    """Put trees together from rows that follow each other; holds one tree at a time."""
    nodes: dict[str, _Node] = {}
    root: _Node | None = None
    tree_id = ""
    for row in rows:
        try:
            node, parent = _node(row, dict(row.fields), "message"), row.fields.get("parent_id")
            if parent is None:
                if root is not None:
                    yield from _items(root, {"message_tree_id": tree_id})
                root, nodes, tree_id = node, {}, str(row.fields.get("message_tree_id") or row.text("message_id"))
            elif row.string("parent_id", parent) not in nodes:
                row.fail(
                    "parent_id", f"{str(parent)[:60]!r} is not among the rows before", "keep a tree's rows together"
                )
            else:
                nodes[parent].replies.append(node)
            nodes[row.text("message_id")] = node
        except DataError as error:
            on_reject(reject_of(error, row.where, row.shown()))
    if root is not None:
        yield from _items(root, {"message_tree_id": tree_id})


def _read_thread(row: InputRow) -> Iterable[Item]:
    nodes = [_node(row, value, f"thread[{i}]") for i, value in enumerate(row.items("thread"))]
    if not nodes:
        row.fail("thread", "is empty", "remove the row")
    kept = all(map(_is_kept, nodes))
    return [Item(prompt=None, completions=(tuple(node.turn for node in nodes),))] if kept else []


# -- writing -----------------------------------------------------------------------------------------------------------


def _message(turn: Fields, **others: Any) -> dict[str, Any]:
    if turn["role"] not in _NAMES:
        cannot("Open-Assistant knows prompter and assistant only")
    return {"text": turn["content"], "role": _NAMES[turn["role"]], **others, "replies": []}


class _Growing:
    """The tree being written: items that continue it are hung below what they answer."""

    def __init__(self, said: list[dict[str, str]], name: str) -> None:
        self.name = name
        self.root = _message(said[0], context=True)
        self.taken: set[int] = set()

    def place(self, said: list[dict[str, str]]) -> dict[str, Any] | None:
        """Return the free node of a prompt's last turn, made where it is missing.

        None where there is none in this tree.

        Nodes on the way that no item is about are marked as ``context``: they are no items when read again.
        """
        node, peers = self.root, [self.root]
        for depth, turn in enumerate(said):
            name = _NAMES[turn["role"]]
            found = next((peer for peer in peers if peer["text"] == turn["content"] and peer["role"] == name), None)
            if found is None and depth == 0:
                return None
            if found is None:
                found = _message(turn, context=True)
                node["replies"].append(found)
            node, peers = found, found["replies"]
        # A second item about the same turn would overwrite the first one's replies.
        if id(node) in self.taken or node["replies"]:
            return None
        self.taken.add(id(node))
        return node


def _write_trees(items: Iterable[Item], on_left_out: OnLeftOut) -> Iterator[Fields]:
    growing: _Growing | None = None
    for item in items:
        try:
            said, replies = _asked(item), _replies(item)
        except CannotSay as reason:
            on_left_out(str(reason))
            continue
        name = str(item.extra.get("message_tree_id", ""))
        node = growing.place(said) if growing is not None and growing.name == name else None
        if node is None:
            if growing is not None:
                yield _finished(growing)
            growing = _Growing(said, name)
            node = growing.place(said)
            assert node is not None
        node.pop("context", None)
        node["replies"] = replies
        node.update({key: item.extra[key] for key in _KEPT if key in item.extra})
    if growing is not None:
        yield _finished(growing)


def _asked(item: Item) -> list[dict[str, str]]:
    if item.kind not in ("ranking", "sample", "demonstration", "prompt"):
        cannot(f"a {item.kind} has no place in a tree")
    said = plain_turns(turns_of(item.prompt))
    if not said or said[0]["role"] != "user" or said[-1]["role"] != "user":
        cannot("the prompt does not begin and end with the user")
    if any(turn["role"] not in _NAMES for turn in said):
        cannot("Open-Assistant knows prompter and assistant only")
    return said


def _replies(item: Item) -> list[dict[str, Any]]:
    order = sorted({rank for rank in item.ranks if rank is not None})
    replies = []
    for i, text in enumerate(item.completions):
        rank = item.ranks[i] if item.ranks else None
        # Without gaps, as they have them: 1, 3, 3 becomes 0, 1, 1.
        others: dict[str, Any] = {"rank": None if rank is None else order.index(rank)} if item.ranks else {}
        source = item.sources[i] if item.sources else None
        if source is not None and source.origin == "policy":
            others |= {"synthetic": True, "model_name": source.name}
        if item.created_at:
            others["created_date"] = item.created_at
        turn = {"role": "assistant", "content": reply_of(text)}
        replies.append(_message(turn, **others, **_noted(item, i)))
    return replies


def _noted(item: Item, i: int) -> Fields:
    """Return what the file said of reply i besides."""
    notes = item.extra.get("replies")
    known = isinstance(notes, list) and len(notes) == len(item.completions) and isinstance(notes[i], dict)
    return {name: notes[i][name] for name in _KEPT if name in notes[i]} if notes and known else {}


def _finished(growing: _Growing) -> Fields:
    """Return the tree as a row, with the ids and states that its messages lack."""
    open_nodes = [(growing.root, "", 0)]
    while open_nodes:
        node, parent, place = open_nodes.pop()
        # From what it says and where it stands: the same items give the same file.
        node.setdefault("message_id", content_id("message", [parent, place, node["text"]])[3:])
        node |= {"parent_id": parent or None, "deleted": False, "review_result": True}
        open_nodes += [(reply, node["message_id"], i) for i, reply in enumerate(node["replies"])]
    tree_id = growing.name or growing.root["message_id"]
    return {"message_tree_id": tree_id, "tree_state": "ready_for_export", "prompt": growing.root}


def _write_flat(items: Iterable[Item], on_left_out: OnLeftOut) -> Iterator[Fields]:
    for tree in _write_trees(items, on_left_out):
        open_nodes = [tree["prompt"]]
        while open_nodes:
            node = open_nodes.pop()
            open_nodes += reversed(node["replies"])
            states = {"message_tree_id": tree["message_tree_id"], "tree_state": tree["tree_state"]}
            yield {name: value for name, value in node.items() if name != "replies"} | states


def _write_thread(item: Item) -> Iterable[Fields]:
    if item.kind != "conversation":
        cannot(f"a {item.kind} is no thread")
    said = [_message(turn) for turn in plain_turns(turns_of(item.completions[0]))]
    thread = [{name: value for name, value in message.items() if name != "replies"} for message in said]
    return [{"thread_id": item.extra.get("thread_id") or content_id("thread", thread)[3:], "thread": thread}]


# -- the rows of the table ---------------------------------------------------------------------------------------------


def _tree_why(fields: Fields) -> str:
    found = has(fields, prompt=dict) and {"text", "role"} <= fields["prompt"].keys()
    return '"prompt" is a message with its replies in it' if found else ""


def _flat_why(fields: Fields) -> str:
    found = has(fields, message_id=str, text=str) and fields.get("role") in list(_ROLES)
    return '"message_id", "text" and a "role" of prompter or assistant' if found else ""


def _thread_why(fields: Fields) -> str:
    return '"thread" is a list of messages' if has(fields, thread=list) and "thread_id" in fields else ""


_TREE_FIELDS = frozenset(("message_tree_id", "tree_state", "prompt", "origin"))
_FLAT_FIELDS = frozenset(("message_id", "parent_id", "message_tree_id", "tree_state", "text", "role", "lang", "rank"))
_FLAT_FIELDS |= {"deleted", "review_result", "synthetic", "model_name"}
_THREAD_FIELDS = frozenset(("thread",))
OASST_TREES = Format(
    "oasst-trees",
    "Open-Assistant: trees",
    _TREE_FIELDS,
    _tree_why,
    row_by_row(_read_tree, _TREE_FIELDS),
    _write_trees,
    main=("ranking",),
)
OASST_MESSAGES = Format(
    "oasst-messages",
    "Open-Assistant: flat messages",
    _FLAT_FIELDS,
    _flat_why,
    _read_flat,
    _write_flat,
    main=("ranking",),
    joined=True,
)
OASST_THREADS = Format(
    "oasst-threads",
    "Open-Assistant: threads",
    _THREAD_FIELDS,
    _thread_why,
    row_by_row(_read_thread, _THREAD_FIELDS),
    item_by_item(_write_thread),
)
