"""What people judge is what is stored: formulas, unseen characters, code, images, as HTML and from the server."""

from __future__ import annotations

import re
import struct
import zlib
from contextlib import ExitStack
from html import unescape
from pathlib import Path

import pytest

from accord.people.web.code import LANGUAGES, MOST_CODE, coloured
from accord.people.web.formulas import mathml
from accord.people.web.markdown import render
from accord.people.web.marks import INVISIBLE, marked
from accord.people.web.pictures import picture_file
from tests.webapp import Served, http_get, serving, task


def drawn(text: str) -> list[str]:
    """The formulas of a text as plain characters, in their order."""
    found = re.findall(r"<math.*?</math>", str(render(text)), re.S)
    return [unescape(re.sub(r"<[^>]*>", "", one)) for one in found]


def plain(html: str) -> str:
    return unescape(re.sub(r"<[^>]*>", "", str(html)))


# ---- formulas ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "formulas"),
    [
        ("Einstein: $E=mc^2$, so $m$ and $42$.", ["E=mc2", "m", "42"]),
        (r"inline \(x^2\) and block \[\frac{a}{b}\]", ["x2", "ab"]),
        (r"$$\sum_{i=1}^n i$$", ["∑i=1ni"]),
        ("We have\n$$\n\\begin{aligned}\na &= b \\\\\n  &= c_1\n\\end{aligned}\n$$\nso", ["a=b=c1"]),
        ("> \\[\n> x = 1\n> \\]", ["x=1"]),
        ("- one $a_1$\n- two $b_2$", ["a1", "b2"]),
        (r"the set $\{x_1, x_2\}$ *and* $a_b + c_d$", ["{x1,x2}", "ab+cd"]),
        (r"$\text{speed} = 5$", ["speed=5"]),
        ("$n$-th, ($k$), $x$!", ["n", "k", "x"]),
        ("$$\na\n+ b\n- c = d\n$$", ["a+b−c=d"]),
        (r"$\mathbb{R} \to \mathbf{x}$", ["ℝ→𝐱"]),
        (r"$5 \times 3 = 15$ dollars: $5", ["5×3=15"]),
    ],
)
def test_formulas_are_found_and_drawn(text: str, formulas: list[str]) -> None:
    assert drawn(text) == formulas


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5 and $6.",
        "$5",
        "US$5-$10, $20-$30, $2=$3",
        "from $5 to $10 million (that is $5=£4)",
        "$5 now or 6$ later",
        "set $HOME/$USER and ${HOME}_$x",
        "earn $$ and more $$ fast",
        "a $ b $ c",
        "`$x^2$`",
        "    $x^2$",
        "```\n$x^2$\n```",
        r"\$x^2\$",
        r"see \[below\], \(1\) and \[2\]",
        "$a\n\nb = c$",
    ],
)
def test_dollars_and_brackets_in_prose_stay_text(text: str) -> None:
    assert drawn(text) == []
    letters = re.sub(r"[\\`\s]", "", text)
    assert re.sub(r"\s", "", plain(render(text))) == letters


@pytest.mark.parametrize(
    "formula",
    [
        r"\foo{a} + b",  # no such command
        r"\frac{a}",  # half a command
        r"a } b { = c",
        r"\newcommand{\a}{b}\a",
        r"\phantom{hidden} = 1",
        r"\color{white}x = 1",
        r"\rlap{a}b = 1",
        r"\cancel{x} = 1",
        r"\alpha \% b % a comment: = 1",
        r"\href{javascript:alert(1)}{x} = 1",
        r"a \\ b = 1",  # lines outside of a table: no browser breaks them
        "x\u200by = 1",
        "x" * 3000 + "=1",
    ],
)
def test_a_formula_that_would_lose_something_is_shown_as_its_source(formula: str) -> None:
    assert mathml(formula, is_block=False) is None
    assert plain(render(f"$${formula}$$").replace("U+200B", "\u200b")).strip() == f"$${formula}$$"


@pytest.mark.parametrize(
    "inside", ["<img src=x onerror=alert(1)>", "</math><script>alert(1)</script>", "a &lt; b", "&#x3c;b"]
)
def test_a_formula_is_escaped_before_it_is_cleaned(inside: str) -> None:
    """The converter itself does not: what is in a text would be HTML."""
    made = mathml(rf"\text{{{inside}}} = 1", is_block=False) or ""
    assert set(re.findall(r"</?(\w+)", made)) <= {"math", "mrow", "mtext", "mo", "mn", "mi"}
    assert not made or unescape(plain(made)).replace("\u00a0", " ") == unescape(inside) + "=1"


def test_nothing_of_a_formula_is_eaten_by_markdown() -> None:
    """Backslashes, braces and underscores of what cannot be drawn stand as they are written."""
    source = r"$\foo{a_1} \\ b\_c \{d\} * e * f_g_h = \!$"
    assert plain(render(f"so **{source}** it is")) == f"so {source} it is\n"


# ---- characters that nobody sees ---------------------------------------------------------------------------------

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
NO_WIDTH = "\u00ad\u034f\u115f\u180e\u200b\u2060\u2061\u2064\u3164\ufeff\ufff9\U000e0041\U000e0101\x07\x1b\x7f"


@pytest.mark.parametrize("char", BIDI + NO_WIDTH)
def test_an_unseen_character_is_marked_in_every_view(char: str) -> None:
    code = f"U+{ord(char):04X}"
    text = f"pay {char}not a**bold{char}**, `code{char}`\n\n```python\nif a{char}: # c\n```\n"
    for made in (str(marked(text)), str(render(text))):
        assert INVISIBLE.search(made) is None
        marks = re.findall(r'<span class="mark" title="(U\+\w+) [^"]+">(U\+\w+)</span>', made)
        assert marks == [(code, code)] * 4
    assert "U+202E RIGHT-TO-LEFT OVERRIDE" in marked("\u202e")


def test_entities_and_addresses_hide_none() -> None:
    made = str(render("a&#x202e;b &zwnj; [l](https://e.org 'x&#x202e;y') ![p\u202e](https://e.org/q\u202e)"))
    assert INVISIBLE.search(re.sub(r"\u200c(?=<)", "", made)) is None
    assert 'title="x[U+202E]y"' in made


def test_the_raw_view_holds_every_stored_character() -> None:
    text = "\n  <b>&amp; \\\\ \\_ $x$\ttab\r\nline \u202e\u200b end  \n\n"
    back = re.sub(r'<span class="mark"[^>]*>U\+(\w+)</span>', lambda found: chr(int(found[1], 16)), str(marked(text)))
    assert unescape(back) == text
    assert "\r" not in str(marked(text))  # a browser would read it as the end of a line


def test_what_letters_and_emoji_need_stays_as_it_is() -> None:
    """Persian is written with a joiner, which gets a thin mark; an emoji of several characters is one."""
    family, heart = "👨\u200d👩\u200d👧", "❤\ufe0f"
    assert marked(f"{family} {heart}") == f"{family} {heart}"
    joined = str(marked("می\u200cخواهم"))
    assert joined.startswith("می\u200c<span") and joined.endswith("</span>خواهم") and 'class="mark joiner"' in joined
    assert "U+200D" in marked("pass\u200dword "[4:]) and 'class="mark"' in marked("1\u200d2")


# ---- code --------------------------------------------------------------------------------------------------------

CODE = 'def f(x: int) -> str:\n\n    """Doc."""\n\treturn f"{x!r}" + \'a\'  # <b>&amp;\n\n'


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_code_keeps_every_character(language: str) -> None:
    for code in (CODE, "\n\n" + CODE, "<a href='x'>&\n", "`${a}` \\ \" '\n"):
        assert plain(coloured(code, language)) == code
        assert plain(render(f"```{language}\n{code}```")) == code + "\n"


def test_code_is_coloured_by_its_language_alone() -> None:
    made = str(render(f"```python\n{CODE}```"))
    assert '<span class="k">def</span>' in made and '<span class="f">f</span>' in made and 'class="c"' in made
    assert "<span" not in render(f"```nothing\n{CODE}```") and "<span" not in render(f"```\n{CODE}```")
    assert coloured("x = 1\n" * MOST_CODE, "python") == ""


# ---- images ------------------------------------------------------------------------------------------------------


def png(size: int = 2) -> bytes:
    """A grey square."""
    parts = (
        b"IHDR" + struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0),
        b"IDAT" + zlib.compress(b"\0\x80\x80" * size),
        b"IEND",
    )
    chunks = (struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "pics").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for place in ("pics/cat.png", "a cat.png", ".hidden/cat.png", "../outside.png", "pics/.cat.png"):
        (folder / place).write_bytes(png())
    (folder / "pics/no.png").write_bytes(b"SQLite format 3\0")
    (folder / "pics/cat.svg").write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "pics/link.png").symlink_to(tmp_path / "outside.png")
    (folder / "accord.yaml").write_text("label: {}\n")
    return folder


NOT_SHOWN = (
    "../outside.png", "pics/../../outside.png", "/etc/passwd.png", "pics/no.png", "pics/cat.svg", "pics/link.png",
    ".hidden/cat.png", "pics/.cat.png", "pics/none.png", "accord.yaml", "pics", "", "..%2foutside.png", "pics\\cat.png",
    "https://evil.invalid/cat.png", "//evil.invalid/cat.png", "file:///pics/cat.png", "data:image/png;base64,AAAA",
)  # fmt: skip


def test_only_images_of_the_folder_are_shown(project: Path) -> None:
    shown = str(render("![a cat](pics/cat.png) ![b](./pics/cat.png) ![c](a%20cat.png)", project))
    assert re.findall(r'<img src="([^"]*)"', shown) == ["/pictures/pics/cat.png"] * 2 + ["/pictures/a%20cat.png"]
    assert "<img" not in render("![a cat](pics/cat.png)")
    for address in NOT_SHOWN:
        made = str(render(f"![a cat](<{address}>)", project))
        assert "<img" not in made and "a cat" in made
        assert picture_file(project, address) is None
    (project / "pics/late.png").write_bytes(png())
    assert "<img" in render("![a cat](pics/late.png)", project)


def test_the_server_gives_images_and_nothing_else_of_the_folder(project: Path) -> None:
    with serving(project) as served, ExitStack() as stack:
        stay = stack.enter_context
        person = stay(served.by_cookie(served.person("Eve")))
        given = person.get("/pictures/pics/cat.png")
        assert (given.status_code, given.content) == (200, png())
        assert given.headers["content-type"] == "image/png" and given.headers["x-content-type-options"] == "nosniff"
        for address in (
            *NOT_SHOWN,
            "accord.db",
            "%2e%2e/outside.png",
            "pics/%2e%2e/%2e%2e/outside.png",
            "pics%2f..%2faccord.db",
        ):
            assert person.get(f"/pictures/{address}").status_code in (404, 405), address
        assert http_get(f"{served.url}/pictures/pics/cat.png").status_code == 401
        served.desk.queue.add_tasks([task("label", "![a cat](pics/cat.png)", "no")])
        assert 'src="/pictures/pics/cat.png"' in person.get("/task").text


# ---- on the page -------------------------------------------------------------------------------------------------


def shown(served: Served, name: str) -> str:
    with served.by_cookie(served.person(name)) as browser:
        return browser.get("/task").text


def test_every_text_finds_its_own_direction(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.desk.queue.add_tasks([task("pair", "שלום", "مرحبا", "hello")])
        page = shown(served, "نورا")
    for kind in ("prose text", "prose raw", "prose diff"):
        opened = re.findall(rf'<div class="{kind}"[^>]*>', page)
        assert opened and all('dir="auto"' in one for one in opened), kind
    assert all('dir="auto"' in one for one in re.findall(r"<textarea[^>]*>", page))


def test_the_system_prompt_is_apart_from_the_turns(tmp_path: Path) -> None:
    from accord.records import Prompt

    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    with serving(tmp_path) as served:
        served.desk.queue.add_tasks(
            [task("label", Prompt.of_messages([*turns, {"role": "user", "content": "c"}]), "yes")]
        )
        page = shown(served, "Eve")
    system, conversation = re.findall(
        r'<details class="system.*?</details>|<section class="conversation.*?</section>', page, re.S
    )
    assert "Be brief." in system and "Be brief." not in conversation and "(2 turns)" in conversation
