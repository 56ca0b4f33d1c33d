"""Memory that alters, and clocks that go wrong."""

import json

from crash_common import tool


def pages(campaign):
    """Bits of resident and of cached pages flip."""
    line = json.loads(tool("pages", 10 if campaign.quick else 150, 3).stdout)
    campaign.row(line["what"]).take(line)


def swapped_pages(campaign):
    """Bits flip in pages that were swapped, into memory and into a file."""
    for folder in ([], [campaign.folder()]):
        line = json.loads(tool("swapped", 20 if campaign.quick else 300, 5, *folder).stdout)
        campaign.row(line["what"]).take(line)


def clocks(campaign):
    """Clocks go back, or jump."""
    line = json.loads(tool("clocks").stdout)
    campaign.row(line["what"]).take(line)


KINDS = [pages, swapped_pages, clocks]
