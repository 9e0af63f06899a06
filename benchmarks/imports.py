"""Import what a script imports, and nothing else: its peak memory is what the script's is measured above.

    python benchmarks/imports.py SCRIPT [MODULE ...]

Imports inside functions count too. The modules named besides are those that a library loads late.
"""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path


def imports_of(source: str) -> str:
    """The import statements of a source, in its order, one a line."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join(ast.unparse(node) for node in sorted(found, key=lambda node: (node.lineno, node.col_offset)))


if __name__ == "__main__":
    script = Path(sys.argv[1])
    sys.path.insert(0, str(script.parent))
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    exec(imports_of(script.read_text()).replace("from __future__ import annotations", ""), {"__name__": "imports"})
    for module in sys.argv[2:]:
        __import__(module)
