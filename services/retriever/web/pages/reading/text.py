"""The main text of a page, by trafilatura; as a program, the process in which `Reader` has pages read.

It ends with its input.
"""

from __future__ import annotations

import codecs
import logging
import re
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import orjson
from trafilatura import bare_extraction, html2txt
from trafilatura.settings import Document
from trafilatura.utils import detect_encoding

from services.process.parent import end_with_parent
from services.retriever.web.pages.reading.frames import READY, receive, send

_BOM = codecs.BOM_UTF8
_META = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]{1,40})", re.IGNORECASE)
_HEAD_BYTES = 1024  # where a page says its encoding, if it does
# As browsers read what calls itself so.
_WINDOWS = {"ascii": "cp1252", "iso8859-1": "cp1252"}
# What browsers know, by Python's names. Others of Python's are no encodings of pages, and one (punycode) takes hours.
_KNOWN = re.compile(
    r"utf-8|utf-16(-[bl]e)?|ascii|iso8859-\d+|cp(125\d|866|874|932|949)|koi8-[ru]|mac-(roman|cyrillic)|tis-620"
    r"|gbk|gb2312|gb18030|big5(hkscs)?|euc_(jp|kr)|iso2022_jp|shift_jis"
)
# The largest articles take a third of it. Two processes and the retriever have 4 GiB in docker-compose and Kubernetes.
_MOST_MEMORY = 2**30


def decoded(body: bytes, charset: str) -> str:
    """Bytes as text: in the encoding that their host or they say, or else UTF-8, or what they look like."""
    if body.startswith(_BOM):
        return body[len(_BOM) :].decode("utf-8", "replace")
    said = _META.search(body[:_HEAD_BYTES])
    named = []
    for name in (charset, said[1].decode() if said else "", "utf-8"):
        try:
            known = codecs.lookup(name).name
            if _KNOWN.fullmatch(known):
                named.append(_WINDOWS.get(known, known))
                return body.decode(named[-1])
        except (LookupError, ValueError):
            continue
    # Of an encoding that was said a few bytes may be spoilt, as where a teaser was cut. Browsers do likewise.
    if len(named) > 1:
        return body.decode(named[0], "replace")
    looks_like = detect_encoding(body)
    return body.decode(looks_like[0] if looks_like else "utf-8", "replace")


def title_and_text(html: str) -> tuple[str, str]:
    """The title and what is to be read of an HTML page, a line for each paragraph; either may be empty."""
    found = bare_extraction(html, include_comments=False, with_metadata=True)
    title, text = (found.title, found.text) if isinstance(found, Document) else (None, None)
    return title or "", text or html2txt(html)


def _answer(head: dict[str, Any], body: bytes) -> dict[str, str]:
    try:
        text = decoded(body, head["charset"])
        title, text = title_and_text(text) if head["html"] else ("", text)
        told = {"title": _sound(title), "text": _sound(text)[: head["most_chars"]]}
    except MemoryError:
        return {"exhausted": ""}
    except Exception as error:  # whatever a page made of it
        told = {"fault": f"it cannot be read ({type(error).__name__})"}
    # trafilatura goes on without what it had no memory for, and libxml2 says so in other words.
    if not told.get("text") and _most_memory_so_far() > _MOST_MEMORY / 2:
        return {"exhausted": ""}
    return told


def _most_memory_so_far() -> int:
    found = re.search(rb"VmPeak:\s+(\d+) kB", Path("/proc/self/status").read_bytes())
    assert found is not None
    return int(found[1]) * 1024


def _sound(text: str) -> str:
    """Without half characters, which JSON cannot carry, and without blank lines at the ends."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\x00", "").strip()


def main() -> None:
    end_with_parent(signal.SIGKILL)  # `Reader` has the others blocked
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    send(sys.stdout.buffer, READY)
    while (head := receive(sys.stdin.buffer)) is not None and (body := receive(sys.stdin.buffer)) is not None:
        send(sys.stdout.buffer, orjson.dumps(_answer(orjson.loads(head), body)))


if __name__ == "__main__":
    main()
