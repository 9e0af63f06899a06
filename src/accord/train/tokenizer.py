"""The tokenizer stage: plain texts in, a byte-level BPE tokenizer out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accord.config import TokenizerConfig
from accord.formats.stage_rows import read_texts
from accord.lock import writes_alone
from accord.text.tokenizer import train_tokenizer


@dataclass(frozen=True)
class TokenizerResult:
    """Where the tokenizer is, and how many entries it has."""

    tokenizer: Path
    vocab_size: int


@writes_alone
def tokenizer(config: TokenizerConfig, *, texts: Path, output_dir: Path) -> TokenizerResult:
    """Train a byte-level BPE tokenizer on a JSONL file of texts; writes ``tokenizer.json`` and its config."""
    trained = train_tokenizer(read_texts(texts), config.vocab_size)
    output_dir.mkdir(parents=True, exist_ok=True)
    trained.save(output_dir)
    return TokenizerResult(output_dir, trained.vocab_size)
