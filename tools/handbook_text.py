"""Plain prose of the Debian Administrator's Handbook: the tar of its Debian package on stdin, text on stdout.

Keeps titles, paragraphs and list items in reading order (the pages' rel="next" links); leaves out menus, tables of
contents, listings, tables and captions, and stops after MAX_TEXT_BYTES. The same package always gives the same bytes.
"""

import html.parser
import sys
import tarfile

PAGES = "./usr/share/doc/debian-handbook/html/en-US/"
FIRST_PAGE = "foreword.html"
MIN_PARAGRAPH_CHARS = 40
MAX_TEXT_BYTES = 500_000  # about 110,000 tokens

SKIPPED_TAGS = {"head", "script", "style", "pre", "table"}
SKIPPED_CLASSES = {"docnav", "toc", "index", "legalnotice", "mediaobject", "figure", "table", "programlisting"}
SKIPPED_IDS = {"banner", "title"}
VOID_TAGS = {"img", "br", "hr", "meta", "link", "input", "col"}
BLOCK_TAGS = {"p", "div", "li", "dt", "dd", "h1", "h2", "h3", "h4", "h5", "ul", "ol", "dl", "body"}


class PageText(html.parser.HTMLParser):
    """Collects the paragraphs of one page, and the page that follows it."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.paragraphs = []
        self.next_page = None
        self._open_tags = []  # (tag, whether this tag starts a part to leave out)
        self._skipping = 0
        self._text = []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "link" and attributes.get("rel") == "next":
            self.next_page = attributes.get("href")
        if tag in BLOCK_TAGS:
            self._end_paragraph()
        if tag in VOID_TAGS:
            return
        classes = set((attributes.get("class") or "").split())
        skipped = tag in SKIPPED_TAGS or bool(classes & SKIPPED_CLASSES) or attributes.get("id") in SKIPPED_IDS
        self._open_tags.append((tag, skipped))
        self._skipping += skipped

    def handle_startendtag(self, tag, attrs):
        if tag in VOID_TAGS:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        if tag in BLOCK_TAGS:
            self._end_paragraph()
        while self._open_tags:
            opened, skipped = self._open_tags.pop()
            self._skipping -= skipped
            if opened == tag:
                return

    def handle_data(self, data):
        if not self._skipping:
            self._text.append(data)

    def close(self):
        super().close()
        self._end_paragraph()

    def _end_paragraph(self):
        text = " ".join("".join(self._text).split())
        self._text = []
        if len(text) >= MIN_PARAGRAPH_CHARS:
            self.paragraphs.append(text)


def read_pages(stream):
    """The HTML of every page, by file name."""
    pages = {}
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            if member.isfile() and member.name.startswith(PAGES) and member.name.endswith(".html"):
                pages[member.name[len(PAGES) :]] = archive.extractfile(member).read().decode("utf-8")
    return pages


def prose(pages):
    """The paragraphs of all pages that can be reached from the first by their next links."""
    name, seen, paragraphs = FIRST_PAGE, set(), []
    while name in pages and name not in seen:
        seen.add(name)
        page = PageText()
        page.feed(pages[name])
        page.close()
        paragraphs += page.paragraphs
        name = page.next_page
    return paragraphs


def main():
    paragraphs = prose(read_pages(sys.stdin.buffer))
    if not paragraphs:
        sys.exit(f"setup: no pages under {PAGES} in the package")
    written = 0
    for paragraph in paragraphs:
        data = (paragraph + "\n\n").encode("utf-8")
        if written + len(data) > MAX_TEXT_BYTES:
            break
        sys.stdout.buffer.write(data)
        written += len(data)


if __name__ == "__main__":
    main()
