"""One vLLM engine that obeys lines of JSON; it runs in vLLM's own environment and imports nothing of Accord.

Each line of the standard input is a request ``{"do": name, ...}``, each line of the standard output its answer:
``{"ok": ...}`` or ``{"error": "..."}``. It ends with its input, and so with whoever started it. Written against vLLM
0.32; `accord.rollout.vllm` is the other side.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

Request = dict[str, Any]


class VllmEngine:
    """The engine, once it has been started."""

    def __init__(self) -> None:
        self.llm: Any = None

    def start(self, asked: Request) -> Request:
        """Load a model folder. The log-probabilities are those of the distribution that is drawn from."""
        import vllm

        self.llm = vllm.LLM(asked["folder"], skip_tokenizer_init=True, disable_log_stats=True, **asked["settings"])
        block = self.llm.llm_engine.vllm_config.cache_config.block_size
        return {"vllm": vllm.__version__, "block": block}

    def load(self, asked: Request) -> Request:
        """Take other weights in place; then what a reload leaves behind is mended, as far as it is asked for."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": asked["folder"]})
        for name in asked["mends"]:
            MENDS[name](self.llm)
        return {}

    def draw(self, asked: Request) -> Request:
        """Draw one completion a prompt, each from a stream of its own."""
        from vllm import SamplingParams

        shared = asked["sampling"]
        wanted = [
            SamplingParams(n=1, seed=seed, logprobs=0, detokenize=False, ignore_eos=True, **shared)
            for seed in asked["seeds"]
        ]
        prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
        drawn = [one.outputs[0] for one in self.llm.generate(prompts, wanted, use_tqdm=False)]
        return {
            "samples": [
                [list(one.token_ids), [said[token].logprob for said, token in zip(one.logprobs, one.token_ids)],  # noqa: B905
                 one.finish_reason]
                for one in drawn
            ]
        }  # fmt: skip


def _forget_prefixes(llm: Any) -> None:
    """Keys and values of the old weights would go on under the same prompts (0.86 nats, measured)."""
    if not llm.reset_prefix_cache():
        raise RuntimeError("the prefix cache was not reset: requests are still running")


def _repack_head(llm: Any) -> None:
    """On a CPU a tied head keeps the handle that was packed at the start, and with it the old weights (1.35 nats)."""

    def repack(model: Any) -> bool:
        head: Any = getattr(model, "lm_head", None)
        packed = hasattr(head, "cpu_linear")
        if packed:
            head.quant_method.process_weights_after_loading(head)
        return packed

    llm.apply_model(repack)


MENDS: dict[str, Callable[[Any], None]] = {"prefixes": _forget_prefixes, "head": _repack_head}


def main() -> None:
    """Answer requests until the input ends."""
    # vLLM and what it loads print as they like; answers go where nothing else does.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine = VllmEngine()
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"ok": getattr(engine, asked["do"])(asked)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    # Its helpers would hold the process for seconds after nobody listens.
    os._exit(0)


if __name__ == "__main__":
    main()
