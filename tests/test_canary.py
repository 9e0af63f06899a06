"""A canary on a real server: sticky conversations, models that change under load, and an end to a worse one."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from conftest import CHAT_TEMPLATE, random_policy
from serverapp import Server, eventually, serving

from accord.config import AdmitConfig, CanaryConfig, GatesConfig, Recipe, TaskConfig
from accord.errors import DataError
from accord.loop.turn import Rounds, TurnRecord, take_turn
from accord.models.placement import PLAIN
from accord.serve.aliases import CANARY, PROD, AliasFile, ServedModel
from accord.serve.canary import conversation_of, is_canarys
from accord.serve.feedback import FeedbackBook
from accord.serve.served import ServeSettings, open_served, weights_version
from accord.serve.switch import Switch
from accord.store import Store
from accord.text.tokenizer import load_tokenizer

_KEYS = count()
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def models(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ServedModel]:
    """Two chat models of their own weights."""
    from accord.models.folder import save_policy, shape_of

    folder = tmp_path_factory.mktemp("other") / "model"
    save_policy(folder, random_policy(shape_of(chat_model), 5, 0.1), load_tokenizer(chat_model))  # type: ignore[arg-type]
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return {name: ServedModel(path, weights_version(path)) for name, path in ((PROD, chat_model), (CANARY, folder))}


class Place:
    """A server that follows aliases, and its users."""

    def __init__(self, server: Server, switch: Switch, store: Store) -> None:
        self.server, self.switch, self.store = server, switch, store

    def talk(self, user: str, *said: str) -> tuple[str, str]:
        """Return the version that answers a conversation, and the token of its answer."""
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
        answer = self.server.answered(CHAT, {"messages": turns, "max_tokens": 2, "user": user})
        return answer["system_fingerprint"], answer["choices"][0]["feedback"]["token"]

    def thumb(self, token: str, value: bool) -> None:
        headers = {"Idempotency-Key": f"key-{next(_KEYS):08d}"}
        body = {"feedback_token": token, "kind": "thumb", "value": value}
        assert self.server.post("/v1/feedback", body, headers=headers).status_code == 201


@pytest.fixture
def place(models: dict[str, ServedModel], tmp_path: Path) -> Iterator[Place]:
    settings = ServeSettings(rows=4, context=128, placement=PLAIN)
    aliases = AliasFile(tmp_path / "rounds/models")
    aliases.move({PROD: models[PROD]}, "first")
    with Store.open(tmp_path / "accord.db") as store:
        served = open_served({"shop": models[PROD].folder}, settings)
        switch = Switch(aliases, served, "shop", store, every_s=0.02, grace_s=0.1, again_s=0.05).start()
        with serving({}, served=served, book=FeedbackBook(store, b"secret"), switch=switch) as server:
            yield Place(server, switch, store)
        switch.stop()


def begin(place: Place, models: dict[str, ServedModel], share: float = 0.5) -> None:
    place.switch.aliases.move({CANARY: ServedModel(models[CANARY].folder, models[CANARY].version, share)}, "a canary")
    eventually(lambda: CANARY in place.switch.served.policies)


def test_a_share_of_conversations_by_their_names() -> None:
    names = [conversation_of(f"u{n}", [{"role": "user", "content": f"Hello {n}"}]) for n in range(4000)]
    mine = {name for name in names if is_canarys(name, "v2", 0.05)}
    assert 130 < len(mine) < 270 and mine == {name for name in names if is_canarys(name, "v2", 0.05)}
    other = {name for name in names if is_canarys(name, "v3", 0.05)}
    assert len(mine & other) < 40  # another version has other conversations
    assert not any(is_canarys(name, "v2", 0.0) for name in names)


def test_a_conversation_keeps_who_answers_it(place: Place, models: dict[str, ServedModel]) -> None:
    begin(place, models)
    versions = {}
    for n in range(16):
        first, _ = place.talk(f"u{n}", f"Hello {n}")
        later, _ = place.talk(f"u{n}", f"Hello {n}", "An answer.", "And then?")
        assert first == later
        versions[n] = first
    assert set(versions.values()) == {models[PROD].version, models[CANARY].version}
    place.switch.aliases.move({CANARY: None}, "enough")
    eventually(lambda: CANARY not in place.switch.served.policies)
    assert {place.talk(f"u{n}", f"Hello {n}")[0] for n in range(16)} == {models[PROD].version}


@pytest.mark.slow
def test_a_worse_canary_ends_by_itself_and_a_better_one_does_not(place: Place, models: dict[str, ServedModel]) -> None:
    begin(place, models)
    for n in range(30):
        version, token = place.talk(f"u{n}", f"Hello {n}")
        place.thumb(token, version == models[CANARY].version)
    assert CANARY in place.switch.aliases.all()
    place.switch.aliases.move({CANARY: None}, "enough")
    begin(place, models)
    for n in range(30, 130):
        if CANARY not in place.switch.aliases.all():
            break
        version, token = place.talk(f"u{n}", f"Hello {n}")
        place.thumb(token, version != models[CANARY].version)
    eventually(lambda: CANARY not in place.switch.served.policies, 20)
    last = place.switch.aliases.history()[-1]
    assert (
        last["alias"] == CANARY
        and last["to"] is None
        and last["why"].startswith("paused by itself: worse; canary 0.000")
    )
    assert place.talk("u0", "Hello again")[0] == models[PROD].version


def test_models_change_under_load_and_no_request_is_dropped(place: Place, models: dict[str, ServedModel]) -> None:
    found: list[str] = []
    faults: list[BaseException] = []

    def ask(name: str) -> None:
        try:
            found.extend(place.talk(name, f"Question {n}")[0] for n in range(25))
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=ask, args=(f"user {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for name in (CANARY, PROD, CANARY):
        eventually(lambda: len(found) % 7 == 3 or not any(map(threading.Thread.is_alive, threads)))
        place.switch.aliases.move({PROD: models[name]}, f"to {name}")
        version = models[name].version
        eventually(lambda version=version: place.switch.served.policies["shop"].version == version)  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert not faults and len(found) == 100
    assert place.talk("u", "Now?")[0] == models[CANARY].version


# ---- what a round makes of it ----------------------------------------------------------------------------------------


def canary_round(place: Place, models: dict[str, ServedModel], **config: Any) -> Any:
    """A round that has come as far as its canary; each call looks at it again."""
    rounds = Rounds(place.switch.aliases.folder.parent)
    canary = CanaryConfig(share=0.5, **config)
    if not rounds.records():
        rows = {name: {"folder": str(one.folder), "version": one.version} for name, one in models.items()}
        rounds.write(
            TurnRecord(
                1, "canary", 0.0, GatesConfig().model_dump(), canary.model_dump(), rows[PROD], candidate=rows[CANARY],
                decided_at=1.0,
            )
        )  # fmt: skip
        begin(place, models)
    recipe = Recipe(task=TaskConfig(use="store"), canary=canary, admit=AdmitConfig())
    return take_turn(recipe, output_dir=rounds.folder, store=str(place.store.place), start=models[PROD].folder)


@pytest.mark.slow
def test_a_round_promotes_a_canary_that_users_like_and_waits_before(
    place: Place, models: dict[str, ServedModel]
) -> None:
    assert canary_round(place, models).state == "canary"
    for n in range(60):
        version, token = place.talk(f"u{n}", f"Hello {n}")
        place.thumb(token, version == models[CANARY].version)
    told = canary_round(place, models)
    assert told.state == "promoted" and told.found[-1]["passed"] and "not worse" in told.sentences[-1]
    assert place.switch.aliases.get(PROD) is not None
    assert place.switch.aliases.get(PROD).version == models[CANARY].version  # type: ignore[union-attr]
    assert CANARY not in place.switch.aliases.all()


@pytest.mark.slow
def test_a_round_refuses_what_the_server_took_back_or_stays_undecided(
    place: Place, models: dict[str, ServedModel]
) -> None:
    canary_round(place, models, most=10)
    place.switch.aliases.move({CANARY: None}, "paused by itself: worse")
    assert canary_round(place, models, most=10).reasons == ("paused by itself: worse",)
    shutil.rmtree(place.switch.aliases.folder.parent / "0001")
    canary_round(place, models, most=10)
    for n in range(36):
        place.thumb(place.talk(f"v{n}", f"Hello {n}")[1], bool(n % 2))
    told = canary_round(place, models, most=10)
    assert told.state == "refused" and "undecided" in told.reasons[0] and CANARY not in place.switch.aliases.all()


def test_a_model_that_could_not_be_loaded_is_tried_again(
    place: Place, models: dict[str, ServedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of ours or of the machine's ends no watching: what is served goes on, and the move is followed later."""
    from accord.serve import switch as module

    faults: list[Exception] = [DataError("half written"), RuntimeError("out of memory"), MemoryError()]
    opens = module.open_policy

    def failing(*args: Any) -> Any:
        if faults:
            raise faults.pop(0)
        return opens(*args)

    monkeypatch.setattr(module, "open_policy", failing)
    place.switch.aliases.move({PROD: models[CANARY]}, "a better one")
    assert place.talk("u", "Hello")[0] in (models[PROD].version, models[CANARY].version)
    eventually(lambda: place.talk("u", "Hello")[0] == models[CANARY].version)
    assert faults == []
