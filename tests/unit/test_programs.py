"""Compiled programs: one compilation per shape, kept on disk for later processes, refused if not trusted."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from jaxmixed import programs
from jaxmixed.precision import double_precision
from jaxmixed.programs import Program, cache_directory
from tests.support.fits import quietly

on_posix = pytest.mark.skipif(sys.platform == "win32", reason="executables are kept on POSIX systems only")


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with double_precision():
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of the test's own."""
    path = tmp_path / "kept"
    monkeypatch.setenv("JAXMIXED_CACHE_DIR", str(path))
    cache_directory.cache_clear()
    yield path
    monkeypatch.undo()
    cache_directory.cache_clear()


@pytest.fixture
def no_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("JAXMIXED_CACHE_DIR", "")
    cache_directory.cache_clear()
    yield
    monkeypatch.undo()
    cache_directory.cache_clear()


def squares(x: jax.Array, offsets: dict[str, jax.Array], *, power: int = 2) -> tuple[jax.Array, jax.Array]:
    return x**power + offsets["a"], jnp.sum(x)


def cholesky(x: jax.Array) -> tuple[jax.Array]:
    return (jnp.linalg.cholesky(x),)


def check(program: Program, x: np.ndarray) -> None:
    powers, total = program(x, {"a": np.ones_like(x)}, power=2)
    np.testing.assert_array_equal(powers, x**2 + 1)
    assert total == x.sum()


@pytest.mark.usefixtures("no_folder")
def test_a_shape_is_compiled_once() -> None:
    program = Program(squares)
    for scale in (1.0, 2.0, 3.0):
        check(program, scale * np.arange(4.0))
    assert program.compiled == 1


@pytest.mark.usefixtures("no_folder")
def test_a_new_shape_dtype_or_static_argument_is_compiled_anew() -> None:
    program = Program(squares)
    check(program, np.arange(4.0))
    check(program, np.arange(5.0))
    assert program.compiled == 2
    check(program, np.arange(4.0, dtype=np.float32))
    assert program.compiled == 3
    cubes, _ = program(np.arange(4.0), {"a": np.zeros(4)}, power=3)
    assert program.compiled == 4
    np.testing.assert_array_equal(cubes, [0, 1, 8, 27])
    check(program, np.arange(4.0))
    assert program.compiled == 4


@on_posix
def test_a_second_process_loads_what_the_first_compiled(folder: Path) -> None:
    first, second = Program(squares), Program(squares)
    check(first, np.arange(4.0))
    assert first.compiled == 1
    assert len(list(folder.iterdir())) == 1
    check(second, np.arange(4.0))
    assert second.compiled == 0
    check(second, np.arange(6.0))
    assert second.compiled == 1


@on_posix
def test_a_new_process_really_loads_it(folder: Path) -> None:
    script = (
        "import numpy as np\n"
        "from jaxmixed.likelihood import profile\n"
        "from jaxmixed.precision import double_precision\n"
        "from jaxmixed.programs import Program\n"
        "from jaxmixed.statistics import summarise\n"
        "with double_precision():\n"
        "    one, codes = np.ones((6, 1)), np.repeat(np.arange(3), 2)\n"
        "    stats = summarise(np.arange(6.0), one, one, codes, num_groups=3)\n"
        "    program = Program(profile)\n"
        "    print(float(program([np.ones((1, 1))], stats)[0]), program.compiled)\n"
    )
    environment = {**os.environ, "JAXMIXED_CACHE_DIR": str(folder), "PYTHONPATH": str(Path.cwd())}
    outputs = [
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
        )
        for _ in range(2)
    ]
    (first, second) = (output.stdout.split() for output in outputs)
    assert (first[-1], second[-1]) == ("1", "0")
    assert first[:-1] == second[:-1]
    assert outputs[1].stderr == ""


@on_posix
def test_a_truncated_file_is_compiled_again_and_replaced(folder: Path) -> None:
    check(Program(squares), np.arange(4.0))
    (kept,) = folder.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    again = Program(squares)
    check(again, np.arange(4.0))
    assert again.compiled == 1
    last = Program(squares)
    check(last, np.arange(4.0))
    assert last.compiled == 0


@on_posix
@pytest.mark.parametrize("content", [b"", b"hello", b"{}\n", b'{"outputs": 2}\n', b"\x80\x04]\n" * 50])
def test_a_foreign_file_is_compiled_again(folder: Path, content: bytes) -> None:
    check(Program(squares), np.arange(4.0))
    (kept,) = folder.iterdir()
    kept.write_bytes(content)
    again = Program(squares)
    check(again, np.arange(4.0))
    assert again.compiled == 1


@on_posix
def test_files_and_folder_are_for_the_user_alone(folder: Path) -> None:
    check(Program(squares), np.arange(4.0))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in folder.iterdir())


@on_posix
@pytest.mark.parametrize("mode", [0o660, 0o606])
def test_a_file_that_others_may_write_is_not_read(folder: Path, mode: int) -> None:
    check(Program(squares), np.arange(4.0))
    (kept,) = folder.iterdir()
    kept.chmod(mode)
    again = Program(squares)
    check(again, np.arange(4.0))
    assert again.compiled == 1


@on_posix
@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_may_write_is_not_used(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    assert cache_directory() is None
    check(Program(squares), np.arange(4.0))
    assert list(folder.iterdir()) == []


@on_posix
def test_a_folder_that_cannot_be_made_turns_keeping_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXMIXED_CACHE_DIR", str(tmp_path / "file" / "kept"))
    cache_directory.cache_clear()
    try:
        assert cache_directory() is None
        check(Program(squares), np.arange(4.0))
    finally:
        monkeypatch.undo()
        cache_directory.cache_clear()


@pytest.mark.usefixtures("no_folder")
def test_an_empty_variable_turns_keeping_off() -> None:
    assert cache_directory() is None


@on_posix
def test_without_the_variable_the_users_cache_folder_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAXMIXED_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache_directory.cache_clear()
    try:
        found = cache_directory()
        assert found is not None
        assert found.is_relative_to(tmp_path)
        assert found.name == "jaxmixed"
    finally:
        monkeypatch.undo()
        cache_directory.cache_clear()


@on_posix
def test_other_versions_get_other_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(Program(squares), np.arange(4.0))
    monkeypatch.setattr(programs, "_fingerprint", lambda: "another version")
    other = Program(squares)
    check(other, np.arange(4.0))
    assert other.compiled == 1
    assert len(list(folder.iterdir())) == 2


@on_posix
def test_writing_leaves_no_partial_files(folder: Path) -> None:
    program = Program(squares)
    for n in range(2, 6):
        check(program, np.arange(float(n)))
    assert {path.suffix for path in folder.iterdir()} == {".xla"}
    assert len(list(folder.iterdir())) == 4


@on_posix
def test_a_program_that_calls_lapack_is_not_kept(folder: Path) -> None:
    factorise = Program(cholesky)
    np.testing.assert_allclose(factorise(4.0 * np.eye(3))[0], 2.0 * np.eye(3))
    assert list(folder.glob("*.xla")) == []


def test_the_users_compilation_cache_is_left_alone() -> None:
    before = jax.config.jax_compilation_cache_dir
    check(Program(squares), np.arange(4.0))
    assert jax.config.jax_compilation_cache_dir == before


def two_column_data(seed: int, m: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(m), rng.integers(2, 7, m))
    x = rng.normal(size=len(g))
    b = rng.normal(size=(m, 2))
    return pd.DataFrame({"y": x + b[g, 0] + x * b[g, 1] + rng.normal(size=len(g)), "x": x, "g": g})


class Compilations:
    """Counts what XLA compiles in this process, whoever asks for it."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self)

    def __call__(self, event: str, duration: float, **_: object) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def compilations() -> Compilations:
    return Compilations()


def everything(data: pd.DataFrame) -> None:
    fit = quietly("y ~ x + (x | g)", data)
    assert fit.converged
    fit.ranef_se(beta="estimated")
    str(fit.summary())


@pytest.mark.usefixtures("no_folder")
def test_a_second_data_set_of_similar_shape_compiles_nothing(compilations: Compilations) -> None:
    everything(two_column_data(0, 27))
    before = compilations.count
    for seed, m in ((1, 26), (2, 29), (3, 32)):
        everything(two_column_data(seed, m))
    assert compilations.count == before
    jax.jit(lambda x: x + 1)(np.ones(7))
    assert compilations.count > before  # the counter does count


@on_posix
def test_a_kept_program_is_loaded_without_compiling(folder: Path, compilations: Compilations) -> None:
    check(Program(squares), np.arange(4.0))
    before = compilations.count
    check(Program(squares), np.arange(4.0))
    assert compilations.count == before
    assert folder.exists()
