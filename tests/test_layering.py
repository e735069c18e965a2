"""The rules of the layout, each as a test: one-way imports, torch-free kernels, light imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("triton", "bidistill", "scipy", "pandas", "pyarrow", "matplotlib", "safetensors")


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("path", sorted(ROOT.glob("bdkernels/**/*.py")), ids=lambda p: p.name)
def test_bdkernels_imports_torch_and_little_else(path):
    own = {"torch", "numpy", "bdkernels"} | ({"triton"} if path.parent.name == "triton" else set())
    assert imported(path) <= set(sys.stdlib_module_names) | own


def test_importing_is_light():
    """No compiler, no driver, no training stack: `import bdkernels` brings torch and itself."""
    code = f"import sys, bdkernels; print([m for m in {HEAVY} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "path", sorted(p for p in ROOT.glob("csrc/**/*") if p.suffix in (".h", ".cpp", ".cu")), ids=lambda p: p.name
)
def test_kernels_are_free_of_torch(path):
    """Only csrc/binding knows torch; csrc/core knows nothing of csrc/cpu."""
    includes = re.findall(r'#include [<"]([^>"]+)[>"]', path.read_text())
    if path.parent.name != "binding":
        assert not [i for i in includes if i.startswith(("torch", "ATen", "c10", "Python"))]
    if path.parent.name == "core":
        assert not [i for i in includes if "/" in i]


def test_operators_run_in_the_default_float_mode():
    """Every operator is boxed by BDKERNELS_BOX and enters the pool through the parallel_for of arguments.h; both set the mode."""
    bindings = sorted(ROOT.glob("csrc/binding/*"))
    assert len(bindings) > 10
    for path in bindings:
        text = path.read_text()
        if path.name == "arguments.h":
            assert (text.count("TORCH_BOX("), text.count("stable::parallel_for(")) == (1, 1)
            assert text.count("in_default_mode(") == 2
        else:
            assert not re.findall(r"TORCH_BOX|stable::parallel_for|torch_parallel_for|std::thread|pragma omp", text), (
                path
            )
            assert ".impl(" not in text or text.count(".impl(") == text.count("BDKERNELS_BOX("), path


def test_source_files_are_rooms_not_halls():
    long = {p: n for p in ROOT.glob("**/*") if p.suffix in (".py", ".cpp", ".h", ".cu") and not {".venv", "build"} & set(p.parts)
            and (n := len(p.read_text().splitlines())) > 500}  # fmt: skip
    assert not long


def test_readme_paths_and_commands_exist():
    """Every path, make target and command of the README is there."""
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    for target in re.findall(r"make ([a-z-]+)", text):
        assert target in targets, f"make {target}"
    for path in re.findall(r"`((?:csrc|bdkernels|python|tests|benchmarks)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m ([\w.]+)", text):
        run = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False)
        assert run.returncode == 0, f"python -m {module}: {run.stderr}"


def test_readme_python_runs():
    """Every Python block of the README, as it stands, one after the other."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert blocks
    subprocess.run([sys.executable, "-c", "\n".join(blocks)], check=True)


def test_no_test_reads_a_clock():
    """A busy machine would fail it. Waiting for something needs no limit: pytest has one."""
    clock = re.compile(r"\btime\.(time|monotonic|perf_counter)\(|\btimeout=\d")
    found = [
        path.name
        for path in (ROOT / "tests").rglob("test_*.py")
        if path != Path(__file__) and clock.search(path.read_text())
    ]
    assert not found
    assert clock.search("began = time.monotonic()") and clock.search("run(command, timeout=60)")
