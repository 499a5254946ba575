"""News in XML: NewsML-G2, RSS and Atom, item by item, without document types and what they bring along."""

from __future__ import annotations

import codecs
import html
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from newsdesk.data.bounds import hopeful
from newsdesk.data.dialect import Dialect
from newsdesk.data.encoding import UTF8, Encoding, LineReader, mark_of
from newsdesk.data.news import element_prose, local_name, prose, subjects
from newsdesk.data.table import BadRow, Cell, Fault, Row, RowStream, Table, too_deep
from newsdesk.errors import UserError, first_line

XML_FORMATS = ("xml", "rss", "atom")
"""Name endings of the files that are read here; what they hold is told from their first element."""

COLUMNS = ("uri", "published", "language", "headline", "description", "body", "subject")
"""What every item has, in every format; None where it says nothing of the kind."""

_DEEPEST = 100  # elements within each other in an item
_MOST_ELEMENTS = 100_000  # of an item
_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?\bencoding\s*=\s*["']([\w.:-]+)["']""")
_NEWS = "{http://iptc.org/std/nar/2006-10-01/}"
_ATOM = ("{http://www.w3.org/2005/Atom}", "{http://purl.org/atom/ns#}")
_CONTENT, _DUBLIN_CORE = "{http://purl.org/rss/1.0/modules/content/}", "{http://purl.org/dc/elements/1.1/}"
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
_NOT_READ = ("packageItem", "conceptItem", "knowledgeItem", "planningItem", "catalogItem")


def xml_rows(stream: BinaryIO, path: Path, dialect: Dialect) -> RowStream:
    """The items of a NewsML-G2 document, or the entries of a feed, each a row of ``COLUMNS``.

    The document is never in memory as a whole. ``subject`` is a list of objects with name and code. Raises
    UserError for other XML, and for a document that declares a document type.
    """
    lines = LineReader(stream, path, _encoding_of(stream, path, dialect.encoding), limits=dialect.limits)
    document = _Document(lines)
    rows = hopeful(document.rows(), path)
    sampled = list(islice(rows, 1))
    if document.news is None:
        if sampled and isinstance(sampled[0], BadRow):
            raise sampled[0].fault.error(path)
        raise UserError(f"{path.name} is empty", found="no element", fix="check how the file was made")
    if not sampled:
        raise UserError(
            f"{path.name} holds no news item",
            found=f"{document.news} without items" + (document.other and f", but {document.other}"),
            fix="give a document that carries the items themselves",
        )
    read_as = Dialect(encoding=lines.encoding.name)
    head = Table(path, COLUMNS, dialect=read_as, news=document.news, notes=(document.news,))
    return RowStream(head, chain(sampled, rows))


def _encoding_of(stream: BinaryIO, path: Path, stated: str | None) -> Encoding:
    """The encoding that is stated, by a flag, a byte-order mark or the document's own declaration."""
    if not stream.seekable():
        return Encoding(stated or UTF8)
    start = stream.tell()
    try:
        head = stream.read(1024)
    except (OSError, EOFError):  # reading the rows reports it
        head = b""
    stream.seek(start)
    declared = _DECLARED.match(head.removeprefix(codecs.BOM_UTF8))
    name = stated or mark_of(head) or (declared[1].decode() if declared else UTF8)
    try:
        name = codecs.lookup(name).name
        b"".decode(name)
    except (LookupError, ValueError):
        raise UserError(
            f"{path.name} declares an encoding that is not known",
            found=f"encoding {name!r:.80}",
            fix="name the encoding it has, for example --encoding utf-8",
        ) from None
    return Encoding(name)


class _Document:
    """Reads a document from block to block.

    Attributes:
        news: the format; None before the first element.
        other: an item without a text of its own that was left out, if there is any.
    """

    def __init__(self, lines: LineReader) -> None:
        self.news: str | None = None
        self.other = ""
        self._lines = lines
        self._found: list[Row | BadRow] = []
        self._item: _Item | None = None
        self._read: Callable[[Element, str | None], dict[str, Cell]] = _news_item
        self._is_item: Callable[[str], bool] = lambda tag: tag in ("newsItem", f"{_NEWS}newsItem")
        self._language: str | None = None
        self._parser = expat.ParserCreate(UTF8, "}")
        self._parser.buffer_text = True
        self._parser.UseForeignDTD(True)  # entities that are not declared are handed over, not errors
        self._parser.StartDoctypeDeclHandler = self._refuse_document_type
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._parser.SkippedEntityHandler = lambda name, _: self._text(html.unescape(f"&{name};"))

    def rows(self) -> Iterator[Row | BadRow]:
        size, lines = 0, self._lines
        try:
            for block in chain(lines.blocks(), [b""]):
                if not block and lines.broken_off is not None:
                    yield BadRow(lines.broken_off, b"", ends_file=True)
                    return
                size += len(block)
                self._parser.Parse(block, not block)
                yield from self._taken()
                if size - self._parser.CurrentByteIndex > lines.longest:
                    fault = _too_large(self._line, "a tag is too long", f"more than {lines.longest:,} bytes")
                    yield BadRow(fault, b"", ends_file=True)
                    return
        except expat.ExpatError as error:
            yield from self._taken()
            if error.code == expat.errors.codes[expat.errors.XML_ERROR_NO_ELEMENTS]:
                return
            wrong, fix = "the XML breaks off or is damaged here", "fetch or write the file again"
            if self.news is None:
                wrong, fix = "it is not XML", "give JSON a name that ends in .json or .jsonl, a table .csv"
            found = f"{expat.ErrorString(error.code)}, column {error.offset + 1}"
            yield BadRow(Fault(error.lineno, wrong, found, fix), b"", ends_file=True)

    @property
    def _line(self) -> int:
        return int(self._parser.CurrentLineNumber)

    def _taken(self) -> list[Row | BadRow]:
        found, self._found = self._found, []
        return found

    def _refuse_document_type(self, name: str, *_others: object) -> None:
        raise UserError(
            f"{self._lines.path.name} declares a document type, which can name other files, and entities "
            "that grow without end",
            found=f"<!DOCTYPE {first_line(name, 80)}> in line {self._line}",
            fix="if you trust the file, delete the declaration: xmllint --noent --dropdtd FILE > COPY",
        )

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        tag = _tag(name)
        if self.news is None:
            self._begin(tag, attributes)
        if self._item is None and self._is_item(tag):
            self._item = _Item(self._line, self._lines)
        elif self._item is None and tag.removeprefix(_NEWS) in _NOT_READ:
            self.other = f"a {tag.removeprefix(_NEWS)}, which holds no text of its own"
        if self._item is not None:
            self._item.start(tag, {_tag(key): value for key, value in attributes.items()})

    def _begin(self, tag: str, attributes: dict[str, str]) -> None:
        """Tell the format by the first element. Raises UserError for other XML."""
        self._language = attributes.get(_LANGUAGE[1:])
        plain = tag.removeprefix(_NEWS)
        if plain in ("newsItem", "newsMessage", *_NOT_READ):
            self.news = "NewsML-G2"
        elif local_name(tag) in ("rss", "rdf"):
            self.news, self._read, self._is_item = "RSS", _rss_item, lambda tag: local_name(tag) == "item"
        elif local_name(tag) == "feed" and tag.startswith(_ATOM):
            self.news, self._read = "Atom", _atom_entry
            self._is_item = lambda tag: tag.startswith(_ATOM) and local_name(tag) == "entry"
        else:
            raise UserError(
                f"{self._lines.path.name} is XML of a kind that newsdesk does not read",
                found=f"its first element is <{first_line(tag.rpartition('}')[2], 80)}>",
                fix="NewsML-G2 (newsItem, newsMessage), RSS and Atom are read; put other texts into a csv or "
                "jsonl file, one row each",
            )

    def _text(self, text: str) -> None:
        if self._item is not None:
            self._item.text(text)

    def _end(self, name: str) -> None:
        if self._item is None or not self._item.end(_tag(name)):
            return
        item, self._item = self._item, None
        self._found.append(item.row(self._read, self._language))


def _tag(name: str) -> str:
    """An element's name as ElementTree writes it: the namespace in braces."""
    return f"{{{name}" if "}" in name else name


def _too_large(line: int, wrong: str, found: str) -> Fault:
    return Fault(line, wrong, found, "cut it, or raise the limit: --max-characters")


class _Item:
    """An item while it is read; of one that is beyond the limits nothing is kept."""

    def __init__(self, line: int, lines: LineReader) -> None:
        self._line, self._lines = line, lines
        self._tree, self._depth, self._size, self._elements = TreeBuilder(), 0, 0, 0
        self._fault: Fault | None = None

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        self._elements += 1
        self._size += sum(map(len, attributes.values()))
        if self._depth > _DEEPEST:
            self._give_up(too_deep(self._line))
        elif self._elements > _MOST_ELEMENTS:
            found = f"more than {_MOST_ELEMENTS:,} elements"
            self._give_up(Fault(self._line, "an item has too many elements", found, "leave it out"))
        elif self._fault is None:
            self._tree.start(tag, attributes)

    def text(self, text: str) -> None:
        self._size += len(text)
        if self._size > self._lines.longest:
            found = f"more than {self._lines.longest:,} characters"
            self._give_up(_too_large(self._line, "an item is too long", found))
        elif self._fault is None:
            self._tree.data(text)

    def end(self, tag: str) -> bool:
        """Whether the item itself ends with this element."""
        self._depth -= 1
        if self._fault is None:
            self._tree.end(tag)
        return self._depth == 0

    def row(
        self, read: Callable[[Element, str | None], dict[str, Cell]], language: str | None
    ) -> Row | BadRow:
        if self._fault is None:
            record = read(self._tree.close(), language)
            cells = tuple(record.get(column) or None for column in COLUMNS)
            self._fault = self._lines.limits.fault(self._line, cells)
            if self._fault is None:
                return Row(self._line, cells)
        return BadRow(self._fault, b"")

    def _give_up(self, fault: Fault) -> None:
        if self._fault is None:
            self._fault, self._tree = fault, TreeBuilder()


def _first(texts: Iterator[str]) -> str | None:
    return next(filter(None, texts), None)


# --- NewsML-G2: https://iptc.org/standards/newsml-g2/


def _news_item(item: Element, language: str | None) -> dict[str, Cell]:
    """A newsItem: headline and description of the content's metadata, body of the inline content."""
    language = item.get(_LANGUAGE) or language
    meta = [each for of_content in _named(item, "contentmeta") for each in of_content]
    said = {
        name: [each for each in meta if local_name(each.tag) == name]
        for name in ("headline", "description", "subject", "language")
    }
    headlines = sorted(said["headline"], key=lambda each: not each.get("role", "main").endswith("main"))
    description = _first(element_prose(each) for each in said["description"])
    return {
        "uri": item.get("guid"),
        "published": _first((each.text or "").strip() for each in _named(item, "versioncreated")),
        "language": _first(each.get("tag", "") for each in said["language"]) or language,
        "headline": _first(element_prose(each) for each in (*headlines, *_named(item, "hl1"))),
        "description": description,
        "body": _first(_inline_texts(item)) or description,
        "subject": subjects(_newsml_subject(each, language) for each in said["subject"]),
    }


def _named(item: Element, name: str) -> Iterator[Element]:
    """The elements of a name in an item, in whatever namespace."""
    return (each for each in item.iter() if local_name(each.tag) == name)


def _inline_texts(item: Element) -> Iterator[str]:
    for content in _named(item, "contentset"):
        for each in content:
            kind = each.get("contenttype", "").lower()
            if local_name(each.tag) == "inlinexml":
                yield element_prose(each)
            elif local_name(each.tag) == "inlinedata" and not each.get("encoding"):
                text = "".join(each.itertext())
                yield prose(text) if "html" in kind or "xml" in kind else text.strip()


def _newsml_subject(subject: Element, language: str | None) -> dict[str, Any]:
    names = [each for each in subject if local_name(each.tag) == "name"]
    wanted = (language or "")[:2]
    names.sort(key=lambda each: each.get(_LANGUAGE, wanted)[:2] != wanted)
    name = _first(element_prose(each) for each in names)
    said = {
        "code" if key == "qcode" else key: value for key, value in subject.attrib.items() if "}" not in key
    }
    broader = [code for each in subject if local_name(each.tag) == "broader" if (code := each.get("qcode"))]
    return {**({"name": name} if name else {}), **said, **({"broader": broader} if broader else {})}


# --- RSS 0.9 to 2.0: https://www.rssboard.org/rss-specification; Atom: RFC 4287


def _rss_item(item: Element, language: str | None) -> dict[str, Cell]:
    own = item.tag.removesuffix("item")  # the namespace of RSS 1.0, or none

    def text(*tags: str) -> str | None:
        found = (each for tag in tags for each in item if each.tag in (tag, f"{own}{tag}"))
        return _first("".join(each.itertext()).strip() for each in found)

    title, description = text("title"), text("description")
    content = text(f"{_CONTENT}encoded")
    description = prose(description) if description else None
    categories = [each for each in item if each.tag in (f"{own}category", f"{_DUBLIN_CORE}subject")]
    return {
        "uri": text("guid", "link"),
        "published": text("pubDate", f"{_DUBLIN_CORE}date"),
        "language": text(f"{_DUBLIN_CORE}language") or language,
        "headline": prose(title) if title else None,
        "description": description,
        "body": (prose(content) if content else None) or description,
        "subject": _known(((each.text or "").strip(), each.get("domain"), None) for each in categories),
    }


def _atom_entry(entry: Element, language: str | None) -> dict[str, Cell]:
    def children(name: str) -> Iterator[Element]:
        return (each for each in entry if each.tag.startswith(_ATOM) and local_name(each.tag) == name)

    def text(name: str) -> str | None:
        return _first(map(_atom_text, children(name)))

    summary = text("summary")
    links = sorted(children("link"), key=lambda each: each.get("rel", "alternate") != "alternate")
    return {
        "uri": text("id") or _first(each.get("href", "") for each in links),
        "published": text("published") or text("updated") or text("issued"),
        "language": entry.get(_LANGUAGE) or language,
        "headline": text("title"),
        "description": summary,
        "body": text("content") or summary,
        "subject": _known(
            (each.get("label") or each.get("term"), each.get("scheme"), each.get("term"))
            for each in children("category")
        ),
    }


def _atom_text(construct: Element) -> str:
    """The text of a construct by its type: text, html or xhtml, or a content type."""
    kind = construct.get("type", "text").lower()
    if kind == "xhtml" or len(construct):
        return element_prose(construct)
    text = construct.text or ""
    return prose(text) if "html" in kind else text.strip()


def _known(categories: Iterable[tuple[str | None, str | None, str | None]]) -> list[dict[str, str]]:
    """Subjects of the names, schemes and codes of those categories that have a name."""
    return [
        {key: value for key, value in (("name", name), ("code", code), ("scheme", scheme)) if value}
        for name, scheme, code in categories
        if name
    ]
