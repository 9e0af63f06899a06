"""What a run is about, as a recipe says it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from accord.config.base import Rows, Section
from accord.extend import is_outside


class TaskConfig(Section):
    """What a run is about: what there is to answer, and what people have said of answers."""

    use: Annotated[str, Rows(("files", "store"))] = Field(
        "files", description="files (named below), store (the project's facts), or module:NAME of your own."
    )
    prompts: str = Field("", description="files: prompts to train and measure on; empty = those of the other files.")
    demonstrations: str = Field("", description="files: what fine-tuning imitates; empty = no fine-tuning.")
    judgements: str = Field("", description="files: rankings, pairs, labels or ratings that stand already.")
    texts: str = Field("", description="files: plain texts, to pretrain a model of your own and for rl.ptx.")
    chat: bool = Field(
        False, description="A prompt of text is what a user says: the model's chat template is put around it."
    )
    split_by: Literal["topic", "prompt"] = Field(
        "topic", description="What stays together: whole topics, or each prompt (where topics are few)."
    )
    judge_share: float = Field(0.15, ge=0, lt=1, description="Share of topics whose judgements teach the judge alone.")
    judge_annotators: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of annotators who teach the judge alone, if at all; 0 = of other topics, all.",
    )
    valid_share: float = Field(0.1, gt=0, lt=1, description="Share of topics on which snapshots are chosen.")
    test_share: float = Field(0.15, gt=0, lt=1, description="Share of topics on which policies are reported.")
    measured_prompts: int = Field(200, ge=2, description="Most prompts that are measured on, of valid and of test.")
    max_characters: int = Field(
        0, ge=0, description="A longer prompt with its longest completion is left out and counted; 0 = none is."
    )
    simulated: bool = Field(False, description="store: also learn from what simulated annotators said.")
    ai: bool = Field(False, description="store: also learn from AI feedback, what models and functions said.")
    options: dict[str, Any] = Field({}, description="Settings of a task of your own: module:NAME says which.")

    @model_validator(mode="after")
    def _fits_the_task(self) -> Self:
        if self.options and not is_outside(self.use):
            raise ValueError(f"options are for a task of your own, and use is {self.use!r}")
        named = [name for name in ("prompts", "demonstrations", "judgements", "texts") if getattr(self, name)]
        if named and self.use != "files":
            raise ValueError(f"{named[0]} names a file, and use is {self.use!r}, which brings its own")
        for key in ("simulated", "ai"):
            if getattr(self, key) and self.use == "files":
                raise ValueError(f"{key} is for use: store; what a file holds is taken as it stands")
        if self.judge_annotators and not self.judge_share:
            raise ValueError("judge_annotators teach a judge on the topics of judge_share, which is 0")
        if self.judge_share + self.valid_share + self.test_share >= 1:
            raise ValueError("judge_share, valid_share and test_share leave nothing to train on: they sum to 1")
        return self
