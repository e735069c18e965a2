"""docs/extending.md: its code is that of the files in tests/outside, which other tests use."""

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "extending.md"


def test_code_of_the_page_is_that_of_a_file():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    files = {path.stem: path.read_text(encoding="utf-8") for path in (TESTS / "outside").glob("*.py")}
    tests = "".join(path.read_text(encoding="utf-8") for path in TESTS.glob("test_*.py"))
    assert blocks
    for block in blocks:
        found = [name for name, text in files.items() if block in text]
        assert found and f'"{found[0]}"' in tests, block
