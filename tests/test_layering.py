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


PACKAGES = {"bdkernels": ROOT / "bdkernels", "bidistill": ROOT / "python" / "bidistill"}
ORDER = {  # rooms and files from the ground up: each imports from its own line or those above alone
    "bdkernels": [
        ["version", "ranges", "memory", "types", "weights"],
        ["checks"],
        ["storage"],
        ["backends"],
        ["optim"],
        ["sampling"],
        ["ops"],
        ["scorers"],
        ["functional"],
        ["losses"],
        ["distributed"],
        ["tools"],
        ["profile", "env_report"],
    ],
    "bidistill": [
        ["errors", "seeds", "logs", "presets"],
        ["registry"],
        [
            "options",
            "files",
            "models",
            "losses",
            "metrics",
            "catalog_metrics",
            "optimizers",
            "data_options",
            "train_options",
            "eval_options",
        ],
        ["config"],
        ["data"],
        ["distributed"],
        ["distill", "evaluation", "runs"],
        ["training"],
        ["experiments"],
        ["report", "plan", "tuning"],
        ["cli"],
        ["__main__"],
    ],
}


def modules(package: str) -> dict[str, Path]:
    """Every module of a package by its name; a folder's is that of its __init__.py."""
    root = PACKAGES[package]
    found = {}
    for path in root.rglob("*.py"):
        parts = (package, *path.relative_to(root).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def arrows(package: str) -> dict[str, set[str]]:
    """Which modules of the package each of its modules imports, anywhere in it: lazily and for type checkers too."""
    known = modules(package)
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found[name] |= {each.name for each in node.names if each.name in known}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute"
                for each in node.names:
                    full = f"{node.module}.{each.name}"
                    found[name] |= {full if full in known else node.module} & set(known)
        found[name].discard(name)
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The names on one circle of the graph, or none."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return way[way.index(name) :]
        if name not in done:
            for other in sorted(graph[name]):
                if found := walk(other, [*way, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in graph if (found := walk(name, []))), [])


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle_of_modules(package):
    assert circle(arrows(package)) == []


def test_a_circle_would_be_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_have_one_order(package):
    """No circle of folders, and no import from a later line of ORDER."""
    floor = {room: at for at, rooms in enumerate(ORDER[package]) for room in rooms}
    rooms = {name.split(".")[1] for name in modules(package) if "." in name}
    assert rooms == set(floor), rooms ^ set(floor)
    graph: dict[str, set[str]] = {room: set() for room in rooms}
    for name, others in arrows(package).items():
        for other in others:
            if "." in name and "." in other and (pair := (name.split(".")[1], other.split(".")[1]))[0] != pair[1]:
                graph[pair[0]].add(pair[1])
                assert floor[pair[0]] >= floor[pair[1]], f"{name} imports {other}"
            else:
                assert other != package or "." not in name or name.endswith("__main__"), f"{name} imports {package}"
    assert circle(graph) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_is_hidden_by_a_name(package):
    """`import a.b` gives the module b, and no function of that name."""
    code = f"import importlib, types, {package}\n" + "\n".join(
        f"importlib.import_module({name!r})" for name in modules(package) if not name.endswith("__main__")
    )
    code += "\nimport sys\nfor name in sorted(n for n in sys.modules if n.startswith(sys.argv[1] + '.')):\n"
    code += "    parent, _, own = name.rpartition('.')\n"
    code += "    assert getattr(sys.modules[parent], own) is sys.modules[name], name\n"
    subprocess.run([sys.executable, "-c", code, package], check=True)


def test_training_is_read_without_a_word_about_processes():
    """What is distributed comes in through one object, the partition; its own step is in one file."""
    words = re.compile(r"\b(process|processes|world|shard|shards|sharded|gather|torchrun|exchange)\b", re.I)
    allowed = {"sharded.py"}
    for path in sorted((PACKAGES["bidistill"] / "training").glob("*.py")):
        if path.name not in allowed:
            found = [line.strip() for line in path.read_text().splitlines() if words.search(line)]
            assert len(found) <= SAID.get(path.name, 0), f"{path.name}: {found}"


SAID = {  # lines that say where the other processes come in
    "strategy.py": 4,  # the seam itself
    "trainer.py": 2,  # the attribute `partition`, and a folder that another program changes
}


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
