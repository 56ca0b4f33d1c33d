"""Memory that alters, and clocks that go wrong."""

import json

from crash_common import tool


def pages(campaign):
    """Bits of resident and of cached pages flip."""
    line = json.loads(tool("pages", 10 if campaign.quick else 150, 3).stdout)
    campaign.row(line["what"]).take(line)


def clocks(campaign):
    """Clocks go back, or jump."""
    line = json.loads(tool("clocks").stdout)
    campaign.row(line["what"]).take(line)


KINDS = [pages, clocks]
