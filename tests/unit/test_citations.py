"""What the code and the guides cite exists: sections of METHOD.md, and files of the repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
METHOD = REPOSITORY / "prism_lite" / "METHOD.md"
GUIDES = [
    REPOSITORY / name
    for name in (
        "README.md", "CONTRIBUTING.md", "SECURITY.md", "prism_lite/GUIDE.md", "prism_lite/data/DATA.md",
        "prism_lite/study/RESULTS.md", "prism_lite/runs/FAULTS.md", "tests/bench/RESULTS.md",
    )
]  # fmt: skip
PACKAGES = ("prism_lite", "triton_kernels", "demo", "tests")
NUMBERS = r"\d+(?:\.\d+)?(?:(?:, | and | to |, and )\d+(?:\.\d+)?)*"
# A bare name would be a citation that nobody can look up; METHOD.md alone names the file.
CITATION = re.compile(rf"\bMETHOD\b(?:\.md)?(?: sections? (?P<numbers>{NUMBERS}))?")
PATH = re.compile(rf"`((?:{'|'.join(PACKAGES)})/[\w./-]+\.\w+)(?::\w+)?`")


def sections_of_method() -> list[str]:
    """Numbers of its headings ("5") and of its numbered findings ("5.2")."""
    text = METHOD.read_text(encoding="utf-8")
    return re.findall(r"^(?:## |- \*\*)(\d+(?:\.\d+)?)[. ]", text, re.MULTILINE)


def citing_files() -> list[Path]:
    code = (path for name in PACKAGES for path in (REPOSITORY / name).rglob("*.py"))
    return [path for path in (*code, *GUIDES) if path != Path(__file__)]


def unwrapped(path: Path) -> str:
    """The text with line breaks, indents and comment signs as single spaces."""
    return re.sub(r"\s+(?:# )?", " ", path.read_text(encoding="utf-8"))


def problems(text: str, sections: list[str]) -> list[str]:
    """The citations in a text that lead nowhere."""
    found = [f"cites {name}" for name in re.findall(r"\bDESIGN(?:\.md)?\b.{0,12}", text)]
    for match in CITATION.finditer(text):
        numbers = re.findall(r"\d+(?:\.\d+)?", match["numbers"] or "")
        if not numbers and not match.group().endswith(".md"):
            found.append(f"{text[match.start() : match.end() + 12]!r} names no section")
        found += [
            f"section {number} does not exist" for number in numbers if number not in sections
        ]
    return found


def test_sections_are_numbered_without_gaps() -> None:
    sections = sections_of_method()
    chapters = [number for number in sections if "." not in number]
    assert chapters == [str(i + 1) for i in range(len(chapters))]
    for chapter in chapters:
        items = [number for number in sections if number.startswith(f"{chapter}.")]
        assert items == [f"{chapter}.{i + 1}" for i in range(len(items))]


@pytest.mark.parametrize(
    ("text", "num_problems"),
    [
        ("METHOD.md section 2, METHOD section 5.1.", 0),
        ("METHOD.md sections 2 and 6.", 0),
        ("METHOD.md sections 2, 6 and 99.", 1),
        ("see METHOD.md", 0),
        ("METHOD 5.1: cut", 1),
        ("METHOD section 0", 1),
        ("DESIGN section 5", 1),
        ("ALIGN_METHODS and METHODS", 0),
    ],
)
def test_the_check_itself(text: str, num_problems: int) -> None:
    assert len(problems(text, sections_of_method())) == num_problems


def test_every_citation_names_a_section_that_exists() -> None:
    sections = sections_of_method()
    found = [
        f"{path.relative_to(REPOSITORY)}: {problem}"
        for path in citing_files()
        for problem in problems(unwrapped(path), sections)
    ]
    assert not found, "\n".join(found)


def test_method_refers_to_its_own_sections() -> None:
    text, sections = METHOD.read_text(encoding="utf-8"), sections_of_method()
    cited = re.findall(r"\bsection (\d+(?:\.\d+)?)|\((\d+\.\d+)\)", text)
    assert {first or second for first, second in cited} <= set(sections)


@pytest.mark.parametrize("guide", [*GUIDES, METHOD], ids=lambda path: path.name)
def test_files_that_a_guide_names_exist(guide: Path) -> None:
    named = [name for name in PATH.findall(guide.read_text(encoding="utf-8")) if "NAME" not in name]
    missing = [name for name in named if not (REPOSITORY / name).exists()]
    assert not missing, f"{guide.name} names files that are not there: {missing}"
