"""What one measurement found: lines of Markdown, and figures for the table of goals."""

from dataclasses import dataclass


@dataclass
class Section:
    name: str
    lines: list
    figures: dict

    @property
    def text(self):
        return "\n".join(self.lines)
