"""docs/extending.md and docs/methods.md: their code is that of the files in tests/outside, which other tests use."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PAGES = [TESTS.parent / "docs" / name for name in ("extending.md", "methods.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_of_the_page_is_that_of_a_file(page):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    files = {path.stem: path.read_text(encoding="utf-8") for path in (TESTS / "outside").glob("*.py")}
    tests = "".join(path.read_text(encoding="utf-8") for path in TESTS.glob("test_*.py"))
    assert blocks
    for block in blocks:
        found = [name for name, text in files.items() if block in text]
        assert found and f'"{found[0]}"' in tests, block
