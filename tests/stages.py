"""The stages of Accord on a device, each small enough for a second: `pretended` and `test_gpu` run them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from accord import config as c
from accord.evals.samples import LoadedPolicy, draw_samples
from accord.models.decoder import CausalLM, init_weights
from accord.models.folder import load_policy, load_scalar, save_policy
from accord.models.lstm import LstmConfig
from accord.models.placement import Placement
from accord.models.shape import DecoderConfig
from accord.rollout.engine import Engine, Sampling
from accord.scoring.ensemble import Ensemble
from accord.scoring.reward_model import RewardModel
from accord.text.batches import Example
from accord.text.tokenizer import load_tokenizer, train_tokenizer
from accord.train.dpo import dpo
from accord.train.learner import Learner
from accord.train.pretrain import pretrain
from accord.train.reward import reward
from accord.train.rl import rl
from accord.train.sft import sft, sft_losses

STARTS = ("Bread", "The fog", "Nobody", "A film")
FAST = c.OptimConfig(lr=2e-3)
MODEL = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 48, "max_positions": 64}
Numbers = list[float]


class Bench:
    """Files and a policy to start from, and the stages on one device; a stage returns what it wrote down."""

    def __init__(self, folder: Path, device: str) -> None:
        self.folder, self.device = folder, device
        draw = random.Random(0)

        def text() -> str:
            return " " + "".join(draw.choices("abcd", k=draw.randint(2, 6)))

        rows: dict[str, list[dict[str, Any]]] = {
            "texts": [{"text": start + text()} for start in STARTS * 20],
            "prompts": [{"prompt": start} for start in STARTS],
            "demos": [{"prompt": start, "completion": text()} for start in STARTS * 6],
            "ranks": [
                {"prompt": start, "completions": [text() + x for x in "abcd"], "ranks": [1, 2, 2, 3]}
                for start in STARTS * 6
            ],
            "thumbs": [{"prompt": s, "completion": text(), "label": i % 2 == 0} for i, s in enumerate(STARTS * 6)],
        }
        for name, content in rows.items():
            self.path(name).write_text("".join(json.dumps(row) + "\n" for row in content))
        self.words = train_tokenizer([row["text"] for row in rows["texts"]], 280)
        self.words.save(folder)
        window: dict[str, Any] = {"family": "mistral", "window": 6, "windowed": (True, False)}
        shape = DecoderConfig(self.words.vocab_size, 32, 48, 2, 4, 2, 8, 64, **window)
        policy = CausalLM(shape)
        init_weights(policy, 0)
        save_policy(self.start, policy, self.words)

    @classmethod
    def opened(cls, folder: Path) -> Bench:
        """The bench that another process has made in a folder, on the CPU."""
        bench = cls.__new__(cls)
        bench.folder, bench.device, bench.words = folder, "cpu", load_tokenizer(folder)
        return bench

    @property
    def start(self) -> Path:
        return self.folder / "start"

    @property
    def placement(self) -> Placement:
        return Placement("fp32", self.device)

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def config(self, kind: type[c.Training], **changes: Any) -> Any:
        """Settings of a stage, on the device: a name that no recipe may say."""
        return kind(**{"precision": "fp32"} | changes).model_copy(update={"device": self.device})

    def numbers(self, name: str) -> Numbers:
        lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
        return [x for line in lines for key, x in sorted(json.loads(line).items()) if key != "seconds"]

    def pretrain(self, kind: str, **changes: Any) -> Path:
        settings = {"epochs": 1, "block_tokens": 16, "batch_blocks": 8, "dropout": 0.1, "share_spellings": True}
        return pretrain(
            self.config(c.PretrainConfig, optim=FAST, **settings | changes), c.ModelConfig(kind=kind, **MODEL),
            texts=self.path("texts"), valid_texts=self.path("texts"), tokenizer=self.folder,
            output_dir=self.folder / "pretrain",
        ).model  # fmt: skip

    def sft(self, model: Path, **changes: Any) -> Path:
        config = self.config(c.SftConfig, epochs=1, batch_tokens=200, dropout=0.1, optim=FAST, **changes)
        return sft(config, model=model, data=self.path("demos"), output_dir=self.folder / "sft").model

    def reward(self, model: Path, data: str = "ranks", **changes: Any) -> Path:
        config = self.config(c.RewardConfig, epochs=1, groups_per_step=4, dropout=0.1, optim=FAST, **changes)
        return reward(config, model=model, data=self.path(data), output_dir=self.folder / "reward").model

    def rl(self, model: Path, reward_model: Path | None, name: str = "rl", **changes: Any) -> Numbers:
        settings = {"iterations": 2, "prompts_per_iteration": 8, "max_new_tokens": 8, "ppo_epochs": 2, "minibatches": 2}
        ptx = {"ptx_data": self.path("texts")} if "ptx" in changes else {}
        rl(
            self.config(c.RlConfig, actor=FAST, critic=FAST, **settings | changes),
            model=model, reward_model=reward_model, data=self.path("prompts"), output_dir=self.folder / name, **ptx,
        )  # fmt: skip
        return self.numbers(name)

    def dpo(self, model: Path, data: str, reward_model: Path | None = None, **changes: Any) -> Numbers:
        config = self.config(c.DpoConfig, groups_per_step=4, eval_every=2, optim=FAST, **changes)
        name = f"dpo_{data}"
        dpo(config, model=model, data=self.path(data), reward_model=reward_model, output_dir=self.folder / name)
        return self.numbers(name)

    def draw(self, model: Path) -> Numbers:
        """What the engine draws, with rows that come and go, and what the evaluation makes of it."""
        policy, words = load_policy(model, self.placement)
        prompts = [words.encode(start) for start in STARTS]
        samples = Engine(policy.eval(), range(40), max_rows=6).generate(prompts, Sampling(12, 4, 0.8), seed=1)
        one, other = (LoadedPolicy.load(folder, self.placement) for folder in (model, self.start))
        found = draw_samples(one, other, STARTS, Sampling(6, 2, top_k=20), seed=2)
        said = [x for s in samples for x in (*s.completion, *s.behaviour_logp)]
        return [*said, *found.logp_PK.ravel().tolist(), *found.ref_logp_PK.ravel().tolist()]


def decoder(bench: Bench) -> Numbers:
    """Pretraining, SFT, reward model, PPO, sampling."""
    model = bench.sft(bench.pretrain("llama", activation_checkpointing=True))
    readings = {"pooled_coef": 0.5, "bag_coef": 0.5, "self_distill_coef": 0.5, "token_dropout": 0.1}
    scores = bench.reward(model, share_spellings=True, **readings)
    found = bench.rl(model, scores, entropy_coef=0.01, ptx={"coef": 0.5, "blocks": 2, "block_tokens": 16})
    pairs = [(start, " abc") for start in STARTS]
    found += Ensemble([RewardModel.load(scores, bench.placement)] * 2, c.CombineConfig()).score(pairs).tolist()
    stages = [x for name in ("pretrain", "sft", "reward") for x in bench.numbers(name)]
    return [*stages, *found, *bench.draw(model)]


def window(bench: Bench) -> Numbers:
    """A decoder with a sliding window: an ensemble of heads, a critic on the policy's trunk, all that compares."""
    scores = bench.reward(bench.start, heads=3)
    found = bench.numbers("reward")
    found += bench.rl(bench.start, scores, values={"shared": True}, minibatches=1, ppo_epochs=1)
    found += bench.rl(bench.start, scores, "grpo", algorithm="grpo", samples_per_prompt=4)
    found += bench.dpo(bench.start, "ranks") + bench.dpo(bench.start, "thumbs", loss="kto")
    online = {"online": True, "samples_per_prompt": 4, "max_new_tokens": 8}
    return [*found, *bench.dpo(bench.start, "prompts", scores, **online), *bench.draw(bench.start)]


def lora(bench: Bench) -> Numbers:
    """Adapters: SFT, reward model, PPO with a critic that has its own, DPO online."""
    settings = {"rank": 2, "alpha": 4.0}
    model = bench.sft(bench.start, lora=settings)
    scores = bench.reward(model, lora=settings)
    found = bench.numbers("sft") + bench.rl(model, scores, lora=settings | {"critic_rank": 2})
    online = {"online": True, "samples_per_prompt": 4, "max_new_tokens": 8}
    return [*found, *bench.dpo(model, "prompts", scores, lora=settings, **online), *bench.draw(model)]


def lstm(bench: Bench) -> Numbers:
    """The other backbone, scoring and sampling: its backward pass is a kernel that only GPUs have."""
    model = CausalLM(LstmConfig(bench.words.vocab_size, 32, 2, 64))
    init_weights(model, 0)
    save_policy(bench.folder / "lstm", model, bench.words)
    policy, words = load_policy(bench.folder / "lstm", bench.placement)
    samples = Engine(policy, range(40), max_rows=6).generate([words.encode(s) for s in STARTS], Sampling(8, 3), seed=1)
    scorer = load_scalar(bench.folder / "lstm", bench.placement, head_seed=0)
    scores = RewardModel(*scorer).score([(start, " abc") for start in STARTS]).tolist()
    return [*scores, *(x for s in samples for x in s.behaviour_logp)]


def foreign(bench: Bench) -> Numbers:
    """An architecture that only `transformers` knows."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": bench.words.end_id, "eos_token_id": bench.words.end_id, "pad_token_id": bench.words.pad_id}
    shape = OPTConfig(vocab_size=bench.words.vocab_size, max_position_embeddings=64, **sizes, **ids)
    OPTForCausalLM(shape).save_pretrained(bench.folder / "opt")
    bench.words.save(bench.folder / "opt")
    policy, words = load_policy(bench.folder / "opt", bench.placement)
    ids = [words.encode(start) for start in STARTS]
    samples = Engine(policy, range(40), max_rows=6).generate(ids, Sampling(8, 3), seed=1)
    policy.model.dropout = 0.1
    learner = Learner({"policy": policy.train()}, {"policy": FAST}, 2)
    examples = [Example(s.prompt, s.completion) for s in samples]
    found = [learner.update(sft_losses(policy, examples, words.pad_id, 100)) for _ in range(2)]
    scorer = load_scalar(bench.folder / "opt", bench.placement, head_seed=0)
    scores = RewardModel(*scorer).score([(start, " abc") for start in STARTS]).tolist()
    return [*scores, *(x for s in samples for x in s.behaviour_logp), *(x for row in found for x in row.values())]


def trained_lstm(bench: Bench) -> Numbers:
    """All stages of the other backbone."""
    model = bench.sft(bench.pretrain("lstm"))
    scores = bench.reward(model, pooled_coef=0.5, bag_coef=0.5)
    return [*bench.numbers("reward"), *bench.rl(model, scores)]


SCENARIOS: dict[str, Callable[[Bench], Numbers]] = {f.__name__: f for f in (decoder, window, lora, lstm, foreign)}
