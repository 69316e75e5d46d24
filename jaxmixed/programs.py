"""Compiled programs, kept within the process and across processes.

A :class:`Program` is a pure function that the front end runs on host arrays. It is compiled once per
structure and shape; the executable is kept in memory and, unless the user declines, in a cache folder of
jaxmixed's own, so that a new process neither traces nor compiles it again. JAX's own configuration and cache
settings are not touched.

The folder is ``$JAXMIXED_CACHE_DIR``, or ``jaxmixed`` under the user's cache folder; an empty
``JAXMIXED_CACHE_DIR`` turns it off. Executables are machine code: the folder is created for the user alone,
and a file or folder that others could have written is not read.

Programs must return flat tuples of arrays and use no LAPACK routine (jaxlib registers those while it
compiles, so an executable loaded without compiling could not call them).
"""

import hashlib
import json
import os
import platform
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jaxlib.version
from jax.experimental import serialize_executable

_FAST_COMPILATION: dict[str, str | bool | int] = {"xla_cpu_use_fusion_emitters": False}
"""Measured on these kernels: half the time to compile (0.9 s against 1.9 for a random slope) and no slower to
run for one data set."""

ONCE: dict[str, str | bool | int] = {**_FAST_COMPILATION, "xla_backend_optimization_level": 0}
"""For programs that run once, such as functions of the user's: a third of the time of the default."""

_NOISE = (b"cpu_aot_loader", b"Assume version compatibility")
_ERROR_STREAM = threading.Lock()  # held while it is turned aside: it belongs to the whole process


@cache
def cache_directory() -> Path | None:
    """Folder of the kept executables, or None when switched off or unusable."""
    configured = os.environ.get("JAXMIXED_CACHE_DIR")
    if configured == "":
        return None
    if configured:
        folder = Path(configured)
    elif sys.platform == "win32":
        return None  # ownership cannot be checked there with the standard library
    else:
        base = Path(
            "~/Library/Caches" if sys.platform == "darwin" else os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        )
        folder = base.expanduser() / "jaxmixed"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None
    return folder if _only_mine(folder) else None


def _only_mine(path: Path) -> bool:
    status = path.stat()
    owner = status.st_uid == os.getuid() if hasattr(os, "getuid") else True
    return owner and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@cache
def _fingerprint() -> str:
    """What an executable depends on besides its key: versions, processor, and this package's own kernels."""
    digest = hashlib.sha256()
    for text in (
        jax.__version__,
        jaxlib.version.__version__,
        sys.version,
        platform.machine(),
        jax.devices()[0].device_kind,
    ):
        digest.update(text.encode())
    try:
        flags = next(
            line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")
        )
    except (OSError, StopIteration):
        flags = platform.processor()
    digest.update(flags.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


@contextmanager
def _quiet_loader() -> Iterator[None]:
    """Hold back the two known, harmless lines that XLA's loader writes to the error stream, and no others.

    The loader compares the processor with pseudo-features of its own code generator ("prefer-no-gather") and
    warns whenever they are used; the processor is already part of the file's name.
    """
    with _ERROR_STREAM:
        try:
            error_stream = sys.__stderr__.fileno() if sys.__stderr__ is not None else 2
            saved = os.dup(error_stream)
        except (OSError, ValueError):
            yield
            return
        with tempfile.TemporaryFile() as captured:
            os.dup2(captured.fileno(), error_stream)
            try:
                yield
            finally:
                os.dup2(saved, error_stream)
                os.close(saved)
                captured.seek(0)
                for line in captured.read().splitlines(keepends=True):
                    if not any(noise in line for noise in _NOISE):
                        os.write(error_stream, line)


def current_device() -> Any:
    """Device on which a program runs here and now: JAX's default device in this thread."""
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
    if isinstance(chosen, str):
        return jax.local_devices(backend=chosen)[0]
    return jax.local_devices()[0] if chosen is None else chosen


class Program:
    """A pure function of pytrees of host arrays, compiled once per structure and shape.

    Parameters
    ----------
    function : callable
        Takes the array arguments, then the static ones by keyword; returns a flat tuple of arrays.
    options : dict, optional
        Of the compiler; by default those that compile fast.

    Attributes
    ----------
    compiled : int
        Number of compilations so far in this process (loading a kept executable is none).

    Examples
    --------
    >>> import numpy as np
    >>> from jaxmixed.precision import double_precision
    >>> double = Program(lambda x: (2 * x,))
    >>> with double_precision():
    ...     float(double(np.ones(()))[0])
    2.0
    """

    def __init__(
        self, function: Callable[..., tuple[Any, ...]], *, options: dict[str, str | bool | int] | None = None
    ) -> None:
        self.function = function
        self.options = _FAST_COMPILATION if options is None else options
        self.compiled = 0
        self._executables: dict[Any, Callable[..., Any]] = {}
        self._lock = threading.Lock()
        self._being_made: dict[Any, threading.Lock] = {}

    def __call__(self, *arguments: Any, **static: Any) -> tuple[Any, ...]:
        """Run on host arrays, inside the scope of :func:`jaxmixed.precision.double_precision`."""
        leaves, tree = jax.tree.flatten(arguments)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        # An executable belongs to the device that it was made for.
        key = (tree, tuple(sorted(static.items())), shapes, current_device())
        executable = self._executables.get(key)
        if executable is None:
            executable = self._make(key, arguments, static)
        return executable(*arguments)

    def _make(self, key: Any, arguments: tuple[Any, ...], static: dict[str, Any]) -> Callable[..., Any]:
        """Executable that is not there yet; threads that want the same one wait for it, others do not."""
        with self._lock:
            own = self._being_made.setdefault(key, threading.Lock())
        with own:
            executable = self._executables.get(key)
            if executable is None:
                executable = self._executables[key] = self._obtain(key, arguments, static)
        with self._lock:
            self._being_made.pop(key, None)
        return executable

    def _obtain(self, key: Any, arguments: tuple[Any, ...], static: dict[str, Any]) -> Callable[..., Any]:
        path, device = self._path(key), key[-1]
        if path is not None and (executable := _load(path, arguments, device)) is not None:
            return executable
        compiled = compiled_at(self.function, arguments, static, self.options)
        with self._lock:
            self.compiled += 1
        if path is not None:
            _store(path, compiled)
        return compiled

    def _path(self, key: Any) -> Path | None:
        folder = cache_directory()
        tree, static, shapes, device = key
        if folder is None or device.platform != "cpu":
            return None
        known = str(tree) + repr(static)
        if " at 0x" in known:
            return None  # a function of the user's, whose address says nothing to another process
        text = "\n".join(
            (
                self.function.__module__,
                self.function.__qualname__,
                known,
                repr(shapes),
                str(device.id),
                repr(self.options),
                _fingerprint(),
            )
        )
        return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.xla"


def compiled_at(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    static: dict[str, Any],
    options: Mapping[str, Any],
) -> Any:
    """Executable of a function at these arguments' shapes."""
    traced = partial(function, **static)
    traced.__name__ = function.__name__  # type: ignore[attr-defined]
    lowered = jax.jit(traced).lower(*arguments)
    try:
        return lowered.compile(dict(options))
    except jax.errors.JaxRuntimeError:  # an option that this version of XLA, or this device, does not have
        return lowered.compile()


def _store(path: Path, compiled: Any) -> None:
    """Write an executable so that a reader sees all of it or nothing; failure is not the user's problem."""
    if "lapack" in compiled.as_text():
        return  # a process that loads it without compiling would not have registered the routine, and crash
    try:
        payload, _, out_tree = serialize_executable.serialize(compiled)
        header = json.dumps({"outputs": out_tree.num_leaves}).encode()
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(header + b"\n" + payload)
        os.replace(file.name, path)
    except (OSError, ValueError, TypeError, NotImplementedError, RuntimeError):
        return


def _load(path: Path, arguments: tuple[Any, ...], device: Any) -> Callable[..., Any] | None:
    """Executable kept by an earlier process, or None when there is none that can be trusted and read."""
    try:
        if not _only_mine(path):
            return None
        header, _, payload = path.read_bytes().partition(b"\n")
        outputs = json.loads(header)["outputs"]
        in_tree = jax.tree.structure((arguments, {}))
        out_tree = jax.tree.structure((0,) * outputs)
        with _quiet_loader():
            return serialize_executable.deserialize_and_load(
                payload, in_tree, out_tree, backend=device.client, execution_devices=[device]
            )
    except FileNotFoundError:
        return None
    except Exception:  # a truncated or foreign file: whatever the loader says, compile instead
        return None
