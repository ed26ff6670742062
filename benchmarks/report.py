"""Results as tables in benchmarks/README.md and README.md, and as a plot in docs/."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PLOT, README = Path("docs/benchmarks.png"), Path("README.md")
MARKS = "<!-- benchmarks -->", "<!-- end of benchmarks -->"  # between them README.md holds its table
TITLES = {
    "cpu": "CPU with AMX, reduced",
    "cpu_avx512": "CPU with AVX-512, reduced",
    "full": "CPU, published size",
    "gpu": "GPU",
}

WHY = {  # an item of a profile is there
    "aten::mm": "the products of the linear layers, backward, and of the head: the work itself",
    "aten::addmm": "the products of the linear layers, forward: the work itself",
    "aten::bmm": "the attention's two products: the work itself",
    "aten::mkldnn_convolution": "convolutions, forward: the work itself",
    "aten::convolution_backward": "convolutions, backward: the work itself",
    "aten::copy_": "changes of layout, and under --amp of type",
    "aten::native_layer_norm": "normalisation, in float32; bound by memory",
    "aten::native_group_norm": "normalisation, in float32; bound by memory",
    "aten::native_group_norm_backward": "normalisation, in float32; bound by memory",
    "aten::native_layer_norm_backward": "normalisation, in float32; bound by memory",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "fused attention: the work itself",
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": "fused attention, backward: the work itself",
    "aten::_softmax": "softmax of the attention, in float32",
    "aten::cat": "query, key and value as one product: weights forward, gradients backward",
    "aten::gelu": "activation; bound by memory",
    "aten::gelu_backward": "activation; bound by memory",
    "aten::silu": "activation; bound by memory",
    "aten::silu_backward": "activation; bound by memory",
    "aten::lerp_": "Adam's first moment; bound by memory, and smaller the larger the batch",
    "aten::addcmul_": "Adam's second moment; likewise",
    "aten::div": "Adam's denominator; likewise",
    "aten::_fused_adam_": "Adam; bound by memory",
    "aten::_foreach_lerp_": "the average; bound by memory",
    "aten::exponential_": "noise for every code of every token at every step",
    "aten::gather": "picking the places that are due",
    "aten::_slow_conv2d_forward": "convolutions of a single image on one thread, without oneDNN",
    "aten::_slow_conv2d_backward": "convolutions of a single image on one thread, without oneDNN",
    "aten::max_pool2d_with_indices": "pooling in LPIPS' network; bound by memory",
    "aten::sum": "bias gradients and reductions",
}
KERNELS = [  # the same for CUDA, by a part of a kernel's name
    ("implicit_gemm", "convolutions: the work itself"),
    ("fmha", "fused attention: the work itself"),
    ("sdpa", "fused attention: the work itself"),
    ("nvjet", "products of linear layers: the work itself"),
    ("gemm", "products of linear layers: the work itself"),
    ("direct_copy", "changes of layout and type; bound by memory"),
    ("FusedOptimizer", "Adam; bound by memory"),
    ("group_norm", "normalisation and activation, compiled into one; bound by memory"),
    ("layer_norm", "normalisation, compiled with what is around it; bound by memory"),
    ("gelu", "activation; bound by memory and its error function"),
    ("fused_add", "residual sums; bound by memory"),
]
LONGEST = 48  # letters of a kernel's name


def write_report(folder: Path, rows: Iterable[str], plot: Path = PLOT, readme: Path = README) -> None:
    """From `results/*.json` of a folder of benchmarks; `rows`: the keys of all that can be measured."""
    results = {
        name: json.loads(path.read_text()) for name in TITLES if (path := folder / f"results/{name}.json").exists()
    }
    parts = [
        "# Benchmarks",
        "",
        "This code against a literal implementation of the published algorithm (`benchmarks/baseline/`): both are",
        "timed in turn, in one process. Since commit a4769cd it keeps freed memory for both, as the scripts do. Times",
        "are medians, with the fastest and the slowest in brackets. `make bench`, `make bench-full` and",
        "`make bench-gpu` write this file; `--only` and `--repeats` of `python -m benchmarks.run` measure single rows",
        "again.",
        "",
        "- **reduced**: what is smaller than in the published setting.",
        "- **float32**, **amp**: this code without and with `--amp`.",
        "- **share of the product rate**, or MFU: operations per second, as a share of what one large square matrix",
        "  product reaches on the same machine.",
        "- **∝ batch^** and the like: the exponent with which time or memory grows.",
    ]
    for name, result in results.items():
        parts += ["", f"## {TITLES[name]}", "", _machine(result["environment"]), "", *_table(result["rows"])]
        parts += _figures(result["rows"]) + _profiles(result["profiles"]) + _measured_anew(result.get("anew", {}))
        if missing := [name for name in rows if name not in result["rows"]]:
            parts += ["", f"Not measured here: {', '.join(missing)}."]
    (folder / "README.md").write_text("\n".join(parts) + "\n")
    if results:
        _plot(results, plot)
        table = "\n".join([MARKS[0], *_summary(results), MARKS[1]])
        readme.write_text(re.sub(f"{MARKS[0]}.*{MARKS[1]}", lambda _: table, readme.read_text(), flags=re.DOTALL))


def _machine(environment: dict[str, Any]) -> str:
    where = environment["gpu"] or f"{environment['cpu']}, {environment['threads']} threads"
    load = environment["load_average"][0] if environment["load_average"] else "unknown"
    versions = f"torch {environment['torch']}, Python {environment['python']}, commit {environment['commit']}"
    took = f", {environment['minutes']:.1f} minutes" if "minutes" in environment else ""
    when = f"{environment['date']}; load average at the start {load}"
    return f"{where}; {versions}; {when}. `{environment['command']}`{took}"


def _measured_anew(parts: dict[str, Any]) -> list[str]:
    """Lines about rows, and profiles, that were not measured with the others."""
    told = (f"Measured separately, {name}: {_machine(environment)}" for name, environment in parts.items())
    return [line for part in told for line in ("", part)]


def _table(rows: dict[str, Any]) -> list[str]:
    lines = ["| work | reduced | target | baseline | here | faster |", "|---|---|---|---|---|---|"]
    for row in rows.values():
        if not row["speedup"] or row["name"].startswith("reading"):
            continue
        reference = row["timings"][row["baseline"]]
        here = [f"{name} {_time(t)}" for name, t in row["timings"].items() if name != row["baseline"]]
        faster = [f"{name} **{times:.2f} ×**" for name, times in row["speedup"].items()]
        cells = [row["name"], row["reduced"], row["target"], f"{_time(reference)} {row['unit']}"]
        lines.append(f"| {' | '.join([*cells, '<br>'.join(here), '<br>'.join(faster)])} |")
    return lines


def _summary(results: dict[str, Any]) -> list[str]:
    """README.md's table: times faster, row by row."""
    lines = ["| work | machine | times faster than the published algorithm |", "|---|---|---|"]
    for name, result in results.items():
        for work, faster in _speedups(result["rows"]).items():
            ratios = ", ".join(f"{variant} {times:.1f} ×" for variant, times in faster.items())
            lines.append(f"| {work} | {TITLES[name]} | {ratios} |")
    return lines


def _speedups(rows: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By row and variant; of larger images the ratio of evaluations."""
    found = {
        row["name"]: {variant: times for variant, times in row["speedup"].items() if "baseline" not in variant}
        for row in rows.values()
        if not row["name"].startswith("reading")
    }
    if larger := rows.get("larger"):
        found[larger["name"]] = {"evaluations": larger["figures"]["published / here"]}
    return {name: faster for name, faster in found.items() if faster}


def _time(timing: dict[str, float]) -> str:
    return f"{timing['median']:.3g} ({timing['low']:.3g}–{timing['high']:.3g})"


def _figures(rows: dict[str, Any]) -> list[str]:
    lines = ["", "| work | figure | value |", "|---|---|---|"]
    for row in rows.values():
        for label, value in {**row["checks"], **row["figures"]}.items():
            lines.append(f"| {row['name']} | {label} | {f'{value:.3g}' if isinstance(value, float) else value} |")
    return lines


def _profiles(profiles: dict[str, Any]) -> list[str]:
    if not profiles:
        return []
    lines = [
        "",
        "Largest items of torch.profiler, in percent of the time:",
        "",
        "| stage | 1 | 2 | 3 |",
        "|---|---|---|---|",
    ]
    for stage, items in profiles.items():
        cells = [f"{item['item'][:LONGEST]} {item['percent']} ({_why(item['item'])})" for item in items[:3]]
        lines.append(f"| {' | '.join([stage, *cells])} |")
    return lines


def _why(item: str) -> str:
    return WHY.get(item) or next((why for part, why in KERNELS if part in item), "no note")


def _plot(results: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    name = next(name for name in ("gpu", "full", "cpu") if name in results)
    bars = [
        (f"{work}, {variant}", times)
        for work, faster in _speedups(results[name]["rows"]).items()
        for variant, times in faster.items()
    ]
    figure, axes = plt.subplots(figsize=(9, 0.45 * len(bars) + 1.2), constrained_layout=True)
    labels, values = [label for label, _ in bars][::-1], [value for _, value in bars][::-1]
    drawn = axes.barh(labels, values, color="#4878a8")
    axes.bar_label(drawn, [f"{value:.1f} ×" for value in values], padding=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(0.5, 2.2 * max(values))
    axes.set_xlabel(f"times faster than the published algorithm ({TITLES[name]})")
    axes.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)
