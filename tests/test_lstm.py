"""The LSTM behind the decoder's door: its numbers by hand, its state as a cache, its folder, and what it learns."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXTS, WriteRows, random_policy
from letters import LastLetter, models_of, optimise, rl_config
from safetensors.torch import load_file
from torch import Tensor

from accord.algo.table import POLICY_ALGORITHMS
from accord.config import (
    DpoConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RewardConfig,
    RlConfig,
    SftConfig,
    load_recipe,
)
from accord.errors import DataError, UsageError
from accord.loop.run import run
from accord.models.decoder import CausalLM, ScalarModel, init_score_head, init_weights
from accord.models.folder import RewardScale, load_policy, load_scalar, save_policy, save_scalar
from accord.models.lora import add_lora
from accord.models.lstm import LstmConfig
from accord.rollout.engine import Engine, Sampling
from accord.text.batches import Example, collate
from accord.text.tokenizer import Tokenizer
from accord.train.dpo import dpo
from accord.train.likelihood import logp_and_entropy
from accord.train.pretrain import pretrain
from accord.train.reward import reward
from accord.train.rl import rl
from accord.train.sft import sft

PROMPTS = [[5, 9, 3], [7], [11, 4, 8, 13, 2], [7, 7]]


@pytest.fixture
def shape(words: Tokenizer) -> LstmConfig:
    return LstmConfig(vocab_size=words.vocab_size, width=24, num_layers=2, max_positions=64)


@pytest.fixture
def policy(shape: LstmConfig) -> CausalLM:
    return random_lstm(shape, 0)


def random_lstm(shape: LstmConfig, seed: int) -> CausalLM:
    """Far from uniform, in eval mode."""
    return random_policy(shape, seed, std=0.5)


def by_hand(model: CausalLM, ids: list[int]) -> Tensor:
    """Hidden states of one text, token by token, from the equations of the cell; ``(T, D)``."""
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    D = model.config.width
    states = [(torch.zeros(D).double(), torch.zeros(D).double()) for _ in range(model.config.num_layers)]
    told = []
    for token in ids:
        x = weights["model.embed_tokens.weight"][token]
        for layer, (hidden, cell) in enumerate(states):
            into, back, bias_in, bias_back = (
                weights[f"model.lstm.{name}_l{layer}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            i, f, g, o = (into @ x + bias_in + back @ hidden + bias_back).view(4, D)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = x = o.sigmoid() * cell.tanh()
            states[layer] = hidden, cell
        told.append(x)
    return torch.stack(told).float()


# -- the numbers -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_hidden_states_follow_the_equations_padded_or_not(policy: CausalLM) -> None:
    length_B = torch.tensor([3, 1, 5, 2])
    ids_BT = torch.full((4, 5), 19)
    for row, prompt in enumerate(PROMPTS):
        ids_BT[row, : len(prompt)] = torch.tensor(prompt)
    wanted = torch.cat([by_hand(policy, prompt) for prompt in PROMPTS])
    assert float(wanted.std()) > 0.1
    torch.testing.assert_close(policy.model(ids_BT, length_B), wanted, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(policy.model(ids_BT[2:3]), by_hand(policy, PROMPTS[2]), rtol=0.0, atol=1e-5)
    bare = torch.cat([by_hand(policy, [token]) for token in PROMPTS[2]])
    torch.testing.assert_close(policy.model.context_free(torch.tensor(PROMPTS[2])), bare, rtol=0.0, atol=1e-5)


@torch.no_grad()
def test_the_state_is_a_cache(policy: CausalLM) -> None:
    """Prompts enter, one of them twice, rows leave and change places, another enters: each goes on as if alone."""
    rows = [[5, 9, 3], [7], [7]]
    state = policy.model.decoding(0, 0)
    ids_PT, length_P = torch.tensor([[5, 9, 3], [7, 0, 0]]), torch.tensor([3, 1])
    found = policy.model.prefill(state, ids_PT, length_P, torch.tensor([0, 1, 1]))

    def check(hidden_BD: Tensor) -> None:
        wanted = torch.stack([by_hand(policy, row)[-1] for row in rows])
        torch.testing.assert_close(hidden_BD, wanted, rtol=0.0, atol=1e-5)

    def step(tokens: list[int]) -> None:
        for row, token in zip(rows, tokens, strict=True):
            row.append(token)
        check(policy.model.step(state, torch.tensor(tokens)))

    check(found)
    step([4, 5, 6])
    state.keep([2, 0])
    rows = [rows[2], rows[0]]
    step([8, 9])
    rows.append([1, 2])
    policy.model.prefill(state, torch.tensor([[1, 2]]), torch.tensor([2]))
    step([3, 1, 2])
    state.keep([])
    rows = [[6]]
    check(policy.model.prefill(state, torch.tensor([[6]]), torch.tensor([1])))


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
@torch.no_grad()
def test_behaviour_logp_is_the_learners_own(dtype: torch.dtype, gap: float, policy: CausalLM) -> None:
    policy.model.compute_dtype = dtype
    samples = Engine(policy, {0}, max_rows=5).generate(PROMPTS, Sampling(20, 4, 0.8), seed=3)
    batch = collate([Example(s.prompt, s.completion) for s in samples], pad_id=1)
    learner = logp_and_entropy(policy, batch, 0.8, entropy=False)[0]
    sampler = torch.tensor([lp for s in samples for lp in s.behaviour_logp])
    assert float((learner - sampler).abs().max()) < gap
    assert float(learner.std()) > 0.5


def test_dropout_acts_in_training_alone(policy: CausalLM) -> None:
    ids = torch.arange(20).view(2, 10)
    still = policy.model(ids)
    policy.model.dropout = 0.5
    assert torch.equal(policy.model(ids), still)
    policy.train()
    assert not torch.allclose(policy.model(ids), still)
    policy.eval()
    assert torch.equal(policy.model(ids), still)


def test_dropout_acts_between_layers_too(policy: CausalLM) -> None:
    """With embeddings of 0 the dropout of inputs says nothing, and that of outputs only doubles what it keeps."""
    with torch.no_grad():
        policy.model.embed_tokens.weight.zero_()
    ids = torch.arange(20).view(2, 10)
    still = policy.model(ids)
    policy.train()
    policy.model.dropout = 0.5
    found = policy.model(ids)
    kept = found != 0
    assert 0.3 < float(kept.float().mean()) < 0.7
    assert not torch.allclose(found[kept], 2 * still[kept], atol=1e-3)


def test_the_start_follows_the_seed_with_open_forget_gates(shape: LstmConfig) -> None:
    first, second, other = (CausalLM(shape) for _ in range(3))
    for model, seed in ((first, 0), (second, 0), (other, 1)):
        init_weights(model, seed)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.head_weight_VD, other.head_weight_VD)
    bias = first.model.get_parameter("lstm.bias_ih_l1")
    assert bias.view(4, 24).mean(1).tolist() == [0.0, 1.0, 0.0, 0.0]
    assert float(first.head_weight_VD.detach().std()) == pytest.approx(24**-0.5, rel=0.05)


# -- its folder --------------------------------------------------------------------------------------------------------


def test_folders_are_read_back_bit_by_bit(
    policy: CausalLM, shape: LstmConfig, words: Tokenizer, tmp_path: Path
) -> None:
    save_policy(tmp_path / "p", policy, words)
    again, _ = load_policy(tmp_path / "p")
    assert again.config == shape
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), again.parameters(), strict=True))
    scorer, _, _ = load_scalar(tmp_path / "p", head_seed=1)
    save_scalar(tmp_path / "r", scorer, words, RewardScale(0.5, 2.0))
    read, _, scale = load_scalar(tmp_path / "r")
    assert (scale, json.loads((tmp_path / "r" / "config.json").read_text())["model_type"]) == (
        RewardScale(0.5, 2.0),
        "accord_lstm",
    )
    assert torch.equal(read.score.weight, scorer.score.weight)
    with pytest.raises(DataError, match=r"no score\.weight"):
        load_scalar(tmp_path / "p")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_layers": 1}, "lstm.*_l1"),
        ({"num_layers": 3}, "lstm.*_l2 is missing"),
        ({"width": 23}, "shape"),
        ({"width": None}, "width"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    changes: dict[str, Any], says: str, policy: CausalLM, words: Tokenizer, tmp_path: Path
) -> None:
    save_policy(tmp_path / "p", policy, words)
    path = tmp_path / "p" / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(DataError, match=says):
        load_policy(tmp_path / "p")


def test_what_is_the_decoders_alone_is_refused(policy: CausalLM, words: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="accord_lstm"):
        add_lora(policy, LoraConfig(rank=2), 0)
    save_policy(tmp_path / "p", policy, words)
    with pytest.raises(UsageError, match="first layers"):
        load_scalar(tmp_path / "p", head_seed=0, trunk_layers=1)


# -- the stages --------------------------------------------------------------------------------------------------------

SHAPE = ModelConfig(kind="lstm", width=32, layers=2, max_positions=64)
FAST = OptimConfig(lr=1e-2, weight_decay=0.0)


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory, words: Tokenizer) -> dict[str, Path]:
    """Files of a toy world: two to six letters of a to d, and rankings that love an a at the end."""
    folder, draw = tmp_path_factory.mktemp("letters"), random.Random(0)

    def completion() -> str:
        return " " + "".join(draw.choices("abcd", k=draw.randint(2, 6)))

    rows: dict[str, list[dict[str, Any]]] = {
        "texts": [{"text": f"{t.split()[0]}{completion()}"} for t in TEXTS * 40],
        "demos": [{"prompt": t.split()[0], "completion": completion()} for t in TEXTS * 12],
        "prompts": [{"prompt": t.split()[0]} for t in TEXTS],
        "pairs": [
            {"prompt": t.split()[0], "chosen": completion() + "a", "rejected": completion() + draw.choice("bcd")}
            for t in TEXTS * 12
        ],
    }
    # Four prompts hang together, and by itself a stage would hold none of them out.
    for name in ("demos", "pairs"):
        apart = rows[name][::20]
        rows[f"valid_{name}"] = apart * -(-20 // len(apart))  # of fewer than twenty no number is stated
        rows[name] = [row for i, row in enumerate(rows[name]) if i % 20]
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (folder / "tokenizer").mkdir()
    words.save(folder / "tokenizer")
    return {name: folder / f"{name}.jsonl" for name in rows} | {"tokenizer": folder / "tokenizer"}


@pytest.mark.slow
def test_the_whole_chain_teaches_an_lstm_to_end_with_a_letter(letters: dict[str, Path], tmp_path: Path) -> None:
    """Pretraining, SFT, reward model, PPO, and online DPO in its place, each through its ordinary stage."""
    started = pretrain(
        PretrainConfig(precision="fp32", epochs=3, block_tokens=16, batch_blocks=8, share_spellings=True, optim=FAST),
        SHAPE,
        texts=letters["texts"],
        valid_texts=letters["texts"],
        tokenizer=letters["tokenizer"],
        output_dir=tmp_path / "pretrain",
    )
    assert started.valid_nll < 3.0  # it starts at log 320 = 5.77
    tuned = sft(
        SftConfig(precision="fp32", epochs=4, batch_tokens=400, optim=FAST),
        model=started.model,
        data=letters["demos"],
        valid_data=letters["valid_demos"],
        output_dir=tmp_path / "sft",
    )
    assert tuned.valid_nll < started.valid_nll
    taught = reward(
        RewardConfig(
            precision="fp32", epochs=6, pooled_coef=0.5, bag_coef=0.5, self_distill_coef=0.5, dropout=0.0, optim=FAST
        ),
        model=started.model,
        data=letters["pairs"],
        valid_data=letters["valid_pairs"],
        output_dir=tmp_path / "reward",
    )
    assert taught.valid_accuracy > 0.9
    config = RlConfig(
        precision="fp32",
        iterations=30,
        prompts_per_iteration=48,
        max_new_tokens=12,
        ppo_epochs=2,
        minibatches=2,
        kl_coef=0.02,
        eval_every=10,
        actor=OptimConfig(lr=3e-3, schedule="constant", eps=1e-5),
        critic=OptimConfig(lr=3e-3, schedule="constant", eps=1e-5),
    )
    made = rl(config, model=tuned.model, reward_model=taught.model, data=letters["prompts"], output_dir=tmp_path / "rl")
    online = {"online": True, "epochs": 50, "samples_per_prompt": 4, "max_new_tokens": 12}
    direct = dpo(
        DpoConfig(precision="fp32", optim=OptimConfig(lr=1.5e-2), **online),
        model=tuned.model,
        reward_model=taught.model,
        data=letters["prompts"],
        output_dir=tmp_path / "dpo",
    )
    shares = []
    for folder in (tuned.model, made.model, direct.model):
        model, words = load_policy(folder)
        prompts = [words.encode(t.split()[0]) for t in TEXTS]
        samples = Engine(model, words.stop_ids).generate(prompts, Sampling(12, 25), seed=9)
        shares.append(sum(words.decode(s.completion).endswith("a") for s in samples) / len(samples))
    # 200 samples each, and rounding alone moves the last two by .1
    assert shares[0] < 0.4 and shares[1] > 0.65 and shares[2] > 0.65
    assert sorted(made.snapshots) == [10, 20, 30]
    rows = [json.loads(line) for line in (tmp_path / "rl" / "metrics.jsonl").read_text().splitlines()]
    assert max(row["behaviour_gap_max"] for row in rows) < 1e-3
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [*({"algorithm": name} for name in POLICY_ALGORITHMS), {"values": {"shared": True}}, {"entropy_coef": 0.1}],
    ids=str,
)
def test_every_row_moves_an_lstm_from_its_reference(
    settings: dict[str, Any], policy: CausalLM, words: Tokenizer, tmp_path: Path
) -> None:
    save_policy(tmp_path / "lstm", policy, words)
    group = 1 if POLICY_ALGORITHMS[str(settings.get("algorithm", "ppo"))].min_group == 1 else 4
    sizes = {"iterations": 3, "prompts_per_iteration": 24 // group, "samples_per_prompt": group}
    config = rl_config(**sizes, kl_coef=0.05, **settings)
    models = models_of(tmp_path / "lstm", LastLetter(), config)
    stats = optimise(config, models)
    assert (stats[0]["kl"], stats[0]["kl_k3"]) == (0.0, 0.0)
    assert stats[-1]["kl_k3"] > 0
    for row in stats:
        assert row["behaviour_gap_max"] < 1e-3
        assert row["first_ratio_max"] == pytest.approx(1.0, abs=1e-4)
        assert all(torch.tensor(list(row.values())).isfinite())
    for now, start in zip(models.policy.parameters(), models.reference.parameters(), strict=True):
        assert not torch.equal(now, start)


@pytest.mark.slow
def test_the_whole_run_in_smoke_size(tmp_path: Path) -> None:
    """Every stage of the demo, its judge, its report and the policy that the judge chose."""
    artefacts = os.environ.get("ACCORD_TEST_ARTEFACTS")
    if not artefacts:
        pytest.skip("ACCORD_TEST_ARTEFACTS names no folder with the two artefacts")
    recipe = load_recipe("smoke", ["model.kind=lstm"])
    run(recipe, output_dir=tmp_path, from_dir=Path(artefacts))
    for folder in ("pretrain/model", "sft/model", "rl/model", "rl/snapshots/step_000001", "model"):
        assert isinstance(load_policy(tmp_path / folder)[0].config, LstmConfig)
    assert isinstance(load_scalar(tmp_path / "reward" / "model")[0].config, LstmConfig)
    assert json.loads((tmp_path / "eval" / "results.json").read_text())["selections"]["ppo"]["step"] in (1, 2)
    assert "an LSTM, 1 layers" in (tmp_path / "README.md").read_text()


class Stop(Exception):
    """Ends a stage amid its work."""


def stopping(at: float) -> Callable[[float, str], None]:
    def log(fraction: float, text: str) -> None:
        if fraction >= at:
            raise Stop

    return log


@pytest.mark.slow
def test_stages_that_were_stopped_end_bit_identical(
    policy: CausalLM,
    shape: LstmConfig,
    letters: dict[str, Path],
    words: Tokenizer,
    write_rows: WriteRows,
    tmp_path: Path,
) -> None:
    save_policy(tmp_path / "p", policy, words)
    scorer = ScalarModel(shape)
    init_weights(scorer, 1)
    init_score_head(scorer, 1)
    save_scalar(tmp_path / "r", scorer, words, RewardScale())
    texts = {"texts": letters["texts"], "valid_texts": letters["prompts"], "tokenizer": letters["tokenizer"]}
    texts["valid_texts"] = write_rows("valid.jsonl", [{"text": TEXTS[0]}])
    learn = PretrainConfig(
        precision="fp32", epochs=0.3, block_tokens=16, batch_blocks=4, dropout=0.2, checkpoint_every=3
    )
    optimise = RlConfig(
        precision="fp32", iterations=6, prompts_per_iteration=6, max_new_tokens=8, kl_target=0.1, checkpoint_every=2
    )
    models = {"model": tmp_path / "p", "reward_model": tmp_path / "r", "data": letters["prompts"]}
    jobs: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Path]]] = [
        (pretrain, (learn, SHAPE), texts),
        (rl, (optimise,), models),
    ]
    for stage, configs, inputs in jobs:
        whole, stopped = tmp_path / stage.__name__ / "whole", tmp_path / stage.__name__ / "stopped"
        stage(*configs, **inputs, output_dir=whole)
        with pytest.raises(Stop):
            stage(*configs, **inputs, output_dir=stopped, log=stopping(0.7))
        assert list((stopped / "checkpoints").iterdir())
        stage(*configs, **inputs, output_dir=stopped)
        first, second = (load_file(out / "model" / "model.safetensors") for out in (whole, stopped))
        assert all(torch.equal(first[name], second[name]) for name in first)
