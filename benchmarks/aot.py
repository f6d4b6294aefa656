"""Every Triton kernel, compiled for every target without a GPU, and what it costs there.

Run as `python -m videoar.benchmarks.aot`. Prints a table and, as the last line, the same rows as
JSON. Fails if a kernel does not compile, spills registers, wants more shared memory than the target
has, lacks the matrix instruction it was written for, or moves values one by one where whole vectors
were meant.

A module of `videoar.kernels` takes part by having `aot_variants() -> list[Variant]`.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import videoar.kernels
from videoar.kernels.jit import PDL_CAPABILITY, interpreted, triton
from videoar.kernels.variant import Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A GPU architecture.

    Attributes:
        backend, arch, warp_size: as Triton names it.
        shared_bytes: the most shared memory (AMD: LDS) that one program can have.
    """

    backend: str
    arch: int | str
    warp_size: int
    shared_bytes: int


# Shared memory: CUDA programming guide, "maximum amount per thread block"; CDNA 3 ISA, LDS.
TARGETS = {
    "sm_80": Target(backend="cuda", arch=80, warp_size=32, shared_bytes=163 * 1024),
    "sm_90": Target(backend="cuda", arch=90, warp_size=32, shared_bytes=227 * 1024),
    "sm_100": Target(backend="cuda", arch=100, warp_size=32, shared_bytes=227 * 1024),
    "sm_120": Target(backend="cuda", arch=120, warp_size=32, shared_bytes=99 * 1024),
    "gfx942": Target(backend="hip", arch="gfx942", warp_size=64, shared_bytes=64 * 1024),
}
# In the assembly text, the strongest first: a kernel may also hold small `mma.sync` products.
TENSOR_CORE = {"cuda": ("tcgen05.mma", "wgmma.mma_async", "mma.sync"), "hip": ("v_mfma",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the compiler made of one variant on one target; None where it failed.

    Attributes:
        kernel, target: names.
        registers: of a thread.
        spill_bytes: stack of a thread (AMD: 4 bytes a spilled vector register).
        shared_bytes: of a program.
        tensor_core: the matrix instruction found, or "-".
        vector_bytes: of the widest load from memory or of the widest store, whichever is less.
        problem: why the row fails the run, or "".
    """

    kernel: str
    target: str
    registers: int | None = None
    spill_bytes: int | None = None
    shared_bytes: int | None = None
    tensor_core: str = "-"
    vector_bytes: int | None = None
    problem: str = ""


def collect() -> list[Variant]:
    """The variants of all kernel modules that offer some."""
    modules = (
        import_module(f"videoar.kernels.{module.name}")
        for module in iter_modules(videoar.kernels.__path__)
    )
    # An op and its file of kernels may both show the same function.
    offers = dict.fromkeys(m.aot_variants for m in modules if hasattr(m, "aot_variants"))
    return [variant for offer in offers for variant in offer()]


def choose(
    variants: list[Variant], pattern: str, targets: list[str], fast: bool
) -> list[tuple[Variant, str]]:
    """Pairs to compile: names that contain `pattern`; fast: each kernel once, for sm_90."""
    chosen = [v for v in variants if pattern in v.name]
    if fast:
        targets = ["sm_90"]
        eligible = [v for v in chosen if not v.targets or "sm_90" in v.targets]
        chosen = list({v.kernel: v for v in reversed(eligible)}.values())[::-1]
    return [(v, t) for v in chosen for t in targets if not v.targets or t in v.targets]


def compile_variant(variant: Variant, target: Target) -> "triton.compiler.CompiledKernel":
    """Compile as a launch with these arguments would.

    A kernel's `PDL` is what the target has, where the variant does not fix it.

    Raises:
        ValueError: the signature and constexprs are not the kernel's arguments.
    """
    names = variant.kernel.arg_names
    constexprs = dict(variant.constexprs)
    if "PDL" in names:
        has_pdl = target.backend == "cuda" and divmod(target.arch, 10) >= PDL_CAPABILITY
        constexprs.setdefault("PDL", has_pdl)
    given = set(variant.signature) | set(constexprs)
    if given != set(names) or len(given) != len(variant.signature) + len(constexprs):
        raise ValueError(
            f"{variant.name}: arguments expected {sorted(names)}, "
            f"got {sorted([*variant.signature, *constexprs])}"
        )
    divisible = variant.divisible
    if divisible is None:
        divisible = [name for name, kind in variant.signature.items() if kind.startswith("*")]
    source = triton.compiler.ASTSource(
        fn=variant.kernel,
        signature={name: variant.signature.get(name, "constexpr") for name in names},
        constexprs=constexprs,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in divisible},
    )
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    if constexprs.get("PDL"):
        options["launch_pdl"] = True
    return triton.compile(
        source,
        target=triton.backends.compiler.GPUTarget(target.backend, target.arch, target.warp_size),
        options=options,
    )


def measure(variant: Variant, name: str) -> Row:
    """Compile one variant for one target and read its resources."""
    target = TARGETS[name]
    try:
        compiled = compile_variant(variant, target)
    except Exception as error:  # whatever the compiler raises is this row's result
        # Triton's messages begin with the source and end with the reason.
        reason = (str(error).strip() or repr(error)).splitlines()[-1]
        problem = f"{type(error).__name__}: {reason}"
        return Row(kernel=variant.name, target=name, problem=problem)
    if target.backend == "cuda":
        text = compiled.asm["ptx"]
        registers, spill_bytes, shared_bytes = _cubin_usage(compiled.asm["cubin"])
    else:
        text = compiled.asm["amdgcn"]
        registers, spill_bytes, shared_bytes = _amdgcn_usage(text)
    # What Triton lays out is asked for at the launch, and is not in the binary.
    shared_bytes = max(shared_bytes, compiled.metadata.shared)
    found = next((i for i in TENSOR_CORE[target.backend] if i in text), "-")
    vector_bytes = _vector_bytes(text, target.backend)
    problems = []
    if spill_bytes:
        problems.append(f"{spill_bytes} bytes spilled")
    if shared_bytes > target.shared_bytes:
        problems.append(f"shared memory: {shared_bytes} of {target.shared_bytes} bytes")
    if variant.expects_mma and found == "-":
        problems.append("no matrix instruction")
    if target.backend == "cuda" and vector_bytes < variant.vector_bytes:
        problems.append(f"accesses of {vector_bytes} bytes, meant {variant.vector_bytes}")
    return Row(
        kernel=variant.name,
        target=name,
        registers=registers,
        spill_bytes=spill_bytes,
        shared_bytes=shared_bytes,
        tensor_core=found,
        vector_bytes=vector_bytes,
        problem=", ".join(problems),
    )


def _cubin_usage(cubin: bytes) -> tuple[int, int, int]:
    """Registers, stack bytes and static shared bytes, as cuobjdump reads them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return tuple(_number(rf"{key}:(\d+)", text) for key in ("REG", "STACK", "SHARED"))


def _amdgcn_usage(text: str) -> tuple[int, int, int]:
    """Vector registers, spilled bytes and LDS bytes, from the metadata of the assembly."""
    registers = _number(r"\.vgpr_count:\s*(\d+)", text)
    spilled = _number(r"\.vgpr_spill_count:\s*(\d+)", text)
    return registers, 4 * spilled, _number(r"\.group_segment_fixed_size:\s*(\d+)", text)


def _vector_bytes(text: str, backend: str) -> int:
    """The least of the widest load and the widest store of global memory, of one thread."""
    if backend == "cuda":
        pattern = r"\b(ld|st)\.global(?:\.(?!v\d)[\w:]+)*?(?:\.v(\d))?\.[busf](\d+)\b"
        widths = [
            (kind, int(n or 1) * int(bits) // 8) for kind, n, bits in re.findall(pattern, text)
        ]
        copies = re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*?\], \[[^]]*\], (\w+)", text)
        widths += [("ld", int(size, 0)) for size in copies]
    else:
        pattern = r"\b(?:global|buffer)_(load|store)_[us]?(byte|short|dword)(?:x(\d))?"
        sizes = {"byte": 1, "short": 2, "dword": 4}
        widths = [
            ("ld" if kind == "load" else "st", sizes[name] * int(n or 1))
            for kind, name, n in re.findall(pattern, text)
        ]
    return min(max((w for k, w in widths if k == kind), default=0) for kind in ("ld", "st"))


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    assert match, f"no {pattern!r} in the compiler's report:\n{text[-2000:]}"
    return int(match[1])


def _table_line(width: int, *cells: str | int | None) -> str:
    texts = ["-" if cell is None else str(cell) for cell in cells]
    line = f"{{:<{width}}} {{:<7}}{{:>10}}{{:>7}}{{:>8}}  {{:<16}}{{:>7}}  {{}}"
    return line.format(*texts).rstrip()


def main(arguments: list[str] | None = None) -> int:
    """Print the table and the JSON line; 1 if a row has a problem."""
    parser = argparse.ArgumentParser(prog="videoar.benchmarks.aot", description=__doc__)
    parser.add_argument("--target", action="append", choices=TARGETS, help="repeatable; else all")
    parser.add_argument("--kernel", default="", help="only variants whose name contains this")
    parser.add_argument("--fast", action="store_true", help="each kernel once, for sm_90")
    options = parser.parse_args(arguments)
    if interpreted():
        parser.error("TRITON_INTERPRET is set: the interpreter's kernels cannot be compiled")
    pairs = choose(collect(), options.kernel, options.target or list(TARGETS), options.fast)
    if not pairs:
        parser.error(f"--kernel {options.kernel!r}: no variant has such a name")
    print(f"triton {triton.__version__}")
    width = max(len(variant.name) for variant, _ in pairs)
    heads = ("kernel", "target", "registers", "spill", "shared", "tensor core", "vector", "")
    print(_table_line(width, *heads))
    rows = []
    for variant, target in pairs:
        rows.append(measure(variant, target))
        print(_table_line(width, *asdict(rows[-1]).values()), flush=True)
    print(json.dumps([asdict(row) for row in rows]))
    return int(any(row.problem for row in rows))


if __name__ == "__main__":
    sys.exit(main())
